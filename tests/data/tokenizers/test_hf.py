"""Tokenizers of Hugging Face: text never encodes to special tokens, ids are those of the file."""

import json

import cloudpickle
import pytest
import tokenizers

from mm1_jax.data.tokenizers.hf import HFTokenizer

SPECIAL = ["<|begin|>", "<|end|>", "<|pad|>"]


@pytest.fixture
def path(tmp_path):
    """The file of a byte-level BPE, the kind that Llama 3 and Qwen use."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["two red circles and a square"] * 4, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    names = zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(names)))
    return path


@pytest.fixture
def cfg(path):
    return HFTokenizer.default_config().set(model_path=str(path))


def test_decoding_returns_the_text_and_spelled_special_tokens_are_text(cfg):
    tokenizer = cfg.instantiate()
    for text in ("two red circles", "na\u00efve\n\n 12 <|end|> <image>", ""):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.image_token} & set(ids)


def test_the_image_token_follows_all_ids_and_the_vocabulary_size_is_rounded_up(cfg, path):
    tokenizer = cfg.instantiate()
    num_ids = len(tokenizers.Tokenizer.from_file(str(path)).get_vocab())
    assert tokenizer.image_token == num_ids
    assert tokenizer.vocab_size == -(-(num_ids + 1) // 64) * 64
    assert cfg.set(min_vocab_size=1000).instantiate().vocab_size == 1000


def test_special_tokens_come_from_the_adjacent_file_or_the_config(cfg, path):
    tokenizer = cfg.instantiate()
    library = tokenizers.Tokenizer.from_file(str(path))
    ids = [library.token_to_id(token) for token in SPECIAL]
    assert [tokenizer.bos, tokenizer.eos, tokenizer.pad] == ids
    assert tokenizer.eos not in tokenizer.not_text
    assert {tokenizer.bos, tokenizer.pad, tokenizer.image_token} < set(tokenizer.not_text)
    path.with_name("tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="tokenizer.eos is None"):
        cfg.instantiate()
    alone = cfg.set(eos="<|end|>").instantiate()
    # The padding token never ends a text.
    assert alone.eos == ids[1] and alone.pad != alone.eos
    with pytest.raises(ValueError, match="tokenizer.bos='<s>': .* has no such token"):
        cfg.set(bos="<s>").instantiate()


def test_the_vocabulary_is_known_without_the_file(cfg, path):
    vocabulary = HFTokenizer.vocabulary(cfg)
    num_pieces = vocabulary.image_token
    path.unlink()
    without = cfg.clone(num_pieces=num_pieces)
    assert HFTokenizer.vocabulary(without) == vocabulary


def test_tokenizers_can_be_sent_to_workers_and_have_their_own_fingerprint(cfg):
    tokenizer = cfg.instantiate()
    copy = cloudpickle.loads(cloudpickle.dumps(tokenizer))
    text = "two circles<|end|>"
    assert copy.encode(text) == tokenizer.encode(text)
    assert copy.fingerprint() == tokenizer.fingerprint()
    assert cfg.set(bos="<|pad|>").instantiate().fingerprint() != tokenizer.fingerprint()


def test_a_file_that_is_not_a_tokenizer_is_named(cfg, path):
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer.json"):
        cfg.instantiate()
    with pytest.raises(ValueError, match="is not a file"):
        cfg.set(model_path="nowhere.json").instantiate()


def _word_models():
    """Models whose words include special tokens, as in T5; "<unk>" stands for unknown words."""
    names = ["<pad>", "</s>", "<unk>", "<image>", "<s>"]
    words = [*names, *"abgims</e>\u2581"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    models, pre = tokenizers.models, tokenizers.pre_tokenizers
    scores = [(word, 0.0 if word in names else -2.0) for word in vocabulary]
    return {
        "unigram": (models.Unigram(scores, unk_id=2, byte_fallback=False), pre.Metaspace(), names),
        "words": (models.WordLevel(vocabulary, unk_token="<unk>"), pre.WhitespaceSplit(), names),
        "whole words": (
            models.BPE(vocabulary, [], unk_token="<unk>", ignore_merges=True),
            pre.WhitespaceSplit(),
            names,
        ),
        "not special": (models.BPE(vocabulary, [], unk_token="<unk>"), None, []),
    }


@pytest.mark.parametrize("name", ["unigram", "words", "whole words", "not special"])
def test_text_never_encodes_to_reserved_ids(tmp_path, name):
    model, pre_tokenizer, special = _word_models()[name]
    tokenizer = tokenizers.Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.add_special_tokens(special)
    if not special:
        tokenizer.add_tokens([tokenizers.AddedToken(x, special=False) for x in ("</s>", "<s>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    cfg = HFTokenizer.default_config().set(
        model_path=str(tmp_path / "tokenizer.json"), bos="<s>", eos="</s>", pad="<pad>"
    )
    made = cfg.instantiate()
    tokenizer.encode_special_tokens = True
    for ours in (made, cloudpickle.loads(cloudpickle.dumps(made))):
        reserved = {ours.bos, ours.eos, ours.pad, ours.image_token}
        for spelt in ("</s>", "<s>", "<pad>", "<image>"):
            for text in (spelt, f"a {spelt} b", f"a{spelt}{spelt}", f"{spelt[:-1]} {spelt}"):
                assert reserved.isdisjoint(ours.encode(text)), text
                if name == "unigram":
                    kept = text.replace("p", "").replace("d", "")
                    assert ours.decode(ours.encode(kept)) == kept
        # Other texts, unknown words included, have the ids of the library.
        for text in ("a b", "b < a", "\u4e2d", "<unk>"):
            assert ours.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids

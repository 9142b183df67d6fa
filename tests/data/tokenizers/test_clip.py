"""CLIP's tokenizer against that of transformers, on a vocabulary that is trained here."""

import gzip
import json
import random

import cloudpickle
import pytest
import tokenizers
import transformers

from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.pairs import text_tokens
from mm1_jax.data.tokenizers.clip import BOS, EOS, NUM_TOKENS, CLIPTokenizer
from mm1_jax.data.tokenizers.sentencepiece import check_tokenizer

TEXTS = [
    "a photo of two red circles and a square, isn't it? they're the cat's",
    "The 1,024 best photos of 2019! (they've said so) -- I'd say we'll see; I'm sure",
    "caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u4e00\u4e8c \u65e5\u672c",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u03b1\u03b2",
    "x\u00b2 + y\u2075 = \u00bd, \u2167 and snake_case __init__ 'start !!'s",
    "emoji \U0001f600\U0001f680 and cafe\u0301   with\n\n tabs\t",
    "UPPER lower MiXeD don't DON'T",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of both layouts, of some merges learned from the texts."""
    folder = tmp_path_factory.mktemp("clip")
    learned = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    learned.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    learned.train_from_iterator([text.lower() for text in TEXTS] * 5, trainer)
    merges = [" ".join(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    assert len(merges) > 50
    text = "\n".join(["#version: 0.2", *merges, ""])
    (folder / "merges.txt").write_text(text, "utf-8")
    (folder / "bpe.txt.gz").write_bytes(gzip.compress(text.encode()))
    # The order of CLIP's vocabulary: bytes, bytes at the end of a word, merges, bos, eos.
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [*map(chr, visible), *(chr(256 + i) for i in range(256 - len(visible)))]
    pieces = [*characters, *(each + "</w>" for each in characters)]
    pieces += [merge.replace(" ", "") for merge in merges] + [BOS, EOS]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return folder


def made(folder, name="bpe.txt.gz", **fields):
    fields = {"num_pieces": None, "model_path": str(folder / name)} | fields
    return CLIPTokenizer.default_config().set(**fields).instantiate()


@pytest.fixture(scope="module")
def oracle(folder):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text("utf-8").splitlines()[1:]
    merges = [tuple(line.split()) for line in lines if line]
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)


@pytest.mark.parametrize("name", ["bpe.txt.gz", "vocab.json"])
def test_ids_are_those_of_transformers(folder, oracle, name):
    tokenizer, rng = made(folder, name), random.Random(0)
    check_tokenizer(tokenizer)
    parts = [part for text in TEXTS for part in (*text.split(), " ", "!", "'s", "7", "\u00e9")]
    mixed = ["".join(rng.choices(parts, k=rng.randint(1, 8))) for _ in range(300)]
    for text in [*TEXTS, *mixed]:
        expected = oracle(text).input_ids
        assert [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos] == expected, text


def test_texts_are_cleaned_as_in_the_reference(folder):
    tokenizer = made(folder)
    assert tokenizer.encode("  A &amp;amp; B\u2019s\n\u201cCAT\u201d\x00 ") == tokenizer.encode(
        'a & b\'s "cat"'
    )
    assert tokenizer.encode(" \n") == []
    for text in TEXTS[:2]:
        assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == text.lower().replace(
            " ", ""
        )


def test_special_tokens_are_never_made_of_text_and_eos_survives_the_cut(folder):
    tokenizer = made(folder)
    ids = tokenizer.encode(f"{BOS} a cat {EOS}")
    assert not {tokenizer.bos, tokenizer.eos} & set(ids)
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("a cat"), tokenizer.eos]) == "a cat"
    cut = text_tokens(tokenizer, TEXTS[0], 8)
    assert len(cut) == 8 and cut[0] == tokenizer.bos and cut[-1] == tokenizer.eos
    assert cut[1:-1] == tokenizer.encode(TEXTS[0])[:6]


def test_a_pickled_tokenizer_gives_the_same_ids(folder):
    tokenizer = made(folder)
    ids = tokenizer.encode(TEXTS[0])
    assert cloudpickle.loads(cloudpickle.dumps(tokenizer)).encode(TEXTS[0]) == ids
    assert tokenizer.fingerprint() == made(folder, "vocab.json").fingerprint()


def test_configs_are_inspected_without_the_file(folder):
    cfg = CLIPTokenizer.default_config()
    assert CLIPTokenizer.vocabulary(cfg).vocab_size == NUM_TOKENS == 49408
    with pytest.raises(ValueError, match="is not a file; name bpe_simple_vocab_16e6.txt.gz"):
        cfg.instantiate()
    with pytest.raises(ValueError, match=r"num_pieces=49408, but .* has \d+; set the field"):
        made(folder, num_pieces=NUM_TOKENS)


def test_damaged_files_and_models_that_read_images_are_rejected(folder, tmp_path):
    (tmp_path / "bpe.txt.gz").write_bytes(gzip.compress(b"#version\na b\nc\n")[:-3])
    with pytest.raises(ValueError, match="has no byte-pair encoding of CLIP"):
        made(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(ValueError, match="vocab.json lacks 5.. pieces, such as"):
        made(tmp_path, "vocab.json")
    with pytest.raises(ValueError, match="CLIPTokenizer has no token that stands for an image"):
        ExampleBuilder(made(folder), num_image_tokens=4, max_sequence_length=64, max_images=1)

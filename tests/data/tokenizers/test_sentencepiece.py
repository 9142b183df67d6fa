import pickle
import random

import cloudpickle
import pytest
import sentencepiece

from mm1_jax.commands import train_tokenizer
from mm1_jax.data.corpora.questions import question_prompt
from mm1_jax.data.tokenizers import sentencepiece as tokenizer_module
from mm1_jax.data.tokenizers.sentencepiece import (
    IMAGE_TOKEN,
    SHIPPED_MODEL,
    Tokenizer,
    check_tokenizer,
)


@pytest.mark.parametrize(
    "text",
    [
        "a red circle left of a blue square",
        "",
        " ",
        "  two  spaces, a tab\t, \n\n and lines\r\n ",
        "<image> and <s> </s> <pad> <unk> <0x0A> are ordinary words",
        "caf\u00e9 \u4f60\u597d \U0001f600 \ufb01 \u00bd",
        "7.5, 12:30; 1,024",
    ],
)
def test_decoding_returns_the_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decoding_returns_random_text(tokenizer):
    rng = random.Random(0)
    alphabet = [chr(c) for c in (*range(1, 0x250), *range(0x3040, 0x3100))]
    for _ in range(200):
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 40)))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_that_spells_special_tokens_is_ordinary_text(tokenizer):
    specials = {tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.image_token}
    assert len(specials) == 4
    assert not specials & set(tokenizer.encode("<image> <s></s><pad> x<image>y <unk>"))


def test_lone_surrogates_can_be_encoded(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_decoding_drops_special_tokens_and_vocabulary_padding(tokenizer):
    ids = tokenizer.encode("two circles")
    noise = [*tokenizer.not_text, tokenizer.eos, tokenizer.vocab_size - 1, tokenizer.vocab_size + 5]
    noise = [i for i in noise if i in tokenizer.not_text or i >= tokenizer.vocab_size]
    assert tokenizer.decode([tokenizer.bos, *ids, tokenizer.eos, *noise]) == "two circles"


def test_no_encoded_text_is_forbidden_in_answers(tokenizer):
    assert not set(tokenizer.not_text) & set(tokenizer.encode("any text: \u00e9\u4f60 <image>\n7"))
    assert tokenizer.eos not in tokenizer.not_text
    assert {tokenizer.pad, tokenizer.bos, tokenizer.image_token} <= set(tokenizer.not_text)


def test_an_answer_has_the_same_tokens_after_its_question_and_alone(tokenizer):
    prompt = question_prompt("what digit is this?")
    for answer in ("7", "yes", "circle", "four"):
        apart = tokenizer.encode(prompt) + tokenizer.encode(answer)
        assert tokenizer.encode(f"{prompt} {answer}") == apart
        assert len(tokenizer.encode(answer)) == 1


@pytest.mark.parametrize("multiple", [1, 64, 1000])
def test_vocabulary_size_is_rounded_up(multiple):
    tokenizer = Tokenizer.default_config().set(vocab_multiple=multiple).instantiate()
    assert tokenizer.vocab_size % multiple == 0
    assert max(tokenizer.encode("what digit is this?")) < tokenizer.vocab_size


def test_a_tokenizer_can_be_sent_to_workers(tokenizer):
    assert pickle.loads(cloudpickle.dumps(tokenizer)).encode("a red") == tokenizer.encode("a red")


def _trained(path, **fields):
    """A third-party kind of model: other special ids, no image piece, no byte fallback."""
    texts = ["two red circles", "a blue square left of it", "what digit is this? seven"] * 20
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=file,
            vocab_size=60,
            hard_vocab_limit=False,
            minloglevel=2,
            num_threads=1,
            **fields,
        )
    return Tokenizer.default_config().set(model_path=str(path), vocab_multiple=8)


# The ids of Llama, those of T5, and a model with all special tokens.
@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (dict(unk_id=0, bos_id=1, eos_id=2, pad_id=-1), (0, 1, 2)),
        (dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1), (0, 0, 1)),
        (dict(pad_id=3, eos_id=1, unk_id=2, bos_id=0), (3, 0, 1)),
    ],
)
def test_other_sentencepiece_models_get_an_image_token_after_their_pieces(tmp_path, ids, expected):
    cfg = _trained(tmp_path / "other.model", **ids)
    tokenizer = cfg.instantiate()
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == expected
    pieces = sentencepiece.SentencePieceProcessor(model_file=cfg.model_path).get_piece_size()
    assert tokenizer.image_token == pieces < tokenizer.vocab_size
    assert tokenizer.vocab_size % 8 == 0
    assert Tokenizer.vocabulary(cfg) == (tokenizer.vocab_size, pieces)
    ids = tokenizer.encode("two red circles")
    assert pieces not in ids
    assert tokenizer.decode([tokenizer.bos, *ids, pieces, tokenizer.eos]) == "two red circles"


def test_a_model_without_eos_and_an_invalid_model_file_are_rejected(tmp_path):
    cfg = _trained(tmp_path / "endless.model", eos_id=-1)
    with pytest.raises(ValueError, match=r"endless.model.*eos_id is -1"):
        cfg.instantiate()
    (tmp_path / "text.model").write_text("not a model")
    with pytest.raises(ValueError, match="text.model.*is not a sentencepiece model"):
        cfg.set(model_path=str(tmp_path / "text.model")).instantiate()


def test_the_vocabulary_comes_from_the_model_file_if_present(tmp_path):
    cfg = Tokenizer.default_config().set(
        model_path="tokenizer.model", data_dir=str(tmp_path), num_pieces=300
    )
    assert Tokenizer.vocabulary(cfg) == (320, tokenizer_module.IMAGE_TOKEN)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_module.train(["one two three"], 300))
    with pytest.raises(ValueError, match=r"num_pieces=300, but .*tokenizer.model has \d+; set"):
        Tokenizer.vocabulary(cfg)


def test_a_missing_model_names_the_path_and_the_fix():
    with pytest.raises(ValueError, match=r"no/such.model.*train_tokenizer"):
        Tokenizer.default_config().set(model_path="no/such.model").instantiate()


def test_retraining_gives_the_shipped_model():
    """Detects that texts of the corpora changed after the tokenizer was trained."""
    texts = list(train_tokenizer.embedded_texts())
    first = tokenizer_module.train(texts, train_tokenizer.VOCAB_SIZE)
    assert first == tokenizer_module.train(texts, train_tokenizer.VOCAB_SIZE)
    assert first == SHIPPED_MODEL.read_bytes()


def test_the_fingerprint_depends_on_the_model_and_not_on_the_path(tokenizer, tmp_path):
    def fingerprint(content):
        path = tmp_path / "any.model"
        path.write_bytes(content)
        return Tokenizer.default_config().set(model_path=str(path)).instantiate().fingerprint()

    assert fingerprint(SHIPPED_MODEL.read_bytes()) == tokenizer.fingerprint()
    assert fingerprint(tokenizer_module.train(["one two three"], 300)) != tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("encode", lambda text: [5, 9999], "encode gives 9999, expected integers from 0 to"),
        ("encode", lambda text: text.split(), "encode gives 'A', expected integers from 0"),
        ("encode", lambda text: [IMAGE_TOKEN], "encode gives the image_token 4 for text"),
        ("bos", -1, "bos gives -1, expected integers from 0 to"),
        ("image_token", 704, "image_token gives 704, expected integers from 0 to 703"),
    ],
)
def test_ids_without_an_embedding_row_are_rejected(name, value, said):
    tokenizer = Tokenizer.default_config().instantiate()
    check_tokenizer(tokenizer)
    setattr(tokenizer, name, value)
    with pytest.raises(ValueError, match=said):
        check_tokenizer(tokenizer)

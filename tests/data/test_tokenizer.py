import importlib.util
import pickle
import random
from pathlib import Path

import cloudpickle
import pytest

from mm1_jax.data import tokenizer as tokenizer_module
from mm1_jax.data.corpora.questions import question_prompt
from mm1_jax.data.tokenizer import SHIPPED_MODEL, Tokenizer

ROOT = Path(__file__).parent.parent.parent


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
def test_decoding_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decoding_gives_random_text_back(tokenizer):
    rng = random.Random(0)
    alphabet = [chr(c) for c in (*range(1, 0x250), *range(0x3040, 0x3100))]
    for _ in range(200):
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 40)))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_that_spells_special_tokens_is_ordinary_text(tokenizer):
    specials = {tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.image_token}
    assert len(specials) == 4
    assert not specials & set(tokenizer.encode("<image> <s></s><pad> x<image>y <unk>"))


def test_half_a_surrogate_pair_does_not_stop_encoding(tokenizer):
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


def test_a_missing_model_names_path_and_remedy():
    with pytest.raises(ValueError, match=r"no/such.model.*train_tokenizer"):
        Tokenizer.default_config().set(model_path="no/such.model").instantiate()


def test_training_twice_gives_the_shipped_model():
    """Catches corpora whose texts changed after the tokenizer was trained."""
    path = ROOT / "tools" / "train_tokenizer.py"
    spec = importlib.util.spec_from_file_location("train_tokenizer", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    texts = list(tool.embedded_texts())
    first = tokenizer_module.train(texts, tool.VOCAB_SIZE)
    assert first == tokenizer_module.train(texts, tool.VOCAB_SIZE)
    assert first == SHIPPED_MODEL.read_bytes()


def test_the_fingerprint_is_of_the_model_not_of_its_place(tokenizer, tmp_path):
    def fingerprint(content):
        path = tmp_path / "any.model"
        path.write_bytes(content)
        return Tokenizer.default_config().set(model_path=str(path)).instantiate().fingerprint()

    assert fingerprint(SHIPPED_MODEL.read_bytes()) == tokenizer.fingerprint()
    assert fingerprint(tokenizer_module.train(["one two three"], 300)) != tokenizer.fingerprint()

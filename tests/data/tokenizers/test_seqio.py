"""Vocabularies of the real library; skipped if it is not installed."""

import warnings

import cloudpickle
import pytest
from drawn_corpus import input_config

from mm1_jax.batch import Document, Image, Text
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.tokenizers.sentencepiece import SHIPPED_MODEL, Tokenizer
from mm1_jax.data.tokenizers.seqio import SeqioTokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    seqio = pytest.importorskip("seqio")

pytestmark = pytest.mark.filterwarnings("ignore")
ENDLESS = seqio.PassThroughVocabulary(100)
NOT_A_VOCABULARY = 7
TEXTS = ["a red circle left of a blue square", "", " ", "caf\u00e9 \u4f60\n", "<image> </s> <pad>"]
MODEL = dict(model_path=str(SHIPPED_MODEL), extra_ids=3)
BYTES = dict(vocabulary="seqio.ByteVocabulary")


def make(**fields):
    return SeqioTokenizer.default_config().set(**fields).instantiate()


@pytest.mark.parametrize("fields", [MODEL, MODEL | dict(extra_ids=0), BYTES])
def test_encoding_equals_the_vocabularys_and_decoding_returns_the_text(fields):
    tokenizer = make(**fields)
    if "vocabulary" in fields:
        vocabulary = seqio.ByteVocabulary()
    else:
        vocabulary = seqio.SentencePieceVocabulary(fields["model_path"], fields["extra_ids"])
    for text in TEXTS:
        assert tokenizer.encode(text) == list(vocabulary.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("") == []
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_a_model_without_extra_ids_has_the_ids_of_the_plain_tokenizer(tokenizer):
    same = make(model_path=str(SHIPPED_MODEL))
    assert [same.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert (same.pad, same.bos, same.eos) == (tokenizer.pad, tokenizer.bos, tokenizer.eos)


@pytest.mark.parametrize("fields", [MODEL, MODEL | dict(image_token=706), BYTES])
def test_special_tokens_are_dropped_and_no_answer_contains_them(fields):
    tokenizer = make(**fields)
    specials = {tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.image_token}
    ids = tokenizer.encode("two circles")
    assert not specials & set(ids)
    assert specials - {tokenizer.eos} <= set(tokenizer.not_text)
    assert tokenizer.eos not in tokenizer.not_text
    assert not set(tokenizer.not_text) & set(ids)
    assert max(tokenizer.not_text) == tokenizer.vocab_size - 1
    noise = [*tokenizer.not_text, tokenizer.eos, tokenizer.vocab_size + 5]
    # The text comes last, and is decoded although an eos precedes it.
    assert tokenizer.decode([*noise, *ids]) == "two circles"


def test_the_image_token_follows_the_vocabulary_or_is_an_extra_id():
    size = seqio.SentencePieceVocabulary(str(SHIPPED_MODEL), 3).vocab_size
    assert make(**MODEL).image_token == size
    extra = make(**MODEL, image_token=size - 1)
    assert extra.image_token == size - 1 and extra.vocab_size >= size
    assert extra.vocab_size % 64 == 0
    assert make(**MODEL, image_token=size - 1, vocab_multiple=1).vocab_size == size
    assert make(**MODEL, vocab_multiple=1).vocab_size == size + 1
    for other in (0, size - 4, size + 1):
        with pytest.raises(ValueError, match=f"image_token={other} is not one of the 3 extra ids"):
            make(**MODEL, image_token=other)


def test_a_text_that_spells_the_image_token_is_a_bad_record():
    # Extra ids count down from the last id.
    tokenizer = make(**MODEL, image_token=make(**MODEL).image_token - 1)
    with pytest.raises(BadRecord, match="is not for text, and a text spells it: .*extra_id_0"):
        tokenizer.encode("a <extra_id_0> b")
    assert tokenizer.encode("a <extra_id_1> b")
    assert make(**MODEL).encode("a <extra_id_0> b")


def test_documents_become_examples_with_a_seqio_tokenizer():
    tokenizer = make(**MODEL)
    builder = ExampleBuilder(tokenizer, num_image_tokens=4, max_sequence_length=64, max_images=2)
    document = Document((Image(b"picture"), Text("two red circles")))
    num_text = len(tokenizer.encode("two red circles"))
    # Tokens and targets have one position more: bos in the former, eos in the latter.
    assert builder.lengths(document) == (1 + 4 + num_text, 1)
    example = builder.example(document)
    assert (example.tokens == tokenizer.image_token).sum() == 4
    assert example.targets[example.loss_mask].tolist() == [
        *tokenizer.encode("two red circles"),
        tokenizer.eos,
    ]


def test_an_input_accepts_a_seqio_tokenizer():
    made = input_config(tokenizer=SeqioTokenizer.default_config().set(**MODEL)).instantiate(
        split="train", quarantine_path=None
    )
    iterator = made.iterator()
    batch = next(iterator)
    iterator.close()
    tokenizer = make(**MODEL)
    is_image = batch.tokens == tokenizer.image_token
    assert is_image.any() and batch.tokens.max() < tokenizer.vocab_size
    assert not (batch.targets[batch.loss_mask.astype(bool)] == tokenizer.image_token).any()


def test_a_seqio_tokenizer_has_the_interface_of_the_plain_one(tokenizer):
    cfg = SeqioTokenizer.default_config().set(**MODEL)
    ours = cfg.instantiate()
    assert SeqioTokenizer.vocabulary(cfg) == (ours.vocab_size, ours.image_token)
    names = {name for name in {*dir(Tokenizer), *vars(tokenizer)} if not name.startswith("_")}
    assert names <= {*dir(SeqioTokenizer), *vars(ours)}


@pytest.mark.parametrize("fields", [MODEL, BYTES])
def test_a_seqio_tokenizer_can_be_sent_to_workers(fields):
    tokenizer = make(**fields)
    sent = cloudpickle.loads(cloudpickle.dumps(tokenizer))
    assert sent.encode("two circles") == tokenizer.encode("two circles")
    assert sent.fingerprint() == tokenizer.fingerprint()


def test_the_fingerprint_depends_on_the_vocabulary_and_not_on_the_path(tmp_path):
    path = tmp_path / "copy.model"
    path.write_bytes(SHIPPED_MODEL.read_bytes())
    copied = make(model_path="copy.model", data_dir=str(tmp_path), extra_ids=3)
    assert copied.fingerprint() == make(**MODEL).fingerprint()
    others = [MODEL, MODEL | dict(extra_ids=4), MODEL | dict(image_token=706), BYTES]
    assert len({make(**fields).fingerprint() for fields in others}) == 4


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (dict(), "set either vocabulary or model_path"),
        (MODEL | BYTES, "set either vocabulary or model_path"),
        (BYTES | dict(num_pieces=259), "num_pieces"),
        (BYTES | dict(extra_ids=3), "extra_ids applies to model_path"),
        (dict(model_path="no/such.model"), "model_path='no/such.model' is not a file"),
        (dict(model_path=__file__), "tokenizer: "),
        (dict(vocabulary="no_such_module.V"), "no_such_module.*expected MODULE.NAME"),
        (dict(vocabulary="seqio.NoSuch"), "NoSuch.*expected MODULE.NAME"),
        (dict(vocabulary="V"), "'V'.*expected MODULE.NAME"),
        (dict(vocabulary=f"{__name__}.NOT_A_VOCABULARY"), "is not a seqio.Vocabulary"),
        (dict(vocabulary=f"{__name__}.ENDLESS"), "has no eos token"),
    ],
)
def test_objects_that_are_not_vocabularies_are_rejected(fields, reason):
    with pytest.raises(ValueError, match=reason):
        make(**fields)

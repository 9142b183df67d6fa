"""Controls: shuffled pictures and scored prompts change nothing else."""

from mm1_jax.batch import Image, Text
from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.corpora.controls import ScoredPrompts, ShuffledPictures
from mm1_jax.data.corpora.instructions import Form, corpus


def test_shuffled_pictures_are_those_of_other_records():
    cfg = corpus(Form.SENTENCE, "scenes", num_records=60).source
    source = cfg.instantiate(split="train")
    shuffled = ShuffledPictures.default_config().set(source=cfg).instantiate(split="train")
    assert len(shuffled) == len(source)
    same = 0
    for i in range(len(source)):
        record, other = source[i], shuffled[i]
        assert {**record, "images": None} == {**other, "images": None}
        assert len(record["images"]) == len(other["images"])
        same += [draw() for draw in record["images"]][0].tobytes() == (
            other["images"][0]().tobytes()
        )
    assert same == 0


def test_records_without_pictures_stay():
    cfg = corpus(Form.TEXT, "none", num_records=8).source
    shuffled = ShuffledPictures.default_config().set(source=cfg).instantiate(split="train")
    assert [shuffled[i] for i in range(8)] == [cfg.instantiate(split="train")[i] for i in range(8)]


def test_scored_prompts_score_every_text():
    cfg = corpus(Form.SHORT_ANSWER, "digits", num_records=8)
    cfg.to_document.chat_format = MM1ChatFormat.default_config()
    plain = cfg.instantiate(split="train").document(0)
    cfg.to_document = ScoredPrompts.default_config().set(document=cfg.to_document)
    scored = cfg.instantiate(split="train").document(0)
    texts = [segment for segment in scored.segments if isinstance(segment, Text)]
    assert all(text.scored for text in texts) and len(texts) > 1
    assert not all(text.scored for text in plain.segments if isinstance(text, Text))
    assert [getattr(x, "text", Image) for x in scored.segments] == [
        getattr(x, "text", Image) for x in plain.segments
    ]

"""Instructions: every answer is right for its picture and has the form that is asked for."""

import json

import numpy as np
import pytest

from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.corpora.instructions import ALL_FORMS, Form, InstructionsSource, corpus
from mm1_jax.data.corpora.scenes import Scene, Shape
from mm1_jax.data.record_files import IMAGE
from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.benchmarks.instructions import instructions
from mm1_jax.evals.prompts import reference
from mm1_jax.evals.scoring.instructions import is_well_formed
from mm1_jax.evals.scoring.items import Item

NUM_RECORDS = 360


@pytest.fixture(scope="module", params=["train", "test"])
def records(request):
    source = InstructionsSource.default_config().instantiate(split=request.param)
    return [source[i] for i in range(NUM_RECORDS)]


def test_turns_alternate_and_name_their_pictures(records):
    for record in records:
        texts = [turn["text"] for turn in record["turns"]]
        assert [turn["role"] for turn in record["turns"]] == ["user", "assistant"] * (
            len(texts) // 2
        )
        assert sum(text.count(IMAGE) for text in texts) == len(record["images"])
        assert all(IMAGE not in text for text in texts[1::2])
        assert sum(text.count("<box>") for text in texts) == len(record.get("boxes", []))


def test_all_forms_come_in_turn(records):
    forms = [record["form"] for record in records[: len(ALL_FORMS)]]
    assert forms == [form.value for _, form in ALL_FORMS]
    assert {*forms} == {form.value for form in Form}


def test_some_records_have_earlier_turns_about_the_same_or_other_pictures(records):
    several = [record for record in records if len(record["turns"]) > 2]
    with_pictures_later = [
        record for record in several if any(IMAGE in turn["text"] for turn in record["turns"][2:])
    ]
    assert 0.25 < len(several) / NUM_RECORDS < 0.6
    assert 0.05 < len(with_pictures_later) / NUM_RECORDS < 0.3


def test_a_conversation_can_ask_about_a_new_picture_in_each_turn():
    def drawn(other_questions: str):
        cfg = corpus(
            Form.SHORT_ANSWER,
            same_picture_turns=0.0,
            other_picture_turns=1.0,
            max_other_pictures=8,
            other_questions=other_questions,
        )
        source = cfg.source.instantiate(split="train")
        return [source[i]["turns"][::2] for i in range(80)]

    any_questions = drawn("any")
    assert {len(asked) for asked in any_questions} == {*range(2, 10)}
    assert all(turn["text"].startswith(IMAGE) for asked in any_questions for turn in asked)
    kinds = [{turn["text"].removeprefix(IMAGE)[:10] for turn in asked} for asked in any_questions]
    same = [{turn["text"].removeprefix(IMAGE)[:10] for turn in asked} for asked in drawn("same")]
    assert np.mean([*map(len, kinds)]) > 1.5 * np.mean([*map(len, same)])


def test_about_half_of_the_questions_about_two_scenes_are_answered_yes():
    source = corpus(Form.YES_NO).source.instantiate(split="train")
    turns = [turn["text"] for i in range(600) for turn in source[i]["turns"]]
    answers = [
        answer == "yes"
        for asked, answer in zip(turns[::2], turns[1::2], strict=True)
        if "do both pictures" in asked and "Answer yes or no" in asked
    ]
    assert 0.4 < np.mean(answers) < 0.65


def test_the_splits_share_no_scene():
    def pictures(split: str) -> set[bytes]:
        source = InstructionsSource.default_config().instantiate(split=split)
        return {
            (image() if callable(image) else image).tobytes()
            for i in range(400)
            for image in source[i]["images"]
        }

    assert pictures("train").isdisjoint(pictures("test"))


def test_a_record_depends_on_seed_and_index_alone():
    def drawn(**fields):
        source = corpus(Form.JSON, "digits", **fields).source.instantiate(split="train")
        return [source[i]["turns"] for i in (3, 1)]

    assert drawn() == drawn() != drawn(seed=1)
    assert drawn(num_records=7) == drawn()


@pytest.mark.parametrize("split", ["train", "test"])
def test_references_are_well_formed_in_their_own_form_only(split):
    benchmark = instructions()
    made = benchmark.corpus.instantiate(split=split)
    answers = {}
    for i in range(NUM_RECORDS):
        record, document = made.source[i], made.document(i)
        answer = reference(document)
        assert is_well_formed(Item(record, TextAnswer(answer), reference=answer)), answer
        assert benchmark.scoring([Item(record, TextAnswer(answer), reference=answer)]).correct == [
            True
        ]
        answers.setdefault(record["form"], []).append((record, answer))
    others = {"sentence": ("letter", "json", "box"), "letter": ("sentence", "json", "box")}
    for form, foreign in others.items():
        for record, answer in answers[form]:
            for other in foreign:
                wrong = TextAnswer(answers[other][0][1])
                assert not is_well_formed(Item(record, wrong, reference=answer))


def test_letters_name_the_answer_to_the_question():
    source = corpus(Form.LETTER, "digits", same_picture_turns=0).source.instantiate(split="train")
    for i in range(40):
        record = source[i]
        asked, answer = (turn["text"] for turn in record["turns"][-2:])
        chosen = record["options"]["ABCD".index(answer)]
        assert f"{answer}. {chosen}" in asked.split("\n")
        assert len({*record["options"]}) == len(record["options"])


def test_json_has_the_keys_that_are_asked_for():
    source = corpus(Form.JSON, "scenes").source.instantiate(split="train")
    for i in range(40):
        record = source[i]
        asked, answer = (turn["text"] for turn in record["turns"][-2:])
        assert sorted(json.loads(answer)) == sorted(record["keys"])
        assert all(f'"{key}"' in asked for key in record["keys"])


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "cross"])
def test_the_box_of_a_shape_surrounds_its_pixels(shape):
    drawn = Shape("white", shape, 20, 40, 13)
    pixels = Scene((drawn,), ground=10).render()
    ys, xs = np.nonzero(pixels[..., 0] > 60)
    seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    assert np.abs(seen - 64 * np.array(drawn.box)).max() <= 1


def test_boxes_are_those_of_the_shape_that_is_named():
    source = corpus(Form.BOX, "scenes").source.instantiate(split="test")
    for i in range(60):
        record = source[i]
        region = record["boxes"][-1]
        pixels = record["images"][region["image"]]().astype(int)
        x0, y0, x1, y1 = (round(64 * x) for x in region["box"])
        assert (pixels[y0 : y1 + 1, x0 : x1 + 1].max((0, 1)) > 150).any(), "a colored shape"
        color = record["turns"][-2]["text"].split("where is the ")[1].split()[0]
        red, green, blue = pixels[y0 : y1 + 1, x0 : x1 + 1].reshape(-1, 3).max(0)
        seen = {"red": red > 200 > green, "blue": blue > 200 > red, "green": green > 150 > red}
        assert seen.get(color, red > 200 and green > 200), color


def test_a_form_without_pictures_to_ask_about_is_refused():
    with pytest.raises(ValueError, match=r"source\.form=BOX with pictures='digits'"):
        corpus(Form.BOX, "digits").source.instantiate(split="train")


def test_documents_are_conversations_with_their_boxes_as_text():
    cfg = corpus(Form.BOX, "scenes")
    cfg.to_document.chat_format = MM1ChatFormat.default_config()
    made = cfg.instantiate(split="test")
    (x0, y0, x1, y1) = made.source[0]["boxes"][-1]["box"]
    numbers = ", ".join(str(round(999 * x)) for x in (x0, y0, x1, y1))
    assert reference(made.document(0)) == f"[{numbers}]"

import io
import json
import tarfile

import pytest

from mm1_jax.data.ingest.formats.vqa import Vqa


def question(id, image_id=1, **fields):
    return {"question_id": id, "image_id": image_id, "question": f"what is {id}?"} | fields


def annotation(id, *answers):
    return {
        "question_id": id,
        "image_id": 1,
        "multiple_choice_answer": answers[0] if answers else "",
        "answers": [{"answer": answer, "answer_confidence": "yes"} for answer in answers],
    }


QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "val2014").mkdir()
    for id in (1, 12, 130):
        name = f"COCO_val2014_{id:012}.jpg"
        (tmp_path / "val2014" / name).write_bytes(b"picture %d" % id)
    return tmp_path


def write(folder, questions, annotations, names=(QUESTIONS, ANNOTATIONS)):
    about = {"info": {}, "data_subtype": "val2014"}
    (folder / names[0]).write_text(json.dumps(about | {"questions": questions}))
    if isinstance(annotations, list) and annotations and isinstance(annotations[0], dict):
        annotations = {"info": {}, "annotations": annotations, "license": {}}
    (folder / names[1]).write_text(json.dumps(annotations))


def test_a_question_has_its_picture_and_its_most_common_answer(folder, convert):
    questions = [question(7, 130), question(8, 12)]
    write(folder, questions, [annotation(8, "no", "yes", "yes"), annotation(7, "red")])
    records, rejected = convert(Vqa(), folder)
    assert rejected == []
    assert records[1] == {
        "id": f"{QUESTIONS}:questions:1",
        "images": [b"picture 12"],
        "turns": [
            {"role": "user", "text": "<image>what is 8?"},
            {"role": "assistant", "text": "yes"},
        ],
        "source_id": "8",
        "question": "what is 8?",
        "answer": "yes",
        "answers": ["no", "yes", "yes"],
    }
    assert records[0]["answers"] == ["red"] and records[0]["images"] == [b"picture 130"]


def test_pairs_of_files_and_a_tar_are_accepted(tmp_path, convert):
    write(
        tmp_path,
        [question(0, 3), question(1, "a7")],
        [[0, "yes"], [1, "no"]],
        ("train_questions.json", "train_answers_compact.json"),
    )
    with tarfile.open(tmp_path / "train_images.tar", "w") as archive:
        for name in ("train_000003.png", "a7.png"):
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(name[:5].encode()))
    records, _ = convert(Vqa(), tmp_path / "train_questions.json")
    assert [(one["images"], one["answer"]) for one in records] == [
        *(([b"train"], "yes"), ([b"a7.pn"], "no"))
    ]


def test_invalid_entries_are_rejected_with_the_reason(folder, convert, reasons):
    questions = [
        *(question(0), question(1), question(2, 99), question(3, question=None), question(0)),
        *(question(4, question="<image>?"), question(5, [1]), question(None), "text"),
        *(question(6), question(7)),
    ]
    annotations = [
        *(annotation(0, "yes"), *(annotation(id, "x") for id in (2, 3, 4, 5, 42))),
        *(annotation(0, "no"), annotation(6), annotation(7, " "), 7, annotation([], "x")),
        {"question_id": 8, "answers": [7]},
    ]
    write(folder, questions, annotations)
    (record,), rejected = convert(Vqa(), folder)
    assert record["source_id"] == "0" and record["answer"] == "yes"
    found = reasons(rejected)
    expected = {
        f"{QUESTIONS}:questions:1": "no answer left for question 1",
        f"{QUESTIONS}:questions:2": "0 pictures are of image_id 99",
        f"{QUESTIONS}:questions:3": "no question",
        f"{QUESTIONS}:questions:4": "no answer left for question 0",
        f"{QUESTIONS}:questions:5": "<image> in a question of a layout without placeholders",
        f"{QUESTIONS}:questions:6": "image_id is [1]",
        f"{QUESTIONS}:questions:7": "question_id is None",
        f"{QUESTIONS}:questions:8": "a str, expected a JSON object",
        f"{QUESTIONS}:questions:9": "no answer left for question 6",
        f"{QUESTIONS}:questions:10": "no answer that is not blank",
        f"{QUESTIONS}:answer to 42": "no such question",
        f"{ANNOTATIONS}:annotations:6": "question 0 has been answered before",
        f"{ANNOTATIONS}:annotations:7": "no answers",
        f"{ANNOTATIONS}:annotations:9": "a int, expected a JSON object",
        f"{ANNOTATIONS}:annotations:10": "question_id is []",
        f"{ANNOTATIONS}:annotations:11": "a int, expected a JSON object",
    }
    assert found.keys() == expected.keys()
    for key, reason in expected.items():
        assert reason in found[key]


def test_an_id_shared_by_two_pictures_is_rejected(folder, convert):
    (folder / "val2014" / "other_12.png").write_bytes(b"other")
    write(folder, [question(0, 12)], [annotation(0, "yes")])
    records, (rejected,) = convert(Vqa(), folder)
    assert records == [] and "2 pictures are of image_id 12" in rejected.reason


def test_questions_without_answers_are_reported(folder, convert, tmp_path):
    write(folder, [question(0)], [annotation(0, "yes")])
    (folder / "test_questions.json").write_text("{}")
    (record,), (rejected,) = convert(Vqa(), folder)
    assert rejected.id == "test_questions.json" and "set annotations" in rejected.reason
    with pytest.raises(
        ValueError, match="test_annotations.json.*set annotations to where they are"
    ):
        Vqa().units(folder / "test_questions.json")
    with pytest.raises(ValueError, match="lost; set images to where they are"):
        Vqa(images=folder / "lost").units(folder / QUESTIONS)
    with pytest.raises(ValueError, match="expected a JSON file of VQAv2 questions"):
        Vqa().units(folder / "val2014")


def test_answers_and_pictures_may_be_in_other_folders(folder, convert, tmp_path):
    write(folder, [question(0)], [annotation(0, "yes")], ("my_questions.json", "other.json"))
    form = Vqa(annotations=str(folder / "other.json"), images=str(folder / "val2014"))
    ((record,), _) = convert(form, folder)
    assert record["images"] == [b"picture 1"]


@pytest.mark.parametrize(
    ("split", "num_questions"),
    [("val", 4847), pytest.param("train", 38575, marks=pytest.mark.slow)],
)
def test_real_questions_equal_the_parsed_json(test_data, convert, split, num_questions):
    source = test_data / "easy_vqa"
    records, rejected = convert(Vqa(), source / f"{split}_questions.json")
    questions = json.loads((source / f"{split}_questions.json").read_text())["questions"]
    answers = dict(json.loads((source / f"{split}_answers_compact.json").read_text()))
    with tarfile.open(source / f"{split}_images.tar") as archive:
        images = {one.name: archive.extractfile(one).read() for one in archive}
    assert (len(questions), rejected) == (num_questions, [])
    for record, one in zip(records, questions, strict=True):
        assert record["question"] == one["question"]
        assert record["answer"] == answers[one["question_id"]]
        assert record["images"] == [images[f"{split}_{one['image_id']:06}.png"]]


def test_real_annotations_of_vqav2_are_accepted(test_data, convert):
    source = test_data / "easy_vqa"
    form = Vqa(annotations=source / "val_annotations_vqav2_sample.json")
    records, rejected = convert(form, source / "val_questions.json")
    assert (len(records), len(rejected)) == (200, 4847 - 200)
    assert all(len(record["answers"]) == 10 for record in records)
    answers = dict(json.loads((source / "val_answers_compact.json").read_text()))
    assert all(answers[int(one["source_id"])] == one["answer"] for one in records)


def test_hidden_files_beside_the_pictures_are_ignored(folder, convert):
    """macOS writes ._NAME beside NAME, on disks and in archives."""
    write(folder, [question(7, 130)], [annotation(7, "red")])
    (folder / "val2014" / "._COCO_val2014_000000000130.jpg").write_bytes(b"\0\5\x16\7")
    ((record,), rejected) = convert(Vqa(), folder)
    assert record["images"] == [b"picture 130"] and rejected == []


def test_a_missing_answer_rejects_no_other_question(folder, convert):
    answers = annotation(7, None, "red", "", "", float("nan")), annotation(8, None, None)
    write(folder, [question(7, 130), question(8, 130)], list(answers))
    ((record,), rejected) = convert(Vqa(), folder)
    assert record["answer"] == "red" and record["answers"] == ["red", "", ""]
    assert {one.reason for one in rejected} == {"no answers", "no answer left for question 8"}


def test_questions_may_end_with_a_format_prompt_and_be_merged(tmp_path, convert, texts):
    questions = [{"question_id": i, "image_id": i // 2, "question": f"q{i}?"} for i in range(3)]
    answers = [{"question_id": i, "answers": [{"answer": f"a{i}"}] * 3} for i in range(3)]
    (tmp_path / "v_questions.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "v_annotations.json").write_text(json.dumps({"annotations": answers}))
    (tmp_path / "v_images").mkdir()
    for i in range(2):
        (tmp_path / "v_images" / f"COCO_{i:012d}.jpg").write_bytes(b"%d" % i)
    prompt = "\nAnswer the question using a single word or phrase."
    records, rejected = convert(Vqa(format_prompt=True, source="okvqa"), tmp_path)
    assert rejected == [] and texts(records[2]) == [f"<image>\nq2?{prompt}", "a2"]
    assert records[2]["answers"] == ["a2"] * 3 and records[2]["question"] == "q2?"
    assert {record["source"] for record in records} == {"okvqa"}
    records, rejected = convert(Vqa(merge=True), tmp_path)
    assert [texts(record) for record in records] == [
        ["<image>\nq0?", "a0", "q1?", "a1"],
        ["<image>\nq2?", "a2"],
    ]

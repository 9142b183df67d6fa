import io
import json

import PIL.Image
import pytest

from mm1_jax.data.ingest.formats.academic import Academic

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
OPTIONS = "\nA. one\nB. two"

# By source: the file, its content, the images, and the turns without tag of the first record.
SETS = {
    "a_okvqa": (
        "aokvqa_v1p0_train.json",
        [
            {
                "image_id": 7,
                "question": "How many?",
                "question_id": "22x",
                "choices": ["one", "two"],
                "correct_choice_idx": 1,
                "direct_answers": ["two"] * 10,
                "difficult_direct_answer": False,
                "rationales": ["a", "b", "c"],
            }
        ],
        "train2017/000000000007.jpg",
        [f"How many?{OPTIONS}{LETTER}", "B"],
    ),
    "gqa": (
        "train_balanced_questions.json",
        {
            "0715": {
                "question": "Is it red?",
                "answer": "no",
                "fullAnswer": "No, it is blue.",
                "imageId": "2375429",
            }
        },
        "images/2375429.jpg",
        [f"Is it red?{SHORT}", "no"],
    ),
    "ocr_vqa": (
        "dataset.json",
        {
            "1883": {
                "imageURL": "http://a.org/images/I/51.jpg",
                "questions": ["Who wrote this?", "What is the genre?"],
                "answers": ["Ann Lee", "Travel"],
                "title": "Go",
                "authorName": "Ann Lee",
                "genre": "Travel",
                "split": 1,
            }
        },
        # Many of the files have another extension than their URL.
        "images/1883.gif",
        [f"Who wrote this?{SHORT}", "Ann Lee"],
    ),
    "textcaps": (
        "TextCaps_0.1_train.json",
        {"dataset_type": "train", "data": [{"image_id": "ab1", "caption_str": "A sign."}]},
        "train_images/ab1.jpg",
        ["Provide a one-sentence caption for the provided image.", "A sign."],
    ),
    "dvqa": (
        "train_qa.json",
        [
            {
                "image": "bar_train_1.png",
                "question": "How many bars?",
                "answer": "two",
                "question_type": "structure",
                "bbox_answer": [],
                "question_id": 5,
            }
        ],
        "images/bar_train_1.png",
        [f"How many bars?{SHORT}", "two"],
    ),
    "chartqa_human": (
        "train_human.json",
        [{"imgname": "41.png", "query": "Which is higher?", "label": "2019"}],
        "png/41.png",
        [f"Which is higher?{SHORT}", "2019"],
    ),
    "chartqa_augmented": (
        "train_augmented.json",
        [{"imgname": "41.png", "query": "Which year?", "label": "2019"}],
        "png/41.png",
        [f"Which year?{SHORT}", "2019"],
    ),
    "docvqa": (
        "train_v1.0_withQT.json",
        {
            "dataset_name": "SP-DocVQA",
            "data": [
                {
                    "questionId": 337,
                    "question": "What is the date?",
                    "question_types": ["form"],
                    "image": "documents/xn_1.png",
                    "docId": 279,
                    "answers": ["1/8/93", "1/8/1993"],
                }
            ],
        },
        "documents/xn_1.png",
        [f"What is the date?{SHORT}", "1/8/93"],
    ),
    "infovqa": (
        "infographicsVQA_train_v1.0.json",
        {
            "data": [
                {
                    "questionId": 1,
                    "question": "How many?",
                    "image_local_name": "10011.jpeg",
                    "ocr_output_file": "10011.json",
                    "answers": ["3"],
                }
            ]
        },
        "images/10011.jpeg",
        [f"How many?{SHORT}", "3"],
    ),
    "synthdog": (
        "metadata.jsonl",
        {
            "file_name": "image_0.jpg",
            "ground_truth": json.dumps({"gt_parse": {"text_sequence": "some text"}}),
        },
        "image_0.jpg",
        ["Read all the text in the image.", "some text"],
    ),
}


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))
    return folder / name


def place(folder, name, data=b"picture"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize("source", SETS)
def test_each_set_becomes_a_conversation_with_its_format_prompt(tmp_path, convert, texts, source):
    name, value, image, (question, answer) = SETS[source]
    place(tmp_path, image)
    (record, *_), rejected = convert(Academic(), write(tmp_path, name, value))
    assert rejected == []
    assert record["images"] == [b"picture"] and record["source"] == source
    assert texts(record) == [f"<image>\n{question}", answer]


def test_questions_about_an_image_can_be_merged(tmp_path, convert, texts, counts):
    rows = [("41.png", "a", "1"), ("7.png", "b", "2"), ("41.png", "c", "3"), ("41.png", "a", "4")]
    values = [{"imgname": name, "query": query, "label": label} for name, query, label in rows]
    for name in ("png/41.png", "png/7.png"):
        place(tmp_path, name)
    path = write(tmp_path, "train_human.json", values)
    form = Academic(merge=True, prompt="")
    (merged, other), rejected = convert(form, path)
    assert rejected == []
    assert texts(merged) == ["<image>\na", "1", "c", "3"] and texts(other) == ["<image>\nb", "2"]
    assert counts(form, path) == {"merged_questions": 1, "repeated_questions": 1}
    assert len(convert(Academic(), path)[0]) == 4


def test_a_missing_image_rejects_its_merged_questions(tmp_path, convert):
    values = [{"imgname": "lost.png", "query": str(i), "label": "x"} for i in range(3)]
    _, (rejected,) = convert(Academic(merge=True), write(tmp_path, "train_human.json", values))
    assert "no such file; 3 questions about it" in rejected.reason


def test_entries_of_other_splits_are_counted(tmp_path, convert, counts):
    about = SETS["ocr_vqa"][1]["1883"]
    place(tmp_path, "images/1.jpg")
    path = write(tmp_path, "dataset.json", {str(i): about | {"split": i} for i in (1, 2, 3)})
    assert len(convert(Academic(), path)[0]) == 2
    assert counts(Academic(), path) == {"entries_of_other_splits": 2}
    assert counts(Academic(split="all"), path) == {}
    with pytest.raises(ValueError, match="split='dev'; expected train"):
        Academic(split="dev")


@pytest.mark.parametrize(
    ("source", "change", "reason"),
    [
        ("a_okvqa", {"correct_choice_idx": None}, "the correct choice is None"),
        ("a_okvqa", {"correct_choice_idx": 2}, "choice 2 of 2"),
        ("a_okvqa", {"image_id": "x"}, "expected a number of COCO"),
        ("chartqa_human", {"query": " "}, "no question"),
        ("chartqa_human", {"query": "what is <image>?"}, "a layout without placeholders"),
        ("chartqa_human", {"label": None}, "no answer that is not blank"),
        ("chartqa_human", {"imgname": "lost.png"}, "no such file"),
        ("dvqa", {"answer": 7}, "a int, expected a string"),
        ("dvqa", {"image": None}, "image is None, expected a number or a string"),
    ],
)
def test_a_damaged_entry_is_rejected(tmp_path, convert, source, change, reason):
    name, (value,), image, _ = SETS[source]
    place(tmp_path, image)
    path = write(tmp_path, name, [value, value | change])
    (record,), (rejected,) = convert(Academic(), path)
    assert record["id"] == f"{name}:0" and reason in rejected.reason


def test_other_json_is_refused_with_the_known_layouts(tmp_path):
    with pytest.raises(ValueError, match="expected a JSON file of one of a_okvqa, gqa"):
        Academic().units(write(tmp_path, "x.json", [{"a": 1}]))


@pytest.fixture
def ai2d(tmp_path, picture):
    questions = {
        "Which is the sun?": {
            "abcLabel": True,
            "answerTexts": ["A", "B"],
            "correctAnswer": 0,
            "questionId": "0.png-0",
        },
        "What is shown?": {
            "abcLabel": False,
            "answerTexts": ["one", "two"],
            "correctAnswer": 1,
            "questionId": "0.png-1",
        },
    }
    label = {"rectangle": [[10, 10], [40, 30]], "replacementText": "A", "value": "sun"}
    for folder in ("questions", "annotations", "images"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "questions", "0.png.json", {"questions": questions, "imageName": "0.png"})
    write(tmp_path / "annotations", "0.png.json", {"text": {"T0": label}})
    place(tmp_path, "images/0.png", picture(100, 50))
    return tmp_path


def pixels(data):
    return PIL.Image.open(io.BytesIO(data)).convert("RGB")


def test_letters_of_ai2d_are_drawn_on_the_diagram(ai2d, convert, texts):
    opaque, transparent = (
        convert(Academic(letters=how), ai2d)[0] for how in ("opaque", "transparent")
    )
    assert texts(opaque[0]) == [f"<image>\nWhich is the sun?\nA. A\nB. B{LETTER}", "A"]
    assert texts(opaque[1]) == [f"<image>\nWhat is shown?{OPTIONS}{LETTER}", "B"]
    corner = (12, 12)
    assert pixels(opaque[0]["images"][0]).getpixel(corner) == (255, 255, 255)
    drawn = pixels(transparent[0]["images"][0])
    assert drawn.getpixel(corner) == (255, 0, 0)
    assert min(red for _, (red, _, _) in drawn.getcolors(100_000)) < 50
    # A question that needs no letters has the original image.
    assert opaque[1]["images"] == [(ai2d / "images/0.png").read_bytes()]
    assert opaque[0]["source"] == "ai2d" and opaque[0]["source_id"] == "0.png-0"


def test_questions_about_letters_that_are_not_drawn_are_rejected(ai2d, convert):
    (record,), (rejected,) = convert(Academic(letters="none"), ai2d)
    assert record["source_id"] == "0.png-1"
    assert "letters that are not drawn" in rejected.reason
    write(ai2d / "annotations", "0.png.json", {"text": {"T0": {"rectangle": "x"}}})
    _, (rejected,) = convert(Academic(), ai2d)
    assert "letters cannot be drawn" in rejected.reason

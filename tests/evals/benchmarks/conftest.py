"""Small benchmarks on disk, with the files and keys that their publishers document.

Every picture has a different gray level, so that tests can tell which one is shown.
"""

import base64
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm1_jax.evals.scoring.yes_no import MME_COGNITION, MME_PERCEPTION

NUM_SUPPORT = 20
NUM_QUERIES = 4


def png(number: int) -> bytes:
    """A picture of a single gray level, which encodes its number."""
    file = io.BytesIO()
    pixels = np.full((4, 4, 3), number, np.uint8)
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def ten(answer: str, other: str = "other") -> list[dict[str, Any]]:
    """Answers of ten people, seven of whom agree."""
    return [
        {"answer_id": i + 1, "answer": answer if i < 7 else other, "answer_confidence": "yes"}
        for i in range(10)
    ]


def coco(root: Path) -> None:
    """cs.stanford.edu/people/karpathy/deepimagesent: dataset_coco.json of caption_datasets.zip."""
    images = []
    splits = [("train", NUM_SUPPORT), ("test", NUM_QUERIES), ("restval", 2), ("val", 2)]
    for split, count in splits:
        for _ in range(count):
            number = len(images)
            folder = "train2014" if split == "train" else "val2014"
            name = f"COCO_{folder}_{number:012d}.jpg"
            picture(root / folder / name, number)
            sentences = [
                {"tokens": ["a"], "raw": f"a dog of number {number} on grass ", "imgid": number},
                {"tokens": ["a"], "raw": f"one dog numbered {number}", "imgid": number},
            ]
            images.append(
                {"filepath": folder, "sentids": [number], "filename": name, "imgid": number}
                | {"split": split, "sentences": sentences, "cocoid": number}
            )
    write(root / "dataset_coco.json", {"images": images, "dataset": "coco"})


def nocaps(root: Path) -> None:
    """nocaps.org/download: COCO's format, with `open_images_id`; `domain` of the val captions."""
    images, annotations = [], []
    for number in range(NUM_SUPPORT):
        name = f"{number:016x}.jpg"
        picture(root / "val" / name, number)
        domain = ("in-domain", "near-domain", "out-domain")[number % 3]
        images.append(
            {"id": number, "open_images_id": name[:-4], "height": 4, "width": 4, "coco_url": ""}
            | {"file_name": name, "license": 0, "domain": domain}
        )
        annotations += [
            {"image_id": number, "id": 10 * number + i, "caption": f"a lynx {number} walks {i}"}
            for i in range(2)
        ]
    content = {"licenses": [], "info": {}, "images": images, "annotations": annotations}
    write(root / "nocaps_val_4500_captions.json", content)


def textcaps(root: Path) -> None:
    """textvqa.org/textcaps/dataset: `data`, with `caption_str`, `reference_strs`, `image_id`."""
    for split, first, count in (("train", 0, NUM_SUPPORT), ("val", 100, NUM_QUERIES)):
        data = []
        for number in range(first, first + count):
            picture(root / "train_images" / f"{number:016x}.jpg", number)
            texts = [f"a sign that reads {number}", f"sign {number} in a street"]
            data += [
                {"image_id": f"{number:016x}", "image_classes": ["Sign"], "set_name": split}
                | {"image_path": f"train/{number:016x}.jpg", "caption_id": 10 * number + i}
                | {"caption_str": text, "reference_strs": texts}
                for i, text in enumerate(texts)
            ]
        content = {"dataset_type": split, "dataset_name": "textcaps", "data": data}
        write(root / f"TextCaps_0.1_{split}.json", content)


def _coco_questions(root: Path, prefix: str, answers: Callable[[str], list[Any]]) -> None:
    for split, first, count in (("train2014", 0, NUM_SUPPORT), ("val2014", 100, NUM_QUERIES)):
        questions, annotations = [], []
        for number in range(first, first + count):
            picture(root / split / f"COCO_{split}_{number:012d}.jpg", number)
            key = 1000 * number
            questions.append({"image_id": number, "question": "what is it?", "question_id": key})
            annotations.append(
                {"question_type": "what is", "multiple_choice_answer": f"thing{number}"}
                | {"answers": answers(f"thing{number}"), "image_id": number}
                | {"answer_type": "other", "question_id": key}
            )
        info: Mapping[str, Any] = {"info": {}, "license": {}, "data_subtype": split}
        name = f"{prefix}OpenEnded_mscoco_{split}_questions.json"
        write(root / name, {**info, "task_type": "Open-Ended", "questions": questions})
        write(
            root / f"{prefix}mscoco_{split}_annotations.json", {**info, "annotations": annotations}
        )


def vqav2(root: Path) -> None:
    """visualqa.org/vqa_v2_teaser and /download: the formats of questions and annotations."""
    _coco_questions(root, "v2_", ten)


def okvqa(root: Path) -> None:
    """okvqa.allenai.org/download: the formats of VQA, with `raw_answer`."""

    def answers(text: str) -> list[Any]:
        return [one | {"raw_answer": f"{one['answer']}s"} for one in ten(text)]

    _coco_questions(root, "", answers)


def textvqa(root: Path) -> None:
    """textvqa.org/dataset: `data`, with `question`, `image_id`, ten `answers`, `question_id`."""
    for split, first, count in (("train", 0, NUM_SUPPORT), ("val", 100, NUM_QUERIES)):
        data = []
        for number in range(first, first + count):
            picture(root / "train_images" / f"{number:016x}.jpg", number)
            data.append(
                {"question": "what does it say?", "image_id": f"{number:016x}", "set_name": split}
                | {"image_classes": ["Sign"], "flickr_300k_url": "", "question_tokens": ["what"]}
                | {"answers": [one["answer"] for one in ten(f"word{number}")]}
                | {"question_id": number}
            )
        content = {"dataset_type": split, "dataset_name": "textvqa", "data": data}
        write(root / f"TextVQA_0.5.1_{split}.json", content)


def vizwiz(root: Path) -> None:
    """vizwiz.org/tasks-and-datasets/vqa: a list with `image`, `question`, `answers`, .."""
    for split, first, count in (("train", 0, NUM_SUPPORT), ("val", 100, NUM_QUERIES)):
        records = []
        for number in range(first, first + count):
            name = f"VizWiz_{split}_{number:08d}.jpg"
            picture(root / split / name, number)
            answers = [
                {"answer": one["answer"], "answer_confidence": "yes"} for one in ten(f"can{number}")
            ]
            records.append(
                {"image": name, "question": "What is this?", "answers": answers}
                | {"answer_type": "other", "answerable": 1}
            )
        write(root / "Annotations" / f"{split}.json", records)


def gqa(root: Path) -> None:
    """cs.stanford.edu/people/dorarad/gqa/download: questions by id, with `imageId`, `answer`."""
    for split, first, count in (("train", 0, NUM_SUPPORT), ("testdev", 100, NUM_QUERIES)):
        questions = {}
        for number in range(first, first + count):
            picture(root / "images" / f"n{number}.jpg", number)
            questions[f"20{number:04d}"] = {
                **{"question": "Is it red?", "imageId": f"n{number}", "isBalanced": True},
                **{"answer": f"no{number}", "fullAnswer": f"No, it is {number}.", "entailed": []},
            }
        write(root / f"{split}_balanced_questions.json", questions)


def scienceqa(root: Path) -> None:
    """github.com/lupantech/ScienceQA: problems.json, with `choices`, `answer`, `image`, `split`."""
    problems = {}
    for split, first, count in (("train", 0, NUM_SUPPORT), ("test", 100, NUM_QUERIES)):
        for number in range(first, first + count):
            picture(root / "images" / split / str(number) / "image.png", number)
            problems[str(number)] = {
                **{"question": "Which one?", "choices": ["cat", "dog"], "answer": number % 2},
                **{"hint": "Look.", "image": "image.png", "task": "closed choice", "split": split},
                **{"grade": "grade2", "subject": "natural science", "lecture": "", "solution": ""},
            }
        problems[str(first + 50)] = problems[str(first)] | {"image": None}
    write(root / "problems.json", problems)


def mmmu(root: Path) -> None:
    """huggingface.co/datasets/MMMU/MMMU: a Parquet file a subject; options as text."""
    for subject, first in (("Art", 0), ("Math", 100)):
        rows = []
        for number in range(first, first + NUM_QUERIES):
            is_open = number % 4 == 3
            image = {"bytes": png(number), "path": f"{number}.png"}
            rows.append(
                {"id": f"validation_{subject}_{number}", "question": "See <image 1>: what is it?"}
                | {"options": "[]" if is_open else "['a cat', '<image 1> again', \"a dog's\"]"}
                | {"explanation": "", "image_1": image, "img_type": "['Photo']"}
                | {"answer": str(number) if is_open else "B", "topic_difficulty": "Easy"}
                | {"question_type": "open" if is_open else "multiple-choice", "subfield": "x"}
            )
        path = root / subject / "validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)


def mathvista(root: Path) -> None:
    """github.com/lupantech/MathVista: testmini.json by pid."""
    records = {}
    for number in range(NUM_QUERIES):
        picture(root / "images" / f"{number}.jpg", number)
        choice = number % 2 == 1
        records[str(number)] = {
            **{"pid": str(number), "question": "How many?", "image": f"images/{number}.jpg"},
            **{"choices": ["two", "three"] if choice else None, "unit": None},
            **{"precision": None if choice else 1.0, "query": "", "metadata": {}},
            **{"answer": "three" if choice else f"{number}.5"},
            **{"question_type": "multi_choice" if choice else "free_form"},
            **{"answer_type": "text" if choice else "float"},
        }
    write(root / "testmini.json", records)


def mme(root: Path) -> None:
    """The README of MME (BradyFU/Awesome-Multimodal-Large-Language-Models): two questions each."""
    for number, subtask in enumerate((*MME_PERCEPTION, *MME_COGNITION)):
        # Both layouts occur in the archive.
        nested = number % 2 == 0
        folder = root / subtask
        picture((folder / "images" if nested else folder) / f"{number}.jpg", number)
        lines = "Is it so? Please answer yes or no.\tYes\nIs it not? Please answer yes or no.\tNo\n"
        write((folder / "questions_answers_YN" if nested else folder) / f"{number}.txt", lines)


def mmbench(root: Path) -> None:
    """github.com/open-compass/MMBench: a TSV with base64 pictures; rounds differ by millions."""
    lines = ["index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category"]
    for number in range(NUM_QUERIES):
        image = base64.b64encode(png(number)).decode()
        for turn in range(2):
            options = ["cat", "dog"][:: 1 if turn == 0 else -1]
            letter = "AB"[options.index("dog")]
            fields = [number + turn * 10**6, "what is it?", "nan", *options, "nan", "", letter]
            lines.append("\t".join(map(str, [*fields, "identity", image, "x", "y"])))
    write(root / "mmbench_dev_20230712.tsv", "\n".join(lines) + "\n")


def seed(root: Path) -> None:
    """github.com/AILab-CVPR/SEED-Bench, DATASET.md: `questions` and `question_type`."""
    questions = []
    for number in range(NUM_QUERIES + 1):
        picture(root / "SEED-Bench-image" / f"{number}_{number}", number)
        is_video = number == NUM_QUERIES
        questions.append(
            {"answer": "C", "data_id": f"{number}_{number}", "data_type": "image"}
            | {f"choice_{letter}": f"{letter} thing" for letter in "abcd"}
            | {"question": "What is it?", "question_id": str(number)}
            | {"question_type_id": 10 if is_video else 1 + number % 2}
        )
    write(root / "SEED-Bench.json", {"questions": questions, "question_type": {"x": 1}})


def pope(root: Path) -> None:
    """github.com/AoiDragon/POPE, output/coco: lines of `question_id`, `image`, `text`, `label`."""
    for part in ("adversarial", "popular", "random"):
        lines = []
        for number in range(NUM_QUERIES):
            name = f"COCO_val2014_{number:012d}.jpg"
            picture(root / "val2014" / name, number)
            label = ("yes", "no")[number % 2]
            lines.append(
                json.dumps(
                    {"question_id": number + 1, "image": name, "label": label}
                    | {"text": "Is there a dog in the image?"}
                )
            )
        write(root / f"coco_pope_{part}.json", "\n".join(lines) + "\n")


LAYOUTS: Mapping[str, Callable[[Path], None]] = {
    **{"coco": coco, "nocaps": nocaps, "textcaps": textcaps, "vqav2": vqav2, "textvqa": textvqa},
    **{"vizwiz": vizwiz, "gqa": gqa, "okvqa": okvqa, "scienceqa": scienceqa, "mmmu": mmmu},
    **{"mathvista": mathvista, "mme": mme, "mmbench": mmbench, "seed": seed, "pope": pope},
}


@pytest.fixture(scope="session")
def benchmarks_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    for name, make in LAYOUTS.items():
        make(folder / name)
    return folder

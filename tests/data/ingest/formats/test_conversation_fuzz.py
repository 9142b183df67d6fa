"""Malformed conversations of many layouts: each becomes a record or a rejection, never a crash.

There are 12 layouts with 15 sources each, in which three entries of four are malformed: about 500.
"""

import copy
import io
import json
import random
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm1_jax.data.ingest.formats.registry import make_format
from mm1_jax.data.readers.entries import Rejected, documents_of

NUM_SOURCES = 15
TURNS = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "<image>\nWhat is at [0.1, 0.2, 0.3, 0.4]?"},
    {"from": "gpt", "value": "<ref>cat</ref><box>[[10, 20, 300, 400]]</box>"},
    {"from": "human", "value": "Sure?"},
    {"from": "gpt", "value": "Yes."},
]
MESSAGES = [
    {"role": "user", "content": "<image>find <ref-object>"},
    {"role": "assistant", "content": "<bbox>", "loss": True},
]
OBJECTS = {"ref": ["cat"], "bbox": [[1, 2, 3, 4]], "bbox_type": "real", "image_id": [0]}
IMAGE = {"bytes": b"picture", "path": "a.png"}
QUESTION = {"question": "how?", "question_id": 1}
ODD = [
    *(None, True, -1, 0, 7, 1.5, 10**30, float("nan"), float("inf")),
    *(
        "",
        " ",
        "<image>",
        "<image>\n" * 3,
        "<box>",
        "<point>",
        "\ud800",
        "\0",
        "../../etc",
        "x" * 999,
    ),
    *([], {}, [[]], [None], {"a": []}, ["a.png"], ["a.png"] * 3, {"bytes": "x"}),
    *([{"from": "gpt", "value": "x"}], [{"from": "human", "value": "<image>"}] * 2),
]

# Format, options, and an entry; formats of Parquet and tar files are written as such.
LAYOUTS = {
    "llava": ("llava", {}, {"id": "x", "image": "a.png", "conversations": TURNS}),
    "llava_boxes": (
        *("llava", {"boxes": "llava", "ocr_tokens": False}),
        {"image": ["a.png"], "conversations": TURNS},
    ),
    "internvl": (
        *("llava", {"boxes": "internvl"}),
        {"image": "a.png", "conversations": TURNS, "width": 8},
    ),
    "swift": (
        *("swift", {}),
        {"messages": MESSAGES, "images": ["a.png"], "objects": OBJECTS},
    ),
    "swift_query": (
        *("swift", {}),
        {"query": "<image>?", "response": "x", "history": [["a", "b"]], "images": ["a.png"]},
    ),
    "a_okvqa": (
        *("academic", {}),
        QUESTION | {"image_id": 7, "choices": ["a", "b"], "correct_choice_idx": 0},
    ),
    "docvqa": (
        *("academic", {}),
        {"questionId": 1, "question": "how?", "image": "a.png", "answers": ["so", "thus"]},
    ),
    "jsonl": (
        *("jsonl", {}),
        {
            "images": ["a.png"],
            "turns": [
                {"role": "user", "text": "<image>?"},
                {"role": "assistant", "text": "<box>", "loss": True},
            ],
            "boxes": [{"image": 0, "box": [0, 0, 1, 1]}],
        },
    ),
    "llava_parquet": (
        *("llava_parquet", {"boxes": "fractions"}),
        {"id": "x", "image": IMAGE, "conversations": TURNS, "data_source": "y"},
    ),
    "cauldron": (
        *("cauldron", {"min_relevance": 3}),
        {
            "images": [IMAGE],
            "texts": [{"user": "a", "assistant": "b", "source": "c"}] * 2,
            "relevance_ratings": [5, 2],
        },
    ),
    "pixmo": (
        *("pixmo", {}),
        {"image": IMAGE, "label": "eye", "points": [{"x": 1.0, "y": 2.0}], "image_url": "u"},
    ),
    "chat_webdataset": (
        *("chat_webdataset", {}),
        [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "yes"}],
    ),
}
PARQUET = ("llava_parquet", "cauldron", "pixmo")


def mutated(rng, value):
    """Replaces, drops or repeats one part of a value, leaves more often than what holds them."""
    value = copy.deepcopy(value)
    parent, key, part = None, None, value
    while isinstance(part, list | dict) and part:
        parent = part
        key = rng.choice(list(part)) if isinstance(part, dict) else rng.randrange(len(part))
        part = parent[key]
        if rng.random() < 0.2:
            break
    how = rng.choice(["replace", "replace", "drop", "repeat"])
    if how == "drop":
        del parent[key]
    elif how == "repeat" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(part))
    else:
        parent[key] = rng.choice(ODD)
    return value


def write(folder, form, entries):
    """Writes the entries, and returns their number: Arrow cannot hold every mixture of types."""
    num_written = len(entries)
    if form in PARQUET:
        num_written = 0
        for entry in entries:
            try:
                # A file each, with columns of its own types.
                table = pa.Table.from_pylist([entry if isinstance(entry, dict) else {"x": entry}])
                pq.write_table(table, folder / f"{num_written}.parquet")
            except (pa.ArrowException, OverflowError, ValueError, TypeError):
                (folder / f"{num_written}.parquet").unlink(missing_ok=True)
                continue
            num_written += 1
    elif form == "chat_webdataset":
        with tarfile.open(folder / "0.tar", "w") as archive:
            for number, entry in enumerate(entries):
                for extension, data in (("jpg", b"x"), ("json", json.dumps(entry).encode())):
                    info = tarfile.TarInfo(f"{number}.{extension}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    else:
        (folder / "0.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return num_written


@pytest.mark.parametrize("layout", LAYOUTS)
def test_malformed_conversations_are_records_or_rejections(tmp_path, convert, picture, layout):
    name, options, entry = LAYOUTS[layout]
    rng = random.Random(layout)
    num_mutated = 0
    for number in range(NUM_SOURCES):
        folder = tmp_path / str(number)
        (folder / "images").mkdir(parents=True)
        (folder / "a.png").write_bytes(picture(40, 20))
        (folder / "images" / "000000000007.jpg").write_bytes(b"x")
        # The first entry is intact, so that the layout is recognized.
        entries = [entry, *(mutated(rng, entry) for _ in range(3))]
        num_written = write(folder, name, entries)
        form = make_format(name, **options)
        found = [item for unit in form.units(folder) for item in form.read(unit)]
        whole = [item for item in found if isinstance(item, Rejected) or documents_of(item).records]
        assert len(whole) == num_written
        records, rejected = convert(form, folder)
        assert len(records) + len(rejected) == num_written
        num_mutated += num_written - 1
    assert num_mutated >= 2 * NUM_SOURCES


@pytest.mark.parametrize(
    ("form", "entry"),
    [
        ("llava", {"conversations": TURNS[3:]}),
        ("swift", {"query": "how?", "response": "so"}),
        ("academic", {"imgname": "a.png", "query": "how?", "label": "so"}),
    ],
)
def test_a_file_that_is_damaged_from_the_start_is_counted(tmp_path, form, entry):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.json").write_text(json.dumps([entry] * 2))
    (tmp_path / "b.json").write_text(json.dumps([entry] * 2)[:-60])
    (tmp_path / "c.jsonl").write_text("\n".join([*["{"] * 10, json.dumps(entry)]))
    form = make_format(form)
    found = [item for unit in form.units(tmp_path) for item in form.read(unit)]
    assert Counter(item.id.split(":")[0] for item in found if isinstance(item, Rejected)) == {
        "b.json": 1,
        "c.jsonl": 10 + (form.name == "academic"),
    }

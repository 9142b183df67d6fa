"""Damaged files of every format: readers report the damage and never raise.

There are 1,080 cases: 40 with damaged bytes for each of 15 formats, and 30 with odd values in each
of 16 tests.
"""

import copy
import gzip
import io
import json
import signal
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm1_jax.data.ingest.formats.registry import make_format

IMAGES = {f"images/{name}.jpg": f"picture {name}".encode() for name in "abc"}


def as_tar(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def as_zip(data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lines.jsonl", data)
        # macOS adds these files to archives.
        archive.writestr("__MACOSX/._lines.jsonl", b"\0\5\x16\7")
        archive.writestr(".DS_Store", b"\0\0\0\1Bud1")
    return file.getvalue()


def as_parquet(rows, schema=None, **options):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=2, **options)
    return file.getvalue()


def as_json(value):
    return json.dumps(value, indent=1).encode()


def as_lines(values):
    return "\n".join(map(json.dumps, values)).encode()


SAMPLES = [{"key": f"{i:04}", "caption": f"caption {i}", "url": "http://x"} for i in range(4)]
ROWS = [{"jpg": b"picture", "txt": f"caption {i}", "url": "http://x", "key": "k"} for i in range(4)]
PAGES = [
    {"images": [None, f"http://x/{name}", None], "texts": ["one", None, "two"], "metadata": "[]"}
    for name in "abc"
]
MMC4 = [
    {
        "text_list": ["one", "two", "three"],
        "image_info": [
            {"image_name": f"{name}.jpg", "matched_text_index": 1, "matched_sim": 0.3},
            {"image_name": "lost.jpg", "matched_text_index": 2, "matched_sim": 0.1},
        ],
        "url": "http://page",
    }
    for name in "abc"
]
COCO = {
    "info": {"year": 2017},
    "images": [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate("abc")],
    "annotations": [{"image_id": i % 3, "id": i, "caption": f"caption {i}"} for i in range(6)],
}
LLAVA = [
    {
        "id": name,
        "image": f"images/{name}.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nwhat?"},
            {"from": "gpt", "value": "a cat"},
        ],
    }
    for name in "abc"
]
QUESTIONS = {
    "data_subtype": "val",
    "questions": [{"question_id": i, "image_id": i, "question": "what?"} for i in range(3)],
}
ANNOTATIONS = {
    "annotations": [{"question_id": i, "answers": [{"answer": "yes"}] * 3} for i in range(3)]
}
JSONL = [
    {"id": name, "texts": ["one", None], "images": [None, f"images/{name}.jpg"]} for name in "abc"
]
CAPTIONS = [
    {"image": {"bytes": b"picture", "path": "x"}, "caption": ["one", "two"]} for _ in range(4)
]
SWIFT = [
    {
        "messages": [
            {"role": "user", "content": "<image>find <ref-object>"},
            {"role": "assistant", "content": "<bbox>", "loss": True},
        ],
        "images": [f"images/{name}.jpg"],
        "objects": {"ref": ["cat"], "bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1"},
    }
    for name in "abc"
]
CHATS = [
    {
        "image": {"bytes": b"picture", "path": None},
        "conversations": [
            {"from": "human", "value": "<image>\nwhat?"},
            {"from": "gpt", "value": "a cat"},
        ],
        "images": [{"bytes": b"picture", "path": None}],
        "texts": [{"user": "what?", "assistant": "a cat"}],
        "relevance_ratings": [5],
    }
    for _ in range(4)
]
CHARTS = [{"imgname": f"{name}.jpg", "query": "how?", "label": "so"} for name in "abc"]
TEXTS = [{"text": f"text {i}", "id": i} for i in range(5)]
HTML = b"<p>one</p><img src='images/a.jpg'><!-- x --><pre>two &amp;</pre><script>x</script>"
MARKDOWN = b'# One\n\n![x](images/b.jpg "t") two `code` ![y][z]\n\n```\nx\n```\n[z]: images/c.jpg\n'


def shard(samples):
    files = {}
    for number, sample in enumerate(samples):
        files[f"._{number:04}.jpg"] = b"\0\5\x16\7"
        files[f"{number:04}.jpg"] = b"picture"
        files[f"{number:04}.json"] = json.dumps(sample).encode()
        files[f"{number:04}.txt"] = b"a caption"
    return as_tar(files)


def chat_shard():
    names = ("img0.jpg", "img1.jpg")
    packed = {"images": names, "prompts": ["a?", "b?"], "captions": ["a", "b"]}
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "a"}]
    return as_tar(
        {f"0.{name}": b"picture" for name in names}
        | {"0.json": as_json(packed), "1.jpg": b"picture", "1.json": as_json(turns)}
    )


def with_maps(files):
    urls = {f"http://x/{name}": f"images/{name}.jpg" for name in "abc"}
    return files | IMAGES | {"url_to_file.json": as_json(urls)}


# The files of a source of each format, of which all but the pictures are damaged.
SOURCES = {
    "webdataset": {"00000.tar": shard(SAMPLES)},
    "img2dataset_parquet": {"0.parquet": as_parquet(ROWS)},
    "obelics": with_maps({"0.parquet": as_parquet(PAGES, compression="zstd")}),
    "mmc4": {
        "a.jsonl": as_lines(MMC4),
        "b.jsonl.gz": gzip.compress(as_lines(MMC4), mtime=0),
        "c.jsonl.zst": zstandard.compress(as_lines(MMC4)),
        "d.jsonl.zip": as_zip(as_lines(MMC4)),
    }
    | IMAGES,
    "coco_captions": {"captions.json": as_json(COCO)} | IMAGES,
    "llava": {"llava.json": as_json(LLAVA)} | IMAGES,
    "vqa": {
        "val_questions.json": as_json(QUESTIONS),
        "val_annotations.json": as_json(ANNOTATIONS),
        "val_images.tar": as_tar({f"val_{i:06}.png": b"picture" for i in range(3)}),
    },
    "folder": {"one.html": HTML, "two.md": MARKDOWN} | IMAGES,
    "hf_captions": {"0.parquet": as_parquet(CAPTIONS, use_dictionary=False)},
    "jsonl": {"pages.jsonl": as_lines(JSONL)} | IMAGES,
    "llava_parquet": {"0.parquet": as_parquet(CHATS)},
    "chat_webdataset": {"0.tar": chat_shard()},
    "swift": {"swift.jsonl": as_lines(SWIFT)} | IMAGES,
    "academic": {"train_human.json": as_json(CHARTS)} | IMAGES,
    "text": {
        "a.jsonl": as_lines(TEXTS),
        "b.parquet": as_parquet(TEXTS, compression="gzip"),
        "c.txt.gz": gzip.compress(b"some text", mtime=0),
        "d.txt": b"caf\xc3\xa9",
    },
}


@pytest.fixture(autouse=True)
def _end():
    """Interrupts a reader that does not end."""

    def interrupt(*_):
        raise TimeoutError("a reader does not come to an end")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def quick(num_examples):
    return settings(
        derandomize=True,
        max_examples=num_examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def num_read(convert, name, files, **options):
    """Counts records and Rejecteds; returns None if the format finds nothing to read."""
    with tempfile.TemporaryDirectory() as folder:
        for file, data in files.items():
            path = Path(folder, file)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        form = make_format(name, **options)
        try:
            form.units(Path(folder))
        except ValueError as error:
            assert str(error)
            return None
        records, rejected = convert(form, Path(folder))
        return len(records) + len(rejected)


@st.composite
def damage(draw, data):
    """Flips, drops, repeats, cuts off, replaces or inserts some bytes."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        size = draw(st.sampled_from([1, 2, 8, 64, 512]))
        how = draw(st.sampled_from(["flip", "cut", "drop", "repeat", "zero", "replace", "insert"]))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at : at + size]
        elif how == "repeat":
            data[at:at] = data[at : at + size]
        elif how == "zero":
            data[at : at + size] = bytes(size)
        elif how == "replace":
            data[at : at + size] = draw(st.binary(min_size=1, max_size=8))
        else:
            data[at:at] = draw(
                st.sampled_from([b"\xff", b"\0", b"[" * 3000, b'"', b"\n", b"{", b"<"])
            )
    return bytes(data)


@pytest.mark.parametrize("name", SOURCES)
def test_damaged_bytes_never_raise(name, convert):
    files = SOURCES[name]
    names = [file for file in files if not file.startswith("images/")]

    @given(st.data())
    @quick(40)
    def survives(data):
        file = data.draw(st.sampled_from(names))
        damaged = data.draw(damage(files[file]))
        count = num_read(convert, name, files | {file: damaged})
        if file.endswith(".jsonl") and count is not None:
            others = num_read(convert, name, files) - len(files[file].splitlines())
            assert count == others + sum(bool(line.strip()) for line in damaged.split(b"\n"))

    survives()


# Each of these strings is replaced by a text that `json.dumps` cannot write.
_RAW = {"@deep": "[" * 3000 + "]" * 3000, "@long": "9" * 5000, "@torn": "[1, 2"}
ODD = st.sampled_from(
    [
        *(None, True, False, 0, -1, 1.5, 10**30, 10**400, float("nan"), float("inf")),
        *("", " ", "\ud800", "\0", "../../../etc/passwd", "/etc/passwd", "<image>" * 3, "x" * 5000),
        *([], {}, [[]], [None], {"a": []}, ["images/a.jpg"], {"bytes": "x"}, *_RAW),
    ]
)


@st.composite
def swapped(draw, value):
    """Replaces one part of the value by something odd."""
    value = copy.deepcopy(value)
    parent, key, part = None, None, value
    while isinstance(part, list | dict) and part:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        parent, key = part, draw(st.sampled_from(keys))
        part = parent[key]
        # Leaves more often than what holds them.
        if draw(st.integers(0, 3)) == 0:
            break
    if parent is not None:
        parent[key] = draw(ODD)
        if isinstance(parent, dict) and draw(st.booleans()):
            del parent[key]
    return value


def with_raw(data):
    for name, raw in _RAW.items():
        data = data.replace(json.dumps(name).encode(), raw.encode())
    return data


@pytest.mark.parametrize(
    ("name", "file", "values"),
    [
        ("mmc4", "a.jsonl", MMC4),
        ("llava", "llava.jsonl", LLAVA),
        ("jsonl", "pages.jsonl", JSONL),
        ("swift", "swift.jsonl", SWIFT),
        ("text", "a.jsonl", TEXTS),
    ],
)
def test_odd_values_reject_only_their_own_line(name, file, values, convert):
    @given(st.data())
    @quick(30)
    def survives(data):
        lines = [data.draw(swapped(value)) for value in values]
        count = num_read(convert, name, {file: with_raw(as_lines(lines))} | IMAGES)
        assert count in (None, len(values))

    survives()


@pytest.mark.parametrize(
    ("name", "file", "value"),
    [
        ("llava", "llava.json", LLAVA),
        ("coco_captions", "captions.json", COCO),
        ("vqa", "val_questions.json", QUESTIONS),
        ("vqa", "val_annotations.json", ANNOTATIONS),
    ],
)
def test_odd_values_in_json_never_raise(name, file, value, convert):
    @given(swapped(value))
    @quick(30)
    def survives(odd):
        count = num_read(convert, name, SOURCES[name] | {file: with_raw(as_json(odd))})
        assert count is None or count >= 1

    survives()


@given(st.data())
@quick(30)
def test_odd_json_in_a_shard_rejects_only_its_own_sample(convert, data):
    samples = [data.draw(swapped(sample)) for sample in SAMPLES]
    assert num_read(convert, "webdataset", {"a.tar": shard(samples)}) == len(SAMPLES)


COLUMNS = st.sampled_from(
    [
        pa.array(["a", None, ""]),
        pa.array([b"a", None, b"\xff"]),
        pa.array([1, None, 2**62]),
        pa.array([float("nan"), None, 1e300]),
        pa.nulls(3),
        pa.array([["a", None], None, []]),
        pa.array([[b"a"], None, [b"", None]]),
        pa.array([[1], [], None]),
        pa.array([{"bytes": b"a", "path": None}, {"bytes": None, "path": "/etc/passwd"}, None]),
        pa.array([[{"bytes": b"a", "path": "\0"}], [None], None]),
        pa.array([{"path": 7}, {"path": None}, None]),
        pa.array(["a", "a", None]).dictionary_encode(),
        pa.array([2**62, 0, None], pa.timestamp("us")),
        pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        pa.array([True, None, False]),
    ]
)
NAMES = {
    "img2dataset_parquet": ("jpg", "txt", "url", "key", "status", "error_message"),
    "obelics": ("images", "texts", "metadata", "general_metadata"),
    "hf_captions": ("image", "caption", "url"),
    "llava_parquet": ("conversations", "image", "id", "data_source"),
    "cauldron": ("images", "texts", "source"),
    "text": ("text", "id"),
}


@pytest.mark.parametrize("name", NAMES)
def test_odd_columns_lose_no_row(name, convert):
    @given(st.data())
    @quick(30)
    def survives(data):
        file = io.BytesIO()
        pq.write_table(pa.table({column: data.draw(COLUMNS) for column in NAMES[name]}), file)
        files = with_maps({"0.parquet": file.getvalue()})
        assert num_read(convert, name, files) == 3

    survives()

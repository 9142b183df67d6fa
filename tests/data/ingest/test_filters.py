import io
import pickle
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from foreign_formats import page

from mm1_jax.data.images import BadImage
from mm1_jax.data.ingest.filters import (
    AnswerQuality,
    AnswerTypes,
    BlackImages,
    EvaluationOverlap,
    FrequentImages,
    ImageCount,
    ImageFilter,
    RepeatedImages,
    apply_filters,
)
from mm1_jax.data.ingest.image_keys import frequent_keys
from mm1_jax.data.ingest.record_images import encoded_size
from mm1_jax.data.record_files import RecordKind


def header(width: int, height: int) -> bytes:
    """A PNG that ends before its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + struct.pack(">I", 1000) + b"IDAT"


def caption(image: bytes, url: str | None = None) -> dict:
    captions = [{"text": "a", "kind": "alt"}]
    return {"id": "1", "image": image, "captions": captions} | ({"url": url} if url else {})


def encoded(picture: PIL.Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def drawn(seed: int) -> PIL.Image.Image:
    """Smooth blots of color."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return PIL.Image.fromarray(pixels).resize((320, 240), PIL.Image.Resampling.BICUBIC)


def kept(cfg, record, kind=RecordKind.CAPTIONS):
    return cfg.instantiate(kind=kind)(record)


@pytest.mark.parametrize(
    ("width", "height", "fault"),
    [
        (100, 100, None),
        (99, 100, "side"),
        (100, 99, "side"),
        (100, 200, None),
        (200, 100, None),
        (100, 201, "aspect_ratio"),
        (201, 100, "aspect_ratio"),
        (10_000, 5_000, None),
        (10_001, 6_000, "side"),
        (6_000, 10_001, "side"),
        (8_000, 8_000, None),
        (8_001, 8_000, "pixels"),
        # Pillow warns about the first and rejects the second.
        (10_000, 10_000, "pixels"),
        (30_000, 30_000, "unreadable"),
    ],
)
def test_image_sizes_are_filtered_from_the_header_alone(width, height, fault):
    record = caption(header(width, height))
    left = kept(ImageFilter.default_config(), record)
    assert left.record == (record if fault is None else None)
    assert left.counts == Counter([fault] if fault else [])


@pytest.mark.parametrize("word", ["logo", "button", "icon", "plugin", "widget"])
def test_decorative_urls_are_recognized(word):
    for url in (f"https://a.org/{word}.png", f"https://{word.upper()}s.org/1", f"/x?y=a{word}b"):
        left = kept(ImageFilter.default_config(), caption(header(200, 200), url))
        assert left.record is None and left.counts == {"url": 1}
    assert kept(ImageFilter.default_config(), caption(header(200, 200), "https://a.org/log")).record


@pytest.mark.parametrize("data", [b"", b"<html>", header(200, 200)[:20]])
def test_unreadable_images_are_dropped(data):
    assert kept(ImageFilter.default_config(), caption(data)).counts == {"unreadable": 1}
    with pytest.raises(BadImage):
        encoded_size(data)


def test_a_page_loses_images_and_keeps_the_order_of_the_rest():
    good, small = header(300, 200), header(30, 20)
    record = {
        "id": "1",
        "texts": ["a", None, None, "b", None, None],
        "images": [None, good, small, None, header(200, 200), good],
        "urls": [None, "u", None, None, None, "https://a.org/icon"],
        "missing_images": 2,
    }
    left = kept(ImageFilter.default_config(), record, RecordKind.INTERLEAVED)
    assert left.record == {
        "id": "1",
        "texts": ["a", None, "b", None],
        "images": [None, good, None, header(200, 200)],
        "urls": [None, "u", None, None],
        "missing_images": 2,
    }
    assert left.counts == {"side": 1, "url": 1}


def test_a_page_that_loses_all_images_and_has_no_text_is_dropped():
    record = {"id": "1", "texts": [None], "images": [b"x"], "urls": None}
    assert kept(ImageFilter.default_config(), record, RecordKind.INTERLEAVED).record is None


def test_a_conversation_is_dropped_as_a_whole():
    record = {"id": "1", "images": [header(200, 200), header(20, 20)], "turns": []}
    left = kept(ImageFilter.default_config(), record, RecordKind.CONVERSATIONS)
    assert left.record is None and left.counts == {"side": 1}


def test_records_of_text_have_no_images_to_filter():
    with pytest.raises(ValueError, match="ImageFilter looks at images.*convert them without"):
        ImageFilter.default_config().instantiate(kind=RecordKind.TEXT)


@pytest.mark.parametrize(
    ("count", "fault"), [(0, "too_few"), (1, None), (30, None), (31, "too_many")]
)
def test_documents_have_one_to_thirty_images(count, fault):
    record = page("1", ["a", *(f"!{i}" for i in range(count))])
    left = kept(ImageCount.default_config(), record, RecordKind.INTERLEAVED)
    assert left.record == (record if fault is None else None)
    assert left.counts == Counter([fault] if fault else [])


def test_questions_are_distinguished_by_their_answers():
    answers = ["yes", "No", " no ", "12", "red", "yes, two", "-1", "no one"]
    records = [
        {"id": str(i), "images": [], "turns": [], "answer": a} for i, a in enumerate(answers)
    ]

    def kept_answers(*types: str) -> list[str]:
        cfg = AnswerTypes.default_config().set(keep=types)
        keep = cfg.instantiate(kind=RecordKind.CONVERSATIONS)
        return [record["answer"] for record in records if keep(record).record is not None]

    assert kept_answers("yes/no") == ["yes", "No", " no "]
    assert kept_answers("number") == ["12"]
    assert sorted(kept_answers("number", "other") + kept_answers("yes/no")) == sorted(answers)
    with pytest.raises(ValueError, match="records of captions have none"):
        AnswerTypes.default_config().set(keep=("other",)).instantiate(kind=RecordKind.CAPTIONS)
    with pytest.raises(ValueError, match="maybe"):
        AnswerTypes.default_config().set(keep=("maybe",)).instantiate(kind=RecordKind.CONVERSATIONS)


def test_a_conversation_without_an_answer_is_dropped_and_counted():
    cfg = AnswerTypes.default_config().set(keep=("other",))
    keep = cfg.instantiate(kind=RecordKind.CONVERSATIONS)
    left, counts, _ = keep({"id": "1", "images": [], "turns": []})
    assert left is None and counts == {"no_answer": 1}


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("A cat.", None),
        ("no " * 7, None),
        ("no " * 8, "repeated_word"),
        ("It is " + "very\n" * 9 + "odd", "repeated_word"),
        ("I\u2019m sorry, but I can't help with that.", "refusal"),
        ("As an AI language model, I have no eyes.", "refusal"),
        ("They said: I'm sorry, but I can wait.", None),
    ],
)
def test_answers_that_refuse_or_repeat_a_word_drop_the_conversation(answer, fault):
    turns = [("user", "no " * 20), ("assistant", "Yes."), ("user", "?"), ("assistant", answer)]
    said = [{"role": role, "text": text} for role, text in turns]
    left = kept(
        AnswerQuality.default_config(),
        {"id": "1", "images": [], "turns": said},
        RecordKind.CONVERSATIONS,
    )
    assert left.counts == Counter([fault] if fault else [])
    assert (left.record is None) == (fault is not None)


def test_answers_are_judged_in_conversations_only():
    with pytest.raises(ValueError, match="records of captions have none"):
        AnswerQuality.default_config().instantiate(kind=RecordKind.CAPTIONS)


@pytest.mark.parametrize(
    ("pixel", "is_black"), [((0, 0, 0), True), ((8, 8, 8), True), ((0, 0, 9), False)]
)
def test_black_images_drop_the_conversation(pixel, is_black):
    file = io.BytesIO()
    PIL.Image.new("RGB", (9, 5), pixel).save(file, "PNG")
    record = {"id": "1", "images": [file.getvalue(), b"damaged"], "turns": []}
    left = kept(BlackImages.default_config(), record, RecordKind.CONVERSATIONS)
    assert (left.record is None) == is_black
    assert left.counts == ({"black": 1} if is_black else {})


def test_the_first_of_repeated_images_is_kept():
    record = {
        "id": "1",
        "texts": [None, "a", None, None, None, None],
        # The third has the bytes of the first, the fourth has its URL, and the last has the bytes
        # of the fourth.
        "images": [b"x", None, b"x", b"y", b"z", b"y"],
        "urls": ["u", None, "v", "u", None, None],
    }
    left = kept(RepeatedImages.default_config(), record, RecordKind.INTERLEAVED)
    assert left.record["images"] == [b"x", None, b"z"]
    assert left.record["texts"] == [None, "a", None]
    assert left.counts == {"repeated": 3}


def test_a_conversation_may_show_an_image_twice():
    record = {"id": "1", "images": [b"x", b"x"], "turns": []}
    assert kept(RepeatedImages.default_config(), record, RecordKind.CONVERSATIONS).record == record


def test_images_are_identified_by_bytes_and_by_url():
    filter = FrequentImages.default_config().instantiate(kind=RecordKind.INTERLEAVED)
    # MD5 of "!a" and of its URL.
    assert filter.keys(page("1", ["!a", "text", "!a"])) == {0xDA9A0F068573477B, 0x471E2F8CBD82F197}


@pytest.mark.parametrize("by", ["bytes", "url"])
def test_frequent_images_are_dropped(tmp_path, by):
    filter = FrequentImages.default_config().instantiate(kind=RecordKind.CAPTIONS)
    often = caption(b"often", "u") if by == "url" else caption(b"often")
    also = caption(b"other", "u") if by == "url" else caption(b"often", "v")
    seldom = caption(b"seldom", "w")
    for name, record in (("0", often), ("1", seldom)):
        np.save(tmp_path / f"{name}.npy", np.sort(np.array([*filter.keys(record)] * 11, np.uint64)))
    np.save(tmp_path / "one.npy", frequent_keys([tmp_path / "0.npy"], more_than=10))
    filter.use(tmp_path / "one.npy")
    # Workers receive a pickled copy.
    for each in (filter, pickle.loads(pickle.dumps(filter))):
        assert each(often).record is None and each(also).record is None
        assert each(seldom) == (seldom, {}, ())
    np.save(tmp_path / "none.npy", frequent_keys([tmp_path / "0.npy"], more_than=11))
    filter.use(tmp_path / "none.npy")
    assert filter(often).record == often


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Path:
    """A folder of four pictures, one of a single color, and a file that cannot be decoded."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "below").mkdir()
    for seed in range(3):
        (folder / "below" / f"{seed}.png").write_bytes(encoded(drawn(seed)))
    (folder / "flat.png").write_bytes(encoded(PIL.Image.new("RGB", (50, 50), "white")))
    (folder / "torn.JPG").write_bytes(encoded(drawn(9), "JPEG")[:300])
    (folder / "notes.txt").write_text("not looked at")
    return folder


def overlap(benchmark: Path, kind: RecordKind = RecordKind.CAPTIONS) -> EvaluationOverlap:
    cfg = EvaluationOverlap.default_config().set(images=[str(benchmark)])
    return cfg.instantiate(kind=kind)


def test_images_with_the_same_bytes_are_found(benchmark):
    for name in ("below/1.png", "flat.png", "torn.JPG"):
        left = overlap(benchmark)(caption((benchmark / name).read_bytes()))
        assert left.record is None and left.counts == {"same_bytes": 1}
        benchmark_name = f"{benchmark.name}/{name}"
        found = {"benchmark": benchmark_name, "same_bytes": True, "distance": 0}
        assert left.overlaps == ({"id": "1", "image": 0} | found,)


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: encoded(picture, "JPEG", quality=60),
        lambda picture: encoded(picture, "WEBP", quality=50),
        lambda picture: encoded(picture.resize((160, 120))),
        lambda picture: encoded(picture.resize((800, 600)), "JPEG"),
        lambda picture: encoded(picture.resize((224, 224)), "JPEG"),
        lambda picture: encoded(picture.convert("L")),
    ],
)
def test_the_same_picture_with_other_bytes_is_found(benchmark, change):
    filter = overlap(benchmark)
    for seed in range(3):
        left = filter(caption(change(drawn(seed))))
        assert left.record is None and left.counts == {"looks_the_same": 1}
        (found,) = left.overlaps
        assert found["benchmark"] == f"{benchmark.name}/below/{seed}.png"
        assert found["distance"] <= 4 and not found["same_bytes"]


def test_other_pictures_are_kept(benchmark):
    filter = overlap(benchmark)
    others = [encoded(drawn(seed)) for seed in range(100, 130)]
    others += [encoded(PIL.Image.new("RGB", (60, 60), color)) for color in ("white", "red")]
    others += [b"no image", encoded(drawn(9), "JPEG")[:400]]
    for data in others:
        assert filter(caption(data)).record is not None


def test_a_page_loses_pictures_of_benchmarks(benchmark):
    data = (benchmark / "below" / "2.png").read_bytes()
    record = {"id": "p", "texts": ["a", None, None], "images": [None, b"x", data]}
    left = overlap(benchmark, RecordKind.INTERLEAVED)(record)
    assert left.record == {"id": "p", "texts": ["a", None], "images": [None, b"x"]}
    assert [found["image"] for found in left.overlaps] == [2]


def test_a_benchmark_is_described_by_its_content(benchmark, tmp_path):
    before = overlap(benchmark).description()
    assert before == overlap(benchmark).description()
    assert before["filter"] == "EvaluationOverlap" and before["content"].startswith("5 images")
    other = tmp_path / benchmark.name
    other.mkdir()
    (other / "flat.png").write_bytes(b"other")
    first = overlap(other).description()["content"]
    (other / "flat.png").write_bytes(b"changed")
    assert overlap(other).description()["content"] != first


def test_a_missing_benchmark_is_named(tmp_path):
    with pytest.raises(ValueError, match="images: '.*nowhere' is neither an image file nor a"):
        overlap(tmp_path / "nowhere")


def test_filters_count_drops_and_pass_the_rest_to_the_next():
    filters = [
        cfg.instantiate(kind=RecordKind.INTERLEAVED)
        for cfg in (RepeatedImages.default_config(), ImageCount.default_config().set(max_images=2))
    ]
    left = apply_filters(filters, page("1", ["!a", "!a", "!b", "t"]))
    assert left.record == page("1", ["!a", "!b", "t"])
    assert left.counts == {"RepeatedImages.repeated": 1}
    left = apply_filters(filters, page("1", ["!a", "!a", "!b", "!c"]))
    assert left.record is None
    assert left.counts == {
        "RepeatedImages.repeated": 1,
        "ImageCount.too_many": 1,
        "ImageCount.records": 1,
    }


def test_pictures_of_benchmarks_are_found_through_links(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").write_bytes(b"a")
    folder = tmp_path / "benchmark"
    folder.mkdir()
    (folder / "val").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "circle").symlink_to(folder)
    found = overlap(folder)({"id": "0", "image": b"a"})
    assert [one["benchmark"] for one in found.overlaps] == ["benchmark/val/a.png"]

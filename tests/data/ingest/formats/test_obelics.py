import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from img2dataset_shards import sample, shard
from obelics_parquet import write

from mm1_jax.data import records
from mm1_jax.data.ingest.convert import Conversion
from mm1_jax.data.ingest.convert import convert as convert_folder
from mm1_jax.data.ingest.filters import ImageCount
from mm1_jax.data.ingest.formats.obelics import Obelics
from mm1_jax.data.readers.entries import documents_of
from mm1_jax.data.record_files import BadRecord, RecordFiles

STRUCT = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / name).write_bytes(name.encode())
    (tmp_path / "images" / "empty").write_bytes(b"")
    names = {f"http://x/{name}": f"images/{name}" for name in ("a", "b", "c", "empty", "lost")}
    names |= {"http://x/out": "../secret", "http://x/odd": 7}
    (tmp_path / "url_to_file.json").write_text(json.dumps(names))
    (tmp_path.parent / "secret").write_bytes(b"secret")
    return tmp_path


@pytest.fixture
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("converted") / "out"


def test_urls_are_replaced_by_the_pictures_of_the_map(folder, convert):
    about = json.dumps({"url": "http://page"})
    rows = [
        {
            "images": [None, "http://x/a", None, "http://x/b"],
            "texts": ["one", None, "two", None],
            "general_metadata": about,
        }
    ]
    write(folder / "0.parquet", rows)
    (record,), rejected = convert(Obelics(), folder)
    assert rejected == []
    assert record == {
        "id": "0.parquet:0",
        "texts": ["one", None, "two", None],
        "images": [None, b"a", None, b"b"],
        "urls": [None, "http://x/a", None, "http://x/b"],
        "missing_images": 0,
        "source_id": "http://page",
    }


def test_unavailable_pictures_are_left_out_and_counted(folder, convert):
    urls = ["http://x/empty", "http://x/lost", "http://x/out", "http://x/odd", "http://unknown"]
    rows = [{"images": [None, *urls, "http://x/c", None], "texts": ["t", *[None] * 7]}]
    write(folder / "0.parquet", rows)
    (record,), _ = convert(Obelics(), folder)
    # The last position has neither text nor picture.
    assert record["missing_images"] == 6
    assert (record["texts"], record["images"]) == (["t", None], [None, b"c"])
    assert record["urls"] == [None, "http://x/c"]


def test_an_invalid_page_is_rejected_with_the_reason(folder, convert):
    rows = [
        {"images": ["http://x/lost"], "texts": [None]},
        {"images": [], "texts": []},
        {"images": [None], "texts": ["a", "b"]},
        {"images": ["http://x/a"], "texts": ["both"]},
        {"images": None, "texts": ["a"]},
        {"images": [None], "texts": [" "]},
        {"images": [None], "texts": ["good"], "metadata": "{", "general_metadata": "[" * 9999},
    ]
    write(folder / "0.parquet", rows)
    (record,), rejected = convert(Obelics(), folder)
    assert record["texts"] == ["good"]
    assert [one.reason for one in rejected] == [
        "an empty page; 1 images are missing",
        "an empty page",
        "2 texts beside 1 images",
        "place 0 has a text and an image",
        "texts and images are not both lists",
        "an empty page",
    ]


def test_pictures_may_be_structs_of_bytes_or_paths(tmp_path, convert):
    (tmp_path / "b").write_bytes(b"b")
    images = [{"bytes": b"a", "path": None}, None, {"bytes": None, "path": "b"}, {"bytes": b""}]
    metadata = json.dumps([{"src": "http://x/a"}, None, {"src": 7}, None])
    row = {"images": images, "texts": [None, "t", None, None], "metadata": metadata}
    write(tmp_path / "0.parquet", [row], STRUCT)
    (record,), _ = convert(Obelics(), tmp_path)
    assert record["images"] == [b"a", None, b"b"] and record["missing_images"] == 1
    assert record["urls"] == ["http://x/a", None, None]


def test_urls_without_a_map_are_an_error_that_names_the_option(tmp_path, folder):
    shards = tmp_path / "shards"
    shards.mkdir()
    write(shards / "0.parquet", [{"images": ["http://x/a"], "texts": [None]}])
    with pytest.raises(ValueError, match=r"images must be a JSON map.*url_to_file.json"):
        Obelics().units(shards)
    with pytest.raises(ValueError, match="images must be"):
        Obelics(images=shards / "nowhere").units(shards)
    (shards / "map.json").write_text("[]")
    with pytest.raises(ValueError, match="a list, expected a JSON object"):
        Obelics(images=shards / "map.json").units(shards)


def test_the_map_may_be_in_another_folder(tmp_path, folder, convert):
    shards = tmp_path / "shards"
    shards.mkdir()
    write(shards / "0.parquet", [{"images": ["http://x/a"], "texts": [None]}])
    for images in (folder, folder / "url_to_file.json", str(folder)):
        ((record,), _) = convert(Obelics(images=images), shards)
        assert record["images"] == [b"a"]


MARK = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"


def parts(*places):
    """Splits places into parallel lists of pictures, which begin with http, and of texts."""
    return [place if place.startswith("http") else None for place in places], [
        None if place.startswith("http") else place for place in places
    ]


@pytest.mark.parametrize(
    ("page", "documents"),
    [
        # A mark between paragraphs of a text, and one alone at the end.
        (
            ["http://x/a", f"one\n\n{MARK}\n\ntwo", "three", "http://x/b", MARK],
            {0: ["http://x/a", "one"], 1: ["two", "three", "http://x/b"]},
        ),
        # Two marks between pictures, each alone in a text.
        (["http://x/a", MARK, f" {MARK}\n", "http://x/b"], {0: ["http://x/a"], 2: ["http://x/b"]}),
        # A mark at the start, and several in a text without spaces around them.
        ([f"{MARK}one{MARK}two {MARK}"], {1: ["one"], 2: ["two"]}),
    ],
)
def test_a_page_is_split_at_end_of_document_marks(folder, convert, page, documents):
    images, texts = parts(*page)
    write(folder / "0.parquet", [{"images": images, "texts": texts}, {**PAGE}])
    records, rejected = convert(Obelics(), folder)
    assert rejected == [] and records[-1]["id"] == "0.parquet:1"
    assert {
        int(record["id"].removeprefix("0.parquet:0:")): [
            url or text for url, text in zip(record["urls"], record["texts"], strict=True)
        ]
        for record in records[:-1]
    } == documents
    (unit,) = Obelics().units(folder)
    counts = next(iter(Obelics().read(unit))).counts
    num_marks = "".join(page).count(MARK)
    assert counts["end_of_document_marks"] == num_marks
    assert counts.get("empty_documents", 0) == num_marks + 1 - len(documents)


PAGE = {"images": [None], "texts": ["a page"]}


PLACES = st.lists(
    st.one_of(
        st.just("http://x/a"),
        st.lists(st.sampled_from(["one", "two", " ", "\n\n", MARK]), min_size=1, max_size=6).map(
            "".join
        ),
    ),
    max_size=8,
)


@given(PLACES)
@settings(derandomize=True, max_examples=200, deadline=None, database=None)
def test_splitting_at_marks_keeps_all_words_in_order(page):
    def words(places):
        return [word for place in places for word in place.split()]

    images, texts = parts(*page)
    # Marks separate words as spaces do; the expected documents are the words between the marks.
    spaced = words(place.replace(MARK, f" {MARK} ") for place in page)
    expected, part = [], []
    for word in [*spaced, MARK]:
        if word != MARK:
            part.append(word)
        elif part:
            expected.append(part)
            part = []
    try:
        made = records.parallel_record("0", texts, images, lambda url: b"a", images)
    except BadRecord:
        assert expected == []
        return
    found = [
        words(url or text for url, text in zip(one["urls"], one["texts"], strict=True))
        for one in documents_of(made).records
    ]
    assert found == expected
    ids = [one["id"] for one in documents_of(made).records]
    assert len(set(ids)) == len(ids)


def test_missing_pictures_are_counted_for_their_own_part(folder, output, convert):
    images = ["http://x/lost", None, "http://x/lost", None, "http://x/lost"]
    texts = [None, f"one {MARK}", None, MARK, None]
    write(folder / "0.parquet", [{"images": images, "texts": texts}])
    ((record,), _) = convert(Obelics(), folder)
    assert record["missing_images"] == 1 and record["texts"] == ["one"]
    manifest = convert_folder(Conversion(Obelics(), (folder,), output))
    # Missing pictures of otherwise empty documents count, too.
    assert manifest.counts["missing_images"] == 3
    assert manifest.counts["missing_images.image ...: there is no such file"] == 3
    assert manifest.counts["empty_documents"] == 2


def test_a_page_with_only_marks_is_rejected(folder, convert):
    write(folder / "0.parquet", [{"images": [None, "http://x/lost"], "texts": [MARK, None]}, PAGE])
    _, (rejected,) = convert(Obelics(), folder)
    assert rejected.reason == "an empty page; 1 images are missing"


def test_filters_apply_to_each_document_of_a_page(folder, output):
    images, texts = parts("http://x/a", f"one {MARK} two", "http://x/b", "http://x/c")
    write(folder / "0.parquet", [{"images": images, "texts": texts}])
    filters = (ImageCount.default_config().set(max_images=1),)
    conversion = Conversion(Obelics(), (folder,), output, filters=filters)
    assert convert_folder(conversion).counts["ImageCount.too_many"] == 1
    assert RecordFiles(conversion.output)[0]["texts"] == [None, "one"]


def test_a_conversion_begun_by_an_older_version_neither_loses_nor_repeats_pages(
    folder, output, monkeypatch
):
    """The older version counted pages and did not split them."""
    texts = [f"{i} {MARK} {i}b" if i % 2 else f"{i}" for i in range(40)]
    write(folder / "0.parquet", [{"images": [None], "texts": [text]} for text in texts])
    conversion = Conversion(Obelics(), (folder,), output, max_shard_bytes=300)

    def stop(progress):
        if len(list(conversion.output.glob("*.array_record"))) > 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records, "cut", lambda text, mark: [text])
        with pytest.raises(KeyboardInterrupt):
            convert_folder(conversion, on_progress=stop)
    convert_folder(conversion)
    files = RecordFiles(conversion.output)
    found = [files[i]["texts"][0] for i in range(len(files))]
    assert any(MARK in text for text in found) and "39b" in found
    assert " ".join(found).replace(MARK, "").split() == " ".join(texts).replace(MARK, "").split()


def test_real_pages_equal_those_of_pyarrow(test_data, convert):
    source = test_data / "formats" / "obelics_parquet"
    records, rejected = convert(Obelics(), source)
    rows = pq.read_table(source / "obelics-00000-of-00001.parquet").to_pylist()
    files = json.loads((source / "url_to_file.json").read_text())
    assert (len(rows), rejected) == (10, [])
    for record, row in zip(records, rows, strict=True):
        assert record["texts"] == row["texts"] and record["urls"] == row["images"]
        assert record["images"] == [
            None if url is None else (source / files[url]).read_bytes() for url in row["images"]
        ]
    assert sum(image is not None for record in records for image in record["images"]) == 30


def test_pages_of_obelics_get_their_pictures_from_shards(tmp_path, convert):
    images = tmp_path / "downloads"
    shard(images / "00000.tar", [sample("000", "http://x/a"), sample("001", "http://x/b")])
    pages = tmp_path / "pages"
    pages.mkdir()
    rows = [
        {"images": ["http://x/b", None], "texts": [None, "one"]},
        {"images": [None, "http://x/a", "http://x/lost"], "texts": ["two", None, None]},
    ]
    write(pages / "0.parquet", rows)
    (first, second), rejected = convert(Obelics(images=images), pages)
    assert rejected == []
    assert first["images"] == [b"001", None] and first["missing_images"] == 0
    assert second["images"] == [None, b"000"] and second["missing_images"] == 1

import io
import random

import cloudpickle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.lengths import corpus_lengths
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.sources import parquet as parquet_source
from mm1_jax.data.sources.parquet import ParquetSource

ROWS = [
    {"image": {"bytes": f"picture {i}".encode(), "path": None}, "caption": f"caf\u00e9 {i}", "n": i}
    for i in range(23)
]


def write(path, rows, row_group_size=3, **options):
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size, **options)


def config(path, **fields):
    return ParquetSource.default_config().set(path=str(path), **fields)


def read(cfg):
    source = cfg.instantiate(split="train")
    return [source[i] for i in range(len(source))]


def both(cfg):
    """Reads all records of both splits."""
    records = {}
    for split in ("train", "test"):
        source = cfg.instantiate(split=split)
        records[split] = [source[i] for i in range(len(source))]
    return records


@pytest.fixture
def folder(tmp_path):
    """A folder with the rows in three files of two subfolders, with several row group sizes."""
    write(tmp_path / "b" / "0.parquet", ROWS[14:], row_group_size=4)
    write(tmp_path / "a" / "1.parquet", ROWS[5:14], row_group_size=2, compression="zstd")
    write(tmp_path / "a" / "0.parquet", ROWS[:5], row_group_size=100)
    (tmp_path / "a" / "README.md").write_text("not data")
    return tmp_path


def test_rows_equal_those_of_pyarrow_and_splits_partition_them(folder):
    records = both(config(folder, test_every=4))
    expected = [row | {"image": row["image"]["bytes"]} for row in ROWS]
    assert records["test"] == expected[3::4]
    assert records["train"] == [row for i, row in enumerate(expected) if i % 4 != 3]


def test_the_order_of_reading_does_not_matter(folder):
    source = config(folder, cached_row_groups=2).instantiate(split="train")
    in_order = [source[i] for i in range(len(source))]
    numbers = list(range(len(source))) * 3
    random.Random(0).shuffle(numbers)
    assert all(source[i] == in_order[i] for i in numbers)
    assert len(source._tables._values) == 2


def test_a_cached_row_group_is_read_once(folder, monkeypatch):
    groups = []
    before = ParquetSource._read
    monkeypatch.setattr(
        ParquetSource, "_read", lambda self, group: groups.append(group) or before(self, group)
    )
    source = config(folder, cached_row_groups=2, test_every=1000).instantiate(split="train")
    # Rows 0 and 4 share a group, as do 5 and 6; 5 is dropped for 8 and read again.
    for row in (0, 5, 4, 6, 0, 8, 1, 5):
        source[row]
    assert groups == [0, 1, 2, 1]


def test_fields_are_named_columns_and_no_other_column_is_read(folder, monkeypatch):
    columns = []
    before = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, part, names, **rest: (
            columns.append(names) or before(self, part, names, **rest)
        ),
    )
    records = read(config(folder, columns={"text": "caption", "again": "caption"}))
    assert records[0] == {"text": "caf\u00e9 0", "again": "caf\u00e9 0"}
    assert columns[0] == ["caption"]


def test_pictures_are_bytes_in_columns_structs_lists_and_beside_the_file(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.png").write_bytes(b"beside")
    stored, beside = {"bytes": b"in it", "path": "a.png"}, {"bytes": None, "path": "images/b.png"}
    # A struct with other fields is not a picture and stays a dict.
    rows = [{"jpg": b"binary", "image": beside, "images": [stored, beside], "size": {"bytes": 7}}]
    schema = pa.schema(
        {
            "jpg": pa.binary(),
            "image": (picture := pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "images": pa.list_(picture),
            "none": pa.list_(picture),
            "size": pa.struct({"bytes": pa.int64(), "x": pa.int64()}),
        }
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    assert read(config(tmp_path / "a.parquet")) == [
        {
            "jpg": b"binary",
            "image": b"beside",
            "images": [b"in it", b"beside"],
            "none": None,
            "size": {"bytes": 7, "x": None},
        }
    ]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"bytes": None, "path": "../secret"}, "outside the folder"),
        ({"bytes": None, "path": "missing.png"}, "no such file"),
        ({"bytes": None, "path": None}, "not the name of a file"),
    ],
)
def test_a_bad_row_names_itself_and_the_reason_and_affects_no_other(tmp_path, image, reason):
    (tmp_path / "secret").write_bytes(b"secret")
    good = {"image": {"bytes": b"x", "path": "y"}}
    write(tmp_path / "data" / "a.parquet", [good, {"image": image}, good])
    source = config(tmp_path / "data", test_every=100).instantiate(split="train")
    with pytest.raises(BadRecord, match=rf"a.parquet, row 1 \(row group 0\): .*{reason}"):
        source[1]
    assert source[0] == source[2] == {"image": b"x"}


def test_text_that_is_not_utf8_is_a_bad_row(tmp_path):
    texts = pa.Array.from_buffers(pa.string(), 2, [None, *pa.array([b"a", b"\xff"]).buffers()[1:]])
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    source = config(tmp_path, test_every=100).instantiate(split="train")
    assert source[0] == {"text": "a"}
    with pytest.raises(BadRecord, match="row 1.*utf-8"):
        source[1]


def test_a_damaged_row_group_affects_no_other(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, ROWS[:6], write_page_checksum=True, compression=None, use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"picture 4", b"picture X"))
    source = config(path, columns={"image": "image"}).instantiate(split="train")
    assert source[0] == {"image": b"picture 0"}
    with pytest.raises(BadRecord, match="row 3.*(?i:checksum|crc)"):
        source[3]


def test_unreadable_files_are_named(folder):
    with pytest.raises(ValueError, match="/no/such' holds no Parquet files. Set it to a .parquet"):
        config("/no/such").instantiate(split="train")
    with pytest.raises(ValueError, match="0.parquet: no column zzz; there are 'image', 'caption'"):
        config(folder, columns={"text": "zzz"}).instantiate(split="train")
    with pytest.raises(
        ValueError, match="row group 0 has .*source.max_row_group_bytes=10.*convert"
    ):
        config(folder, max_row_group_bytes=10).instantiate(split="train")
    with pytest.raises(ValueError, match="cached_row_groups=0: expected at least 1"):
        config(folder, cached_row_groups=0).instantiate(split="train")
    (folder / "c.parquet").write_bytes(b"PAR1 this is no Parquet PAR1")
    with pytest.raises(ValueError, match="c.parquet: "):
        config(folder).instantiate(split="train")


def test_columns_that_are_not_read_do_not_count_against_the_limit(tmp_path):
    write(tmp_path / "a.parquet", [{"image": bytes(10_000), "image_id": 7}])
    cfg = config(tmp_path, max_row_group_bytes=1000)
    assert read(cfg.clone(columns={"id": "image_id"})) == [{"id": 7}]
    with pytest.raises(ValueError, match="max_row_group_bytes"):
        read(cfg.clone(columns={"id": "image"}))


def test_sources_can_be_sent_to_workers_without_their_caches(folder):
    source = config(folder).instantiate(split="test")
    empty = len(cloudpickle.dumps(source))
    records = [source[i] for i in range(len(source))]
    assert abs(len(cloudpickle.dumps(source)) - empty) < 50
    sent = cloudpickle.loads(cloudpickle.dumps(source))
    assert [sent[i] for i in range(len(sent))] == records
    assert sent.fingerprint() == source.fingerprint()


def test_the_fingerprint_depends_on_the_content_and_not_on_the_path(folder, tmp_path_factory):
    def fingerprint(path, **fields):
        return config(path, **fields).instantiate(split="train").fingerprint()

    other = tmp_path_factory.mktemp("other") / "moved"
    folder_fingerprint = fingerprint(folder)
    for path in folder.rglob("*.parquet"):
        (other / path.relative_to(folder)).parent.mkdir(exist_ok=True, parents=True)
        (other / path.relative_to(folder)).write_bytes(path.read_bytes())
    assert fingerprint(other) == folder_fingerprint
    others = {fingerprint(folder, test_every=7), fingerprint(folder, columns={"a": "caption"})}
    write(other / "b" / "0.parquet", [*ROWS[14:-1], ROWS[-1] | {"n": 99}], row_group_size=4)
    assert len({folder_fingerprint, *others, fingerprint(other)}) == 4


def test_lengths_are_stored_beside_the_files(folder, builder):
    corpus = Corpus.default_config().set(
        name="rows", source=config(folder), to_document=caption_document
    )
    corpus = corpus.instantiate(split="train")
    lengths = corpus_lengths(corpus, builder)
    assert lengths.num_usable == len(corpus) and (folder / "lengths").is_dir()
    # The stored lengths are not mistaken for data.
    assert read(config(folder)) == [corpus.source[i] for i in range(len(corpus))]


def test_real_parquet_is_read_as_by_pyarrow(test_data):
    path = test_data / "formats" / "img2dataset_parquet" / "00000.parquet"
    source = config(path, test_every=10**6).instantiate(split="train")
    rows = pq.read_table(path).to_pylist()
    assert [source[i] for i in range(len(source))] == rows


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_index_out_of_range_is_an_error(folder, split):
    source = config(folder).instantiate(split=split)
    for index in (-1, len(source)):
        with pytest.raises(IndexError):
            source[index]


def _damaged(data, draw):
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        # The footer is hit most often.
        at = (
            len(data)
            - 1
            - draw(st.integers(0, min(len(data), draw(st.sampled_from([900, 10**6])))))
        )
        at = max(0, at)
        size = draw(st.sampled_from([1, 2, 8, 64]))
        how = draw(st.sampled_from(["flip", "cut", "drop", "repeat", "zero", "ones"]))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at : at + size]
        elif how == "repeat":
            data[at:at] = data[at : at + size]
        else:
            data[at : at + size] = (b"\0" if how == "zero" else b"\xff") * size
    return bytes(data)


def _stored(**options):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS[:9]), file, row_group_size=3, **options)
    return file.getvalue()


@given(st.data())
@settings(
    derandomize=True,
    max_examples=80,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_damaged_files_are_rejected_or_have_bad_rows(tmp_path, data):
    stored = data.draw(
        st.sampled_from([_stored(), _stored(compression="gzip", use_dictionary=False)])
    )
    path = tmp_path / "a.parquet"
    path.write_bytes(_damaged(stored, data.draw))
    try:
        source = config(path, max_row_group_bytes=2**24).instantiate(split="train")
    except ValueError as error:
        assert str(path) in str(error)
        return
    for index in range(min(len(source), 20)):
        try:
            record = source[index]
        except BadRecord as error:
            assert "row" in str(error)
        else:
            assert isinstance(record, dict)


def test_impossible_row_counts_are_rejected(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", ROWS[:4], row_group_size=4)
    monkeypatch.setattr(parquet_source, "_MAX_ROWS", 4)
    with pytest.raises(ValueError, match="a.parquet: row group 0: 4 rows"):
        read(config(tmp_path))

import json
import pickle

import pytest

from mm1_jax.data.record_files import (
    MANIFEST,
    BadRecord,
    Manifest,
    RecordFiles,
    RecordKind,
    ShardWriter,
    decode_record,
    encode_record,
    verify,
)

RECORDS = [{"id": str(i), "text": "x" * i, "images": [None, bytes([i])]} for i in range(7)]


@pytest.fixture
def folder(tmp_path):
    """A folder with two shards of records and their manifest."""
    shards = []
    for number, records in enumerate((RECORDS[:4], RECORDS[4:])):
        with ShardWriter(tmp_path, f"records-{number:05}-00.array_record") as writer:
            for record in records:
                writer.write(record)
        shards.append(writer.shard)
    Manifest(RecordKind.TEXT, tuple(shards), license="CC BY 4.0", counts={"records": 7}).write(
        tmp_path
    )
    return tmp_path


def test_records_are_read_by_index_in_manifest_order(folder):
    files = RecordFiles(folder)
    assert [files[i] for i in range(len(files))] == RECORDS
    assert list(verify(folder)) == []
    with pytest.raises(IndexError, match="record 7 of 7"):
        files[7]


def test_readers_are_pickled_without_their_open_files(folder):
    files = RecordFiles(folder)
    files[5]
    assert [pickle.loads(pickle.dumps(files))[i] for i in (0, 6)] == [RECORDS[0], RECORDS[6]]


def test_the_fingerprint_depends_on_the_content_and_not_on_the_path(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert RecordFiles(copy).fingerprint() == RecordFiles(folder).fingerprint()
    with ShardWriter(copy, "records-00001-00.array_record") as writer:
        writer.write({"id": "another"})
    Manifest(RecordKind.TEXT, (Manifest.read(folder).shards[0], writer.shard)).write(copy)
    assert RecordFiles(copy).fingerprint() != RecordFiles(folder).fingerprint()


def test_lone_surrogates_and_large_numbers_are_preserved():
    record = {"id": "a", "text": "\ud800 \U0001f600", "n": 2**63, "f": 0.1, "deep": [[{"a": None}]]}
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01", b"\x01", encode_record({"a": 1})[:-1]])
def test_invalid_record_bytes_are_an_error(data):
    with pytest.raises(BadRecord, match="not a record"):
        decode_record(data)


def test_a_damaged_record_affects_no_other(folder):
    path = folder / "records-00000-00.array_record"
    data = bytearray(path.read_bytes())
    at = data.index(b"xxx")
    data[at] ^= 1
    path.write_bytes(data)
    files, bad = RecordFiles(folder), []
    for i in range(len(files)):
        try:
            assert files[i] == RECORDS[i]
        except BadRecord:
            bad.append(i)
    assert bad == [3]
    assert list(verify(folder)) == [path.name]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_an_incomplete_shard_is_an_error_before_a_record_is_read(folder, damage):
    """The library reads half a file as one without records."""
    path = folder / "records-00001-00.array_record"
    path.write_bytes(path.read_bytes()[:-100]) if damage == "cut" else path.unlink()
    with pytest.raises(ValueError, match=r"records-00001-00.*bytes, found .*Copy the folder"):
        RecordFiles(folder)


def test_a_folder_without_a_manifest_names_the_fix(tmp_path):
    with pytest.raises(ValueError, match=r"manifest.json is missing.*convert_records"):
        RecordFiles(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: [],
        lambda content: content | {"version": 2},
        lambda content: content | {"kind": "videos"},
        lambda content: content | {"shards": [{"name": "x"}]},
        lambda content: content | {"surprise": 1},
    ],
)
def test_a_manifest_of_another_layout_is_rejected(folder, change):
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(change(content)))
    with pytest.raises(ValueError, match="is not a manifest"):
        RecordFiles(folder)


def test_an_unfinished_shard_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), ShardWriter(tmp_path, "a.array_record") as writer:
        writer.write(RECORDS[0])
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(tmp_path):
    """Every write to /dev/full fails."""
    (tmp_path / "a.array_record.partial").symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match="a.array_record: cannot be written"),
        ShardWriter(tmp_path, "a.array_record") as writer,
    ):
        for _ in range(100):
            writer.write({"id": "x", "data": bytes(1 << 20)})
    assert list(tmp_path.iterdir()) == []

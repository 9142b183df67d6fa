import gzip
import os
import zipfile

import pytest
import zstandard

from mm1_jax.data.readers import compressed
from mm1_jax.data.readers.compressed import lines, opened, read_document
from mm1_jax.data.readers.entries import Rejected
from mm1_jax.data.record_files import BadRecord

LINES = [f"line {i} ".encode() * 50 + os.urandom(20).hex().encode() for i in range(2000)]
CONTENT = b"\n".join(LINES)


def zipped(content, method=zipfile.ZIP_DEFLATED, names=("lines.jsonl",)):
    def write(path):
        with zipfile.ZipFile(path, "w", method) as archive:
            for name in names:
                archive.writestr(name, content)

    return write


WRITERS = {
    "lines.jsonl": lambda path: path.write_bytes(CONTENT),
    "lines.jsonl.gz": lambda path: path.write_bytes(gzip.compress(CONTENT)),
    "lines.jsonl.zst": lambda path: path.write_bytes(zstandard.compress(CONTENT)),
    "lines.jsonl.zip": zipped(CONTENT),
}


@pytest.fixture(params=WRITERS)
def path(request, tmp_path):
    path = tmp_path / request.param
    WRITERS[request.param](path)
    return path


def test_lines_are_the_same_for_every_compression(path):
    expected = [(f"{path.name}:{number}", line) for number, line in enumerate(LINES, start=1)]
    assert [(entry, line.removesuffix(b"\n")) for entry, line in lines(path)] == expected


def test_concatenated_frames_and_members_are_one_stream(tmp_path):
    halves = CONTENT[:30_000], CONTENT[30_000:]
    for name, compress in (("a.gz", gzip.compress), ("a.zst", zstandard.compress)):
        path = tmp_path / name
        path.write_bytes(b"".join(map(compress, halves)))
        with opened(path) as stream:
            assert stream.read() == CONTENT


def test_a_truncated_file_is_reported_after_its_complete_lines(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    *read, last = lines(path)
    if path.suffix == ".jsonl":
        assert len(read) > 500 and len(last) == 2
        return
    assert isinstance(last, Rejected) and "cannot be read" in last.reason
    # The directory of a zip stands at its end.
    assert path.suffix == ".zip" or len(read) > 100
    assert all(line.rstrip(b"\n") in LINES for _, line in read)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".zip"])
def test_damage_is_reported(tmp_path, suffix):
    path = tmp_path / f"lines.jsonl{suffix}"
    path.write_bytes(b"this is not compressed, whatever its name may say")
    (last,) = lines(path)
    assert isinstance(last, Rejected)


def test_blank_lines_are_skipped_but_numbered(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n one\n\r\n\ntwo")
    assert list(lines(path)) == [("a.jsonl:2", b" one\n"), ("a.jsonl:5", b"two")]


def test_a_line_out_of_bounds_ends_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "MAX_LINE_BYTES", 100)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\n" + b"x" * 101 + b"\nthree\n"))
    first, last = lines(path)
    assert first == ("a.jsonl.gz:1", b"one\n")
    assert last.id == "a.jsonl.gz:2" and "more than 100 bytes" in last.reason


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".zip"])
def test_a_decompression_bomb_is_not_expanded(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(compressed, "_SMALL_BYTES", 2**20)
    path = tmp_path / f"bomb.jsonl{suffix}"
    bomb = b"\n" * 2**24
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}
    if suffix == ".zip":
        zipped(bomb)(path)
    else:
        path.write_bytes(compress[suffix](bomb))
    (last,) = lines(path)
    assert "200 times its size" in last.reason


def test_a_zip_holds_one_file_of_a_known_method(tmp_path):
    path = tmp_path / "a.zip"
    zipped(CONTENT, names=("a.jsonl", "__MACOSX/._a.jsonl", "folder/"))(path)
    assert len(list(lines(path))) == len(LINES)
    zipped(CONTENT, names=("a.jsonl", "b.jsonl"))(path)
    assert "2 files" in next(lines(path)).reason
    zipped(CONTENT, method=zipfile.ZIP_LZMA)(path)
    assert "neither stored nor deflated" in next(lines(path)).reason


def test_pipes_are_rejected_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    (last,) = lines(tmp_path / "a.jsonl")
    assert "no such file" in last.reason


def test_documents_are_utf8_within_bounds(tmp_path, monkeypatch):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("\ufeffcaf\u00e9\n".encode()))
    assert read_document(path) == "caf\u00e9\n"
    path.write_bytes(gzip.compress(b"caf\xe9"))
    with pytest.raises(BadRecord, match="not UTF-8"):
        read_document(path)
    monkeypatch.setattr(compressed, "MAX_LINE_BYTES", 3)
    with pytest.raises(BadRecord, match="more than 3 bytes"):
        read_document(path)

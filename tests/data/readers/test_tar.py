import io
import tarfile

import pytest

from mm1_jax.data.readers import tar
from mm1_jax.data.readers.entries import Rejected
from mm1_jax.data.readers.tar import Member, members, read_member
from mm1_jax.data.record_files import BadRecord

FILES = {
    "a.jpg": b"picture",
    "folder/b.txt": b"x" * 512,
    "empty.txt": b"",
    "long/" + "n" * 120 + "/" + "m" * 130 + ".json": b"{}" * 700,
    "caf\u00e9.jpg": b"z" * 1025,
}


def packed(files, form=tarfile.PAX_FORMAT, others=()):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, kind in others:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return file.getvalue()


def unpacked(data, tmp_path):
    """Returns the files and the Rejecteds of an archive."""
    file = io.BytesIO(data)
    found = list(members(file, tmp_path / "a.tar"))
    files = {one.name: read_member(file, one) for one in found if isinstance(one, Member)}
    return files, [one for one in found if isinstance(one, Rejected)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_equal_the_packed_files(tmp_path, form):
    files = FILES if form != tarfile.USTAR_FORMAT else {name[:90]: FILES[name] for name in FILES}
    assert unpacked(packed(files, form), tmp_path) == (files, [])


def test_concatenated_archives_are_read_as_one(tmp_path):
    data = packed({"a": b"1"}) + packed({"b": b"2"})
    assert unpacked(data, tmp_path) == ({"a": b"1", "b": b"2"}, [])


def test_folders_are_skipped_and_links_and_devices_are_rejected(tmp_path):
    others = [
        ("folder", tarfile.DIRTYPE),
        ("symbolic", tarfile.SYMTYPE),
        ("hard", tarfile.LNKTYPE),
        ("pipe", tarfile.FIFOTYPE),
        ("device", tarfile.CHRTYPE),
        ("sparse", tarfile.GNUTYPE_SPARSE),
        ("odd", b"Q"),
    ]
    files, rejected = unpacked(packed({"a": b"1"}, others=others), tmp_path)
    assert files == {"a": b"1"}
    assert [one.id for one in rejected] == [f"a.tar:{name}" for name, _ in others[1:]]
    assert all("expected a file" in one.reason for one in rejected)


def test_a_sparse_file_of_the_newer_kind_is_rejected(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("sparse")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(2**60)}
        archive.addfile(info)
    files, rejected = unpacked(file.getvalue() + packed({"a": b"1"}), tmp_path)
    assert files == {"a": b"1"} and "sparse" in rejected[0].reason


def test_an_archive_truncated_anywhere_is_reported_after_its_complete_files(tmp_path):
    data = packed(FILES)
    last = data.rindex(b"z" * 1025) + 1025 + 511
    for size in range(0, last, 97):
        files, rejected = unpacked(data[:size], tmp_path)
        assert list(files.items()) == list(FILES.items())[: len(files)]
        assert len(files) < len(FILES) or size > last - 1024
        assert len(rejected) == 1 and "cut short" in rejected[0].reason + "ends inside cut short"


def test_any_flipped_byte_of_a_header_is_detected(tmp_path):
    data = packed({"a.jpg": b"1", "b.jpg": b"2"})
    # The last byte of the checksum field is not read.
    for place in {*range(1024, 1024 + 512)} - {1024 + 155}:
        damaged = bytearray(data)
        damaged[place] ^= 0x11
        files, rejected = unpacked(bytes(damaged), tmp_path)
        assert files == {"a.jpg": b"1"}
        assert "no header" in rejected[0].reason or "no number" in rejected[0].reason


def with_size(data, field):
    """Replaces the size field of the first header and corrects the checksum."""
    header = bytearray(data[:512])
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (b"\xff" * 12, "a negative number"),
        (b"\x80" + b"\xff" * 11, "ends inside"),
        (b"77777777777\0", "ends inside"),
        (b"-0000000001\0", "no number"),
        (b"hello world\0", "no number"),
    ],
)
def test_invalid_sizes_in_headers_are_rejected(tmp_path, field, reason):
    files, rejected = unpacked(with_size(packed({"a": b"1"}), field), tmp_path)
    assert files == {} and reason in rejected[0].reason


@pytest.mark.parametrize(
    "content",
    [
        b"30 path=x\n",
        b"0 path=x\n",
        b"x path=x\n",
        b"99999999999999999999999 a=b\n",
        b"path",
        b"9 size=x\n",
    ],
)
def test_invalid_extended_headers_are_rejected(tmp_path, content):
    data = bytearray(packed({"x": content, "a": b"1"}))
    data[156:157] = b"x"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    files, rejected = unpacked(bytes(data), tmp_path)
    assert files == {} and len(rejected) == 1


def test_member_names_are_returned_unchanged(tmp_path):
    names = ["../../etc/passwd", "/etc/passwd", "a\\b", "."]
    files, rejected = unpacked(packed({name: b"1" for name in names}), tmp_path)
    assert list(files) == names and rejected == []


def test_a_member_out_of_bounds_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "MAX_ENTRY_BYTES", 10)
    with pytest.raises(BadRecord, match="1025 bytes, more than 10"):
        unpacked(packed(FILES | {"a.jpg": b"z" * 1025}), tmp_path)

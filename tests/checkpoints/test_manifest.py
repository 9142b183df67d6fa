import hashlib
import io
import json

import pytest
import xxhash
from etils import epath

from mm1_jax.checkpoints.manifest import chunks, find_damage, write_manifest


@pytest.fixture
def folder(tmp_path):
    for name, size in (("a", 10), ("inner/b", 5_000_000), ("inner/empty", 0)):
        path = tmp_path / "checkpoint" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(i % 251 for i in range(size)))
    write_manifest(epath.Path(tmp_path / "checkpoint"))
    return epath.Path(tmp_path / "checkpoint")


def test_a_folder_as_written_is_complete(folder):
    assert find_damage(folder) == []


def test_without_a_manifest_nothing_is_reported(tmp_path):
    assert find_damage(epath.Path(tmp_path)) is None


@pytest.mark.parametrize("place", [0, 2_500_000, 4_999_999])
def test_any_flipped_bit_is_found(folder, place):
    data = bytearray((folder / "inner/b").read_bytes())
    data[place] ^= 4
    (folder / "inner/b").write_bytes(bytes(data))
    assert find_damage(folder) == ["inner/b differs from what was written"]


def test_truncated_and_missing_files_are_found(folder):
    (folder / "inner/b").write_bytes(b"short")
    (folder / "a").unlink()
    assert sorted(find_damage(folder)) == [
        "a is missing",
        "inner/b has 5 bytes instead of 5,000,000",
    ]


def test_a_damaged_manifest_counts_as_damage(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:-20])
    assert find_damage(folder) == ["manifest.json is not a JSON object of sizes and digests"]


def test_parts_share_the_files(folder):
    (folder / "inner/b").write_bytes(b"short")
    (folder / "a").unlink()
    parts = [find_damage(folder, part=part, num_parts=4) for part in range(4)]
    assert sorted(sum(parts, [])) == sorted(find_damage(folder))
    assert max(map(len, parts)) == 1


def test_digests_are_those_of_the_libraries(folder):
    data = (folder / "inner/b").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["inner/b"] == [len(data), f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_manifests_of_earlier_versions_are_checked(folder, is_damaged):
    manifest = {
        name: [
            len(data := (folder / name).read_bytes()),
            hashlib.blake2b(data, digest_size=16).hexdigest(),
        ]
        for name in ("a", "inner/b", "inner/empty")
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if is_damaged:
        (folder / "a").write_bytes(b"0123456789")
    assert find_damage(folder) == ["a differs from what was written"] * is_damaged


def test_files_that_only_read_have_the_same_chunks():
    data = bytes(i % 251 for i in range(3_000_000))

    class OnlyReads:
        def __init__(self):
            self.read = io.BytesIO(data).read

    for file in (OnlyReads(), io.BytesIO(data)):
        assert b"".join(map(bytes, chunks(file))) == data

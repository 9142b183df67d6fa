import pytest
from etils import epath

from mm1_jax.checkpoints.manifest import find_damage, write_manifest


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
    assert find_damage(folder) == ["manifest.json is not a JSON object"]

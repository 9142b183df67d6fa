import io
import os
import tarfile

import pytest

from mm1_jax.data.readers import source_files
from mm1_jax.data.readers.image_files import ImageFolder, image_files
from mm1_jax.data.record_files import BadRecord


@pytest.fixture(params=["folder", "tar"])
def images(request, tmp_path):
    """Reads the same pictures from a folder and from a tar file."""
    files = {"a.jpg": b"a", "deep/b.jpg": b"b", "empty.jpg": b""}
    if request.param == "tar":
        with tarfile.open(tmp_path / "images.tar", "w") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return image_files(tmp_path / "images.tar")
    for name, data in files.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(data)
    return image_files(tmp_path / "images")


def test_pictures_are_read_by_name(images):
    assert images.read("a.jpg") == b"a" and images.read("deep/b.jpg") == b"b"
    assert images.has("a.jpg") and not images.has("lost.jpg") and not images.has(7)
    assert {"a.jpg", "empty.jpg"} <= set(images.names())


@pytest.mark.parametrize(
    "name",
    [
        *("lost.jpg", "empty.jpg", "../images.tar", "/etc/passwd", "deep", "", ".", "a.jpg/x"),
        *("a\0.jpg", "\ud800", "x" * 300, "x/" * 3000, None, 7, [], b"a.jpg"),
    ],
)
def test_files_that_are_not_pictures_are_bad_records(images, name):
    with pytest.raises(BadRecord) as raised:
        images.read(name)
    assert str(raised.value).encode()


def test_pipes_devices_and_links_out_of_the_folder_are_rejected(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    os.mkfifo(folder / "pipe")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "up").symlink_to(tmp_path)
    (folder / "real").write_bytes(b"real")
    (folder / "in").symlink_to(folder / "real")
    images = ImageFolder(folder)
    for name in ("pipe", "out", "zero", "circle", "up/secret", "lost"):
        with pytest.raises(BadRecord):
            images.read(name)
    assert images.read("in") == b"real"


def test_a_picture_out_of_bounds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source_files, "MAX_ENTRY_BYTES", 10)
    (tmp_path / "a").write_bytes(b"x" * 11)
    with pytest.raises(BadRecord, match="more than 10 bytes"):
        ImageFolder(tmp_path).read("a")


def test_a_damaged_tar_says_why_a_picture_is_missing(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a", "b"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"1"))
    path.write_bytes(path.read_bytes()[:1500])
    images = image_files(path)
    assert images.read("a") == b"1"
    with pytest.raises(BadRecord, match=r"'b' is not in a.tar \(tar: .*cut short"):
        images.read("b")


def test_links_out_of_the_folder_are_named_and_followed_on_demand(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.jpg").write_bytes(b"a")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "train").symlink_to(tmp_path / "disk")
    (folder / "b.jpg").symlink_to(tmp_path / "disk" / "a.jpg")
    for name in ("train/a.jpg", "b.jpg"):
        with pytest.raises(BadRecord, match="where a link leads; --option.follow_links=true"):
            ImageFolder(folder).read(name)
        assert ImageFolder(folder, follow_links=True).read(name) == b"a"
    for follow_links in (False, True):
        images = ImageFolder(folder, follow_links)
        for name in ("../disk/a.jpg", str(tmp_path / "disk" / "a.jpg"), "train/../../disk/a.jpg"):
            with pytest.raises(BadRecord, match="lies outside the folder of images$"):
                images.read(name)
        for name in ("\ud800", "a\0", "x" * 300, None):
            with pytest.raises(BadRecord):
                images.read(name)

import numpy as np
import pytest
from img2dataset_shards import sample, shard

from mm1_jax.data.readers.url_index import UrlIndex
from mm1_jax.data.record_files import BadRecord


def test_every_picture_is_found_by_its_url_in_its_shard(tmp_path):
    for number in range(3):
        samples = [sample(f"{number}{i}", f"http://x/{number}/{i}", txt=b"t") for i in range(20)]
        shard(tmp_path / f"part{number % 2}" / f"{number}.tar", samples)
    index = UrlIndex(tmp_path)
    assert len(index) == 60
    for number in range(3):
        for i in range(20):
            assert index.read(f"http://x/{number}/{i}") == f"{number}{i}".encode()
    with pytest.raises(BadRecord, match=r"no file is known for 'http://x/3/0'"):
        index.read("http://x/3/0")


def test_the_json_may_precede_the_picture_and_samples_without_picture_are_skipped(tmp_path):
    samples = [
        ("a", {"json": b'{"url": "http://a"}', "png": b"picture of a"}),
        ("b", {"json": b'{"url": "http://b"}'}),
        ("c", {"jpg": b"c"}),
        ("d", {"jpg": b"d", "json": b"{not json"}),
        sample("e", 7),
        sample("f", None),
        sample("g", "http://g\ud800"),
    ]
    shard(tmp_path / "0.tar", samples)
    index = UrlIndex(tmp_path)
    assert len(index) == 2
    assert (index.read("http://a"), index.read("http://g\ud800")) == (b"picture of a", b"g")


def test_the_first_of_pictures_with_the_same_url_counts(tmp_path):
    shard(tmp_path / "0.tar", [sample("a", "http://x", b"first")])
    shard(tmp_path / "1.tar", [sample("b", "http://x", b"second"), sample("c", "http://y")])
    index = UrlIndex(tmp_path)
    assert len(index) == 2 and index.read("http://x") == b"first"


def test_an_index_is_made_once_and_remade_when_a_shard_changes(tmp_path, monkeypatch):
    path = shard(tmp_path / "0.tar", [sample("a", "http://a")])
    UrlIndex(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(UrlIndex, "_make", lambda *_: pytest.fail("it is there"))
        assert UrlIndex(tmp_path).read("http://a") == b"a"
    shard(path, [sample("b", "http://b"), sample("c", "http://c")])
    index = UrlIndex(tmp_path)
    assert index.read("http://b") == b"b"
    with pytest.raises(BadRecord):
        index.read("http://a")


def test_a_truncated_shard_yields_the_samples_before_the_damage(tmp_path):
    samples = [sample(f"{i}", f"http://x/{i}", bytes(2000)) for i in range(10)]
    path = shard(tmp_path / "0.tar", samples)
    path.write_bytes(path.read_bytes()[:12_000])
    index = UrlIndex(tmp_path)
    assert 0 < len(index) < 10
    assert index.read("http://x/0") == bytes(2000)


def test_a_folder_without_shards_is_an_error_that_names_the_expected_files(tmp_path):
    with pytest.raises(ValueError, match="tar shards of img2dataset"):
        UrlIndex(tmp_path)


def test_the_index_takes_28_bytes_per_picture(tmp_path):
    samples = [sample(f"{i}", f"http://x/{i}") for i in range(100)]
    shard(tmp_path / "0.tar", samples)
    UrlIndex(tmp_path)
    (path,) = tmp_path.glob("url_index-*/places.npy")
    assert np.load(path, allow_pickle=False).nbytes == 28 * 100

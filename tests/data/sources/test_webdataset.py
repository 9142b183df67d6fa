import io
import json
import os
import shutil
import tarfile

import cloudpickle
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.lengths import corpus_lengths
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.sources import webdataset as webdataset_source
from mm1_jax.data.sources.webdataset import WebDatasetSource


def as_tar(files, form=tarfile.PAX_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in files:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def sample(key, caption="a cat", image=b"picture", extension="jpg", **about):
    about = json.dumps({"caption": "of the json", "key": key, **about})
    return [(f"{key}.{extension}", image), (f"{key}.json", about), (f"{key}.txt", caption)]


def config(path, **fields):
    return WebDatasetSource.default_config().set(path=str(path), test_every=10**6).set(**fields)


def source_of(path, files, **options):
    path.write_bytes(as_tar(files, **options))
    return config(path).instantiate(split="train")


def items(source):
    """Returns each record, or the reason why it is bad."""
    result = []
    for index in range(len(source)):
        try:
            result.append(source[index])
        except BadRecord as error:
            result.append(str(error))
    return result


@pytest.fixture
def folder(tmp_path):
    for shard in range(3):
        files = [
            entry
            for i in range(7)
            for entry in sample(
                f"{shard}{i}", f"caf\u00e9 {shard}{i}", bytes([i]) * 1000 * i or b"0"
            )
        ]
        (tmp_path / f"{shard}.tar").write_bytes(as_tar(files))
    return tmp_path


def test_samples_equal_those_of_tarfile_in_shard_order(folder):
    expected = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for name in sorted({name.split(".")[0] for name in archive.getnames()}):
                image, about, text = (
                    archive.extractfile(f"{name}.{extension}").read()
                    for extension in ("jpg", "json", "txt")
                )
                captions = [{"text": text.decode(), "kind": "caption"}]
                about = json.loads(about)
                del about["caption"]
                expected.append(about | {"image": image, "captions": captions})
    records = items(config(folder).instantiate(split="train"))
    ids = [record.pop("id") for record in records]
    assert records == expected
    assert len(set(ids)) == len(ids) == 21
    parts = {
        split: items(config(folder, test_every=4).instantiate(split=split))
        for split in ("train", "test")
    }
    assert [record["key"] for record in parts["test"]] == [e["key"] for e in expected[3::4]]
    assert len(parts["train"]) + len(parts["test"]) == 21


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_folders_long_names_and_other_extensions_are_handled(tmp_path, form):
    long = "d/" * 40 + "x" * 90
    files = [*sample(long, "one", extension="WEBP"), (f"{long}.cls", "7"), *sample("b", "two")]
    records = items(source_of(tmp_path / "a.tar", files, form=form))
    assert [record["captions"][0]["text"] for record in records] == ["one", "two"]


def test_the_caption_in_the_json_is_used_if_there_is_no_text(tmp_path):
    (record,) = items(source_of(tmp_path / "a.tar", sample("0")[:2]))
    assert record["captions"] == [{"text": "of the json", "kind": "caption"}]
    assert caption_document(record).segments[1].text == "of the json"


def test_the_json_cannot_replace_image_and_captions(tmp_path):
    (record,) = items(source_of(tmp_path / "a.tar", sample("0", image=b"x", captions=[], id="y")))
    assert record["image"] == b"x" and record["captions"][0]["text"] == "a cat"
    assert record["id"] != "y"


def test_a_bad_sample_names_itself_and_the_reason_and_affects_no_other(tmp_path):
    files = [
        *sample("blank", " \n"),
        *sample("empty", image=b""),
        *sample("no image")[1:],
        *sample("two images"),
        ("two images.png", b"picture"),
        ("bad json.jpg", b"picture"),
        ("bad json.json", "{"),
        ("bad json but text.jpg", b"picture"),
        ("bad json but text.json", "["),
        ("bad json but text.txt", "text"),
        ("list.jpg", b"picture"),
        ("list.json", "[1]"),
        ("latin.jpg", b"picture"),
        ("latin.txt", b"caf\xe9"),
        ("video.mp4", b"video"),
        ("no extension", b""),
        *sample("good"),
        *sample("blank"),
    ]
    found = items(source_of(tmp_path / "a.tar", files))
    reasons = [
        "a.tar:.*empty caption",
        "the image is empty",
        "no image",
        "2 images, expected one",
        "not JSON",
        None,
        "a list, expected a JSON object",
        "not UTF-8",
        "a.tar:video: none of jpg, .*json",
        "a.tar:no extension: a name without an extension",
        None,
        *["a.tar:blank.*: its key has been there before"] * 3,
    ]
    # The problem of an entry is reported at its position, which is before the end of its sample.
    assert len(found) == len(reasons)
    for reason in filter(None, reasons):
        assert any(isinstance(item, str) and _matches(reason, item) for item in found), reason
    assert [r["captions"][0]["text"] for r in found if isinstance(r, dict)] == ["text", "a cat"]


def _matches(pattern, text):
    return pytest.RaisesExc(Exception, match=pattern).matches(Exception(text))


def test_links_devices_and_escaping_names_reach_no_file(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"link{kind.decode()}.jpg")
            info.type, info.linkname = kind, "secret.jpg"
            archive.addfile(info)
        for name, data in sample("../../out", "text", b"inside"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data.encode() if isinstance(data, str) else data))
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    before = set(tmp_path.rglob("*"))
    *links, record = items(config(tmp_path).instantiate(split="train"))
    assert [link.split(", ")[-1] for link in links] == ["expected a file"] * 4
    assert record["image"] == b"inside"
    added = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - before}
    assert added == {"webdataset_index"}


def test_a_truncated_shard_keeps_complete_samples_and_is_reported(tmp_path):
    data = as_tar([*sample("a"), *sample("b"), *sample("c", image=bytes(5000))])
    whole = data.index(b"c.jpg")
    (tmp_path / "a.tar").write_bytes(data[: whole + 2000])
    (tmp_path / "b.tar").write_bytes(as_tar(sample("d")))
    # Damage is reported before the sample that it may have truncated.
    found = items(config(tmp_path).instantiate(split="train"))
    assert [item["key"] for item in found if isinstance(item, dict)] == ["a", "b", "d"]
    (reason,) = [item for item in found if isinstance(item, str)]
    assert "the file ends inside an entry of 5000 bytes; what follows is not read" in reason


def test_the_index_is_made_once_and_remade_when_a_shard_changes(folder, monkeypatch):
    made = []
    before = webdataset_source._build_index
    monkeypatch.setattr(webdataset_source, "_build_index", lambda *a: made.append(1) or before(*a))
    records = items(config(folder).instantiate(split="train"))
    assert items(config(folder).instantiate(split="train")) == records and len(made) == 1
    stat = (folder / "1.tar").stat()
    (folder / "1.tar").write_bytes(as_tar(sample("other")))
    assert len(config(folder).instantiate(split="train")) == 15 and len(made) == 2
    os.utime(folder / "1.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(config(folder).instantiate(split="train")) == 15


def test_a_damaged_index_is_remade(folder):
    records = items(config(folder).instantiate(split="train"))
    for name in ("samples.npy", "facts.json"):
        (path,) = folder.glob(f"webdataset_index/*/{name}")
        content = path.read_bytes()
        for damaged in (b"", content[:-7], b"nothing of the kind", content[:30] + b"{" * 200):
            path.write_bytes(damaged)
            assert items(config(folder).instantiate(split="train")) == records
            assert path.read_bytes() == content


def test_a_read_only_folder_has_its_index_in_memory(folder, monkeypatch):
    records = items(config(folder).instantiate(split="train"))
    stored = config(folder).instantiate(split="train").fingerprint()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    (folder / "2.tar").touch()
    source = config(folder).instantiate(split="train")
    assert items(source) == items(cloudpickle.loads(cloudpickle.dumps(source))) == records
    assert source.fingerprint() == stored


def test_sources_are_sent_to_workers_without_their_index(folder):
    source = config(folder, test_every=3).instantiate(split="test")
    sent = cloudpickle.loads(cloudpickle.dumps(source))
    assert items(sent) == items(source)
    assert isinstance(sent._index.samples, np.memmap)
    assert len(cloudpickle.dumps(source._index)) < 500


def test_the_fingerprint_depends_on_the_content_and_not_on_the_path(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for path in folder.glob("*.tar"):
        (other / path.name).write_bytes(path.read_bytes())

    def fingerprint(path, **fields):
        return config(path, **fields).instantiate(split="train").fingerprint()

    first = fingerprint(folder)
    assert fingerprint(other) == first
    assert fingerprint(other, test_every=2) != first
    (other / "2.tar").write_bytes(as_tar(sample("20", "longer " * 100)))
    assert fingerprint(other) != first


def test_lengths_are_stored_beside_the_shards(folder, builder):
    corpus = Corpus.default_config().set(
        name="samples", source=config(folder), to_document=caption_document
    )
    corpus = corpus.instantiate(split="train")
    assert corpus_lengths(corpus, builder).num_usable == len(corpus) == 21
    assert (folder / "lengths").is_dir()


def test_a_path_without_samples_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="/no/such' holds no WebDataset shards.*Set it to a .tar"):
        config("/no/such").instantiate(split="train")
    for content, reason in (
        (b"not a tar file" * 100, "no number where a header has one"),
        (as_tar([]), "its shards are empty"),
        (as_tar([("a", b"")]), "a name without an extension"),
    ):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(ValueError, match=f"holds no WebDataset samples: .*{reason}"):
            config(tmp_path).instantiate(split="train")


def test_too_many_entries_that_are_not_samples_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset_source, "_MAX_REJECTED", 2)
    with pytest.raises(
        ValueError, match="more than 2 entries are not samples; the first is a.tar:x"
    ):
        source_of(tmp_path / "a.tar", [*sample("0"), ("x", b""), ("y", b""), ("z", b"")])


def test_records_of_a_deleted_shard_are_bad(folder):
    source = config(folder).instantiate(split="train")
    (folder / "0.tar").unlink()
    (folder / "1.tar").write_bytes(b"short")
    found = items(source)
    assert all("cannot be read: No such file" in item for item in found[:7])
    assert all("cut short" in item for item in found[7:14])
    assert all(isinstance(item, dict) for item in found[14:])


def test_real_shards_are_read_as_by_tarfile(test_data, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(test_data / "formats" / "img2dataset_webdataset", folder)
    source = WebDatasetSource.default_config().set(path=str(folder)).instantiate(split="train")
    with tarfile.open(folder / "00000.tar") as archive:
        names = archive.getnames()
        for record in (source[0], source[5]):
            image = next(
                n for n in names if n.startswith(record["key"]) and n[-3:] in ("jpg", "png")
            )
            assert archive.extractfile(image).read() == record["image"]
            text = archive.extractfile(f"{record['key']}.txt").read().decode()
            assert record["captions"][0]["text"] == text


SHARD = as_tar(
    [e for i in range(4) for e in sample(f"{i:03}", f"caption {i}", b"picture" * 100 * i)]
)


@st.composite
def damaged(draw):
    data = bytearray(SHARD)
    for _ in range(draw(st.integers(1, 3))):
        # Most damage hits a header.
        block = 512 * draw(st.integers(0, max(0, len(data) // 512 - 1)))
        at = block + draw(st.integers(0, draw(st.sampled_from([160, 511]))))
        size = draw(st.sampled_from([1, 2, 8, 64, 512]))
        how = draw(st.sampled_from(["flip", "cut", "drop", "repeat", "zero", "digits", "mended"]))
        if how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at : at + size]
        elif how == "repeat":
            data[at:at] = data[at : at + size]
        elif how == "zero":
            data[at : at + size] = bytes(size)
        else:
            values = (b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"00000000000\0")
            data[block + 124 : block + 136] = draw(st.sampled_from(values))
            if how == "mended":
                data[block + 156 : block + 157] = draw(
                    st.sampled_from([b"0", b"2", b"L", b"x", b"S"])
                )
                header = data[block : block + 148] + b" " * 8 + data[block + 156 : block + 512]
                data[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    return bytes(data)


@given(damaged())
@settings(
    derandomize=True,
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_damaged_shards_are_rejected_or_have_bad_records(tmp_path, data):
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    try:
        source = config(path).instantiate(split="train")
    except ValueError as error:
        assert str(path) in str(error)
        return
    for item in items(source):
        assert isinstance(item, str) or (item["image"] and item["captions"])

"""Datasets prepared by the real library; skipped if it is not installed."""

import io
import subprocess
import sys
import warnings

import cloudpickle
import numpy as np
import PIL.Image
import pytest

from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.lengths import corpus_lengths
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.sources.tfds import TfdsSource

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tfds = pytest.importorskip("tensorflow_datasets")

pytestmark = pytest.mark.filterwarnings("ignore")
FIELDS = {
    "image": "image",
    "captions": "captions/text",
    "images": "views",
    "title": "title",
    "label": "label",
    "tags": "tags",
}


def png(value):
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def example(i):
    return {
        "image": io.BytesIO(png(i)),
        "title": f"caf\u00e9 {i}",
        "label": i % 2,
        "captions": [{"id": i, "text": f"caption {i} {k}"} for k in range(2)],
        "views": [io.BytesIO(png(i + k)) for k in range(2)],
        "tags": ["x", f"y{i}"],
        "unread": np.zeros((2, 2), np.float32),
    }


class TinyTestCaptions(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    # Finding the file of a class needs a package that tfds does not require.
    code_path = None

    def _info(self):
        picture, text = tfds.features.Image(encoding_format="png"), tfds.features.Text()
        features = {
            "image": picture,
            "title": text,
            "label": tfds.features.ClassLabel(names=["a", "b"]),
            "captions": tfds.features.Sequence({"id": np.int64, "text": text}),
            "views": tfds.features.Sequence(picture),
            "tags": tfds.features.Sequence(text),
            "unread": tfds.features.Tensor(shape=(2, 2), dtype=np.float32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(7), "val": self._generate_examples(3)}

    def _generate_examples(self, n):
        for i in range(n):
            yield i, example(i)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TinyTestCaptions(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def cfg(data_dir):
    return TfdsSource.default_config().set(
        name="tiny_test_captions", data_dir=str(data_dir), test_split="val", fields=FIELDS
    )


def records(source):
    return sorted((source[i] for i in range(len(source))), key=lambda record: record["title"])


def test_records_equal_the_written_data_and_pictures_stay_encoded(cfg):
    assert records(cfg.instantiate(split="train")) == [
        {
            "image": png(i),
            "captions": [{"text": f"caption {i} 0"}, {"text": f"caption {i} 1"}],
            "images": [png(i), png(i + 1)],
            "title": f"caf\u00e9 {i}",
            "label": i % 2,
            "tags": ["x", f"y{i}"],
        }
        for i in range(7)
    ]
    assert len(cfg.instantiate(split="test")) == 3


def test_single_pictures_and_captions_become_lists_if_expected(cfg):
    source = cfg.set(fields={"images": "image", "captions": "title"}).instantiate(split="test")
    first = min((source[i] for i in range(3)), key=lambda record: record["captions"][0]["text"])
    assert first == {"images": [png(0)], "captions": [{"text": "caf\u00e9 0"}]}


def test_slices_of_a_split_partition_it(cfg):
    cfg.set(train_split="train[:5]", test_split="train[5:]")
    train, test = (cfg.instantiate(split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (5, 2)
    whole = cfg.set(train_split="train").instantiate(split="train")
    assert sorted(r["title"] for r in [*records(train), *records(test)]) == [
        record["title"] for record in records(whole)
    ]


def test_tensorflow_is_not_imported_and_no_dataset_class_is_needed(cfg):
    code = f"""if True:
        import sys
        from mm1_jax.data.sources.tfds import TfdsSource
        cfg = TfdsSource.default_config().set(name={cfg.name!r}, data_dir={cfg.data_dir!r})
        source = cfg.set(fields={FIELDS!r}).instantiate(split="train")
        assert source[0]["image"].startswith(b"\\x89PNG")
        print(len(source), "tensorflow" in sys.modules)
    """
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["7", "False"]


def test_sources_can_be_sent_to_workers(cfg):
    source = cfg.instantiate(split="test")
    sent = cloudpickle.loads(cloudpickle.dumps(source))
    assert records(sent) == records(source)
    assert sent.fingerprint() == source.fingerprint()


def test_the_fingerprint_depends_on_split_and_fields(cfg):
    prints = {
        cfg.instantiate(split="train").fingerprint(),
        cfg.instantiate(split="test").fingerprint(),
        cfg.clone(fields={"image": "image"}).instantiate(split="train").fingerprint(),
        cfg.clone(train_split="train[:5]").instantiate(split="train").fingerprint(),
    }
    assert len(prints) == 4
    assert cfg.instantiate(split="train").fingerprint() in prints


def test_lengths_are_stored_beside_the_data(cfg, builder):
    corpus = Corpus.default_config().set(name="tiny", source=cfg, to_document=caption_document)
    corpus = corpus.instantiate(split="train")
    assert corpus_lengths(corpus, builder).num_usable == 7
    assert (corpus.source.cache_dir / "lengths").is_dir()
    assert len(records(cfg.instantiate(split="train"))) == 7


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (dict(name="no_such_data"), "'no_such_data'.*not found. Prepare it: .*array_record"),
        (dict(test_split="test"), "Unknown split 'test'"),
        (dict(fields={"image": "picture"}), "no feature 'picture'; there are .*image"),
        (dict(fields={"text": "captions/words"}), "no feature 'captions/words'"),
        (dict(fields={"text": "title/words"}), "no feature 'title/words'"),
    ],
)
def test_missing_datasets_splits_and_fields_are_named(cfg, fields, reason):
    with pytest.raises(ValueError, match=reason):
        cfg.set(**fields).instantiate(split="test")


def test_known_datasets_that_are_not_prepared_are_not_downloaded(cfg, tmp_path):
    with pytest.raises(ValueError, match="tiny_test_captions.*it is not prepared. Prepare it: "):
        cfg.set(data_dir=str(tmp_path)).instantiate(split="train")
    assert not list(tmp_path.iterdir())


def test_other_file_formats_are_rejected_with_the_fix(cfg, tmp_path):
    folder = tmp_path / "tiny_test_captions" / "1.0.0"
    source = cfg.instantiate(split="train").cache_dir
    folder.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        text = (source / name).read_text()
        folder.joinpath(name).write_text(text.replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="it is not in ArrayRecord. Prepare it: "):
        cfg.set(data_dir=str(tmp_path)).instantiate(split="train")


def test_an_index_out_of_range_is_an_error_and_a_damaged_example_a_bad_record(cfg, monkeypatch):
    source = cfg.instantiate(split="test")
    for index in (-1, 3):
        with pytest.raises(IndexError):
            source[index]

    class Damaged:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index:
                raise RuntimeError("checksum")
            return {name.partition("/")[0]: b"\xff" for name in FIELDS.values()}

    monkeypatch.setattr(source, "_examples", Damaged())
    with pytest.raises(BadRecord, match="tiny_test_captions, record 1: RuntimeError: checksum"):
        source[1]
    with pytest.raises(BadRecord, match="tiny_test_captions, record 0: "):
        source[0]

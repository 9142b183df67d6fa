import json

import cloudpickle
import numpy as np
import pytest

from mm1_jax.batch import Image, Text
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.corpora.interleaved import interleaved_document
from mm1_jax.data.corpora.text import text_document
from mm1_jax.data.images import Augmentation, decode
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.sources.jsonl import JsonlSource


def jsonl(tmp_path, lines, **fields):
    path = tmp_path / "data" / "records.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return JsonlSource.default_config().set(path=str(path), **fields)


def test_records_are_read_by_index_and_splits_partition_them(tmp_path):
    lines = [json.dumps({"text": f"caf\u00e9 {i}"}, ensure_ascii=False) for i in range(20)]
    lines.insert(3, "")
    cfg = jsonl(tmp_path, lines, test_every=4)
    train, test = cfg.instantiate(split="train"), cfg.instantiate(split="test")
    texts = {
        split: [source[i]["text"] for i in range(len(source))]
        for split, source in (("train", train), ("test", test))
    }
    assert texts["test"] == [f"caf\u00e9 {i}" for i in (3, 7, 11, 15, 19)]
    assert sorted(texts["train"] + texts["test"]) == sorted(f"caf\u00e9 {i}" for i in range(20))


def test_images_are_read_relative_to_the_file(tmp_path):
    cfg = jsonl(tmp_path, [json.dumps({"images": [None, "a/b.png"], "texts": ["x", None]})])
    (tmp_path / "data" / "a").mkdir()
    (tmp_path / "data" / "a" / "b.png").write_bytes(b"picture")
    assert cfg.instantiate(split="train")[0]["images"] == [None, b"picture"]


@pytest.mark.parametrize("name", ["../secret", "{tmp}/secret", "a/../../secret", "link"])
def test_paths_out_of_the_folder_are_rejected(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"secret")
    cfg = jsonl(tmp_path, [json.dumps({"image": name.format(tmp=tmp_path), "caption": "x"})])
    (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(BadRecord, match="outside the folder"):
        cfg.instantiate(split="train")[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": ', "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"image": "missing.png", "caption": "x"}', "'missing.png' cannot be read"),
        ('{"image": "a\\u0000b", "caption": "x"}', "not the name of a file"),
        ('{"image": 7, "caption": "x"}', "not the name of a file"),
        ('{"images": 7}', "images is not a list"),
    ],
)
def test_a_bad_record_names_the_reason(tmp_path, line, reason):
    source = jsonl(tmp_path, [line]).instantiate(split="train")
    with pytest.raises(BadRecord, match=reason):
        source[0]


def test_a_missing_file_names_the_path_and_the_fix():
    with pytest.raises(ValueError, match=r"source.path='/no/such.jsonl'.*Set it to"):
        JsonlSource.default_config().set(path="/no/such.jsonl").instantiate(split="train")


def test_an_unknown_split_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="split='validation'"):
        jsonl(tmp_path, ["{}"]).instantiate(split="validation")


def test_sources_can_be_sent_to_workers(tmp_path):
    source = jsonl(tmp_path, ['{"text": "x"}']).instantiate(split="train")
    assert cloudpickle.loads(cloudpickle.dumps(source))[0] == {"text": "x"}


@pytest.mark.parametrize(
    ("to_document", "record", "reason"),
    [
        (caption_document, {"caption": "x"}, "KeyError 'image'; fields: caption"),
        (caption_document, {"image": b"", "captions": []}, "no caption"),
        (interleaved_document, {"texts": ["x"], "images": []}, "1 texts beside 0 images"),
        (interleaved_document, {"texts": ["x"], "images": [b"x"]}, "place 0"),
        (interleaved_document, {"texts": [None], "images": [None]}, "place 0"),
        (interleaved_document, {"texts": [" "], "images": [None]}, "empty"),
        (text_document, {"text": " \n"}, "blank"),
        (text_document, {}, "KeyError 'text'"),
        (text_document, {"text": 7}, "text"),
    ],
)
def test_a_record_without_a_document_names_the_reason(tmp_path, to_document, record, reason):
    class Records(JsonlSource):
        def __getitem__(self, index):
            return record

    source = Records.default_config().set(path=jsonl(tmp_path, ["{}"]).path)
    cfg = Corpus.default_config().set(name="broken", source=source, to_document=to_document)
    with pytest.raises(BadRecord, match=reason):
        cfg.instantiate(split="train").document(0)


def test_only_training_pictures_are_augmented(tmp_path):
    cfg = Corpus.default_config().set(
        name="pages",
        source=jsonl(tmp_path, ["{}"]),
        to_document=text_document,
        augmentation=Augmentation.default_config().set(shift=0.1),
    )
    assert cfg.instantiate(split="train").augmentation is not None
    assert cfg.instantiate(split="test").augmentation is None


@pytest.mark.parametrize(
    ("file", "to_document"),
    [
        ("openstax/captions.jsonl", caption_document),
        ("openstax/interleaved.jsonl", interleaved_document),
        ("recipes/interleaved.jsonl", interleaved_document),
        ("d2l/text.jsonl", text_document),
    ],
)
def test_real_records_become_documents(test_data, builder, file, to_document):
    source = JsonlSource.default_config().set(path=str(test_data / file))
    corpus = Corpus.default_config().set(name=file, source=source, to_document=to_document)
    corpus = corpus.instantiate(split="train")
    assert len(corpus) > 50
    for index in np.linspace(0, len(corpus) - 1, 8, dtype=int).tolist():
        document = corpus.document(index)
        assert any(isinstance(segment, Text) for segment in document.segments)
        assert all(isinstance(segment, Text | Image) for segment in document.segments)
        num_tokens, num_images = builder.lengths(document)
        assert num_images <= num_tokens <= 256
        if document.images:
            assert decode(document.images[0], max_pixels=10**8).ndim == 3

"""Datasets that TensorFlow Datasets has prepared, read by number and without TensorFlow.

They must be prepared with `file_format="array_record"`. The library comes with the extra `tfds`.
"""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from mm1_jax.batch import Record
from mm1_jax.config import REQUIRED, Required, config_class, derived
from mm1_jax.data.readers.compressed import decode_text
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.sources.base import Source

_PREPARE = (
    "Prepare it: tensorflow_datasets.builder(NAME, data_dir=DIR, file_format='array_record')"
    ".download_and_prepare()"
)


class TfdsSource(Source):
    """The examples of a split, reduced to `fields`; images stay encoded.

    Strings are decoded to text. A field `captions` becomes a list of `{"text"}`, and `images` a
    list, even if the dataset has only one per example.
    """

    @config_class
    class Config(Source.Config):
        # A name of tfds, such as "coco_captions/2017:1.1.0".
        name: Required[str] = REQUIRED
        data_dir: str | None = derived(None)  # `input.data_dir`
        # Fields of a record and their features; "captions/text" is the feature `text` within
        # `captions`.
        fields: dict[str, str] = {"image": "image", "caption": "caption"}
        # Splits of the dataset, or slices of them: "train[:95%]".
        train_split: str = "train"
        test_split: str = "test"

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        self._open()

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        where = f"{self._config.name}, record {index}"
        try:
            example = self._examples[index]
            return {
                name: _value(name, _part(example, path), path in self._images)
                for name, path in self._config.fields.items()
            }
        except BadRecord as error:
            raise BadRecord(f"{where}: {error}") from error
        except Exception as error:  # The exceptions of tfds for damage share no base class.
            raise BadRecord(f"{where}: {type(error).__name__}: {error}") from error

    def fingerprint(self) -> str:
        """Covers the version, sizes and fields, but not the bytes of the examples."""
        return self._fingerprint

    def __getstate__(self) -> dict[str, Any]:
        return {"_config": self._config, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def _open(self) -> None:
        cfg = self._config
        try:
            tfds = importlib.import_module("tensorflow_datasets")
        except ImportError as error:
            raise ValueError(
                f"TfdsSource needs TensorFlow Datasets ({error}): pip install 'mm1_jax[tfds]'"
            ) from error
        name = cfg.train_split if self.split == "train" else cfg.test_split
        where = f"source.name={cfg.name!r}, data_dir={cfg.data_dir!r}"
        # The exceptions of tfds share no base class.
        try:
            builder = tfds.builder(cfg.name, data_dir=cfg.data_dir)
            # A run never downloads data on its own.
            if not builder.info.splits:
                raise ValueError("it is not prepared")
        except Exception as error:
            raise ValueError(f"{where}: {_first_line(error)}. {_PREPARE}") from error
        try:
            features = {path: _feature(builder.info.features, path) for path in cfg.fields.values()}
            self._images = {
                path
                for path, feature in features.items()
                if any(isinstance(each, tfds.features.Image) for each in _with_inner(feature))
            }
            decoders = _decoders(self._images, _undecoded(tfds))
            self._examples = builder.as_data_source(split=name, decoders=decoders)
            files = [Path(path) for path in builder.info.splits[name].filepaths]
        except NotImplementedError as error:
            raise ValueError(f"{where}: it is not in ArrayRecord. {_PREPARE}") from error
        except Exception as error:
            raise ValueError(f"{where}: {_first_line(error)}") from error
        facts = [
            builder.info.full_name,
            name,
            len(self._examples),
            [path.stat().st_size for path in files],
            cfg.fields,
        ]
        digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8)
        self._fingerprint = f"{builder.info.full_name} {name} digest={digest.hexdigest()}"
        self.cache_dir = files[0].parent if files else None


def _first_line(error: Exception) -> str:
    # The lines after it list all known datasets.
    return str(error).partition("\n")[0].rstrip(".")


def _feature(features: Any, path: str) -> Any:
    """Returns the feature at a path; raises ValueError if there is none."""
    feature = features
    for part in path.split("/"):
        # Descends into a sequence of features.
        feature = getattr(feature, "feature", feature)
        if not hasattr(feature, "keys") or part not in feature:
            raise ValueError(f"no feature {path!r}; there are {', '.join(features)}")
        feature = feature[part]
    return feature


def _with_inner(feature: Any) -> list[Any]:
    inner = getattr(feature, "feature", None)
    return [feature] if inner is None else [feature, *_with_inner(inner)]


def _undecoded(tfds: Any) -> Any:
    """Returns a decoder that leaves images encoded, and lists of images too, unlike tfds' own."""

    class Undecoded(tfds.decode.SkipDecoding):
        def decode_batch_example_np(self, serialized_example: Any) -> Any:
            return serialized_example

    return Undecoded()


def _decoders(paths: set[str], skip: Any) -> dict[str, Any]:
    """Returns the decoder of each image, nested as the features are."""
    decoders: dict[str, Any] = {}
    for path in paths:
        *parents, last = path.split("/")
        place = decoders
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = skip
    return decoders


def _part(example: Any, path: str) -> Any:
    for part in path.split("/"):
        # A sequence of features comes as a list of examples, or as the lists of its features.
        is_list = isinstance(example, list | tuple)
        example = [each[part] for each in example] if is_list else example[part]
    return example


def _value(name: str, value: Any, is_image: bool) -> Any:
    value = _plain(value, is_image)
    if name in ("captions", "images") and not isinstance(value, list):
        value = [value]
    return [{"text": text} for text in value] if name == "captions" else value


def _plain(value: Any, is_image: bool) -> Any:
    """Converts a value to bytes, strings, numbers, or lists of them."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each, is_image) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return decode_text(value) if isinstance(value, bytes) and not is_image else value

"""NoCaps: images of Open Images with objects that COCO's captions do not name.

    nocaps/nocaps_val_4500_captions.json         COCO's layout; images have a `domain`
    nocaps/val/                                  0013ea2087020901.jpg

There is no training split, so exemplars are other images of validation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.base import Verdict
from mm1_jax.evals.benchmarks.published import (
    AnnotationSource,
    CaptionBenchmark,
    ImageFile,
    caption_corpus,
    caption_record,
)
from mm1_jax.evals.predictions.records import by_key


class NoCapsSource(AnnotationSource):
    """An image a record, with its ten captions and its domain."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "nocaps"
        query_split: str = "val"
        support_split: str = "val"

    def read(self, split: str) -> list[dict[str, Any]]:
        path = self.file(f"nocaps_{split}_4500_captions.json", f"nocaps_{split}_captions.json")
        (folder,) = self.images(split)
        images = by_key(self.entries(path, "images"), "id")
        captions: dict[str, list[str]] = {key: [] for key in images}
        for entry in self.entries(path, "annotations"):
            key = entry.key("image_id")
            if key not in captions:
                raise ValueError(f"{entry.where}: there is no image {key!r} in {path}")
            captions[key].append(entry.text("caption"))
        records = []
        for key, entry in images.items():
            if not captions[key]:
                raise ValueError(f"{entry.where}: no caption in {path}")
            image = ImageFile(folder, entry.text("file_name"))
            domain = entry.text("domain") if entry.has("domain") else ""
            records.append(caption_record(key, image, captions[key]) | {"domain": domain})
        return records


class NoCaps(CaptionBenchmark):
    """`{image} A photo of`; the CIDEr of all images, and of each domain among all."""

    @config_class
    class Config(CaptionBenchmark.Config):
        name: str = "nocaps"
        corpus: Corpus.Config = caption_corpus(NoCapsSource.default_config(), "nocaps")
        exemplar_split: str = "test"

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        columns = super().columns(verdicts)
        domains = np.array([verdict.task.record["domain"] for verdict in verdicts])
        for domain in sorted(set(domains.tolist()) - {""}):
            columns[f"CIDEr_{domain}"] = np.where(domains == domain, columns["CIDEr"], np.nan)
        return columns

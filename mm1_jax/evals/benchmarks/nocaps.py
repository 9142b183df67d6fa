"""NoCaps: captions of Open Images with objects that COCO's captions do not name."""

from typing import Any

from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.annotations import AnnotationSource, ImageFile, caption_record
from mm1_jax.evals.benchmarks.families import annotations, caption_benchmark
from mm1_jax.evals.predictions.entries import by_key


def nocaps() -> Benchmark.Config:
    """NoCaps: captions of Open Images with objects that COCO's captions do not name.

        nocaps/nocaps_val_4500_captions.json         COCO's layout; images have a `domain`
        nocaps/val/                                  0013ea2087020901.jpg

    There is no training split, so exemplars are other images of the validation split.
    """
    source = annotations(read_nocaps, "nocaps", "val", "val")
    return caption_benchmark("nocaps", source, exemplar_split="test")


def read_nocaps(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per image, with its ten captions and its domain."""
    path = files.file(f"nocaps_{split}_4500_captions.json", f"nocaps_{split}_captions.json")
    (folder,) = files.images(split)
    images = by_key(files.entries(path, "images"), "id")
    captions: dict[str, list[str]] = {key: [] for key in images}
    for entry in files.entries(path, "annotations"):
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

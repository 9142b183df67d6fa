"""COCO Captions on Karpathy's test split, as reported in the paper."""

from typing import Any

from mm1_jax.data.readers.image_files import ImageFolder
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.annotations import AnnotationSource, ImageFile, caption_record
from mm1_jax.evals.benchmarks.families import annotations, caption_benchmark


def coco() -> Benchmark.Config:
    """COCO Captions on Karpathy's test split, as reported in the paper.

        coco/dataset_coco.json                       images with `split` and `sentences`
        coco/train2014/  coco/val2014/               COCO_val2014_000000391895.jpg

    The split is from A. Karpathy, Deep Visual-Semantic Alignments; its test split is 5,000 images
    of val2014.
    """
    source = annotations(read_coco, "coco", "test", "train")
    return caption_benchmark("coco", source)


def read_coco(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per image, with its five or more captions."""
    path = files.file("dataset_coco.json", "annotations/dataset_coco.json")
    records, splits = [], set()
    for entry in files.entries(path, "images"):
        splits.add(found := entry.text("split"))
        if found != split:
            continue
        name = entry.text("filename")
        # Only Karpathy's file for COCO has folders.
        folder = entry.text("filepath") if entry.has("filepath") else ""
        sentences = entry.get("sentences", expected="a list of objects with 'raw'")
        captions: list[Any] = [one.get("raw") for one in sentences if isinstance(one, dict)]
        if not captions or not all(isinstance(caption, str) for caption in captions):
            raise entry.error(("sentences",), "a list of objects with 'raw'", sentences)
        image = ImageFile(ImageFolder(files.folder / folder), name)
        records.append(caption_record(entry.key("cocoid", "imgid"), image, captions))
    if not records:
        raise ValueError(f"{path}: no image of split {split!r}; it has {sorted(splits)}")
    return records

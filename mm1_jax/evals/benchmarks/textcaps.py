"""TextCaps: captions that include the text in a picture."""

from typing import Any

from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.annotations import AnnotationSource, ImageFile, caption_record
from mm1_jax.evals.benchmarks.families import annotations, caption_benchmark


def textcaps() -> Benchmark.Config:
    """TextCaps: captions that include the text in a picture.

    textcaps/TextCaps_0.1_train.json  textcaps/TextCaps_0.1_val.json   `data`, one caption per entry
    textcaps/train_images/                                             <image_id>.jpg, both splits
    """
    source = annotations(read_textcaps, "textcaps", "val", "train")
    return caption_benchmark("textcaps", source)


def read_textcaps(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per image, with the captions of its entries in order."""
    # Training and validation both show training pictures of Open Images.
    (folder,) = files.images("test_images" if split == "test" else "train_images")
    captions: dict[str, list[str]] = {}
    for entry in files.entries(files.file(f"TextCaps_0.1_{split}.json"), "data"):
        own = captions.setdefault(entry.key("image_id"), [])
        if entry.has("caption_str"):
            own.append(entry.text("caption_str"))
        elif split != "test":
            # Only the test split is published without captions.
            entry.text("caption_str")
    return [
        caption_record(key, ImageFile(folder, f"{key}.jpg"), own) for key, own in captions.items()
    ]

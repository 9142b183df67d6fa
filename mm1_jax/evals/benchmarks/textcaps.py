"""TextCaps: captions that read the text in a picture.

textcaps/TextCaps_0.1_train.json  textcaps/TextCaps_0.1_val.json     `data`, a caption an entry
textcaps/train_images/                                               <image_id>.jpg, of val too
"""

from typing import Any

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.published import (
    AnnotationSource,
    CaptionBenchmark,
    ImageFile,
    caption_corpus,
    caption_record,
)


class TextCapsSource(AnnotationSource):
    """An image a record: the captions of its entries, in order."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "textcaps"
        query_split: str = "val"
        support_split: str = "train"

    def read(self, split: str) -> list[dict[str, Any]]:
        # Training and validation are both of the training pictures of Open Images.
        (folder,) = self.images("test_images" if split == "test" else "train_images")
        captions: dict[str, list[str]] = {}
        for entry in self.entries(self.file(f"TextCaps_0.1_{split}.json"), "data"):
            own = captions.setdefault(entry.key("image_id"), [])
            if entry.has("caption_str"):
                own.append(entry.text("caption_str"))
            elif split != "test":
                # Only the test split is published without captions.
                entry.text("caption_str")
        return [
            caption_record(key, ImageFile(folder, f"{key}.jpg"), own)
            for key, own in captions.items()
        ]


class TextCaps(CaptionBenchmark):
    """`{image} A photo of`, for the pictures of validation."""

    @config_class
    class Config(CaptionBenchmark.Config):
        name: str = "textcaps"
        corpus: Corpus.Config = caption_corpus(TextCapsSource.default_config(), "textcaps")

"""TextVQA: questions about the text in a picture.

textvqa/TextVQA_0.5.1_train.json  textvqa/TextVQA_0.5.1_val.json     `data`, a question an entry
textvqa/train_images/                                                <image_id>.jpg, of val too
"""

from typing import Any

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.published import (
    AnnotationSource,
    ImageFile,
    VqaBenchmark,
    question_corpus,
    question_record,
)


class TextVqaSource(AnnotationSource):
    """A question a record; those of the test split have no answers."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "textvqa"
        query_split: str = "val"
        support_split: str = "train"

    def read(self, split: str) -> list[dict[str, Any]]:
        (folder,) = self.images("test_images" if split == "test" else "train_images")
        records = []
        for entry in self.entries(self.file(f"TextVQA_0.5.1_{split}.json"), "data"):
            answers = [] if split == "test" else entry.texts("answers")
            image = ImageFile(folder, f"{entry.key('image_id')}.jpg")
            key, question = entry.key("question_id"), entry.text("question")
            records.append(dict(question_record(key, [image], question, answers)))
        return records


class TextVqa(VqaBenchmark):
    """VQA accuracy as TextVQA's own code (m4c) has it."""

    @config_class
    class Config(VqaBenchmark.Config):
        name: str = "textvqa"
        corpus: Corpus.Config = question_corpus(TextVqaSource.default_config(), "textvqa")

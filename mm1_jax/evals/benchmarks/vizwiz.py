"""VizWiz-VQA: questions that blind people asked about their own pictures.

vizwiz/Annotations/train.json  val.json  test.json     a list: image, question, ten answers
vizwiz/train/  val/  test/                             VizWiz_val_00000000.jpg
"""

from typing import Any

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.base import Verdict
from mm1_jax.evals.benchmarks.published import (
    AnnotationSource,
    ImageFile,
    VqaBenchmark,
    question_corpus,
    question_record,
)


class VizWizSource(AnnotationSource):
    """A picture and its question a record; those of the test split have no answers."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "vizwiz"
        query_split: str = "val"
        support_split: str = "train"

    def read(self, split: str) -> list[dict[str, Any]]:
        (folder,) = self.images(split)
        records = []
        for entry in self.entries(self.file(f"Annotations/{split}.json", f"{split}.json")):
            name = entry.text("image")
            answers = [] if split == "test" else entry.texts("answers")
            image = ImageFile(folder, name)
            records.append(dict(question_record(name, [image], entry.text("question"), answers)))
        return records


class VizWiz(VqaBenchmark):
    """VQA accuracy; "unanswerable" is an answer as any other."""

    @config_class
    class Config(VqaBenchmark.Config):
        name: str = "vizwiz"
        corpus: Corpus.Config = question_corpus(VizWizSource.default_config(), "vizwiz")

    def result(self, verdict: Verdict) -> dict[str, Any]:
        return {"image": verdict.task.key, "answer": verdict.answer}

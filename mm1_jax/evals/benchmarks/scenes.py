"""Held-out rendered scenes: questions of several kinds, and the caption."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mm1_jax.batch import Document
from mm1_jax.config import config_class
from mm1_jax.data.corpora import scene_names, scenes
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.corpora.questions import question_document
from mm1_jax.data.corpora.scene_names import SceneNamesSource
from mm1_jax.evals.benchmarks.base import Benchmark, Verdict
from mm1_jax.evals.metrics.answers import normalise


class ScenesVQA(Benchmark):
    """Questions about one scene or two, with the accuracy of each kind.

    Beside it stands the accuracy of one who reads the question but sees nothing: who gives to every
    question the most frequent answer of its kind.
    """

    @config_class
    class Config(Benchmark.Config):
        name: str = "scenes_vqa"
        corpus: Corpus.Config = scenes.corpus(Kind.QUESTIONS)
        stop_strings: tuple[str, ...] = ("\n", ".", ",", "Question")
        num_examples: int | None = 400

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        kinds = np.array([verdict.task.record["kind"] for verdict in verdicts])
        correct = np.array([bool(verdict.correct) for verdict in verdicts], float)
        references = np.array([normalise(verdict.reference) for verdict in verdicts])
        majority = np.zeros(len(verdicts))
        columns = {"accuracy": correct, "majority_accuracy": majority}
        for kind in sorted(set(kinds.tolist())):
            family = kinds == kind
            most = Counter(references[family].tolist()).most_common(1)[0][0]
            majority[family] = references[family] == most
            columns[f"accuracy_{kind}"] = np.where(family, correct, np.nan)
        return columns


class SceneNames(Benchmark):
    """What a shape or a colour is called, which the exemplars alone tell (`corpora.scene_names`).

    Exemplars are of the query's world, and show what the query shows from two shots on. To say any
    name that was heard gets half of the answers right: `heard` says how often an answer is one.
    Without exemplars there is nothing to go by, and one of sixteen names is right by chance.
    """

    @config_class
    class Config(Benchmark.Config):
        name: str = "scenes_names"
        corpus: Corpus.Config = scene_names.corpus(Kind.QUESTIONS)
        stop_strings: tuple[str, ...] = ("\n", ".", ",", "Question")
        shots: tuple[int, ...] = (0, 2, 4, 8)
        blank_shots: tuple[int, ...] = (8,)
        num_examples: int | None = 400
        num_few_shot_examples: int | None = 400

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        heard = [normalise(v.answer) in v.task.record["names"] for v in verdicts]
        return super().columns(verdicts) | {"heard": np.array(heard, float)}

    def _similar_exemplars(self, cfg: Config) -> None:
        if cfg.exemplars is not None:
            raise ValueError(
                f"{cfg.name}: exemplars are of the query's world; leave exemplars=None"
            )

    def _describe_exemplars(self) -> str:
        return "exemplars of the query's world, both of its names among them"

    def _exemplars(self, shots: int, place: int) -> list[Document]:
        source = self._queries.source
        assert isinstance(source, SceneNamesSource), "the default of `corpus`"
        records = source.exemplars(self._query_indices[place], shots)
        return [question_document(record) for record in records]


class ScenesCaption(Benchmark):
    """`{image}`, to be followed by the caption word for word."""

    @config_class
    class Config(Benchmark.Config):
        name: str = "scenes_caption"
        corpus: Corpus.Config = scenes.corpus(Kind.CAPTIONS)
        num_examples: int | None = 240

    def combine(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"exact_match": means["accuracy"]}

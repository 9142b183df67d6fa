import numpy as np
import pytest

from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.corpora.scene_names import ASPECTS, NAMES, SceneNamesSource
from mm1_jax.evals.benchmarks.scenes import scenes_names
from mm1_jax.evals.evaluator import PromptInput
from mm1_jax.evals.exemplars import SimilarExemplars
from mm1_jax.evals.prompts import reference


def source(kind, split="train", num_records=64):
    cfg = SceneNamesSource.default_config().set(kind=kind, num_records=num_records)
    return cfg.instantiate(split=split)


def seen(record):
    """Returns the shape or color in a question's picture, whichever the question is about."""
    (shape,) = record["images"][0].__self__.shapes
    return shape.shape if "shape" in record["question"] else shape.color


@pytest.mark.parametrize("count", [2, 4, 8])
def test_exemplars_give_the_querys_shape_or_color_the_same_name(count):
    questions = source(Kind.QUESTIONS, "test")
    for index in range(len(questions)):
        query, exemplars = questions[index], questions.exemplars(index, count)
        assert len(exemplars) == count
        names = {}
        for each in exemplars:
            assert each["question"] == query["question"]
            assert names.setdefault(seen(each), each["answer"]) == each["answer"]
        assert names[seen(query)] == query["answer"]
        assert sorted(names.values()) == query["names"]


def test_names_are_independent_of_the_shapes_and_colors_they_name():
    questions = source(Kind.QUESTIONS, num_records=4000)
    shown = {}
    for record in map(questions.__getitem__, range(4000)):
        shown.setdefault(record["answer"], []).append(seen(record))
    assert sorted(shown) == sorted(NAMES)
    for values in shown.values():
        _, counts = np.unique(values, return_counts=True)
        # Half of the questions ask for 4 shapes, half for 5 colors; each name occurs 250 times.
        assert counts.max() / counts.sum() < 0.25


def test_each_page_uses_one_assignment_of_names():
    pages = source(Kind.INTERLEAVED)
    asked = set()
    for index in range(len(pages)):
        texts = [text for text in pages[index]["texts"] if text]
        assert len({text.rsplit(" ", 1)[0] for text in texts}) == 1
        assert len({text.rsplit(" ", 1)[1] for text in texts}) == 2
        asked.add(next(aspect for aspect in ASPECTS if aspect in texts[0]))
    assert asked == set(ASPECTS)


def test_no_test_picture_is_in_a_training_page():
    for split in ("train", "test"):
        questions = source(Kind.QUESTIONS, split)
        for index in range(len(questions)):
            for record in (questions[index], *questions.exemplars(index, 3)):
                assert record["images"][0].__self__.is_test == (split == "test")


def test_the_benchmark_shows_exemplars_with_the_querys_names():
    from experiments.few_shot import mm1_tiny_names

    cfg = mm1_tiny_names()
    cfg = cfg.klass.resolve(cfg)
    benchmark = scenes_names().instantiate(input=PromptInput.of(cfg.input))
    for task in list(benchmark.tasks(4))[:20]:
        names = {reference(exemplar) for exemplar in task.exemplars}
        assert len(task.prompt.images) == 5
        assert sorted(names) == task.record["names"]
        assert reference(task.document) in names
    assert "exemplars of the query's world" in benchmark.describe()
    similar = scenes_names().set(exemplars=SimilarExemplars.default_config())
    with pytest.raises(ValueError, match="leave exemplars=None"):
        similar.instantiate(input=PromptInput.of(cfg.input))

from collections import Counter

import numpy as np
import pytest

from experiments.small_world import mm1_small_world, score_keys, text_score_keys
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.benchmarks.registry import SMALL_WORLD, SMALL_WORLD_TEXT
from mm1_jax.evals.evaluation import Scores, averages
from mm1_jax.evals.evaluator import PromptInput
from mm1_jax.evals.prompts import reference
from mm1_jax.evals.scoring.captions import cider_d, relative_captions, tokenized_items
from mm1_jax.evals.scoring.items import Item, scores


@pytest.fixture(scope="module")
def benchmarks():
    cfg = mm1_small_world()
    cfg = cfg.klass.resolve(cfg)
    made = PromptInput.of(cfg.input)
    names = [*SMALL_WORLD, *SMALL_WORLD_TEXT]
    return {name: cfg.evals[name].instantiate(input=made) for name in names}


@pytest.mark.parametrize("name", [*SMALL_WORLD, *SMALL_WORLD_TEXT])
def test_queries_and_exemplars_have_answers_and_pictures(name, benchmarks):
    benchmark = benchmarks[name]
    has_pictures = name in SMALL_WORLD
    assert any(key.startswith(f"{name}/0/") for key in benchmark.metric_names())
    for shots in benchmark.config.shots:
        tasks = benchmark.tasks(shots)
        for task in (tasks[0], tasks[7]):
            assert reference(task.document)
            assert len(task.prompt.images) == (shots + 1) * has_pictures


def test_a_run_reports_the_keys_of_the_mean(benchmarks):
    reported = {key for each in benchmarks.values() for key in each.metric_names()}
    for shots in (0, 4, 8):
        assert len(score_keys(shots)) == len(SMALL_WORLD)
        assert reported.issuperset(score_keys(shots))
    assert reported.issuperset(text_score_keys())


def test_benchmarks_draw_pictures_as_the_corpora_of_training_do(benchmarks):
    trained = mm1_small_world().input.streams[0].corpora[1].corpus.source
    assert trained.kind is Kind.QUESTIONS
    for name, benchmark in benchmarks.items():
        if name.startswith("world") and name in SMALL_WORLD:
            source = benchmark.config.corpus.source
            for field in ("max_objects", "max_count", "max_others", "print_sizes", "noise"):
                assert getattr(source, field) == getattr(trained, field)


# Accuracy of the most frequent answer of training to the same question: all that text tells.
FLOORS = {
    "world_attributes": 0.33,
    "world_relations": 0.27,
    "world_counting": 0.19,
    "world_print": 0.04,
    "world_details": 0.27,
    "world_knowledge": 0.0,
}


@pytest.mark.parametrize("name", FLOORS)
def test_text_alone_answers_few_questions(name):
    source = SMALL_WORLD[name]().corpus.source
    train, test = (source.instantiate(split=split) for split in ("train", "test"))
    answers: dict[str, Counter[str]] = {}
    for i in range(1000):
        record = train[i]
        answers.setdefault(record["question"], Counter())[record["answer"]] += 1
    asked = [test[i] for i in range(300)]
    most = {question: counts.most_common(1)[0][0] for question, counts in answers.items()}
    right = np.mean([most.get(each["question"]) == each["answer"] for each in asked])
    assert right <= FLOORS[name] + 0.07


def test_relative_captions_are_those_of_a_reference_at_one(benchmarks):
    tasks = benchmarks["world_captions"].tasks(0)
    records = [tasks[i].record for i in range(40)]

    def scored(answers):
        pairs = zip(records, answers, strict=True)
        return scores(relative_captions([Item(each, TextAnswer(text)) for each, text in pairs]))

    first = scored([each["captions"][0] for each in records])
    # The first caption is one of its own references here, and is not where it is measured.
    assert first["relative_CIDEr"] > 1
    others = [{**each, "captions": each["captions"][1:]} for each in records]
    items = [
        Item(other, TextAnswer(each["captions"][0]))
        for each, other in zip(records, others, strict=True)
    ]
    assert first["reference_CIDEr"] == pytest.approx(cider_d(*tokenized_items(items)).mean())
    wrong = scored([each["captions"][0] for each in records[1:] + records[:1]])
    assert wrong["relative_CIDEr"] < 0.25
    assert scored([""] * len(records))["relative_CIDEr"] == 0


def test_the_mean_of_the_small_world_is_that_of_its_headlines():
    made = [Scores(name, 4, {}, headline=float(i)) for i, name in enumerate(SMALL_WORLD)]
    found = averages(made, list(SMALL_WORLD), "small_world")
    assert found["small_world/4/score"] == np.mean(range(len(SMALL_WORLD)))
    assert found["small_world/4/num_benchmarks"] == len(SMALL_WORLD)

"""Pages of names: what they show, what is scored, and what exemplars tell."""

import itertools

import numpy as np
import pytest

from experiments.binding import mm1_tiny_binding
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.corpora.name_pages import NamePagesSource
from mm1_jax.data.corpora.scene_names import ASPECTS, NAMES
from mm1_jax.evals.benchmarks.scenes import name_binding, swapped_name_binding
from mm1_jax.evals.evaluator import PromptInput
from mm1_jax.evals.prompts import reference
from mm1_jax.experiment import Experiment

HELD_OUT = ("triangle", "yellow")


def source(kind=Kind.INTERLEAVED, split="train", **fields) -> NamePagesSource:
    cfg = NamePagesSource.default_config().set(kind=kind, **{"num_records": 200, **fields})
    return cfg.instantiate(split=split)


def scene(picture):
    return picture.args[0]


def seen(picture, aspect):
    """Returns the shape or color that a picture shows."""
    (value,) = {getattr(shape, aspect) for shape in scene(picture).shapes}
    return value


def aspects_of(pictures, names):
    """Returns the aspects by which each picture has one name, and each name one value."""
    found = []
    for aspect in ASPECTS:
        pairs = {
            (seen(picture, aspect), name) for picture, name in zip(pictures, names, strict=True)
        }
        if len(pairs) == len({value for value, _ in pairs}) == len({name for _, name in pairs}):
            found.append(aspect)
    return found


@pytest.mark.parametrize("other", ["random", "constant"])
def test_a_page_names_two_values_of_one_aspect(other):
    pages = source(other_aspect=other, words="{aspect}")
    for index in range(60):
        page = pages[index]
        (aspect,) = {*page["prompts"]}
        assert len(page["images"]) == len(page["answers"]) == 8
        assert len({*page["answers"]}) == 2
        assert aspect in aspects_of(page["images"], page["answers"])
        (rest,) = {*ASPECTS} - {aspect}
        if other == "constant":
            assert len({seen(picture, rest) for picture in page["images"]}) == 1
    assert {*source(words="{aspect}")[0]} == {"images", "prompts", "answers"}


def test_names_are_independent_of_the_values_they_name():
    questions = source(Kind.QUESTIONS, words="{aspect}", num_records=4000)
    shown = {}
    for record in map(questions.__getitem__, range(len(questions))):
        (picture,), (aspect,), (name,) = (record[k] for k in ("images", "prompts", "answers"))
        shown.setdefault(name, []).append(seen(picture, aspect))
    assert sorted(shown) == sorted(NAMES)
    for values in shown.values():
        _, counts = np.unique(values, return_counts=True)
        assert counts.max() / counts.sum() < 0.25


@pytest.mark.parametrize("split", ["train", "test"])
def test_held_out_values_and_pictures_of_the_other_split_are_never_shown(split):
    pages, questions = (
        source(kind, split, held_out=HELD_OUT) for kind in (Kind.INTERLEAVED, Kind.QUESTIONS)
    )
    records = [pages[i] for i in range(50)] + [questions[i] for i in range(50)]
    records += itertools.chain(*(questions.exemplars(i, 4) for i in range(50)))
    for picture in (picture for record in records for picture in record["images"]):
        assert scene(picture).is_test == (split == "test")
        assert not {seen(picture, aspect) for aspect in ASPECTS} & {*HELD_OUT}


def test_questions_for_held_out_values_show_one_beside_a_trained_value():
    questions = source(
        Kind.QUESTIONS, "test", words="{aspect}", held_out=HELD_OUT, named="held_out"
    )
    asked = set()
    for index in range(len(questions)):
        record = questions[index]
        (picture,), (aspect,) = record["images"], record["prompts"]
        asked.add(seen(picture, aspect))
        values = {seen(x, aspect) for e in questions.exemplars(index, 4) for x in e["images"]}
        assert len(values & {*HELD_OUT}) == 1 and len(values) == 2
    assert asked == {*HELD_OUT}


@pytest.mark.parametrize("count", [2, 4, 8])
def test_exemplars_name_what_the_query_shows_and_swapped_ones_name_the_other(count):
    questions = source(Kind.QUESTIONS, "test", words="{aspect}")
    for index in range(len(questions)):
        query = questions[index]
        plain, swapped = (questions.exemplars(index, count, swapped=s) for s in (False, True))
        (aspect,) = query["prompts"]
        for records, is_right in ((plain, True), (swapped, False)):
            names = {seen(x["images"][0], aspect): x["answers"][0] for x in records}
            assert sorted(names.values()) == query["names"]
            right = names[seen(query["images"][0], aspect)] == query["answers"][0]
            assert right == is_right
        assert [scene(x["images"][0]) for x in plain] == [scene(x["images"][0]) for x in swapped]


def test_only_names_and_the_end_are_scored():
    cfg = mm1_tiny_binding()
    prompt_input = PromptInput.of(Experiment.resolve(cfg).input)
    builder, tokenizer = prompt_input.example_builder, prompt_input.tokenizer
    for stream in cfg.input.streams:
        document = stream.corpora[0].corpus.instantiate(split="train").document(7)
        example = builder.example(document)
        names = [segment.text for segment in document.segments if getattr(segment, "scored", False)]
        assert len(names) == len(document.images) == 8 and {*names} <= {*NAMES}
        scored = [token for name in names for token in tokenizer.encode(name)]
        assert example.targets[example.loss_mask].tolist() == [*scored, tokenizer.eos]


def test_every_row_of_the_curriculum_is_one_page():
    cfg = mm1_tiny_binding()
    for stream in cfg.input.streams:
        stream.corpora[0].corpus.source.num_records = 256
    cfg = Experiment.resolve(cfg)
    planner = cfg.input.instantiate(split="train").planner(range(64))
    streams = []
    for step in (0, *(stage.from_step for stage in cfg.input.stages)):
        planner.restore(step, planner.next_index)
        rows = planner.next_rows()
        assert all(row.num_images == [8] for row in rows)
        streams.append({row.stream for row in rows})
    assert streams == [{0}, {0, 1}, {1, 2}, {2, 3}]


@pytest.mark.parametrize("named", ["others", "held_out"])
def test_a_model_that_binds_is_always_right_and_never_with_swapped_names(named):
    made = PromptInput.of(Experiment.resolve(mm1_tiny_binding()).input)
    fields = {"words": "{aspect}", "held_out": HELD_OUT, "named": named}
    for make, is_right in ((name_binding, True), (swapped_name_binding, False)):
        for task in list(make(**fields).instantiate(input=made).tasks(4))[:50]:
            (aspect,), (picture,) = task.record["prompts"], task.record["images"]
            names = {seen(x.images[0].data, aspect): reference(x) for x in task.exemplars}
            assert len(task.prompt.images) == 5
            assert (names[seen(picture, aspect)] == reference(task.document)) == is_right


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": Kind.TEXT}, "expected INTERLEAVED or QUESTIONS"),
        ({"held_out": ("purple",)}, "source.held_out has 'purple'; expected some of circle"),
        ({"held_out": ("circle", "square", "cross")}, "leave two shapes and two colors"),
        ({"named": "held_out"}, "without a value in source.held_out"),
    ],
)
def test_fields_that_contradict_each_other_are_an_error(fields, message):
    with pytest.raises(ValueError, match=message):
        source(**{"kind": Kind.QUESTIONS, **fields})

from collections.abc import Sequence

import numpy as np
import pytest

from mm1_jax.batch import Document, Image
from mm1_jax.data.corpora import digits
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.evals import asking as asking_module
from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.asking import BLANK
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.digits import digits_caption, digits_vqa
from mm1_jax.evals.benchmarks.scenes import scenes_caption, scenes_vqa
from mm1_jax.evals.cases import side_by_side
from mm1_jax.evals.evaluation import evaluate
from mm1_jax.evals.prompts import subset
from mm1_jax.evals.report import markdown
from mm1_jax.evals.scoring.exact_match import accuracy_by_kind
from mm1_jax.evals.scoring.items import Item, Scored, scores
from mm1_jax.models.mm1 import MM1


class Spy:
    """Replaces `generate`: records the batches and answers with `says`."""

    def __init__(self, tokenizer, says=""):
        self.tokenizer, self.says = tokenizer, says
        self.batches, self.options = [], []

    def __call__(self, model, batch, options):
        self.batches.append(batch)
        self.options.append(options)
        says = self.says if isinstance(self.says, str) else next(self.says)
        ids = [*self.tokenizer.encode(says), self.tokenizer.eos]
        row = np.array((ids + [0] * options.max_new_tokens)[: options.max_new_tokens])
        return np.tile(row[None], (len(batch.tokens), 1))

    def rows(self):
        """Yields the tokens and pictures of every prompt."""
        for batch in self.batches:
            for tokens, segments, slots in zip(
                batch.tokens, batch.segment_ids, batch.image_index, strict=True
            ):
                if segments.any():
                    yield tokens[segments > 0], [batch.images[slot] for slot in slots if slot >= 0]


@pytest.fixture
def spy(input, monkeypatch) -> Spy:
    spy = Spy(input.tokenizer)
    monkeypatch.setattr(asking_module, "generate", spy)
    return spy


@pytest.fixture
def model() -> MM1:
    return object.__new__(MM1)


BENCHMARKS = [digits_vqa, digits_caption, scenes_vqa, scenes_caption]


def benchmark(make, input, **fields) -> Benchmark:
    sizes = {"num_examples": 10, "num_few_shot_examples": 10, "batch_size": 4}
    return make().set(**(sizes | fields)).instantiate(input=input)


@pytest.mark.parametrize("make", BENCHMARKS)
def test_k_shots_show_the_exemplars_pictures_in_order_and_then_the_query(make, input, model, spy):
    asking = benchmark(make, input, shots=(2,), blank_shots=(), max_new_tokens=8)
    asking.run(model)
    tasks, rows = asking.tasks(2), list(spy.rows())
    assert len(tasks) == len(rows) == 10
    for task, (tokens, pictures) in zip(tasks, rows, strict=True):
        documents = [*task.exemplars, task.document]
        shown = [image for document in documents for image in document.images]
        assert len(task.exemplars) == 2 and len(shown) >= 3
        expected = [input.image_transform(image) for image in shown]
        np.testing.assert_array_equal(pictures, expected)
        num_placeholders = np.sum(tokens == input.tokenizer.image_token)
        assert num_placeholders == len(shown) * input.num_image_tokens
        assert len({id(image) for image in shown}) == len(shown)


@pytest.mark.parametrize("make", [digits_vqa, digits_caption])
def test_exemplars_are_training_scans(make, input):
    asking = benchmark(make, input)
    train = {
        scan.tobytes()
        for scan in digits.corpus(Kind.CAPTIONS).source.instantiate(split="train").pixels
    }
    for task in asking.tasks(4):
        shown = [image.data.tobytes() for document in task.exemplars for image in document.images]
        assert len(set(shown)) == 4 and train.issuperset(shown)
        assert task.document.images[0].data.tobytes() not in train


def test_exemplars_from_the_evaluated_split_are_never_the_query(input):
    asking = benchmark(
        digits_caption, input, exemplar_split="test", num_few_shot_examples=3, shots=(300,)
    )
    for task in asking.tasks(300):
        shown = {document.images[0].data.tobytes() for document in task.exemplars}
        assert len(shown) == 300 and task.document.images[0].data.tobytes() not in shown


def test_tasks_are_determined_by_the_seed(input):
    def asked(**fields):
        tasks = benchmark(digits_caption, input, **fields).tasks(2)
        return [[image.data.tobytes() for image in task.prompt.images] for task in tasks]

    assert asked() == asked() == asked(batch_size=7)
    assert asked() != asked(seed=1)


def test_all_held_out_scans_are_asked_once_without_exemplars(input):
    asking = digits_vqa().instantiate(input=input)
    tasks = asking.tasks(0)
    assert len(tasks) == 359
    assert len({task.document.images[0].data.tobytes() for task in tasks}) == len(tasks)
    assert {task.record["kind"] for task in tasks} == {"digit"}
    assert len(asking.tasks(4)) == 120


def test_blanking_keeps_the_prompts_and_clears_every_pixel(input, model, spy):
    asking = benchmark(digits_caption, input, shots=(0,), blank_shots=(0, 1))
    asking.run(model)
    asked, blank, blank_shot = spy.batches[:3], spy.batches[3:6], spy.batches[6:]
    for batch, blanked in zip(asked, blank, strict=True):
        np.testing.assert_array_equal(batch.tokens, blanked.tokens)
        np.testing.assert_array_equal(batch.image_index, blanked.image_index)
        assert np.ptp(batch.images) > 100
    assert all(np.all(batch.images == BLANK) for batch in (*blank, *blank_shot))


def test_metric_keys_name_benchmark_shots_and_metric(input, model, spy):
    def keys(make):
        asking = benchmark(make, input, shots=(0, 2), max_new_tokens=8)
        return set(asking.run(model).metrics)

    assert keys(digits_vqa) == {
        "digits_vqa/0/accuracy",
        "digits_vqa/2/accuracy",
        "digits_vqa_blank/0/accuracy",
    }
    assert keys(digits_caption) == {
        "digits_caption/0/exact_match",
        "digits_caption/2/exact_match",
        "digits_caption_blank/0/exact_match",
    }
    assert keys(scenes_vqa) >= {
        "scenes_vqa/0/accuracy",
        "scenes_vqa/0/majority_accuracy",
        "scenes_vqa/0/accuracy_color",
        "scenes_vqa_blank/0/accuracy",
    }
    assert "scenes_caption/2/exact_match" in keys(scenes_caption)


def test_right_answers_score_one_and_wrong_ones_zero(input, model, spy):
    asking = benchmark(digits_caption, input, shots=(0,), blank_shots=(), batch_size=1)
    references = [task.record["caption"] for task in asking.tasks(0)]
    spy.says = iter([*references, *references[:4], *["a handwritten digit 11"] * 6])
    assert asking.run(model).metrics == {"digits_caption/0/exact_match": 1.0}
    result = asking.run(model)
    assert result.metrics == {"digits_caption/0/exact_match": 0.4}
    # Half of the samples are wrong answers if there are enough of both.
    assert [sample.correct for sample in result.samples] == [False] * 4 + [True] * 4
    sample = result.samples[-1]
    assert sample.answer == sample.reference == references[3]
    assert sample.image.shape == (8, 8, 3) and sample.benchmark == "digits_caption"


def test_answers_end_at_a_stop_string(input, model, spy):
    asking = benchmark(digits_vqa, input, shots=(0,), blank_shots=())
    spy.says = "7 Question: what digit is this?"
    assert {sample.answer for sample in asking.run(model).samples} == {"7"}


def test_the_majority_answer_is_scored_by_kind_of_question():
    rows = [("a", "red", True), ("a", "red", False), ("a", "blue", True), ("b", "one", False)]
    items = [
        Item({"kind": kind}, TextAnswer(text if right else ""), "", text)
        for kind, text, right in rows
    ]
    assert scores(accuracy_by_kind(items)) == {
        "accuracy": 0.5,
        "majority_accuracy": 0.75,
        "accuracy_a": pytest.approx(2 / 3),
        "accuracy_b": 0.0,
    }


def test_all_prompts_of_a_run_have_one_shape_and_never_yield_special_tokens(input, model, spy):
    benchmark(scenes_vqa, input, shots=(2,), blank_shots=(), max_new_tokens=8).run(model)
    assert len({batch.tokens.shape for batch in spy.batches}) == 1
    assert len({batch.images.shape for batch in spy.batches}) == 1
    tokenizer = input.tokenizer
    for options in spy.options:
        forbidden = set(options.forbidden)
        assert forbidden >= {tokenizer.pad, tokenizer.bos, tokenizer.image_token}
        assert tokenizer.eos not in forbidden
        assert not forbidden.intersection(tokenizer.encode("a handwritten digit 7, two circles"))
        assert all(tokenizer.decode([i]) == "" for i in forbidden - {3})


def test_a_prompt_longer_than_training_rows_is_asked_and_reported(input, model, spy):
    asking = benchmark(digits_caption, input, shots=(2, 40), blank_shots=(), max_new_tokens=8)
    metrics = asking.run(model).metrics
    longest = max(len(tokens) for tokens, _ in spy.rows())
    assert longest > input.max_sequence_length
    assert metrics == {
        "digits_caption/2/exact_match": 0.0,
        "digits_caption/40/exact_match": 0.0,
        "digits_caption/40/positions_beyond_training": longest + 8 - input.max_sequence_length,
    }
    assert {len(pictures) for _, pictures in spy.rows()} == {3, 41}


def test_a_picture_that_cannot_be_decoded_is_counted(input, model, spy, monkeypatch):
    asking = benchmark(digits_caption, input, shots=(0,), blank_shots=())
    assert "digits_caption/0/undecodable_images" not in asking.run(model).metrics
    document = asking.maker.queries.document
    broken = subset(359, 10, seed=0, benchmark="digits_caption")[2]

    def broken_document(index):
        first, *rest = document(index).segments
        return Document((Image(b"no picture") if index == broken else first, *rest))

    monkeypatch.setattr(asking.maker.queries, "document", broken_document)
    spy.batches.clear()
    result = asking.run(model)
    assert result.metrics["digits_caption/0/undecodable_images"] == 1.0
    assert [len(pictures) for _, pictures in spy.rows()] == [1, 1, 0] + [1] * 7
    assert any(sample.image is None for sample in result.samples)


def test_too_many_shots_for_the_records_are_rejected_without_a_model(input):
    with pytest.raises(ValueError, match="digits_caption: shots=359.* only 358 records"):
        benchmark(digits_caption, input, exemplar_split="test", blank_shots=(359,))
    benchmark(digits_caption, input, exemplar_split="test", shots=(358,))


@pytest.mark.parametrize("fields", [{"shots": (-1,)}, {"batch_size": 0}, {"num_examples": 0}])
def test_invalid_sizes_are_rejected(fields, input):
    with pytest.raises(ValueError, match=rf"Benchmark: {next(iter(fields))}.*: expected at least"):
        benchmark(digits_vqa, input, **fields)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.5, "mine returned 0.5, expected a Scored"),
        ({"columns": 0.5}, "mine has columns=0.5 for one item, expected a dict"),
        ({"columns": {"accuracy": np.zeros(3)}}, "mine has columns=.* a value for each item"),
        ({"correct": ["yes"]}, "mine has correct=.'yes'. for one item, expected True, False or"),
        ({"correct": []}, "mine has correct=.. for one item, expected True, False or None"),
        (
            {"columns": {"accuracy": np.zeros(1)}, "combine": lambda tallies: ["accuracy"]},
            "combine of mine fails on the tallies of one item: .*expected a dict",
        ),
        (KeyError("kind"), "mine fails on an empty answer to task '0': KeyError: 'kind'"),
    ],
)
def test_a_scoring_function_is_checked_on_the_first_task(value, said, input):
    def mine(items):
        if isinstance(value, Exception):
            raise value
        if not isinstance(value, dict):
            return value
        scored = Scored([True], {})
        for name, field in value.items():
            # Bypasses the type checks of tests, which production lacks.
            object.__setattr__(scored, name, field)
        return scored

    with pytest.raises(ValueError, match=f"^digits_vqa: {said}"):
        benchmark(digits_vqa, input, scoring=mine).metric_names()


def test_missing_records_are_rejected(input):
    def mine(corpus):
        return [10**6]

    with pytest.raises(ValueError, match="records=mine returned 1000000, expected indices of the"):
        benchmark(digits_vqa, input, records=mine)


def test_metric_names_are_known_without_a_model(input):
    asking = benchmark(digits_vqa, input, shots=(0, 4), blank_shots=(0,))
    names = [f"digits_vqa{part}/accuracy" for part in ("/0", "/4", "_blank/0")]
    assert asking.metric_names() == names


def parity_questions(corpus):
    return [i for i in range(40) if corpus.source[i]["kind"] == "parity"]


def even(items: Sequence[Item]) -> Scored:
    """Counts the references that are "even"."""
    values = np.array([float(item.reference == "even") for item in items])
    return Scored([None] * len(items), {"even": values}, lambda t: {"even": t["even"].total})


def test_a_benchmark_needs_only_a_corpus_and_a_scoring_function(input, model, spy):
    cfg = Benchmark.default_config().set(
        name="parity",
        corpus=digits.corpus(Kind.QUESTIONS),
        records=parity_questions,
        scoring=even,
    )
    asking = benchmark(cfg.clone, input, shots=(0,), blank_shots=())
    labels = [task.record["answer"] for task in asking.tasks(0)]
    assert len(labels) == 8
    assert asking.run(model).metrics == {"parity/0/even": labels.count("even")}
    assert all(isinstance(s, Image) for task in asking.tasks(0) for s in task.document.images)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_pictures_of_a_question_are_separated_by_a_margin(number):
    pictures = [np.full((24, 24, 3), value, np.uint8) for value in range(number)]
    shown = side_by_side(pictures)
    assert shown.shape == (24, 24 * number + 2 * (number - 1), 3)
    for i, picture in enumerate(pictures):
        np.testing.assert_array_equal(shown[:, 26 * i : 26 * i + 24], picture)


def nearness(items: Sequence[Item]) -> Scored:
    """Scores with a custom metric that has a name and a unit of its own."""
    values = np.array([0.25 if item.text == "7" else 0.75 for item in items])
    return Scored([None] * len(items), {"nearness": values})


class NoBar:
    def update(self): ...

    def close(self): ...


@pytest.mark.parametrize(
    ("fields", "score", "remark"),
    [
        ({"headline": "nearness"}, "25.0", None),
        ({"headline": "nearness", "headline_scale": 4.0}, "1.0", None),
        ({}, "unscored", "no metric `exact_match`"),
        ({"headline": "farness"}, "unscored", "no metric `farness`; set its field `headline`"),
    ],
)
def test_reports_show_the_metric_that_a_benchmark_names(
    fields, score, remark, input, model, spy, tmp_path
):
    asking = benchmark(digits_vqa, input, scoring=nearness, shots=(0,), max_new_tokens=4, **fields)
    spy.says = "7"
    one = evaluate(asking, model, 0, folder=tmp_path, identity={}, make_bar=lambda *_: NoBar())
    report = markdown([one], title="x", pretraining=(), chat=(), protocol={})
    assert f"| 0 | {score}" in report
    assert ("unscored, as it has" in report) == (remark is not None)
    assert (remark or "nearness") in report
    if score == "25.0":
        best, _ = asking.cases(asking.run_shots(model, 0), 1)
        assert best[0].quality == 0.25


def test_duplicate_ids_are_rejected_before_the_model_is_asked(input, model, spy, monkeypatch):
    asking = benchmark(digits_vqa, input)
    monkeypatch.setattr(asking.maker, "key", lambda place: "same")
    with pytest.raises(ValueError, match="ids of corpus .* more than once, the first 'same'"):
        asking.run_shots(model, 0)
    assert not spy.batches

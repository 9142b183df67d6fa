"""Text-only benchmarks: the publishers' layouts, the prompts, and the rules of the harness."""

import functools
import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax import nnx

from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.evals import asking
from mm1_jax.evals.answer_log import AnswerLog
from mm1_jax.evals.answers import Likelihood
from mm1_jax.evals.benchmarks.digits import digits_vqa
from mm1_jax.evals.benchmarks.registry import TEXT_CORE
from mm1_jax.evals.benchmarks.text import plain_words, without_longer
from mm1_jax.evals.evaluator import PromptInput
from mm1_jax.evals.exemplars import SimilarExemplars
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.mm1 import MM1

NUM_QUERIES, NUM_SUPPORT = 4, 6
SPLITS = {"train": NUM_SUPPORT, "test": NUM_QUERIES, "validation": NUM_QUERIES}


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([*rows]), path)


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def arc(root: Path) -> None:
    """huggingface.co/datasets/allenai/ai2_arc; some questions have labels 1 to 4."""
    for part in ("ARC-Easy", "ARC-Challenge"):
        for split, count in SPLITS.items():
            rows = []
            for i in range(count):
                labels = list("1234" if i % 2 else "ABCD")
                texts = ["iron", "wood and more", "ice", f"salt {i}"]
                rows.append(
                    {"id": f"{part}_{split}_{i}", "question": f"What melts, {split} {i}?"}
                    | {"choices": {"text": texts, "label": labels}, "answerKey": labels[2]}
                )
            parquet(root / part / f"{split}-00000-of-00001.parquet", rows)


def arc_published(root: Path) -> None:
    """ARC-V1-Feb2018: lines with `question` an object of `stem` and `choices`."""
    for part in ("ARC-Easy", "ARC-Challenge"):
        for split, name in (("train", "Train"), ("validation", "Dev"), ("test", "Test")):
            rows = []
            for i in range(SPLITS[split]):
                labels = list("1234" if i % 2 else "ABCD")
                texts = ["iron", "wood and more", "ice", f"salt {i}"]
                choices = [{"text": t, "label": x} for t, x in zip(texts, labels, strict=True)]
                question = {"stem": f"What melts, {split} {i}?", "choices": choices}
                rows.append(
                    {"id": f"{part}_{split}_{i}", "question": question, "answerKey": labels[2]}
                )
            lines(root / "ARC-V1" / part / f"{part}-{name}.jsonl", rows)


def piqa_rows(split: str, label: bool = True) -> list[dict[str, Any]]:
    rows = []
    for i in range(SPLITS[split]):
        row = {"goal": f"open a can, {split} {i}", "sol1": "Use an opener.", "sol2": f"Cry {i}."}
        rows.append(row | ({"label": i % 2} if label else {}))
    return rows


def piqa(root: Path) -> None:
    """huggingface.co/datasets/ybisk/piqa, as the hub converts it."""
    for split in ("train", "validation"):
        parquet(root / "plain_text" / split / "0000.parquet", piqa_rows(split))


def piqa_published(root: Path) -> None:
    """yonatanbisk.com/piqa: records, and their labels line by line in a file of their own."""
    for split, name in (("train", "train"), ("validation", "valid")):
        lines(root / f"{name}.jsonl", piqa_rows(split, label=False))
        labels = [str(i % 2) for i in range(SPLITS[split])]
        (root / f"{name}-labels.lst").write_text("\n".join(labels) + "\n")


def lambada(root: Path) -> None:
    """huggingface.co/datasets/EleutherAI/lambada_openai."""
    rows = [{"text": f"Jo had {i} hats and lost one.\nJo sought the hat"} for i in range(4)]
    lines(root / "data" / "lambada_test_en.jsonl", rows)


def winogrande_rows(split: str) -> list[dict[str, Any]]:
    return [
        {"sentence": f"Ann paid Eve in {split} {i} as _ was rich. ", "option1": "Ann"}
        | {"option2": "Eve", "answer": "12"[i % 2]}
        for i in range(SPLITS[split])
    ]


def winogrande(root: Path) -> None:
    """huggingface.co/datasets/allenai/winogrande, winogrande_xl."""
    for split in ("train", "validation"):
        parquet(root / "winogrande_xl" / f"{split}-00000-of-00001.parquet", winogrande_rows(split))


def winogrande_published(root: Path) -> None:
    """winogrande_1.1: with an id, `qID`."""
    for split, name in (("train", "train_xl"), ("validation", "dev")):
        rows = [{"qID": f"Q{i}-1"} | row for i, row in enumerate(winogrande_rows(split))]
        lines(root / f"{name}.jsonl", rows)


def hellaswag_rows(split: str, kind: type) -> list[dict[str, Any]]:
    return [
        {"ind": i, "activity_label": "Roof repair", "ctx_a": f"A man, {split} {i}, sits."}
        | {"ctx_b": "he", "ctx": "A man sits. he", "source_id": "x", "split_type": "indomain"}
        | {"endings": ["eats.", "is [step] on the roof.", f"sings {i}.", "sleeps and sleeps."]}
        | {"label": kind(i % 4)}
        for i in range(SPLITS[split])
    ]


def hellaswag(root: Path) -> None:
    """huggingface.co/datasets/Rowan/hellaswag: labels are texts."""
    for split in ("train", "validation"):
        parquet(root / "data" / f"{split}-00000-of-00001.parquet", hellaswag_rows(split, str))


def hellaswag_published(root: Path) -> None:
    """github.com/rowanz/hellaswag: lines, labels are numbers."""
    for split, name in (("train", "train"), ("validation", "val")):
        lines(root / f"hellaswag_{name}.jsonl", hellaswag_rows(split, int))


def sciq_rows(split: str) -> list[dict[str, Any]]:
    return [
        {"question": f"What is it, {split} {i}?", "correct_answer": "mesons"}
        | {f"distractor{k}": f"thing {k}" for k in (1, 2, 3)}
        | {"support": " Some help." if i else ""}
        for i in range(SPLITS[split])
    ]


def sciq(root: Path) -> None:
    """huggingface.co/datasets/allenai/sciq."""
    for split in SPLITS:
        parquet(root / "data" / f"{split}-00000-of-00001.parquet", sciq_rows(split))


def sciq_published(root: Path) -> None:
    """SciQ dataset-2: lists of objects."""
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.json").write_text(json.dumps(sciq_rows(split)))


def triviaqa(root: Path) -> None:
    """huggingface.co/datasets/mandarjoshi/trivia_qa; questions occur once for each document."""
    for split in ("train", "validation"):
        rows = [
            {"question": f"Who was it, {split} {i // 2}", "question_id": f"tc_{i // 2}"}
            | {"answer": {"aliases": ["Sinclair Lewis", "Harry S. Lewis!"], "value": "x"}}
            for i in range(SPLITS[split])
        ]
        parquet(root / "rc.nocontext" / f"{split}-00000-of-00001.parquet", rows)


def webqs(root: Path) -> None:
    """huggingface.co/datasets/stanfordnlp/web_questions."""
    for split in ("train", "test"):
        rows = [
            {"url": "x", "question": f"who is he, {split} {i}?", "answers": ["Jaxon", "Jax", "Bo"]}
            for i in range(SPLITS[split])
        ]
        parquet(root / "data" / f"{split}-00000-of-00001.parquet", rows)


WRITERS = {
    **{"arc": arc, "piqa": piqa, "lambada": lambada, "winogrande": winogrande},
    **{"hellaswag": hellaswag, "sciq": sciq, "triviaqa": triviaqa, "webqs": webqs},
}
PUBLISHED = {
    **{"arc": arc_published, "piqa": piqa_published, "winogrande": winogrande_published},
    **{"hellaswag": hellaswag_published, "sciq": sciq_published},
}
COMPARED = [name for name in TEXT_CORE if name != "triviaqa"]


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text_core")
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


@pytest.fixture(scope="module")
def text_input() -> PromptInput:
    """The prompt input of a text-only model."""
    tokenizer = Tokenizer.default_config().instantiate()
    builder = ExampleBuilder(tokenizer, num_image_tokens=0, max_sequence_length=512, max_images=0)
    return PromptInput(tokenizer, None, builder)


def build(name: str, folder: Path, input: PromptInput, **fields: Any):
    cfg = TEXT_CORE[name]().set(**({"batch_size": 2} | fields))
    cfg.corpus.source.data_dir = str(folder)
    return cfg.instantiate(input=input)


@pytest.fixture
def model() -> MM1:
    return object.__new__(MM1)


class Scores:
    """Replaces the scorer: records requests and scores each by `rule`."""

    def __init__(self, rule: Callable[[str, str], tuple[float, bool]]):
        self.rule, self.requests, self.options = rule, [], []

    def __call__(self, tokenizer, **options):
        self.options.append(options)
        return self._score

    def _score(self, model, requests):
        self.requests += requests
        found = []
        for request in requests:
            (text,) = request.prompt.segments
            found.append(Likelihood(*self.rule(text.text, request.continuation), 1, 1))
        return found


def scored(monkeypatch, rule) -> Scores:
    scores = Scores(rule)
    monkeypatch.setattr(asking, "LikelihoodScorer", scores)
    return scores


PROMPTS = {
    "arc_easy": ("Question: What melts, test 0?\nAnswer:", " ice"),
    "arc_challenge": ("Question: What melts, test 0?\nAnswer:", " ice"),
    "piqa": ("Question: open a can, validation 0\nAnswer:", " Use an opener."),
    "lambada": ("Jo had 0 hats and lost one.\nJo sought the", " hat"),
    "winogrande": ("Ann paid Eve in validation 0 as Ann", " was rich."),
    "hellaswag": ("Roof repair: A man, validation 0, sits. He", " eats."),
    "sciq": ("\nQuestion: What is it, test 0?\nAnswer:", " mesons"),
    "triviaqa": ("Question: Who was it, validation 0?\nAnswer:", " Sinclair Lewis"),
    "webqs": ("Question: who is he, test 0?\nAnswer:", " Bo"),
}


@pytest.mark.parametrize("name", TEXT_CORE)
def test_prompts_equal_those_of_the_harness_and_need_no_pictures(name, text_dir, text_input):
    benchmark = build(name, text_dir, text_input)
    prompt, answer = PROMPTS[name]
    task = benchmark.tasks(0)[0]
    assert [part.text for part in task.prompt.segments] == [prompt]
    assert f" {task.record['answer']}" == answer
    # With exemplars, a prompt is one text: each exemplar with its answer, then a blank line.
    for task in benchmark.tasks(2):
        (text,) = task.prompt.segments
        exemplars = [
            " ".join(part.text for part in document.segments) for document in task.exemplars
        ]
        assert text.text.startswith("\n\n".join(exemplars) + "\n\n")
        assert text.text.endswith(task.document.segments[0].text)
        assert len({*exemplars}) == 2


@pytest.mark.parametrize("name", TEXT_CORE)
def test_both_layouts_hold_the_same_tasks(name, text_dir, text_input, tmp_path):
    folder = build(name, text_dir, text_input).config.corpus.source.folder
    if folder not in PUBLISHED:
        pytest.skip("read in one layout")
    PUBLISHED[folder](tmp_path / folder)
    ours, theirs = (build(name, root, text_input) for root in (text_dir, tmp_path))
    for mine, other in zip(ours.tasks(3), theirs.tasks(3), strict=True):
        assert (mine.record, mine.prompt, mine.key) == (other.record, other.prompt, other.key)
    assert ours.fingerprint() == theirs.fingerprint()


@pytest.mark.parametrize("name", [x for x in COMPARED if x not in ("lambada", "webqs")])
def test_the_most_likely_option_is_the_answer(name, text_dir, text_input, model, monkeypatch):
    benchmark = build(name, text_dir, text_input)
    tasks = {task.key: task for task in benchmark.tasks(2)}
    right, wrong = set(), set()
    for task in tasks.values():
        for number, request in enumerate(asking.likelihood_requests(task, benchmark.config)):
            pair = (request.prompt.segments[0].text, request.continuation)
            (right if number == task.record["label"] else wrong).add(pair)
    assert len(right) == NUM_QUERIES and not right & wrong
    scored(monkeypatch, lambda *pair: (-1.0 if pair in right else -90.0, False))
    found = benchmark.run_shots(model, 2)
    assert found.metrics["acc"] == 100 and found.metrics["n"] == NUM_QUERIES
    assert all(verdict.correct for verdict in found.verdicts)
    scored(monkeypatch, lambda *pair: (-90.0 if pair in right else -1.0, False))
    assert benchmark.run_shots(model, 2).metrics["acc"] == 0


def test_acc_norm_is_per_character_and_acc_bytes_per_byte(tmp_path, text_input, model, monkeypatch):
    row = {"id": "a", "question": "?", "answerKey": "B"}
    # The options have 4 characters in 8 bytes, and 6 in 6.
    row["choices"] = {"text": ["\u00e9\u00e9\u00e9\u00e9", "abcdef", "x"], "label": ["A", "B", "C"]}
    for split in ("train", "test"):
        parquet(tmp_path / "arc" / "ARC-Easy" / f"{split}-0.parquet", [row])
    benchmark = build("arc_easy", tmp_path, text_input)
    totals = {" \u00e9\u00e9\u00e9\u00e9": -3.9, " abcdef": -5.0, " x": -3.0}
    scored(monkeypatch, lambda prompt, option: (totals[option], False))
    metrics = benchmark.run_shots(model, 0).metrics
    assert metrics == {"n": 1, "acc": 0, "acc_norm": 100, "acc_bytes": 0}


def test_ties_go_to_the_first_option(text_dir, text_input, model, monkeypatch):
    scored(monkeypatch, lambda *pair: (-1.0, False))
    found = build("hellaswag", text_dir, text_input).run_shots(model, 0)
    assert [verdict.correct for verdict in found.verdicts] == [True, False, False, False]


def test_lambada_is_the_greedy_last_word_and_its_perplexity(
    text_dir, text_input, model, monkeypatch
):
    scored(monkeypatch, lambda prompt, word: (-2.0 if "0" in prompt else -1.0, "0" in prompt))
    benchmark = build("lambada", text_dir, text_input)
    found = benchmark.run_shots(model, 0)
    assert found.metrics["acc"] == 25
    assert found.metrics["perplexity"] == pytest.approx(math.exp(5 / 4))
    assert [verdict.correct for verdict in found.verdicts] == [True, False, False, False]
    low, high = benchmark.intervals(found)["perplexity"]
    assert low <= found.metrics["perplexity"] <= high


def test_winogrande_compares_the_rest_of_the_sentence_after_each_option(
    text_dir, text_input, model, monkeypatch
):
    scores = scored(monkeypatch, lambda start, _: (-1.0 if start.endswith("Eve") else -2.0, False))
    found = build("winogrande", text_dir, text_input).run_shots(model, 0)
    assert found.metrics == {"n": 4, "acc": 50}
    assert {request.continuation for request in scores.requests} == {" was rich."}
    starts = [request.prompt.segments[0].text for request in scores.requests[:2]]
    assert [start[-7:] for start in starts] == [" as Ann", " as Eve"]


def test_webqs_is_right_if_one_answer_is_greedy(text_dir, text_input, model, monkeypatch):
    scores = scored(monkeypatch, lambda p, x: (-1.0, x == " Jax" and "test 1" in p))
    found = build("webqs", text_dir, text_input).run_shots(model, 0)
    assert found.metrics == {"n": 4, "exact_match": 25}
    assert [verdict.answer for verdict in found.verdicts] == ["", "Jax", "", ""]
    # An answer that begins with another one cannot be greedy alone, so it is not asked.
    assert [one.continuation for one in scores.requests[:2]] == [" Bo", " Jax"]
    assert without_longer(["b", "ab", "a", "abc", "ba"]) == ["a", "b"]


def test_triviaqa_is_generated_and_compared_without_case_and_punctuation(
    text_dir, text_input, model, monkeypatch
):
    said = iter([" sinclair lewis", " Harry S Lewis", "Lewis", " The Sinclair Lewis."])

    def generate(model, batch, options):
        rows = np.full((len(batch.tokens), options.max_new_tokens), options.pad)
        for row, segments in zip(rows, batch.segment_ids, strict=True):
            if segments.any():
                ids = [*text_input.tokenizer.encode(next(said)), options.eos]
                row[: len(ids)] = ids
        return rows

    monkeypatch.setattr(asking, "generate", generate)
    found = build("triviaqa", text_dir, text_input).run_shots(model, 0)
    assert found.metrics["exact_match"] == 50
    assert [verdict.correct for verdict in found.verdicts] == [True, True, False, False]


def test_wikihow_marks_are_removed_from_hellaswag():
    assert plain_words(" How to sew [title] Cut. [step] Now [x] go ") == "How to sew. Cut. Now go"
    # Two of three spaces remain, as in the harness.
    assert plain_words("Cut.  [step] Now") == "Cut.  Now"


def test_truncated_prompts_are_counted(text_dir, text_input, model, monkeypatch):
    cut = Likelihood(-1.0, False, 1, 1, num_cut=3)
    monkeypatch.setattr(
        asking, "LikelihoodScorer", lambda *_, **__: lambda _, requests: [cut] * len(requests)
    )
    metrics = build("piqa", text_dir, text_input, max_length=9).run_shots(model, 0).metrics
    assert metrics["truncated_prompts"] == NUM_QUERIES


def test_a_stopped_evaluation_resumes_with_the_remaining_tasks(
    text_dir, text_input, model, monkeypatch, tmp_path
):
    benchmark = build("sciq", text_dir, text_input, num_examples=None)
    scores = scored(monkeypatch, lambda prompt, option: (-float(len(option)), False))
    expected = benchmark.run_shots(model, 0, log=AnswerLog(tmp_path / "a", {}, has_options=True))
    rows = (tmp_path / "a").read_text().splitlines()
    (tmp_path / "b").write_text("\n".join([*rows[:3], "half a li"]))
    scores.requests.clear()
    again = benchmark.run_shots(model, 0, log=AnswerLog(tmp_path / "b", {}, has_options=True))
    assert again == expected and len(scores.requests) == 4 * (NUM_QUERIES - 2)
    assert json.loads(rows[1])["chosen"] == "mesons"


def test_a_text_only_model_is_asked_only_text_only_benchmarks(text_dir, text_input):
    with pytest.raises(ValueError, match="digits_vqa.*shows images"):
        digits_vqa().instantiate(input=text_input)
    assert build("piqa", text_dir, text_input).tasks(0)[0].prompt.images == ()
    similar = SimilarExemplars.default_config()
    with pytest.raises(ValueError, match="similar pictures, but the benchmark shows none"):
        build("piqa", text_dir, text_input, exemplars=similar)
    build("piqa", text_dir, text_input, exemplars=similar.set(text_weight=1.0))


def test_a_text_only_model_gets_all_metrics(text_dir, text_input):
    """Scores an untrained decoder on all benchmarks."""
    tokenizer = text_input.tokenizer
    decoder = Decoder.default_config().set(
        **{"vocab_size": tokenizer.vocab_size, "model_dim": 8, "num_layers": 1},
        **{"num_heads": 1, "hidden_dim": 8},
    )
    cfg = MM1.default_config().set(
        vision_encoder=None, connector=None, decoder=decoder, image_token=tokenizer.image_token
    )
    shapes = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=jax.random.key(0))))
    model = jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), shapes)
    benchmark = build("piqa", text_dir, text_input, batch_size=8)
    found = benchmark.run_shots(model, 0)
    assert set(found.metrics) == {"n", "acc", "acc_norm", "acc_bytes"}
    totals = [one.log_probability for x in found.verdicts for one in x.item.likelihoods]
    assert all(total < 0 for total in totals)


@pytest.mark.parametrize(
    ("name", "path", "row", "message"),
    [
        (
            "arc_easy",
            "ARC-Easy/test-0.parquet",
            {
                "id": "a",
                "question": "?",
                "answerKey": "E",
                "choices": {"text": ["x", "y"], "label": ["A", "B"]},
            },
            "row 1, field 'answerKey': expected one of A, B",
        ),
        (
            "arc_challenge",
            "ARC-Challenge/test-0.parquet",
            {"id": "a", "question": "?", "answerKey": "A", "choices": {"text": ["x"]}},
            "row 1, field 'choices': expected at least two choices",
        ),
        ("piqa", "plain_text/validation/0.parquet", {"goal": "x", "sol1": "y"}, "no field 'sol2'"),
        ("lambada", "data/lambada_test_en.jsonl", {"text": "word"}, "record 1, field 'text'"),
        (
            "winogrande",
            "winogrande_xl/validation-0.parquet",
            {"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"},
            "expected a sentence with a gap",
        ),
        (
            "hellaswag",
            "data/validation-0.parquet",
            {"ctx_a": "x", "ctx_b": "", "endings": ["a", "b"], "activity_label": "c", "label": "0"},
            "expected four endings",
        ),
        ("sciq", "data/test-0.parquet", {"question": "x", "support": ""}, "no field 'distractor1'"),
        (
            "triviaqa",
            "rc.nocontext/validation-0.parquet",
            {"question": "x", "answer": {"value": "y"}},
            "expected an object whose `aliases` are texts",
        ),
        (
            "webqs",
            "data/test-0.parquet",
            {"question": "x", "answers": [" "]},
            "at least one answer",
        ),
    ],
)
def test_an_entry_that_deviates_from_the_documentation_is_named(
    name, path, row, message, tmp_path, text_input
):
    folder = tmp_path / TEXT_CORE[name]().corpus.source.folder
    WRITERS[folder.name](folder)
    for old in (folder / path).parent.glob(f"{Path(path).stem[:-2]}*"):
        old.unlink()
    (parquet if path.endswith("parquet") else lines)(folder / path, [row])
    with pytest.raises(ValueError, match=message) as error:
        build(name, tmp_path, text_input)
    assert path.split("/")[-1] in str(error.value)


def test_missing_or_damaged_files_are_named(tmp_path, text_input):
    with pytest.raises(ValueError, match="no such folder"):
        build("piqa", tmp_path, text_input)
    piqa_published(tmp_path / "piqa")
    (tmp_path / "piqa" / "valid-labels.lst").write_text("0\n")
    with pytest.raises(ValueError, match="1 labels, but .*valid.jsonl has 4 records"):
        build("piqa", tmp_path, text_input)
    (tmp_path / "piqa" / "valid.jsonl").unlink()
    with pytest.raises(ValueError, match="no file of split 'validation'; expected"):
        build("piqa", tmp_path, text_input)
    sciq(tmp_path / "sciq")
    whole = (tmp_path / "sciq" / "data" / "test-00000-of-00001.parquet").read_bytes()
    (tmp_path / "sciq" / "data" / "test-00000-of-00001.parquet").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="test-00000-of-00001.parquet: not a complete Parquet"):
        build("sciq", tmp_path, text_input)


def test_tasks_without_a_label_are_not_scored(tmp_path, text_input, model, monkeypatch):
    piqa(tmp_path / "piqa")
    rows = [row | {"label": -1} for row in piqa_rows("test")]
    parquet(tmp_path / "piqa" / "plain_text" / "test" / "0.parquet", rows)
    cfg = TEXT_CORE["piqa"]()
    cfg.corpus.source.set(data_dir=str(tmp_path), query_split="test")
    scored(monkeypatch, lambda prompt, option: (-float(len(option)), False))
    found = cfg.instantiate(input=text_input).run_shots(model, 0)
    assert found.metrics == {"n": 4, "without_reference": 4}
    assert [verdict.answer for verdict in found.verdicts] == [f"Cry {i}." for i in range(4)]


# The harness's name of each task, and the files of its splits.
TASKS = {
    "arc_easy": ("arc_easy", "arc/ARC-Easy/{}-00000-of-00001.parquet", ("train", "test")),
    "arc_challenge": (
        "arc_challenge",
        "arc/ARC-Challenge/{}-00000-of-00001.parquet",
        ("train", "test"),
    ),
    "piqa": ("piqa", "piqa/plain_text/{}/0000.parquet", ("train", "validation")),
    "lambada": ("lambada_openai", "lambada/data/lambada_{}_en.jsonl", ("test",)),
    "winogrande": (
        "winogrande",
        "winogrande/winogrande_xl/{}-00000-of-00001.parquet",
        ("train", "validation"),
    ),
    "hellaswag": ("hellaswag", "hellaswag/data/{}-00000-of-00001.parquet", ("train", "validation")),
    "sciq": ("sciq", "sciq/data/{}-00000-of-00001.parquet", ("train", "test")),
    "triviaqa": (
        "triviaqa",
        "triviaqa/rc.nocontext/{}-00000-of-00001.parquet",
        ("train", "validation"),
    ),
    "webqs": ("webqs", "webqs/data/{}-00000-of-00001.parquet", ("train", "test")),
}


def harness_task(name: str, folder: Any, shots: int) -> Any:
    """Loads a task of the harness on our files, with the first records as exemplars."""
    import lm_eval.tasks

    theirs, pattern, splits = TASKS[name]
    files = {split: str(folder / pattern.format(split)) for split in splits}
    root = Path(lm_eval.tasks.__file__).parent
    (found,) = (path for path in root.rglob("*.yaml") if _task_name(path) == theirs)
    config = {
        "include": str(found),
        "dataset_path": "parquet" if pattern.endswith("parquet") else "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "num_fewshot": shots,
        "fewshot_config": {"sampler": "first_n"},
    }
    if "validation" not in splits:
        config["validation_split"] = None
    path = folder / f"{theirs}_{shots}.yaml"
    path.write_text(json.dumps(config))
    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    (task,) = manager.load([str(path)])["tasks"].values()
    return task


@functools.cache
def _task_name(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return next((line[6:] for line in lines if line.startswith("task: ")), "").strip()


def pseudo_random(*texts: str) -> tuple[float, bool]:
    """A likelihood that is a function of the texts."""
    digest = hashlib.sha256("|".join(texts).encode()).digest()
    return -digest[0] / 7 - 0.01, digest[1] % 3 == 0


def requests_of(task: Any) -> dict[int, list[Any]]:
    task.build_all_requests(rank=0, world_size=1)
    by_document: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_document.setdefault(instance.doc_id, []).append(instance)
    return by_document


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TEXT_CORE)
@pytest.mark.parametrize("shots", [0, 2])
def test_requests_and_scores_equal_those_of_the_harness(
    name, shots, text_dir, text_input, monkeypatch
):
    """Compares with EleutherAI's lm-evaluation-harness on the same files, if it is installed."""
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm_eval is not installed")
    if name in ("lambada", "webqs") and shots:
        pytest.skip("the harness has no exemplars for the one, and fails at those of the other")
    task = harness_task(name, text_dir, shots)
    theirs = requests_of(task)
    benchmark = build(name, text_dir, text_input)
    monkeypatch.setattr(benchmark.maker, "_exemplar_places", lambda shots, place: [*range(shots)])
    tasks = list(benchmark.tasks(shots))
    assert len(tasks) == len(theirs)
    if name == "triviaqa":
        for number, ours in enumerate(tasks):
            (text,) = ours.prompt.segments
            (request,) = theirs[number]
            assert text.text == request.args[0]
            assert set(request.args[1]["until"]) == set(benchmark.config.stop_strings)
        return
    for number, ours in enumerate(tasks):
        asked = [
            (r.prompt.segments[0].text, r.continuation)
            for r in asking.likelihood_requests(ours, benchmark.config)
        ]
        assert asked == [request.args[:2] for request in theirs[number]]
    scored(monkeypatch, pseudo_random)
    metrics = benchmark.run_shots(object.__new__(MM1), shots).metrics
    found: dict[str, list[float]] = {}
    for number in theirs:
        results = [pseudo_random(*request.args[:2]) for request in theirs[number]]
        values = task.process_results(theirs[number][0].doc, results)
        for metric, value in values.items():
            found.setdefault(metric, []).append(value)
    compared = 0
    for metric in ("acc", "acc_norm", "exact_match"):
        if metric in found and metric in metrics:
            assert metrics[metric] == pytest.approx(100 * np.mean(found[metric]))
            compared += 1
    assert compared

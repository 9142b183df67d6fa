"""Benchmarks of chat models: one conversation a prompt, views, reasoning, stored answers."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm1_jax.batch import Image
from mm1_jax.data.chat_formats.llava import LLaVAChatFormat
from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.grid_rules import FixedGrid
from mm1_jax.data.tiling import Tiling
from mm1_jax.evals import asking
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.registry import BENCHMARKS, CHAT
from mm1_jax.evals.evaluation import evaluate
from mm1_jax.evals.evaluator import PromptInput
from mm1_jax.evals.reasoning import Reasoning
from mm1_jax.models.mm1 import MM1

MM1_FORMAT = MM1ChatFormat.default_config()


def png(number: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def tiled(input) -> PromptInput:
    """The input of a run that shows pictures as four tiles and an overview."""
    tiling = Tiling.default_config().set(rule=FixedGrid.default_config())
    return PromptInput.of(input.config.clone(tiling=tiling, max_images=5))


def build(name: str, folder: Path, input: Any, **fields: Any) -> Benchmark:
    cfg = BENCHMARKS[name]().set(batch_size=2)
    cfg.corpus.source.data_dir = str(folder)
    cfg.corpus.to_document.set(chat_format=MM1_FORMAT)
    for path, value in fields.items():
        cfg.set_recursively(path.split("__"), value=value)
    return cfg.instantiate(input=input)


def spelled(document) -> str:
    """The document as text; `[ ]` is a picture and `|` a stop."""
    return "".join(
        "[ ]" if isinstance(part, Image) else getattr(part, "text", None) or "|"
        for part in document.segments
    )


@pytest.mark.parametrize("name", [*CHAT, "vqav2_chat", "textvqa_chat"])
def test_exemplars_are_earlier_turns_of_one_conversation(name, benchmarks_dir, input):
    benchmark = build(name, benchmarks_dir, input, shots=(0, 2))
    builder = input.example_builder.without_limits()
    for task in benchmark.tasks(2):
        roles = [turn.role for turn in task.prompt.turns]
        assert roles == ["user", "assistant", "user", "assistant", "user"]
        # The prompt is the beginning of the conversation as training reads it.
        whole = builder.example(task.prompt.of([*task.prompt.turns, *task.document.turns[-1:]]))
        prompt = builder.prompt(task.prompt)
        assert prompt.tokens.tolist() == whole.tokens[: len(prompt.tokens)].tolist()
        assert spelled(task.prompt).endswith("Assistant:")
        answers = [turn.parts[0] for turn in task.prompt.turns if turn.role == "assistant"]
        assert answers == [exemplar.turns[-1].parts[0] for exemplar in task.exemplars]


def test_a_choice_of_mathvista_is_answered_by_its_letter(benchmarks_dir, input):
    task = build("mathvista", benchmarks_dir, input).tasks(0)[1]
    assert task.record["answer"] == "B" and task.record["answers"] == ["three"]
    assert spelled(task.prompt) == (
        "User:[ ]How many?\nA. two\nB. three\nAnswer with the option's letter from the given "
        "choices directly. Assistant:"
    )


def test_pictures_of_mmmu_stand_where_the_text_shows_them(tmp_path, input):
    row = {
        **{"id": "validation_Art_1", "question": "Is <image 2> left of <image 1>?"},
        **{"options": "['yes', 'no']", "explanation": "It is.", "answer": "A"},
        **{f"image_{i}": {"bytes": png(i), "path": f"{i}.png"} for i in (1, 2, 3)},
        **{"question_type": "multiple-choice", "subfield": "x", "topic_difficulty": "Easy"},
    }
    (tmp_path / "mmmu" / "Art").mkdir(parents=True)
    table = pa.Table.from_pylist([row])
    pq.write_table(table, tmp_path / "mmmu" / "Art" / "validation-00000-of-00001.parquet")
    task = build("mmmu", tmp_path, input, shots=(0,)).tasks(0)[0]
    # The third picture has no mark and comes first.
    assert spelled(task.prompt).startswith("User:[ ][ ]Is[ ]left of[ ]?\nA. yes") or (
        spelled(task.prompt).startswith("User:[ ]Is[ ]left of[ ]?\nA. yes")
    )
    assert [image.data for image in task.prompt.images] == [png(3), png(2), png(1)]


@pytest.mark.parametrize(
    ("num_tiled", "views"), [(None, [5, 5, 5]), (1, [1, 5, 5]), (0, [1, 1, 5])]
)
def test_the_last_exemplars_are_tiled_and_views_take_the_slots(
    benchmarks_dir, tiled, monkeypatch, num_tiled, views
):
    batches = []

    def generate(model, batch, options):
        batches.append(batch)
        return np.zeros((len(batch.tokens), options.max_new_tokens), np.int32)

    monkeypatch.setattr(asking, "generate", generate)
    benchmark = build("mathvista", benchmarks_dir, tiled, num_tiled_exemplars=num_tiled)
    task = benchmark.tasks(2)[0]
    example = tiled.example_builder.without_limits().prompt(task.prompt)
    found = []
    for image in example.images:
        if not image.continues:
            found.append(0)
        found[-1] += 1
    assert found == views
    benchmark.run_shots(object.__new__(MM1), 2)
    assert {batch.image_index.shape[1] for batch in batches} == {sum(views)}
    assert all((batch.image_index >= 0).all() for batch in batches)
    image_token = tiled.tokenizer.image_token
    positions = tiled.example_builder.num_image_tokens * sum(views)
    assert all(((batch.tokens == image_token).sum(axis=1) == positions).all() for batch in batches)


REASONING = Reasoning.default_config()


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("The answer is B.", "B"),
        ("Light is needed.\nSo the answer is: dog", "dog"),
        ("The answer is 4. No, wait. The answer is 3.5.", "3.5"),
        ("The answer is (C). It has legs.", "(C)"),
        ("Two and two.\n\nfour\n", "four"),
        ("", ""),
    ],
)
def test_an_answer_is_read_from_the_conclusion(reply, answer):
    assert REASONING.instantiate().extracted(reply) == answer


def test_a_conclusion_needs_a_place_for_the_answer():
    with pytest.raises(ValueError, match="must contain {answer} once"):
        REASONING.clone(conclusion="So it is.").instantiate()


def with_solutions(benchmarks_dir: Path, folder: Path) -> Path:
    """ScienceQA with a solution for each problem."""
    problems = json.loads((benchmarks_dir / "scienceqa" / "problems.json").read_text())
    for key, problem in problems.items():
        problem["solution"] = f"Solution {{{key}}}."
    (folder / "scienceqa").mkdir()
    (folder / "scienceqa" / "images").symlink_to(benchmarks_dir / "scienceqa" / "images")
    (folder / "scienceqa" / "problems.json").write_text(json.dumps(problems))
    return folder


def test_exemplars_show_their_reasoning_and_replies_are_scored_by_their_conclusion(
    benchmarks_dir, tmp_path, input, monkeypatch
):
    folder = with_solutions(benchmarks_dir, tmp_path)
    reasoning = {"corpus__to_document__reasoning": REASONING, "max_new_tokens": 80}
    benchmark = build("scienceqa", folder, input, **reasoning)
    task = benchmark.tasks(1)[0]
    question, answer, query = task.prompt.turns
    assert "Solution {" in answer.parts[0] and answer.parts[0].endswith((" A.", " B."))
    for turn in (question, query):
        assert turn.parts[-1].endswith(REASONING.instruction) and "directly" not in turn.parts[-1]

    def generate(model, batch, options):
        rows = np.zeros((len(batch.tokens), options.max_new_tokens), np.int32)
        ids = [*input.tokenizer.encode("No A. The answer is B."), input.tokenizer.eos]
        rows[:, : len(ids)] = ids
        return rows

    monkeypatch.setattr(asking, "generate", generate)
    judgement = benchmark.run_shots(object.__new__(MM1), 1)
    assert {verdict.answer for verdict in judgement.verdicts} == {"B"}
    right = [task.record["answer"] == "B" for task in benchmark.tasks(1)]
    assert judgement.metrics["img_acc"] == 100 * np.mean(right)
    # The reasoning of exemplars belongs to the protocol.
    problems = (folder / "scienceqa" / "problems.json").read_text()
    (folder / "scienceqa" / "problems.json").write_text(problems.replace("Solution", "Thought"))
    assert build("scienceqa", folder, input, **reasoning).fingerprint() != benchmark.fingerprint()


def test_exemplars_without_reasoning_are_refused(benchmarks_dir, input):
    benchmark = build("mathvista", benchmarks_dir, input, corpus__to_document__reasoning=REASONING)
    assert "step by step" in spelled(benchmark.tasks(0)[0].prompt)
    with pytest.raises(ValueError, match=r"exemplar '\d' of task '0' has no `rationale`"):
        benchmark.tasks(2)[0]


class NoBar:
    def update(self): ...

    def close(self): ...


def test_stored_answers_are_of_one_chat_format_and_one_tiling(
    benchmarks_dir, input, tiled, tmp_path, monkeypatch
):
    def asked(parts, **fields):
        benchmark = build("pope", benchmarks_dir, parts, **fields)
        identity = {"step": 1}
        return evaluate(
            benchmark,
            object.__new__(MM1),
            0,
            folder=tmp_path,
            identity=identity,
            make_bar=lambda *_: NoBar(),
        )

    def generate(model, batch, options):
        return np.zeros((len(batch.tokens), options.max_new_tokens), np.int32)

    monkeypatch.setattr(asking, "generate", generate)
    first = asked(input)
    monkeypatch.setattr(asking, "generate", None)
    assert asked(input).metrics == first.metrics
    others = [
        (tiled, {}),
        (input, {"corpus__to_document__chat_format": LLaVAChatFormat.default_config()}),
        (input, {"corpus__to_document__chat_format": MM1_FORMAT.clone(system="Be brief.")}),
        (input, {"corpus__to_document__chat_format": None}),
    ]
    for parts, fields in others:
        with pytest.raises(ValueError, match="answers are of another model or protocol"):
            asked(parts, **fields)

"""MM-Vet: 218 open questions that need several capabilities at once, graded from 0 to 1."""

import ast
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mm1_jax.evals.benchmark import Benchmark, Verdict
from mm1_jax.evals.benchmarks.annotations import HINT, AnnotationSource, ImageFile, question_record
from mm1_jax.evals.benchmarks.families import annotations, judged_benchmark
from mm1_jax.evals.judge import Grades, Judge
from mm1_jax.evals.scoring.judged import mmvet_scores

# As in the official evaluator, repeated attempts at a grade raise the temperature, and a grade that
# is unreadable after the last one counts as 0.
_MAX_TOKENS, _ATTEMPTS, _TEMPERATURE_STEP = 3, 5, 0.5
_REMINDER = "\nThe score of the last row, a number from 0.0 to 1.0 and nothing else: "


def mmvet() -> Benchmark.Config:
    """MM-Vet: 218 open questions that need several capabilities at once, graded from 0 to 1.

        mmvet/mm-vet.json           by id: imagename, question, answer, capability (a list)
        mmvet/images/
        mmvet/mm-vet_evaluator.py   of the official repository (yuweihao/MM-Vet): the judge's prompt

    The evaluator is needed only with a judge (--judge_url). It is read, not run; a file prompt.txt
    with only the prompt works as well.
    """
    source = annotations(read_mmvet, "mmvet", "all", "all")
    # Five runs of the judge, as in the paper.
    return judged_benchmark(
        "mmvet", source, grade, headline="total", num_judge_runs=5, predictions=by_id
    )


def read_mmvet(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per question. `<AND>` and `<OR>` separate the parts of an answer."""
    path = files.file("mm-vet.json")
    (folder,) = files.images("images")
    records = []
    # The file is an object by id, whose keys become the `id` of the entries.
    for entry in files.entries(path):
        answer = entry.text("answer")
        record = question_record(
            entry.key("id"),
            [ImageFile(folder, entry.text("imagename"))],
            entry.text("question"),
            [answer],
            capability=entry.texts("capability"),
        )
        records.append(record)
    return records


def by_id(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """Returns an object of answers by id, as the official evaluator reads it."""
    answers = {verdict.task.key: verdict.answer for verdict in verdicts}
    return ".json", json.dumps(answers, ensure_ascii=False, indent=1)


def grade(
    verdicts: Sequence[Verdict],
    judge: Judge,
    cfg: Benchmark.Config,
    file: Callable[..., Path],
    progress: Callable[[], object],
) -> Grades:
    """Has the judge grade each answer in every run.

    As in the official code, an unreadable grade counts as 0; the metrics count such grades.
    """
    prompt = grading_prompt(file("prompt.txt", "mm-vet_evaluator.py", "mm-vet_prompt.txt"))
    entries: dict[str, dict[str, list[Any]]] = {}
    num_unreadable = 0
    for verdict in verdicts:
        entry: dict[str, list[Any]] = {"model": [], "content": [], "score": []}
        for run in range(cfg.num_judge_runs or 1):
            model, content, score = _grade(verdict, prompt, judge, run)
            progress()
            num_unreadable += score is None
            entry["model"].append(model)
            entry["content"].append(content)
            entry["score"].append(0.0 if score is None else score)
        entries[verdict.task.key] = entry
    scores = mmvet_scores(
        [entry["score"] for entry in entries.values()],
        [verdict.task.record["capability"] for verdict in verdicts],
    )
    by_capability: Any = scores["capabilities"]
    metrics: dict[str, Any] = {"total": scores["total"], "std": scores["std"]}
    metrics |= {f"total_{name}": value for name, value in by_capability.items()}
    if num_unreadable:
        metrics["unreadable_grades"] = float(num_unreadable)
    return Grades("grades.json", json.dumps(entries, indent=1) + "\n", metrics)


def _grade(verdict: Verdict, prompt: str, judge: Judge, run: int) -> tuple[str, str, float | None]:
    """Returns the judge's model name, its last reply and the grade."""
    record = verdict.task.record
    truth = record["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    row = " | ".join([record["question"], truth, verdict.answer, ""])
    asked, said, model = f"{prompt}\n{row}", "", ""
    for attempt in range(_ATTEMPTS):
        reply = judge.ask(
            [{"role": "user", "content": asked + (_REMINDER if attempt else "")}],
            temperature=_TEMPERATURE_STEP * max(0, attempt - 1),
            max_tokens=_MAX_TOKENS,
            run=run,
        )
        said, model = reply.text, reply.model
        if (score := _score(said)) is not None:
            return model, said, score
    return model, said, None


def grading_prompt(path: Path) -> str:
    """Returns the text of a file, or the text that a Python file assigns to `prompt`."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    try:
        statements = ast.parse(text).body
    except SyntaxError as error:
        raise ValueError(f"{path}: not Python ({error}). {HINT}") from error
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id="prompt")], value=ast.Constant(value=str(found))):
                return found
    raise ValueError(f"{path}: it assigns no text to `prompt`. {HINT}")


def _score(said: str) -> float | None:
    """Returns the first word, if it is a number from 0 to 1."""
    try:
        score = float(said.split(" ")[0].strip())
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None

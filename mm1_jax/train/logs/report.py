"""Report of a run: `report.md` for people, `report.json` for programs, and `samples.png`.

`report.evals.txt` contains the configs of the evaluators, so that a later launch can tell whether
the report is still up to date.
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mm1_jax.storage import write_whole
from mm1_jax.train.logs.sample_pictures import choose_samples, sample_grid

_EVALS_NAME = "report.evals.txt"
_NUM_PICTURES = 32
# Expert load is averaged over this many last steps.
_LOAD_STEPS = 100


@dataclasses.dataclass(frozen=True)
class TrainingSummary:
    """Totals of training over all launches of the run.

    Attributes:
        seconds: Time in training steps, without evaluation, saving and compilation.
        tokens: Number of text and image tokens, without padding.
        expert_load: Share of the routed tokens of a layer, [layers, experts]; None without experts.
        dropped_share: Share of routed tokens dropped for lack of capacity.
    """

    steps: int
    seconds: float
    tokens: int
    images: int
    final_loss: float
    num_parameters: int
    expert_load: np.ndarray | None = None
    dropped_share: float | None = None


def summarize_training(
    records: Iterable[Mapping[str, Any]], num_parameters: int
) -> TrainingSummary:
    """Summarizes the records of `metrics.jsonl`.

    Raises:
        ValueError: There are no records.
    """
    records = list(records)
    if not records:
        raise ValueError("metrics.jsonl: no complete record; a report needs at least one step")
    last = records[-_LOAD_STEPS:]
    has_experts = "expert_load" in records[-1]
    return TrainingSummary(
        steps=records[-1]["step"],
        seconds=sum(record["step_seconds"] for record in records),
        tokens=sum(record["tokens"] for record in records),
        images=sum(record["images"] for record in records),
        final_loss=records[-1]["loss"],
        num_parameters=num_parameters,
        expert_load=np.mean([r["expert_load"] for r in last], axis=0) if has_experts else None,
        dropped_share=float(np.mean([r["dropped_share"] for r in last])) if has_experts else None,
    )


def write_report(
    directory: Path,
    *,
    title: str,
    training: TrainingSummary,
    evaluation: Mapping[str, float | int],
    evaluators: str = "",
    failures: Mapping[str, str] | None = None,
    samples: Sequence[Any] = (),
    accounting: Mapping[str, Mapping[str, float | int]] | None = None,
) -> None:
    """Writes the report files.

    `report.evals.txt` is written last, and only if no evaluation failed. Its presence thus means
    that the report is complete.

    Args:
        evaluation: Metrics named `name/shots/metric`. They are written to `report.json`, together
            with the totals named `training/...`.
        evaluators: Configs of the evaluators as text.
        failures: Reasons of failed evaluations by name.
        samples: `evals.evaluator.Sample`s.
        accounting: Counts per corpus: corpus -> name -> number.
    """
    failures = failures or {}
    evals_path = directory / _EVALS_NAME
    evals_path.unlink(missing_ok=True)
    chosen = choose_samples(samples, _NUM_PICTURES)
    if chosen:
        Image.fromarray(sample_grid(chosen)).save(directory / "samples.png")
    sections = _sections(title, training, evaluation, failures, bool(chosen), accounting)
    write_whole(directory / "report.md", "\n\n".join(sections) + "\n")

    values = dict(evaluation) | _training_values(training)
    write_whole(directory / "report.json", json.dumps(values, indent=2) + "\n")
    if not failures:
        write_whole(evals_path, evaluators)


def is_reported(directory: Path, step: int, evaluators: str) -> bool:
    """Returns whether `directory` has a complete report of `step` steps by these evaluators."""
    try:
        report = json.loads((directory / "report.json").read_text())
        evals = (directory / _EVALS_NAME).read_text()
        return report["training/steps"] == step and evals == evaluators
    # A missing or damaged report is written again.
    except (OSError, ValueError, LookupError, TypeError):
        return False


def split_metrics(
    evaluation: Mapping[str, float | int],
) -> tuple[dict[tuple[str, str], dict[int, float]], dict[str, float], dict[str, float]]:
    """Splits metrics into benchmark results by shots, held-out losses by corpus, and the rest."""
    by_shots: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    held_out: dict[str, float] = {}
    others: dict[str, float] = {}
    for key, value in evaluation.items():
        name, shots, metric = (*key.split("/", 2), "", "")[:3]
        if name == "held_out_loss":
            held_out[metric] = value
        elif shots.isdigit() and metric:
            by_shots[name, metric][int(shots)] = value
        else:
            others[key] = value
    return by_shots, held_out, others


def _training_values(training: TrainingSummary) -> dict[str, float | int]:
    values = {
        f"training/{field.name}": getattr(training, field.name)
        for field in dataclasses.fields(training)
        if field.name not in ("expert_load", "dropped_share")
    }
    if training.expert_load is not None:
        values["training/dropped_share"] = training.dropped_share
        for layer, loads in enumerate(training.expert_load):
            for expert, load in enumerate(loads):
                values[f"expert_load/{layer}/{expert}"] = float(load)
    return values


def _sections(
    title: str,
    training: TrainingSummary,
    evaluation: Mapping[str, float | int],
    failures: Mapping[str, str],
    has_samples: bool,
    accounting: Mapping[str, Mapping[str, float | int]] | None,
) -> Iterable[str]:
    yield f"# {title}"
    yield "## Training"
    yield _table(("", ""), _training_rows(training))

    if failures:
        yield "## Failed evaluations"
        yield _table(("name", "error"), failures.items())
    by_shots, held_out, others = split_metrics(evaluation)
    if by_shots:
        yield "## Evaluation"
        shots = sorted({number for numbers in by_shots.values() for number in numbers})
        yield _table(
            ("benchmark", "metric", *(f"{number} shots" for number in shots)),
            [
                (*name, *(numbers.get(number) for number in shots))
                for name, numbers in by_shots.items()
            ],
        )
    if held_out:
        yield "## Held-out loss"
        yield _table(("corpus", "cross entropy"), held_out.items())
    if others:
        yield "## Other measurements"
        yield _table(("name", "value"), others.items())
    if training.expert_load is not None:
        yield "## Expert load"
        yield (
            "Share of the routed tokens per MoE layer, averaged over at most the last "
            f"{_LOAD_STEPS} steps; an even share would be "
            f"{1 / training.expert_load.shape[1]:.3f}. "
            f"Share of routed tokens dropped: {training.dropped_share:.4f}."
        )
        yield _table(
            ("MoE layer", *(f"expert {i}" for i in range(training.expert_load.shape[1]))),
            [(str(i), *loads) for i, loads in enumerate(training.expert_load.tolist())],
        )
    if accounting:
        yield "## Corpora"
        columns = list(dict.fromkeys(name for row in accounting.values() for name in row))
        yield _table(
            ("corpus", *columns),
            [(corpus, *(row.get(name) for name in columns)) for corpus, row in accounting.items()],
        )
    if has_samples:
        yield "## Samples"
        yield (
            "Held-out images with the model's answers. Wrong answers are shown first and more "
            "often than they occur; the table above has the actual rates."
        )
        yield "![held-out images with the model's answers](samples.png)"


def _training_rows(training: TrainingSummary) -> list[tuple[str, Any]]:
    rate = 1 / training.seconds if training.seconds else 0.0
    return [
        ("parameters", training.num_parameters),
        ("steps", training.steps),
        ("time in steps", str(timedelta(seconds=round(training.seconds)))),
        ("tokens (text and image)", training.tokens),
        ("images", training.images),
        ("tokens per second", round(training.tokens * rate)),
        ("images per second", round(training.images * rate)),
        ("final loss", training.final_loss),
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    # Messages may contain line breaks and vertical bars.
    return " ".join(str(value).split()).replace("|", "\\|")

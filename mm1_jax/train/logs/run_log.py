"""Log of a run: JSON lines, TensorBoard and Weights & Biases, and progress on the screen."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mm1_jax.train.guards.anomalies import Anomalies
from mm1_jax.train.logs.json_lines import JsonLines
from mm1_jax.train.logs.progress import Progress
from mm1_jax.train.logs.report import split_metrics
from mm1_jax.train.logs.summaries import Summaries
from mm1_jax.train.logs.utilisation import Utilisation
from mm1_jax.train.logs.wandb_run import WandbRun
from mm1_jax.train.metrics import Metrics, divide


class _Step(NamedTuple):
    """A dispatched step that may still be running on the devices."""

    step: int
    metrics: Metrics
    data_wait_seconds: float
    # Counts per corpus so far; None if the step has no summary.
    accounting: Mapping[str, Mapping[str, int | float]] | None


class RunLog:
    """Logs each step after the next one is dispatched, so that devices never wait for logging.

    Records after `first_step` are removed: they are of steps that an earlier launch did not save.
    All processes check steps for anomalies, but only process 0 writes logs.
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        first_step: int,
        corpus_names: Sequence[str],
        progress: Progress,
        summary_every_n_steps: int,
        anomalies: Anomalies,
        utilisation: Utilisation,
        wandb: WandbRun | None = None,
        is_writer: bool = True,
    ):
        self._corpus_names = corpus_names
        self._progress = progress
        self._summary_every_n_steps = summary_every_n_steps
        self._anomalies = anomalies
        self._utilisation = utilisation
        self._is_writer = is_writer
        self._directory = output_dir
        self._metrics = JsonLines(output_dir / "metrics.jsonl")
        self._evaluations = JsonLines(output_dir / "evaluations.jsonl")
        self._summaries: Summaries | None = None
        self._wandb = wandb
        self._evaluated: dict[tuple[int, str], Mapping[str, Any]] = {}
        # Extra fields of only the next record.
        self._next_record_fields: dict[str, Any] = {}
        self.rewind(first_step)
        self._clock = time.perf_counter()

    def rewind(self, step: int) -> None:
        """Removes the records after `step`, which will be run again."""
        self._pending: _Step | None = None
        if not self._is_writer:
            return
        has_earlier_steps = self._metrics.rewind(step) or step > 0
        self._evaluations.rewind(step)
        # Evaluations that are already logged, without failed ones.
        self._evaluated = {
            (record["step"], record["evaluator"]): record
            for record in self._evaluations.records()
            if "error" not in record
        }
        if self._summaries is not None:
            self._summaries.close()
        self._summaries = Summaries(self._directory / "tensorboard", first_step=step)
        self._next_record_fields = {"resumed_from": step} if has_earlier_steps else {}

    @property
    def evaluated(self) -> list[tuple[int, str]]:
        """Steps and names of the evaluations that are already logged."""
        return sorted(self._evaluated)

    @property
    def _sinks(self) -> list[Summaries | WandbRun]:
        return [sink for sink in (self._summaries, self._wandb) if sink is not None]

    def message(self, text: str) -> None:
        if self._is_writer:
            self._progress.message(text)

    def step(
        self,
        step: int,
        metrics: Metrics,
        *,
        data_wait_seconds: float,
        accounting: Callable[[], Mapping[str, Mapping[str, int | float]] | None],
    ) -> None:
        """Records the metrics of a step that was just dispatched, and logs the previous step.

        Args:
            accounting: Returns the counts per corpus so far; called for steps with a summary.
        """
        self.flush()
        is_summarised = step % self._summary_every_n_steps == 0
        given = accounting() if is_summarised else None
        self._pending = _Step(step, metrics, data_wait_seconds, given)

    def flush(self) -> None:
        """Waits for the last step and logs it.

        Raises:
            NonFiniteLoss: The step is an anomaly that was not skipped. It is not logged.
        """
        if self._pending is None:
            return
        step, metrics, data_wait_seconds, accounting = self._pending
        self._pending = None
        record = step_record(step, jax.device_get(metrics), self._corpus_names)
        remark = self._anomalies.judge(record)
        if remark is not None:
            self.message(remark)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        record |= {
            "tokens_per_second": record["tokens"] / seconds,
            "images_per_second": record["images"] / seconds,
            "step_seconds": seconds,
            "data_wait_seconds": data_wait_seconds,
            **self._utilisation.of_step(record["images"], seconds),
            **self._next_record_fields,
        }
        self._next_record_fields = {}
        if not self._is_writer:
            return
        if accounting is not None:
            record |= self._utilisation.memory()
            record |= {
                f"corpora/{corpus}/{name}": value
                for corpus, counts in accounting.items()
                for name, value in counts.items()
            }
        self._write(self._metrics, record)
        self._progress.step(step, record)
        if accounting is not None:
            self.scalars(step, record)

    def save(self, seconds: float) -> None:
        """Adds the time that a save blocked training to the next record."""
        self._next_record_fields["save_seconds"] = seconds

    def start_clock(self) -> None:
        """Starts timing the next step now, to exclude a preceding save or evaluation."""
        self._clock = time.perf_counter()

    def evaluation(self, step: int, evaluator: str, result: Any) -> None:
        """Logs an `evals.evaluator.EvalResult`."""
        record = {"step": step, "evaluator": evaluator, **result.metrics}
        # A repeated evaluation with the same result is written only once.
        is_new = self._evaluated.get((step, evaluator)) != record
        self._evaluated[step, evaluator] = record
        if self._summaries is None:
            return
        if is_new:
            self._write(self._evaluations, record)
        for sink in self._sinks:
            sink.scalars(step, result.metrics)
            sink.samples(step, evaluator, result.samples)
            sink.flush()
        self.message("\n".join(f"step {step}  {line}" for line in _metric_lines(result.metrics)))

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Sends numbers to TensorBoard and Weights & Biases only."""
        for sink in self._sinks:
            sink.scalars(step, values)

    def failed_evaluation(self, step: int, evaluator: str, reason: str) -> None:
        if self._is_writer:
            record = {"step": step, "evaluator": evaluator, "error": reason}
            self._write(self._evaluations, record)
        self.message(f"step {step}  evaluation {evaluator} failed: {reason}")

    def step_records(self) -> Iterator[dict[str, Any]]:
        """Returns the records of all steps so far, including earlier launches."""
        return self._metrics.records()

    def _write(self, file: JsonLines, record: Mapping[str, Any]) -> None:
        try:
            file.write(record)
        except OSError as error:
            self.message(
                f"error: step {record['step']} is not in {file.path} ({error.strerror}); training "
                "continues"
            )

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
        self._progress.close()


def step_record(step: int, metrics: Metrics, corpus_names: Sequence[str]) -> dict[str, Any]:
    """Converts the metrics of a step to a record of `metrics.jsonl`: plain numbers and lists.

    A corpus without scored targets in the batch has no loss.
    """
    values = divide(metrics)
    record: dict[str, Any] = {"step": step, "loss": float(values["loss"])}
    for i, name in enumerate(corpus_names):
        if metrics["corpus_loss"].weight[i]:
            record[f"loss/{name}"] = float(values["corpus_loss"][i])
    for name, value in values.items():
        if name not in ("loss", "corpus_loss", "expert_load"):
            record[name] = value.item()
    if "expert_load" in values:
        load = values["expert_load"].astype(np.float64)
        record["expert_load"] = (load / np.maximum(load.sum(axis=-1, keepdims=True), 1)).tolist()
    return record


def _metric_lines(metrics: Mapping[str, float | int]) -> Iterator[str]:
    """Yields one line per benchmark and metric, with its values at all shots."""
    by_shots, held_out, others = split_metrics(metrics)
    for (name, metric), values in by_shots.items():
        shots = "  ".join(f"{value:.4f} at {number} shots" for number, value in values.items())
        yield f"{name} {metric}: {shots}"
    for name, value in held_out.items():
        yield f"held-out loss {name}: {value:.4f}"
    for name, value in others.items():
        yield f"{name}: {value:.4f}"

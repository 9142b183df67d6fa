"""A chat model starts from a pre-trained run, and its report scores the form of answers."""

import json
from pathlib import Path

import launches
import pytest
from launches import finish

# Overrides that make a run small, and its model that of the run it starts from.
SMALL = [
    "--config.trainer.optimizer.warmup_steps=1",
    "--config.input.batch_size=2",
    "--config.model.vision_encoder.num_layers=1",
    "--config.model.decoder.num_layers=1",
]


def few_records(*num_corpora: int) -> list[str]:
    """Overrides that give each corpus of each stream few records."""
    return [
        f"--config.input.streams.{stream}.corpora.{corpus}.corpus.source.num_records=16"
        for stream, number in enumerate(num_corpora)
        for corpus in range(number)
    ]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("runs")
    run = folder / "mm1_tiny"
    arguments = ["--config=mm1_tiny", "--evals=", "--config.trainer.max_steps=2", *SMALL]
    arguments += [*few_records(4, 2, 2), f"--output_dir={run}"]
    finish(launches.start(arguments, folder / "cache"))
    return run


@pytest.mark.slow
def test_a_chat_model_is_fine_tuned_from_a_run(pretrained):
    folder = pretrained.parent / "mm1_tiny_chat"
    arguments = [
        *("--config=mm1_tiny_chat", "--evals=instructions", "--config.trainer.max_steps=3"),
        f"--config.trainer.initial_weights.model.path={pretrained}",
        *few_records(14, 4, 2, 2),
        "--config.evals.instructions.num_examples=12",
        "--config.evals.instructions.blank_shots=()",
        "--config.evals.instructions.max_new_tokens=4",
        "--config.evals.instructions.batch_size=4",
        *SMALL,
        f"--output_dir={folder}",
    ]
    output = finish(launches.start(arguments, pretrained.parent / "cache"))
    assert f"model starts from {pretrained}" in output
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in losses] == [1, 2, 3]
    metrics = json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])
    assert 0 <= metrics["instructions/0/well_formed"] <= 1
    assert any(name.startswith("instructions/0/well_formed_") for name in metrics)
    assert "well_formed" in (folder / "report.md").read_text()

"""Whole runs of the launcher in separate processes: stopped, killed, resumed, sharded."""

import json
import signal
import subprocess
from pathlib import Path

import launches
import pytest
from launches import finish, wait_for_step
from near_ties import assert_same_loads

MAX_STEPS = 30
# Sharded runs take the first FEW of these steps, at the same learning rates.
FEW = 6
FEW_STEPS = [
    f"--config.trainer.max_steps={FEW}",
    f"--config.trainer.optimizer.decay_steps={MAX_STEPS}",
]

# Overrides that make the real experiments small.
SMALL = [
    f"--config.trainer.max_steps={MAX_STEPS}",
    "--config.trainer.optimizer.warmup_steps=3",
    "--config.trainer.checkpointer.every_n_steps=4",
    "--config.input.max_sequence_length=96",
    "--config.input.max_images=4",
    "--config.model.vision_encoder.num_layers=2",
    "--config.evals.held_out_loss.num_batches=1",
    *(
        f"--config.input.streams.{stream}.corpora.{corpus}.corpus.source.num_records=64"
        for stream, corpora in enumerate((4, 2, 2))
        for corpus in range(corpora)
    ),
    *(
        f"--config.evals.{name}.{field}"
        for name in ("digits_vqa", "digits_caption", "scenes_vqa", "scenes_caption")
        for field in (
            "num_examples=4",
            "num_few_shot_examples=2",
            "shots=(0,1)",
            "max_new_tokens=4",
            "batch_size=4",
            "corpus.source.num_records=64",
        )
    ),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


def start(
    workspace: Path,
    folder: str,
    *arguments: str,
    config="mm1_tiny",
    devices=1,
    cache="cache",
    is_quick=False,
) -> subprocess.Popen:
    options = [f"--config={config}", f"--output_dir={workspace / folder}", *SMALL, *arguments]
    flags = f"--xla_force_host_platform_device_count={devices}"
    return launches.start(options, workspace / cache, xla_flags=flags, is_quick=is_quick)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path, num_steps: int = MAX_STEPS) -> list[float]:
    steps = records(folder)
    assert [record["step"] for record in steps] == list(range(1, num_steps + 1))
    return [record["loss"] for record in steps]


@pytest.fixture(scope="module")
def undisturbed(workspace) -> Path:
    finish(start(workspace, "undisturbed"))
    return workspace / "undisturbed"


@pytest.fixture(scope="module")
def undisturbed_moe(workspace) -> Path:
    finish(start(workspace, "undisturbed_moe", config="mm1_tiny_moe", is_quick=True))
    return workspace / "undisturbed_moe"


def test_a_run_learns_and_leaves_its_outputs(undisturbed):
    values = losses(undisturbed)
    assert sum(values[-5:]) < 0.8 * sum(values[:5])
    report = json.loads((undisturbed / "report.json").read_text())
    for key in ("digits_vqa/0/accuracy", "digits_caption/1/exact_match", "scenes_vqa/0/accuracy"):
        assert 0 <= report[key] <= 1
    assert "digits_vqa_blank/0/accuracy" in report
    assert any(key.startswith("held_out_loss/0/") for key in report)
    for name in ("report.md", "samples.png", "config.txt", "launch.json"):
        assert (undisturbed / name).stat().st_size > 0
    assert list((undisturbed / "tensorboard").iterdir())


def test_a_second_launch_into_a_finished_run_reports_that(undisturbed, workspace):
    before = (undisturbed / "report.json").read_bytes()
    output = finish(start(workspace, "undisturbed"))
    assert "finished already" in output
    assert (undisturbed / "report.json").read_bytes() == before


def test_another_config_in_the_folder_is_rejected_with_the_difference(undisturbed, workspace):
    output = finish(start(workspace, "undisturbed", "--config.trainer.seed=5"), status=2)
    assert "trainer.seed" in output and "5" in output and "Traceback" not in output


@pytest.fixture(params=[(signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=["sigterm", "sigkill"])
def stopped(request, workspace) -> Path:
    """A run that a signal ended after its tenth step."""
    number, status = request.param
    folder = workspace / f"stopped_{number.name}"
    process = start(workspace, folder.name)
    wait_for_step(process, folder, 10)
    process.send_signal(number)
    finish(process, status)
    return folder


@pytest.fixture
def resumed(workspace, stopped) -> Path:
    """The same run, resumed with freshly compiled programs."""
    finish(start(workspace, stopped.name, cache="cache_of_resumed"))
    return stopped


def test_a_stopped_run_resumes_bit_for_bit(undisturbed, resumed):
    folder = resumed
    assert losses(folder) == losses(undisturbed)
    resumed = [r["resumed_from"] for r in records(folder) if "resumed_from" in r]
    assert len(resumed) == 1 and 4 <= resumed[0] < MAX_STEPS
    ours, theirs = (
        json.loads((path / "report.json").read_text()) for path in (folder, undisturbed)
    )
    scores = [key for key in theirs if key.startswith(("digits", "scenes", "held_out"))]
    assert scores and {k: ours[k] for k in scores} == {k: theirs[k] for k in scores}


@pytest.fixture(scope="module")
def sharded(workspace) -> Path:
    mesh = [f"--config.trainer.parallelism.{axis}=2" for axis in ("data", "fsdp", "model")]
    finish(start(workspace, "sharded", *FEW_STEPS, *mesh, devices=8, is_quick=True))
    return workspace / "sharded"


@pytest.fixture(scope="module")
def sharded_moe(workspace) -> Path:
    mesh = ["--config.trainer.parallelism.expert=4", "--config.trainer.parallelism.data=2"]
    captions = [f"--config.evals.{name}_caption.shots=(0,)" for name in ("digits", "scenes")]
    options = [*FEW_STEPS, *captions, *mesh]
    launch = start(
        workspace, "sharded_moe", *options, config="mm1_tiny_moe", devices=8, is_quick=True
    )
    finish(launch)
    return workspace / "sharded_moe"


def test_losses_on_eight_devices_equal_those_on_one(undisturbed, sharded):
    assert losses(sharded, FEW)[:5] == pytest.approx(losses(undisturbed)[:5], rel=1e-5)


def test_losses_with_experts_on_four_devices_equal_those_on_one(undisturbed_moe, sharded_moe):
    ours, theirs = sharded_moe, undisturbed_moe
    assert losses(ours, FEW)[:5] == pytest.approx(losses(theirs)[:5], rel=1e-5)
    for mine, other in zip(records(ours)[:5], records(theirs)[:5], strict=True):
        loads = (record["expert_load"] for record in (mine, other))
        assert_same_loads(*loads, num_choices=2 * mine["tokens"], at_most=2)


def test_the_report_of_a_sparse_model_has_the_load_of_each_expert(undisturbed_moe):
    assert "expert" in (undisturbed_moe / "report.md").read_text().lower()
    first = records(undisturbed_moe)[0]
    assert any("expert" in key for key in first)

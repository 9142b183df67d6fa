"""Fault injection into runs of several processes; `tools/inject_faults.py` runs more of it."""

import importlib.util
import signal
import sys
from pathlib import Path

import pytest
from fault_injection import faults
from fault_injection.bench import ENCODERS, Bench

TOOL = Path(__file__).parents[2] / "tools" / "inject_faults.py"


def load_tool():
    spec = importlib.util.spec_from_file_location("inject_faults", TOOL)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up their module.
    sys.modules["inject_faults"] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()
slow = pytest.mark.slow
# The others are slow: they wait for heartbeats, timeouts or workers.
QUICK = ("kill_at_a_step", "kill_while_saving", "terminate", "cut_a_file", "not_a_number")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(each, marks=() if each.__name__ in QUICK else pytest.mark.slow)
        for each in faults.FAULTS
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_run_of_two_processes_survives_the_fault(workspace, fault, seed):
    outcome = tool.inject(fault, workspace, 2, seed)
    assert not outcome.problem, f"{outcome.detail}: {outcome.problem}"


@pytest.mark.parametrize(
    "difference",
    [
        pytest.param(each, marks=() if each in ("--config.trainer.seed=1", "data") else slow)
        for each in faults.DIFFERENCES
    ],
)
def test_processes_that_differ_name_the_difference_and_end_before_training(workspace, difference):
    bench = Bench(workspace, 2, folder=workspace / f"differ {len(difference)}")
    try:
        assert faults.differing_process(bench, difference) < 60
    finally:
        for launch in bench.launches:
            launch.end()


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [faults.kill_at_a_step, faults.terminate], ids=lambda fault: fault.__name__
)
def test_a_run_of_four_processes_survives_the_fault(workspace, fault):
    outcome = tool.inject(fault, workspace, 4, 0)
    assert not outcome.problem, f"{outcome.detail}: {outcome.problem}"


@pytest.mark.slow
def test_a_run_resumes_with_other_processes_and_on_another_mesh(workspace):
    """A run of four processes is stopped, resumed with two, then with four and sharded params."""
    bench = Bench(workspace, 4, folder=workspace / "elastic")
    expected = tool.undisturbed(workspace, 4)["steps"]
    for num_processes, last in ((4, 2), (2, 8)):
        bench.num_processes = num_processes
        launch = bench.launch(fault="slow:0")
        launch.until(lambda last=last: bench.steps_logged() >= last, f"step {last}")
        launch.processes[0].send_signal(signal.SIGTERM)
        assert set(launch.wait()) == {faults.STOPPED}
    bench.num_processes = 4
    bench.finish("--config.trainer.parallelism.fsdp=4")
    result = bench.result()["steps"]
    assert [step for step, *_ in result] == [step for step, *_ in expected]
    for ours, theirs in zip(result, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert "mesh {'fsdp': 4} of 4 processes; training continues" in bench.text


def assert_same_steps(results, expected):
    """Batches are equal; losses sum in another order, so they agree up to rounding."""
    for ours, theirs in zip(results["steps"], expected["steps"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.fixture(params=["small_run", *ENCODERS])
def config_and_result(request, workspace):
    """A config, and the result of one process."""
    return request.param, tool.undisturbed(workspace, 1, request.param)


def test_two_processes_train_on_the_batches_of_one(workspace, config_and_result):
    config, expected = config_and_result
    assert_same_steps(tool.undisturbed(workspace, 2, config), expected)


@pytest.mark.slow
def test_four_processes_train_on_the_batches_of_one_in_micro_batches(workspace, config_and_result):
    config, expected = config_and_result
    bench = Bench(workspace, 4, folder=workspace / f"micro_batches_{config}", config=config)
    bench.finish("--config.trainer.parallelism.gradient_accumulation=2")
    assert_same_steps(bench.result(), expected)


@pytest.mark.parametrize("config_and_result", ENCODERS, indirect=True)
def test_an_encoder_resumes_bit_for_bit_after_a_kill(workspace, config_and_result):
    config, _ = config_and_result
    outcome = tool.inject(faults.kill_at_a_step, workspace, 1, 0, config)
    assert not outcome.problem, f"{outcome.detail}: {outcome.problem}"


def test_a_process_without_pictures_does_not_delay_others(workspace):
    bench = Bench(workspace, 2, folder=workspace / "no_images")
    launch = bench.launch(fault="no_images:1")
    assert launch.wait(180) == [0, 0], launch.text
    assert launch.text.count("compiled the train step") == 1


def test_a_run_resumes_with_another_number_of_processes(workspace):
    """The state of the input is one file for any number of processes."""
    bench = Bench(workspace, 2, folder=workspace / "other_number")
    launch = bench.launch("--config.trainer.max_steps=12")
    launch.until(lambda: bench.steps_logged() >= 7, "step 7")
    for each in launch.processes:
        each.kill()
    launch.wait()
    bench.num_processes = 1
    bench.finish()
    expected = tool.undisturbed(workspace, 1)["steps"]
    for ours, theirs in zip(bench.result()["steps"], expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_table_is_written_between_its_marks(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- faults -->\nold\n<!-- end of faults -->\nafter\n")
    outcome = tool.Outcome("terminate", 2, 0, "", 3.2)
    tool.write_table(path, tool.render([outcome]))
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| SIGTERM to one process" in text and "| 2 | 1 | 1 | 3 | 0 |" in text

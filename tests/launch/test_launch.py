import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mm1_jax.launch import __main__ as launch
from mm1_jax.launch import processes
from mm1_jax.launch.__main__ import main
from mm1_jax.launch.config_options import split_overrides
from mm1_jax.launch.run_folder import RunFolder
from mm1_jax.multihost import distributed
from mm1_jax.train.loop import INCOMPLETE

TESTS = Path(__file__).parents[1]
MODULE = "--module=fake_experiment"


@pytest.fixture(autouse=True)
def _fake_experiment(monkeypatch):
    monkeypatch.syspath_prepend(TESTS)


def _error(capsys, *argv) -> str:
    """Returns the message of a launch that fails with exit code 2 and without a traceback."""
    assert main([MODULE, *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    return captured.err


def _printed(capsys, *argv) -> list[str]:
    assert main([MODULE, "--config=fake_small", "--print_config", *argv]) == 0
    return capsys.readouterr().out.splitlines()


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys, mm1_jax.launch.__main__\n"
        "try:\n    mm1_jax.launch.__main__.main(['--help'])\n"
        "finally:\n    print({'jax', 'numpy', 'flax', 'grain'} & set(sys.modules))"
    )
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True
    )
    assert result.returncode == 0 and time.monotonic() - start < 2
    assert result.stdout.strip().endswith("set()")
    assert "--config.PATH=VALUE" in result.stdout and "trainer.max_steps" in result.stdout


def test_the_module_runs_as_a_program(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "mm1_jax.launch", MODULE, "--config=fake_smal"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "did you mean fake_small" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("option", ["output_dir", "data_dir"])
def test_a_folder_in_a_store_is_refused(option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([MODULE, "--config=fake_small", f"--{option}=gs://bucket/x"])
    assert end.value.code == 2 and not list(tmp_path.iterdir())
    assert f"--{option}: value=gs://bucket/x: expected a local path" in capsys.readouterr().err


def test_overrides_are_distinguished_from_other_arguments():
    argv = [
        "--config=a",
        "--config.b.c=1",
        "-config.d",
        "2",
        "--noconfig.e",
        "--config.f",
        "--list",
    ]
    rest, overrides = split_overrides([*argv, "--config.g=x=y", "--config.b.c=3"])
    assert rest == ["--config=a", "--list"]
    assert overrides == {"d": "2", "e": "false", "f": "true", "g": "x=y", "b.c": "3"}


def test_list_shows_the_first_line_of_each_docstring(capsys):
    assert main([MODULE, "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "fake_large",
        "fake_small       A fake of ten steps.",
        "fake_unfinished",
    ]


def test_print_config_shows_the_resolved_config_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = _printed(capsys)
    assert "input.num_image_tokens: 4" in lines and "trainer.optimizer.decay_steps: 10" in lines
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trainer.max_steps=7", "trainer.max_steps: 7"),
        ("trainer.optimizer.learning_rate=1e-3", "trainer.optimizer.learning_rate: 0.001"),
        ("trainer.optimizer.learning_rate=1", "trainer.optimizer.learning_rate: 1.0"),
        ("trainer.optimizer.clip=0.5", "trainer.optimizer.clip: 0.5"),
        ("model.tied=false", "model.tied: False"),
        ("model.dtype=bfloat16", "model.dtype: 'bfloat16'"),
        ("model.head_dim=16", "model.head_dim: 16"),
        ("input.fit=pad", "input.fit: <Fit.PAD: 'pad'>"),
        ("input.path=a b=c", "input.path: 'a b=c'"),
        ("input.mean=(0.1, 0.2, 0.3)", "input.mean[2]: 0.3"),
        ("input.shares.captions=1", "input.shares['captions']: 1.0"),
        ("input.shares['captions']=0.25", "input.shares['captions']: 0.25"),
        ("input.streams.1.weight=3", "input.streams[1].weight: 3"),
        ("input.streams[0].weight=4", "input.streams[0].weight: 4"),
        ("evals.digits_vqa.num_examples=10", "evals['digits_vqa'].num_examples: 10"),
        ("evals['digits_vqa'].shots=[8]", "evals['digits_vqa'].shots[0]: 8"),
    ],
)
def test_any_field_is_set_by_path_with_a_typed_value(capsys, override, line):
    assert line not in _printed(capsys)
    assert line in _printed(capsys, f"--config.{override}")


def test_dependent_fields_follow_an_override(capsys):
    lines = _printed(capsys, "--config.model.connector.num_image_tokens=9")
    assert "input.num_image_tokens: 9" in lines
    lines = _printed(capsys, "--config.trainer.max_steps=7")
    assert "trainer.optimizer.decay_steps: 7" in lines


def test_inconsistent_overrides_are_rejected(capsys):
    error = _error(capsys, "--config=fake_small", "--config.input.num_image_tokens=9")
    assert "input.num_image_tokens" in error and "model.connector" in error


def test_none_is_valid_if_the_annotation_allows_it(capsys):
    argv = ("--config.model.head_dim=16", "--config.model.head_dim=None")
    assert "model.head_dim: None" in _printed(capsys, *argv)
    error = _error(capsys, "--config=fake_small", "--config.trainer.seed=None")
    assert "--config.trainer.seed=None: expected a value of type int" in error


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.max_step=5", "did you mean trainer.max_steps?"),
        ("trianer.max_steps=5", "did you mean trainer or trainer.max_steps?"),
        ("max_steps=5", "did you mean trainer.max_steps?"),
        ("evals.digits_vqq.num_examples=5", "did you mean evals.digits_vqa"),
        ("input.streams.2.weight=5", "did you mean input.streams.0.weight"),
        ("input.shares.text=5", "input.shares has no field 'text'; it has captions"),
        ("trainer.seed.x=5", "trainer.seed has no field 'x'; it is the value 0"),
        ("trainer.max_steps=many", "expected a value of type int"),
        ("trainer.max_steps=1.5", "expected a value of type int"),
        ("trainer.optimizer.learning_rate=high", "expected a value of type float"),
        ("model.tied=maybe", "expected a value of type bool"),
        ("model.dtype=float8", "expected one of bfloat16, float32"),
        ("input.fit=crop", "expected one of STRETCH, PAD"),
        ("input.mean.0=1", "set the whole tuple, --config.input.mean=..."),
        ("model.connector=big", "set one of model.connector.num_image_tokens"),
        ("model.moe=yes", "its class can be Connector, and not 'yes'"),
        ("trainer.optimizer=Adamm", "its class can be Optimizer, and not 'Adamm'"),
        ("evals=digits_vqq", "evals has no 'digits_vqq'; did you mean digits_vqa?"),
        ("input.shares=text", "cannot be set on the command line"),
        ("input.streams=none", "input.streams is a list of configs, which cannot be set"),
        ("model.klass=Other", "cannot be set on the command line"),
    ],
)
def test_a_wrong_path_or_value_is_explained(capsys, override, said):
    error = _error(capsys, "--config=fake_small", f"--config.{override}")
    assert f"--config.{override}" in error and said in error


def test_a_field_of_an_unset_part_is_set(capsys):
    lines = _printed(capsys, "--config.model.moe.num_image_tokens=16")
    assert "model.moe.num_image_tokens: 16" in lines
    assert "model.moe.klass: 'fake_experiment.Connector'" in lines
    assert "model.moe: None" in _printed(capsys, "--config.model.moe=None")


def test_evaluators_can_be_disabled_and_selected(capsys):
    for argv in (
        ["--config.evals.digits_vqa=None"],
        ["--evals="],
        ["--config.evals="],
        ["--config.evals.digits_vqa.num_examples=3", "--config.evals=None"],
    ):
        assert "evals: {}" in _printed(capsys, *argv)
    lines = _printed(capsys, "--evals=digits_vqa", "--config.evals.digits_vqa.num_examples=3")
    assert "evals['digits_vqa'].num_examples: 3" in lines
    error = _error(
        capsys, "--config=fake_small", "--evals=", "--config.evals.digits_vqa.num_examples=3"
    )
    assert "evals has no field 'digits_vqa'" in error


def test_print_config_shows_every_field_even_unset_ones(capsys):
    lines = _printed(capsys)
    assert "model.head_dim: None" in lines and "trainer.checkpointer.location: None" in lines


def _file(capsys, folder: Path, *argv) -> Path:
    """A config file of `fake_small`."""
    assert main([MODULE, "--config=fake_small", "--print_config=json", *argv]) == 0
    (folder / "config.json").write_text(capsys.readouterr().out)
    return folder / "config.json"


def test_a_printed_config_can_be_launched(capsys, tmp_path):
    file, run = _file(capsys, tmp_path, "--config.model.tied=false"), tmp_path / "run"
    argv = [MODULE, f"--config_file={file}", f"--output_dir={run}"]
    assert main([*argv, "--config.trainer.max_steps=7"]) == 0
    text = (run / "config.txt").read_text()
    assert "model.tied: False" in text and "trainer.optimizer.decay_steps: 7" in text
    # The run no longer needs the file, and its config.json is itself a config file.
    file.unlink()
    assert RunFolder(run).load_experiment().model.tied is False
    capsys.readouterr()
    assert main([MODULE, f"--config_file={run / 'config.json'}", "--print_config"]) == 0
    assert set(text.splitlines()) <= set(capsys.readouterr().out.splitlines())


def test_a_file_can_replace_a_named_config(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main([MODULE, f"--config_file={_file(capsys, tmp_path)}", "--config=fake_small"])
    assert "not allowed with argument --config" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        main([MODULE, f"--config_file={tmp_path / 'none.json'}"])
    assert error.value.code == 2 and "none.json: cannot be read" in capsys.readouterr().err


def test_options_that_an_experiment_lacks_are_explained(capsys, tmp_path):
    argv = ("--config=fake_small", f"--output_dir={tmp_path / 'run'}")
    assert "--small: FakeExperiment of --config=fake_small has no small version" in _error(
        capsys, *argv, "--small"
    )
    assert "--dry_run: FakeExperiment has no method dry_run" in _error(capsys, *argv, "--dry_run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_config_names_the_close_ones(capsys):
    error = _error(capsys, "--config=fake_smoll")
    assert "--config=fake_smoll" in error and "did you mean fake_small" in error
    assert "fake_large" in error


def test_a_wrong_module_is_explained(capsys):
    assert main(["--module=no_such_module", "--config=x"]) == 2
    assert "cannot import 'no_such_module'" in capsys.readouterr().err
    assert main(["--module=json", "--config=x"]) == 2
    assert "--module=json: it has no function named_configs()" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--config=fake_small", "--confg.a=1"]])
def test_a_wrong_argument_exits_with_2(capsys, argv):
    with pytest.raises(SystemExit) as error:
        main([MODULE, *argv])
    assert error.value.code == 2 and "error: " in capsys.readouterr().err


def test_a_run_reports_its_output_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([MODULE, "--config=fake_small"]) == 0
    assert "Outputs: runs/fake_small" in capsys.readouterr().out
    assert (tmp_path / "runs/fake_small/checkpoints/10").exists()
    assert main([MODULE, "--config=fake_small", "--output_dir=elsewhere"]) == 0
    assert (tmp_path / "elsewhere/checkpoints/10").exists()


def test_a_read_only_output_folder_is_an_immediate_error(capsys, tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    error = _error(capsys, "--config=fake_small", f"--output_dir={folder}")
    assert f"--output_dir={folder}: cannot write there" in error


def test_an_error_while_building_is_explained(capsys, tmp_path):
    argv = ("--config=fake_small", f"--output_dir={tmp_path}")
    assert "input.path=x: no such file" in _error(capsys, *argv, "--config.input.path=x")
    # A run that could not be built does not restrict the next launch.
    assert main([MODULE, *argv]) == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [("trainer.seed=13", "error: step 1: loss nan"), ("input.path=x", "error: input.path=x: no")],
)
def test_only_verbosity_shows_the_traceback_of_an_error(tmp_path, override, said):
    argv = [MODULE, "--config=fake_small", f"--output_dir={tmp_path}", f"--config.{override}"]
    for options, has_traceback in (([], False), (["--verbosity=1"], True)):
        result = subprocess.run(
            [sys.executable, "-m", "mm1_jax.launch", *argv, *options],
            env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 2 and result.stdout == ""
        assert said in result.stderr
        assert ("Traceback (most recent call last)" in result.stderr) == has_traceback


def test_help_explains_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out.partition("exit codes:")[2]
    for code in ("0 ", "1 ", "2 ", f"{INCOMPLETE} ", "130, 143"):
        assert f"\n  {code}" in text


def test_a_missing_required_field_is_named_and_can_be_given(capsys, tmp_path):
    argv = ("--config=fake_unfinished", f"--output_dir={tmp_path / 'run'}")
    assert "not set: trainer.max_steps" in _error(capsys, *argv)
    assert not (tmp_path / "run").exists()
    assert main([MODULE, *argv, "--config.trainer.max_steps=3"]) == 0
    assert (tmp_path / "run/checkpoints/3").exists()


# A second process that holds a folder until its input closes or it is killed.
_HOLD = """
import sys
from mm1_jax.launch.run_folder import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_launch(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        cwd=TESTS.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_launch_at_the_same_time_is_refused(capsys, tmp_path, other_launch):
    argv = ("--config=fake_small", f"--output_dir={tmp_path}")
    error = _error(capsys, *argv)
    assert f"--output_dir={tmp_path}: process {other_launch.pid} is running there" in error
    assert {path.name for path in tmp_path.iterdir()} == {"launch.lock"}
    other_launch.communicate()
    assert main([MODULE, *argv]) == 0


def test_the_lock_of_a_killed_process_does_not_block_others(tmp_path, other_launch):
    other_launch.kill()
    other_launch.wait()
    assert (tmp_path / "launch.lock").read_text() == f"{other_launch.pid}\n"
    assert main([MODULE, "--config=fake_small", f"--output_dir={tmp_path}"]) == 0


def test_a_second_launch_resumes_and_a_changed_one_is_rejected(capsys, tmp_path):
    argv = ("--config=fake_small", f"--output_dir={tmp_path}")
    assert main([MODULE, *argv]) == 0
    assert main([MODULE, *argv, "--config.evals.digits_vqa.num_examples=9"]) == 0
    error = _error(capsys, *argv, "--config.trainer.seed=1")
    assert "trainer.seed: 0 -> 1" in error and "num_examples" not in error


TWO = ("--num_processes=2", "--process_id=0", "--coordinator_address=127.0.0.1:9000")


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (RuntimeError("no connection"), 1),
        (OverflowError("port"), 1),
        (OSError(28, "No space left on device"), 1),
        (ValueError("a wrong field"), 2),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
        (SystemExit(3), 3),
        # Raised by code that ends the process as if it had succeeded.
        (SystemExit(0), 1),
        (SystemExit(None), 1),
        (SystemExit("text"), 1),
    ],
)
@pytest.mark.parametrize("options", [(), TWO], ids=["alone", "one of several"])
def test_failed_launches_never_exit_with_0(tmp_path, monkeypatch, capsys, options, raised, status):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(launch, "join", fail)
    monkeypatch.setattr(importlib.import_module("fake_experiment").FakeExperiment, "run", fail)
    # Other tests have used devices already.
    monkeypatch.setattr(distributed, "uses_devices", lambda: False)
    # Otherwise processes that later tests start would ignore signals, too.
    monkeypatch.setattr(processes, "ignore_signals", lambda: None)
    argv = [MODULE, "--config=fake_small", f"--output_dir={tmp_path}", *options]
    try:
        assert main(argv) == status
    except Exception as error:
        # Python prints the error and exits with 1.
        assert error is raised and status == 1 and not options
    assert "Outputs" not in capsys.readouterr().out


@pytest.mark.parametrize("port", ["99999", "0", "-1", "http", ""])
def test_an_invalid_port_is_explained(capsys, port):
    error = _error(
        capsys,
        *("--config=fake_small", "--num_processes=2", "--process_id=0"),
        f"--coordinator_address=localhost:{port}",
    )
    assert f"'localhost:{port}'" in error and "PORT a number from 1 to 65535" in error


def test_a_module_that_uses_devices_before_the_rendezvous_is_named(tmp_path):
    (tmp_path / "eager.py").write_text(
        "import jax, fake_experiment\njax.devices()\n"
        "named_configs = fake_experiment.named_configs\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "mm1_jax.launch", "--module=eager", "--config=fake_small", *TWO],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error (process 0): eager: its import")
    assert "Traceback" not in result.stderr

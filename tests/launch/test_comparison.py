import json

import pytest

from mm1_jax.commands.compare import REFUSED, main
from mm1_jax.launch.__main__ import main as launch
from mm1_jax.launch.comparison import FORBIDS, MAY_CHANGE, compare_runs
from mm1_jax.launch.run_folder import RunFolder

MODULE = "--module=fake_experiment"


@pytest.fixture(autouse=True)
def _fake_experiment(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "tests")


@pytest.fixture
def run(tmp_path, capsys):
    def make(name, *argv):
        folder = tmp_path / name
        argv = [MODULE, "--config=fake_small", f"--output_dir={folder}", *argv]
        assert launch(argv) == 0
        capsys.readouterr()
        return folder

    return make


def test_differing_fields_are_listed_with_their_effect_on_resuming(run, capsys):
    a = run("a")
    b = run("b", "--config.trainer.seed=1", "--config.evals.digits_vqa.num_examples=9")
    rows = {row.path: row for row in compare_runs(RunFolder(a), RunFolder(b)).rows}
    assert set(rows) == {"trainer.seed", "evals['digits_vqa'].num_examples"}
    assert (rows["trainer.seed"].first, rows["trainer.seed"].second) == (0, 1)
    assert rows["trainer.seed"].verdict == FORBIDS
    assert rows["evals['digits_vqa'].num_examples"].verdict == MAY_CHANGE
    assert main([str(a), str(b), f"--json={a / 'differences.json'}"]) == REFUSED
    out = capsys.readouterr().out
    assert "trainer.seed" in out and "0 -> 1" in out and "1 field forbids resuming" in out
    assert json.loads((a / "differences.json").read_text())["is_refused"] is True


def test_the_verdict_equals_that_of_a_launch(run, capsys):
    a = run("a")
    argv = [MODULE, "--config=fake_small"]
    for override, status in (("trainer.seed=1", REFUSED), ("evals.digits_vqa.shots=[2]", 0)):
        options = [*argv, f"--config.{override}"]
        assert main([str(a), *options]) == status
        assert (launch([*options, f"--output_dir={a}"]) == 0) == (status == 0)
    assert main([str(a), *argv, "--config.trainer.max_steps=7"]) == REFUSED
    assert "steps made, and trainer.max_steps" in capsys.readouterr().out


def test_equal_configs_have_no_differences(run, capsys):
    a, b = run("a"), run("b")
    assert main([str(a), str(b)]) == 0
    assert "No field differs. A launch of B into the folder of A resumes" in capsys.readouterr().out


def test_a_run_without_a_checkpoint_does_not_restrict_the_next(run, capsys):
    a = run("a")
    (a / "checkpoints" / "10").rmdir()
    assert main([str(a), MODULE, "--config=fake_small", "--config.trainer.seed=1"]) == 0
    assert "A has saved nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["{a}"], "give a second run, or a config"),
        (["{a}", "{a}", "--config=fake_small"], "give a second run, or a config"),
        (["{a}", "{a}", "--config.trainer.seed=1"], "B is a run"),
        (["{a}", "{a}", "--small"], "--small changes a config"),
        (["{a}", "{a}", "--evals=digits_vqa"], "--evals changes a config"),
    ],
)
def test_a_wrong_command_line_is_explained(run, capsys, argv, said):
    a = run("a")
    with pytest.raises(SystemExit) as error:
        main([each.format(a=a) for each in argv])
    assert error.value.code == 2 and said in capsys.readouterr().err


def test_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path), MODULE, "--config=fake_small"]) == 2
    assert "no run there" in capsys.readouterr().err

import importlib
import json
from pathlib import Path

import pytest

from mm1_jax.data.tokenizer import SHIPPED_MODEL
from mm1_jax.run_folder import (
    MAY_CHANGE,
    RENAMED,
    Launch,
    RunFolder,
    config_differences,
    load_experiment,
)


@pytest.fixture(autouse=True)
def _fake_experiment(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


def _launch(**overrides) -> Launch:
    paths = {name.replace("__", "."): value for name, value in overrides.items()}
    return Launch("fake_small", "fake_experiment", paths)


def _claim(folder, **overrides):
    launch = _launch(**overrides)
    RunFolder(folder).claim(launch, launch.resolved_config())


@pytest.fixture
def run(tmp_path):
    """A folder with a run of `fake_small` that has saved a checkpoint."""
    _claim(tmp_path)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    return tmp_path


def test_a_claimed_folder_gives_its_experiment_back(tmp_path):
    overrides = {"trainer__max_steps": "7", "input__streams.1.weight": "3"}
    _claim(tmp_path, **overrides)
    cfg = load_experiment(tmp_path)
    assert cfg == _launch(**overrides).resolved_config()
    assert (cfg.trainer.max_steps, cfg.input.streams[1].weight) == (7, 3)
    assert (tmp_path / "config.txt").read_text() == cfg.debug_string() + "\n"


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no run there"):
        load_experiment(tmp_path)


def test_code_that_makes_another_config_than_the_stored_one_is_an_error(run):
    text = (run / "config.txt").read_text()
    (run / "config.txt").write_text(text.replace("seed: 0", "seed: 3"))
    with pytest.raises(ValueError, match=r"trainer\.seed: 3 -> 0"):
        load_experiment(run)


def test_the_difference_of_a_changed_config_is_field_by_field(run):
    with pytest.raises(ValueError) as error:
        _claim(run, trainer__seed="1", model__head_dim="8", input__streams__0__weight="2")
    lines = str(error.value).splitlines()
    assert lines[1:4] == [
        "  input.streams[0].weight: 1 -> 2",
        "  model.head_dim: not set -> 8",
        "  trainer.seed: 0 -> 1",
    ]
    assert "--output_dir" in lines[4]


def test_a_refused_launch_leaves_the_folder_as_it_was(run):
    before = {path.name: path.read_text() for path in run.glob("*.*")}
    with pytest.raises(ValueError):
        _claim(run, trainer__seed="1")
    assert before == {path.name: path.read_text() for path in run.glob("*.*")}


def test_evaluation_and_speed_may_change_and_are_remembered(run):
    _claim(run, evals__digits_vqa__num_examples="3", input__num_workers="2")
    cfg = load_experiment(run)
    assert (cfg.evals["digits_vqa"].num_examples, cfg.input.num_workers) == (3, 2)


def test_max_steps_may_change_only_where_the_schedule_stays(run):
    with pytest.raises(ValueError, match="decay_steps: 10 -> 20") as error:
        _claim(run, trainer__max_steps="20")
    assert "--config.trainer.optimizer.decay_steps=10" in str(error.value)
    _claim(run, trainer__max_steps="20", trainer__optimizer__decay_steps="10")
    assert load_experiment(run).trainer.max_steps == 20


def test_a_run_without_a_checkpoint_binds_nobody(tmp_path):
    _claim(tmp_path)
    _claim(tmp_path, trainer__seed="1")
    assert load_experiment(tmp_path).trainer.seed == 1


def test_half_a_checkpoint_is_none(tmp_path):
    _claim(tmp_path)
    (tmp_path / "checkpoints" / "10.orbax-checkpoint-tmp-3").mkdir(parents=True)
    assert not RunFolder(tmp_path).holds_checkpoints
    _claim(tmp_path, trainer__seed="1")
    (tmp_path / "checkpoints" / "10").mkdir()
    assert RunFolder(tmp_path).holds_checkpoints


def _leave_logs(folder):
    (folder / "quarantine.jsonl").write_text("{}\n")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events.out").touch()


def test_a_run_without_a_checkpoint_leaves_no_logs_to_the_next(tmp_path):
    _claim(tmp_path)
    _leave_logs(tmp_path)
    _claim(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"launch.json", "config.txt"}


def test_a_run_that_goes_on_keeps_its_logs(run):
    _leave_logs(run)
    _claim(run)
    assert (run / "quarantine.jsonl").exists() and (run / "tensorboard/events.out").exists()


def test_a_folder_that_held_no_run_loses_nothing(tmp_path):
    _leave_logs(tmp_path)
    _claim(tmp_path)
    assert (tmp_path / "quarantine.jsonl").exists() and (tmp_path / "tensorboard").exists()


def test_fewer_steps_than_were_made_are_refused(run):
    before = (run / "config.txt").read_text()
    overrides = {"trainer__max_steps": "9", "trainer__optimizer__decay_steps": "10"}
    with pytest.raises(ValueError, match="max_steps=9: the run in .* has made 10 steps"):
        _claim(run, **overrides)
    assert (run / "config.txt").read_text() == before


def test_a_launch_killed_between_its_two_files_is_no_run(run):
    (run / "config.txt").unlink()
    _claim(run, trainer__seed="1")
    assert json.loads((run / "launch.json").read_text())["overrides"] == {"trainer.seed": "1"}


def test_differences_are_by_path():
    differences = config_differences("a: 1\nb: 'x: y'\nc: 2", "a: 1\nb: 'x: z'\nd: 3")
    assert [str(each) for each in differences] == [
        "b: 'x: y' -> 'x: z'",
        "c: 2 -> not set",
        "d: not set -> 3",
    ]


@pytest.mark.parametrize(("then", "now"), RENAMED.items())
def test_a_class_that_was_renamed_is_no_difference(then, now):
    assert config_differences(f"a.klass: {then!r}\nb: 1\n", f"a.klass: {now!r}\nb: 1\n") == []
    (difference,) = config_differences(f"a.klass: '{then}X'\n", f"a.klass: {now!r}\n")
    assert difference.path == "a.klass"
    # The name of now is that of a class.
    module, _, name = now.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_what_may_change_is_a_field_and_not_the_beginning_of_a_name(run):
    assert "trainer.max_steps" in MAY_CHANGE
    text = (run / "config.txt").read_text()
    (run / "config.txt").write_text(text + "trainer.max_steps_more: 1\n")
    with pytest.raises(ValueError, match="max_steps_more"):
        _claim(run)


def test_an_override_mends_what_does_not_fit(tmp_path, monkeypatch):
    """A tokenizer of another size lies where the config, without its overrides, looks for one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tokenizer.model").write_bytes(SHIPPED_MODEL.read_bytes())
    with pytest.raises(ValueError, match="num_pieces=32000, but .* has 704"):
        Launch("mm1_3b").resolved_config()
    cfg = Launch("mm1_3b", None, {"input.tokenizer.num_pieces": "704"}).resolved_config()
    assert cfg.model.decoder.vocab_size == 704

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mm1_jax.checkpoints.checkpoint_folder import checkpoints_of
from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.data.tokenizers.sentencepiece import SHIPPED_MODEL
from mm1_jax.launch.launch import Launch
from mm1_jax.launch.run_folder import MAY_CHANGE, RunFolder, load_experiment
from mm1_jax.stored_config import DEFAULTS, flat_fields, read_fields


@pytest.fixture(autouse=True)
def _fake_experiment(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])


def _launch(**overrides) -> Launch:
    paths = {name.replace("__", "."): value for name, value in overrides.items()}
    return Launch("fake_small", "fake_experiment", paths)


def _claim(folder, **overrides) -> Any:
    """Claims a folder as a launch does, and returns the config that it trains."""
    launch = _launch(**overrides)
    return launch.resolved_config(RunFolder(folder).claim(launch, launch.resolved_config()))


def _store(run, now, then):
    """Replaces the line `now` of the run's stored config by `then`."""
    path = run / "config.txt"
    text = path.read_text()
    assert text.count(now) == 1
    text = text.replace(now, then)
    path.write_text(text)
    fields = run / "config.json"
    if fields.exists():
        digest = hashlib.sha256(text.encode()).hexdigest()
        fields.write_text(json.dumps({"text": digest, "fields": read_fields(text)}))


@pytest.fixture(params=["with fields", "text alone"])
def run(tmp_path, request):
    """A folder with a run of `fake_small` that has saved a checkpoint.

    Earlier code stored the text alone.
    """
    _claim(tmp_path)
    if request.param == "text alone":
        (tmp_path / "config.json").unlink()
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    return tmp_path


def test_a_claimed_folder_restores_its_experiment(tmp_path):
    overrides = {"trainer__max_steps": "7", "input__streams.1.weight": "3"}
    _claim(tmp_path, **overrides)
    cfg = load_experiment(tmp_path)
    assert cfg == _launch(**overrides).resolved_config()
    assert (cfg.trainer.max_steps, cfg.input.streams[1].weight) == (7, 3)
    assert (tmp_path / "config.txt").read_text() == cfg.debug_string() + "\n"


def test_fields_are_stored_beside_the_text(tmp_path):
    cfg = _claim(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["fields"] == flat_fields(cfg)
    assert stored["fields"]["input.fit"] == "Fit.STRETCH"


@pytest.mark.parametrize("content", ["", "[]", "{}", None])
def test_the_text_wins_if_the_fields_do_not_match_it(tmp_path, content):
    _claim(tmp_path)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    path = tmp_path / "config.txt"
    path.write_text(path.read_text().replace("seed: 0", "seed: 3"))
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert load_experiment(tmp_path).trainer.seed == 3


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no run there"):
        load_experiment(tmp_path)


def test_stored_values_of_a_run_are_restored(run, capsys):
    """The code and its experiment have other values now."""
    _store(run, "seed: 0", "seed: 3")
    _store(run, "input.fit: <Fit.STRETCH: 'stretch'>", "input.fit: <Fit.PAD: 'pad'>")
    _store(run, "input.mean[1]: 0.5", "input.mean[1]: 0.25")
    _store(run, "model.dtype: 'float32'\n", "model.dtype: 'bfloat16'\nmodel.head_dim: 8\n")
    cfg = load_experiment(run)
    assert (cfg.trainer.seed, cfg.input.fit.value, cfg.input.mean) == (3, "pad", (0.5, 0.25))
    assert (cfg.model.dtype, cfg.model.head_dim) == ("bfloat16", 8)
    assert cfg.debug_string() + "\n" == (run / "config.txt").read_text()
    assert "trainer.seed: 3 -> 0" in capsys.readouterr().err


def test_derived_values_follow_from_stored_values(run):
    _store(run, "connector.num_image_tokens: 4", "connector.num_image_tokens: 9")
    _store(run, "input.num_image_tokens: 4", "input.num_image_tokens: 9")
    assert load_experiment(run).input.num_image_tokens == 9


def test_code_that_cannot_make_the_stored_config_is_an_error(run):
    _store(run, "model.tied: True", "model.tied: True\nmodel.gone: 1")
    _store(run, "'fake_experiment.Connector'", "'fake_experiment.Gone'")
    with pytest.raises(ValueError) as error:
        load_experiment(run)
    assert "model.gone: 1 -> not set" in str(error.value)
    assert "model.connector.klass: 'fake_experiment.Gone' -> 'fake_exp" in str(error.value)


@pytest.fixture
def changed_default(run, monkeypatch):
    """The default of `trainer.optimizer.clip` was 2 when `run` was trained, and is 1 now."""
    monkeypatch.setitem(DEFAULTS, ("fake_experiment.Optimizer", "clip"), (2, 1))
    _store(run, "clip: 1", "clip: 2")
    return run


def test_a_run_keeps_the_default_that_it_was_trained_with(changed_default, capsys):
    for _ in range(2):
        assert _claim(changed_default).trainer.optimizer.clip == 2
        assert "trainer.optimizer.clip: 2\n" in (changed_default / "config.txt").read_text()
        (line,) = capsys.readouterr().err.splitlines()
        assert "trainer.optimizer.clip: 2 -> 1" in line


@pytest.mark.parametrize("clip", ["1", "3"])
def test_a_changed_default_does_not_permit_a_chosen_value(changed_default, clip):
    with pytest.raises(ValueError, match=f"optimizer.clip: 2 -> {clip}"):
        _claim(changed_default, trainer__optimizer__clip=clip)


def test_a_chosen_value_is_not_taken_for_a_former_default(changed_default):
    _store(changed_default, "clip: 2", "clip: 4")
    with pytest.raises(ValueError, match="optimizer.clip: 4 -> 1"):
        _claim(changed_default)


def test_a_run_older_than_a_field_gets_the_equivalent_value(run, monkeypatch, capsys):
    monkeypatch.setitem(DEFAULTS, ("fake_experiment.Model", "tied"), (False, True))
    _store(run, "model.tied: True\n", "")
    assert not load_experiment(run).model.tied
    assert not _claim(run).model.tied
    assert "model.tied: False" in (run / "config.txt").read_text()
    monkeypatch.setitem(DEFAULTS, ("fake_experiment.Model", "tied"), (True,))
    _store(run, "model.tied: False\n", "")
    capsys.readouterr()
    assert _claim(run).model.tied
    assert capsys.readouterr().err == ""


def test_a_former_default_of_none_is_restored(run, monkeypatch):
    monkeypatch.setitem(DEFAULTS, ("fake_experiment.Input", "path"), (None, "x"))
    launch = _launch()
    cfg = launch.resolved_config()
    cfg.input.path = "x"
    assert RunFolder(run).claim(launch, cfg) == {"input.path": None}


def test_a_run_without_a_checkpoint_gets_the_present_default(changed_default):
    (changed_default / "checkpoints" / "10").rmdir()
    assert _claim(changed_default).trainer.optimizer.clip == 1


def test_a_changed_config_is_reported_field_by_field(run):
    with pytest.raises(ValueError) as error:
        _claim(run, trainer__seed="1", model__head_dim="8", input__streams__0__weight="2")
    lines = str(error.value).splitlines()
    assert lines[1:4] == [
        "  input.streams[0].weight: 1 -> 2",
        "  model.head_dim: not set -> 8",
        "  trainer.seed: 0 -> 1",
    ]
    assert "--output_dir" in lines[4]


def test_a_rejected_launch_does_not_change_the_folder(run):
    before = {path.name: path.read_text() for path in run.glob("*.*")}
    with pytest.raises(ValueError):
        _claim(run, trainer__seed="1")
    assert before == {path.name: path.read_text() for path in run.glob("*.*")}


def test_evaluation_and_speed_fields_may_change_and_are_stored(run):
    _claim(run, evals__digits_vqa__num_examples="3", input__num_workers="2")
    cfg = load_experiment(run)
    assert (cfg.evals["digits_vqa"].num_examples, cfg.input.num_workers) == (3, 2)


def test_max_steps_may_change_only_if_the_schedule_does_not(run):
    with pytest.raises(ValueError, match="decay_steps: 10 -> 20") as error:
        _claim(run, trainer__max_steps="20")
    assert "--config.trainer.optimizer.decay_steps=10" in str(error.value)
    _claim(run, trainer__max_steps="20", trainer__optimizer__decay_steps="10")
    assert load_experiment(run).trainer.max_steps == 20


def test_a_run_without_a_checkpoint_does_not_restrict_the_next(tmp_path):
    _claim(tmp_path)
    _claim(tmp_path, trainer__seed="1")
    assert load_experiment(tmp_path).trainer.seed == 1


def test_an_incomplete_checkpoint_does_not_count(tmp_path):
    _claim(tmp_path)
    (tmp_path / "checkpoints" / "10.orbax-checkpoint-tmp-3").mkdir(parents=True)
    _claim(tmp_path, trainer__seed="1")
    (tmp_path / "checkpoints" / "10").mkdir()
    with pytest.raises(ValueError, match="trainer.seed: 1 -> 0"):
        _claim(tmp_path)


def _leave_logs(folder):
    (folder / "quarantine.jsonl").write_text("{}\n")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events.out").touch()


def test_logs_of_a_run_without_a_checkpoint_are_removed(tmp_path):
    _claim(tmp_path)
    _leave_logs(tmp_path)
    _claim(tmp_path)
    assert not {path.name for path in tmp_path.iterdir()} & {"quarantine.jsonl", "tensorboard"}


def test_a_resumed_run_keeps_its_logs(run):
    _leave_logs(run)
    _claim(run)
    assert (run / "quarantine.jsonl").exists() and (run / "tensorboard/events.out").exists()


def test_a_folder_without_a_run_loses_nothing(tmp_path):
    _leave_logs(tmp_path)
    _claim(tmp_path)
    assert (tmp_path / "quarantine.jsonl").exists() and (tmp_path / "tensorboard").exists()


def test_fewer_steps_than_already_trained_are_rejected(run):
    before = (run / "config.txt").read_text()
    overrides = {"trainer__max_steps": "9", "trainer__optimizer__decay_steps": "10"}
    with pytest.raises(ValueError, match="max_steps=9: the run in .* has already made 10 steps"):
        _claim(run, **overrides)
    assert (run / "config.txt").read_text() == before


def test_a_launch_killed_between_its_two_files_does_not_count(tmp_path):
    _claim(tmp_path)
    (tmp_path / "config.txt").unlink()
    _claim(tmp_path, trainer__seed="1")
    assert json.loads((tmp_path / "launch.json").read_text())["overrides"] == {"trainer.seed": "1"}


def test_checkpoints_without_a_config_are_not_resumed(run):
    (run / "config.txt").unlink()
    with pytest.raises(ValueError, match="up to step 10, but .*config.txt.* is missing"):
        _claim(run)


def test_fields_that_may_change_match_whole_names(run):
    assert "trainer.max_steps" in MAY_CHANGE
    text = (run / "config.txt").read_text()
    (run / "config.txt").write_text(text + "trainer.max_steps_more: 1\n")
    with pytest.raises(ValueError, match="max_steps_more"):
        _claim(run)


def test_an_override_fixes_an_inconsistent_config(tmp_path, monkeypatch):
    """Without the override, the tokenizer in the folder has another size than the config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tokenizer.model").write_bytes(SHIPPED_MODEL.read_bytes())
    # Without a module, tests/experiments would be the user's experiments: tests/ is on the path.
    module = "experiments.pretrain"
    with pytest.raises(ValueError, match="num_pieces=32000, but .* has 704"):
        Launch("mm1_3b", module).resolved_config()
    cfg = Launch("mm1_3b", module, {"input.tokenizer.num_pieces": "704"}).resolved_config()
    assert cfg.model.decoder.vocab_size == 704


def _save(folder, step=10):
    (folder / str(step)).mkdir(parents=True)


def test_two_runs_do_not_share_checkpoints(tmp_path):
    shared = {"trainer__checkpointer__location": str(tmp_path / "shared")}
    _claim(tmp_path / "a", **shared)
    _save(tmp_path / "shared")
    for _ in range(2):
        with pytest.raises(ValueError) as error:
            _claim(tmp_path / "b", **shared)
        for folder in ("a", "b", "shared"):
            assert str(tmp_path / folder) in str(error.value)
    assert not (tmp_path / "b" / "config.txt").exists()
    _claim(tmp_path / "a", **shared)
    # A separate run, which is then told to save there.
    _claim(tmp_path / "b")
    with pytest.raises(ValueError, match="belong to the run in"):
        _claim(tmp_path / "b", **shared)


def test_two_runs_that_start_together_do_not_share_checkpoints(tmp_path):
    """The first run is active and has not saved yet."""
    shared = {"trainer__checkpointer__location": str(tmp_path / "shared")}
    with RunFolder(tmp_path / "a").lock():
        _claim(tmp_path / "a", **shared)
        with pytest.raises(ValueError, match="belong to the run in"):
            _claim(tmp_path / "b", **shared)
    _claim(tmp_path / "b", **shared)


def test_a_copied_run_does_not_share_the_checkpoints_of_the_first(tmp_path):
    shared = {"trainer__checkpointer__location": str(tmp_path / "shared")}
    _claim(tmp_path / "a", **shared)
    _save(tmp_path / "shared")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    with pytest.raises(ValueError, match="belong to the run in"):
        _claim(tmp_path / "copy", **shared)
    (tmp_path / "a").rename(tmp_path / "moved")
    _claim(tmp_path / "moved", **shared)


def test_checkpoints_of_another_run_are_not_read(tmp_path):
    for name in ("a", "b"):
        _claim(tmp_path / name)
        _save(tmp_path / name / "checkpoints")
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    shutil.copytree(tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints")
    for read in (load_experiment, _claim, StoredParams):
        with pytest.raises(ValueError, match=f"belong to the run in {tmp_path / 'a'}"):
            read(tmp_path / "b")


def test_a_moved_folder_is_the_same_run(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    load_experiment(moved)
    _claim(moved)
    (moved / "run.json").write_text("damaged")
    _claim(moved)


def test_checkpoints_of_earlier_code_are_accepted_with_a_note(run, capsys):
    for path in (run / "run.json", run / "checkpoints" / "run.json"):
        path.unlink()
    load_experiment(run)
    assert f"{run / 'checkpoints'} has no run.json" in capsys.readouterr().err
    _claim(run)
    load_experiment(run)
    assert capsys.readouterr().err == ""


def test_checkpoints_of_earlier_code_are_not_attributed_to_a_new_run(tmp_path):
    _claim(tmp_path / "run")
    _save(tmp_path / "old")
    with pytest.raises(ValueError, match="holds checkpoints up to step 10 of an unknown run"):
        _claim(tmp_path / "run", trainer__checkpointer__location=str(tmp_path / "old"))


def test_a_relative_location_is_below_the_output_folder(tmp_path, monkeypatch):
    location = {"trainer__checkpointer__location": "saved/here"}
    _claim(tmp_path / "run", **location)
    _save(tmp_path / "run" / "saved" / "here")
    monkeypatch.chdir(tmp_path / "run")
    assert checkpoints_of(tmp_path / "run") == tmp_path / "run" / "saved" / "here"
    with pytest.raises(ValueError, match="trainer.seed"):
        _claim(tmp_path / "run", trainer__seed="1", **location)


def test_a_run_does_not_lose_its_checkpoints_to_a_new_location(run, tmp_path):
    location = {"trainer__checkpointer__location": str(tmp_path / "elsewhere")}
    with pytest.raises(ValueError, match="has made 10 steps, saved in"):
        _claim(run, **location)
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    _claim(run, **location)


@pytest.mark.parametrize("location", ["hdfs://a/b", "gs://bucket/run", "s3://bucket/run"])
def test_an_inaccessible_store_is_an_error_before_training(tmp_path, location):
    with pytest.raises(ValueError, match=f"trainer.checkpointer.location={location}: "):
        _claim(tmp_path / "run", trainer__checkpointer__location=location)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"name": "x"}', '{"config": "fake_small", "overrides": []}']
)
def test_a_damaged_launch_file_is_named_and_rewritten(run, text):
    (run / "launch.json").write_text(text)
    with pytest.raises(ValueError, match="launch.json: missing or damaged"):
        load_experiment(run)
    _claim(run)
    assert load_experiment(run).trainer.max_steps == 10


@pytest.mark.parametrize("text", ["", "\x00\n", "model.dtype: 'float32'"])
def test_a_damaged_config_is_named(run, text):
    (run / "config.txt").write_text(text)
    for read in (load_experiment, _claim):
        with pytest.raises(ValueError, match="config.txt: damaged"):
            read(run)

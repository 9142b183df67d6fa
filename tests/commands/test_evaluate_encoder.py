"""`python -m mm1_jax evaluate_encoder` scores the encoder of a run."""

import json
from pathlib import Path

import pytest
from picture_sets import picture, write_class_folders, write_shards

from experiments import tiny_encoders
from mm1_jax.commands import evaluate_encoder as tool
from mm1_jax.evals.encoders import runner
from mm1_jax.evals.encoders.attentive_probe import AttentiveProbe
from mm1_jax.evals.encoders.layouts import PictureFiles
from mm1_jax.experiment import Experiment

PROBES = ("--probe=linear,attentive", "--set=attentive_probe.num_epochs=2", "--batch_size=8")


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data") / "colors", number=5)


def evaluate(folder: Path, output: Path, *flags: str) -> int:
    return tool.main([f"--checkpoint={folder}", f"--output={output}", *flags])


def test_probes_of_the_encoder_of_a_multimodal_run_are_reported(run, colors, tmp_path, capsys):
    folder, _, _ = run
    baselines = ("--baselines=random,pixels", f"--json={tmp_path / 'scores.json'}")
    output = tmp_path / "out"
    assert evaluate(folder, output, f"--datasets={colors}", *PROBES, *baselines) == 0
    content = json.loads((output / "report.json").read_text())
    scores = content["scores"]
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    keys = {"linear_probe", "linear_probe_random", "linear_probe_pixels"}
    keys |= {"attentive_probe", "attentive_probe_random"}
    assert {key.split("/")[1] for key in scores} == keys
    assert scores["colors/linear_probe_pixels/acc1"] == 1.0
    for key in keys:
        assert 0 <= scores[f"colors/{key}/acc1_low95"] <= scores[f"colors/{key}/acc1"] <= 1
    report = (output / "report.md").read_text()
    assert report in capsys.readouterr().out
    assert ", step 7" in report and "| colors | linear | pixels | 100.0 [100.0, 100.0] |" in report
    assert "10 pictures" not in report and "on 192 features (pixels) of 15 pictures" in report


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "encodes no text, so only probes can score it; give --probe=linear"),
        (["--datasets=x", "--probe=linear"], "x: no such file or folder"),
        (["--probe=linear", "--set=linear_probe.l3=1"], "has no field 'l3'; it has"),
        (["--probe=linear", "--set=l2s=1"], "expected NAME.FIELD=VALUE"),
        (["--probe=linear", "--step=4"], "step=4: no complete checkpoint"),
        (["--probe=linear", "--mesh=rows=2"], "expected sizes of some of data"),
    ],
)
def test_an_invalid_command_explains_how_to_fix_it(flags, message, run, colors, tmp_path, capsys):
    given = [f"--datasets={colors}"] * ("--datasets=x" not in flags)
    assert evaluate(run[0], tmp_path / "out", *given, *flags) == 2
    assert message in capsys.readouterr().err


def test_data_sets_that_the_model_cannot_be_scored_on_are_refused(run, tmp_path, capsys):
    samples = [[{"png": picture("red", 0), "txt": b"red"}]]
    captions = write_shards(tmp_path / "captions", samples, dataset_type="retrieval")
    assert evaluate(run[0], tmp_path / "out", f"--datasets={captions}") == 2
    assert "captions has captions, and the model of" in capsys.readouterr().err
    assert evaluate(run[0], tmp_path / "out") == 2
    assert "--datasets: required, as the run has no evaluators" in capsys.readouterr().err
    assert evaluate(tmp_path / "x", tmp_path / "out") == 2
    assert "no such folder; give a run's output folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.parse(["--checkpoint=x", "--probe=quadratic"])
    assert "expected some of linear, attentive" in capsys.readouterr().err


def test_two_processes_give_the_same_scores_as_one(run, by_two, colors, tmp_path):
    asked = (f"--datasets={colors}", *PROBES, "--set=attentive_probe.max_gigabytes=1e-9")
    assert evaluate(run[0], tmp_path / "one", *asked) == 0
    codes, said = by_two(*asked, f"--output={tmp_path / 'two'}", command="evaluate_encoder")
    assert codes == [0, 0], said
    assert [", step 7\n" in output for output, _ in said] == [True, False]
    one, two = (json.loads((tmp_path / x / "report.json").read_text()) for x in ("one", "two"))
    assert one["scores"] == two["scores"]


def test_probes_of_the_run_are_used_as_they_are(colors, tmp_path):
    """Without --datasets, a run of an encoder without texts is scored by its own probes."""
    data = PictureFiles.default_config().set(path=str(colors), key="colors")
    own = AttentiveProbe.default_config().set(name="colors", data=data, num_epochs=3)
    own.preprocessing.crop = 0.9
    experiment = tiny_encoders.aim_tiny()
    experiment.evals = {"own": own}
    experiment = Experiment.resolve(experiment)
    flags = tool.parse([f"--checkpoint={tmp_path}", "--baselines=random", "--seed=4"])
    tasks = runner.tasks_of(flags, experiment)
    assert [(task.key, task.scored) for task in tasks] == [
        ("colors/attentive_probe", "model"),
        ("colors/attentive_probe/random", "random"),
    ]
    for task in tasks:
        cfg = task.evaluator.config
        assert (cfg.num_epochs, cfg.preprocessing.crop, cfg.seed) == (3, 0.9, 4)
    flags = tool.parse([f"--checkpoint={tmp_path}", "--crop=0.8", "--probe=linear,attentive"])
    chosen = {task.key: task.evaluator.config for task in runner.tasks_of(flags, experiment)}
    assert chosen.keys() == {"colors/linear_probe", "colors/attentive_probe"}
    assert chosen["colors/attentive_probe"].num_epochs == 3
    assert {cfg.preprocessing.crop for cfg in chosen.values()} == {0.8}

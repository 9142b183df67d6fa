"""`python -m mm1_jax run_study` plans, runs and reports a study; designs are checked."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mm1_jax.commands import run_study
from mm1_jax.studies import report as reports
from mm1_jax.studies import study as designs
from mm1_jax.studies.results import Results
from mm1_jax.studies.study import Cell, Metric

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(study, make_runner, tmp_path, monkeypatch):
    """Runs the command on the small study; returns its exit status."""
    monkeypatch.setattr(designs, "load_study", lambda name: study)
    folders = [f"--out={tmp_path}/out", f"--runs={tmp_path}/runs"]
    return lambda *words: run_study.main(["--study=small", *folders, *words])


def test_the_plan_counts_what_is_left(command, starts, capsys):
    assert command("--plan") == 0
    printed = capsys.readouterr().out
    assert "6 runs: 0 done, 6 left, which take about 21 min, and 15 min for stages" in printed
    assert command("--index=1") == 0 and starts() == {"pretraining/0": 1, "tiles/0": 1}
    capsys.readouterr()
    assert command("--plan") == 0
    printed = capsys.readouterr().out
    assert "1  tiles, seed 0     done in" in printed and "6 runs: 1 done, 5 left" in printed


def test_the_report_has_verdicts_scores_and_a_figure(command, tmp_path, capsys):
    assert command("--seeds=0,1") == 0
    text = (tmp_path / "out" / "small" / "report.md").read_text()
    assert "4 of 6 runs are done" in text and "Not done: one_view, seed 2; tiles, seed 2" in text
    assert "1.000 [1.000, 1.000] | 0.1 | 2 | **reproduced**" in text
    assert "| tiles | 1.005 [0.941, 1.069] |" in text
    has_figure = importlib.util.find_spec("matplotlib") is not None
    assert (tmp_path / "out" / "small" / "figure.png").exists() == has_figure


def test_a_report_without_results_or_matplotlib_is_written(study, tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "Figure", None)
    (file,) = reports.write_report(study, {}, tmp_path)
    assert "0 of 6 runs" in file.read_text() and "**undecided**" in file.read_text()


def test_an_index_outside_of_the_study_is_an_error(command, capsys):
    assert command("--index=6") == 2
    assert "--index=6: expected one of 0 to 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tiles,0,abc,1,1,1,x", "the row of tiles, seed 0 is of a design 'abc'"),
        ("tiles,0,1", "is no row of the columns"),
        ("<<<<<<< HEAD", "is no row of the columns"),
    ],
)
def test_rows_that_do_not_belong_to_the_design_are_refused(results, study, line, message):
    results.path.parent.mkdir()
    header = "arm,seed,design,boxes,both,minutes,commit"
    results.path.write_text(f"{header}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        results.read()
    other = dataclasses.replace(study, metrics=[Metric("boxes", ("a",))])
    with pytest.raises(ValueError, match="its columns are arm,seed,design,boxes,both"):
        Results(results.path, other).read()


def test_cells_are_in_the_order_of_their_indices(study):
    assert study.cells()[:3] == [Cell("one_view", 0), Cell("tiles", 0), Cell("one_view", 1)]


def test_an_inconsistent_design_is_refused(study):
    with pytest.raises(ValueError, match="{pretraining} is no stage"):
        dataclasses.replace(study, stages=[])
    with pytest.raises(ValueError, match="reference='none': expected one of one_view, tiles"):
        dataclasses.replace(study, reference="none")
    with pytest.raises(ValueError, match="claim about the boxes of tiles"):
        dataclasses.replace(study, arms=study.arms[:1])


def test_an_unknown_study_is_named(capsys):
    assert run_study.main(["--study=sft_resolutions", "--plan"]) == 2
    assert "there is no such study; known: " in capsys.readouterr().err


def test_studies_of_the_user_count_as_well(tmp_path):
    (tmp_path / "experiments" / "studies").mkdir(parents=True)
    (tmp_path / "experiments" / "studies" / "mine.py").write_text(
        "from mm1_jax.studies.study import Study, Arm\n"
        "def study():\n"
        "    return Study('Nothing.', [Arm('a', 'mm1_tiny')], 'a', [], [])\n"
    )
    code = (
        "from mm1_jax.studies.study import load_study, studies; "
        "print(load_study('mine').cells()[0], {'mine', 'sft_resolution'} <= {*studies()})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "a, seed 0 True\n"

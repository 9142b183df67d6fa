"""`python -m mm1_jax compare_runs` compares means over seeds."""

import json

import numpy as np
import pytest
import scipy.stats

from mm1_jax.commands import compare_runs as tool


@pytest.fixture
def runs(tmp_path):
    """Three runs of one kind and two of another, one of which has only scores."""
    values = {"a": [0.5, 0.6, 0.7], "b": [0.1, 0.3]}
    words = []
    for kind, numbers in values.items():
        for seed, x in enumerate(numbers):
            folder = tmp_path / kind / str(seed)
            folder.mkdir(parents=True)
            name = "scores.json" if (kind, seed) == ("b", 1) else "report.json"
            metrics = {"vqa/0/acc": x, "vqa/4/acc": x + 0.1, "name": "text"}
            if kind == "a":
                metrics["loss"] = 1.0
            (folder / name).write_text(json.dumps(metrics))
            words.append(f"{kind}={folder}" if seed == 0 else str(folder))
    return words


def test_intervals_equal_those_of_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=4).tolist(), rng.normal(1, 3, size=3).tolist()
    one, both = tool.estimate(x), tool.difference(x, y)
    low, high = scipy.stats.ttest_1samp(x, 0).confidence_interval()
    np.testing.assert_allclose([one.mean - one.half_width, one.mean + one.half_width], [low, high])
    low, high = scipy.stats.ttest_ind(x, y, equal_var=False).confidence_interval()
    np.testing.assert_allclose(
        [both.mean - both.half_width, both.mean + both.half_width], [low, high]
    )
    assert tool.estimate([2.0]) == tool.Estimate(2.0, None)
    assert tool.difference([2.0, 3.0], [1.0]) == tool.Estimate(1.5, None)
    assert tool.difference([2.0, 2.0], [1.0, 1.0]) == tool.Estimate(1.0, 0.0)


def test_runs_are_compared_by_kind(runs, tmp_path, capsys):
    file = tmp_path / "table.json"
    assert tool.main([*runs, "--metrics=vqa/*/acc", f"--json={file}"]) == 0
    printed = capsys.readouterr().out
    assert "| metric | a | b | b - a |" in printed
    assert "| vqa/0/acc | 0.6000 \u00b1 0.2484 | 0.2000 \u00b1 1.2706 | -0.4000 \u00b1" in printed
    assert "3 of a, 2 of b" in printed
    table = json.loads(file.read_text())
    assert list(table) == ["vqa/0/acc", "vqa/4/acc"]
    assert table["vqa/0/acc"]["b"]["values"] == [0.1, 0.3]


def test_a_pattern_matches_several_folders(runs, tmp_path, capsys):
    assert tool.main([*runs, "--metrics=vqa/*/acc"]) == 0
    expected = capsys.readouterr().out
    patterns = [f"{kind}={tmp_path}/{kind}/*" for kind in "ab"]
    assert tool.main([*patterns, "--metrics=vqa/*/acc"]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: ["x", *runs], "give the first run as NAME=FOLDER"),
        (lambda runs: [*runs, runs[0]], "'a' was given before"),
        (lambda runs: [*runs, "c=nowhere"], "nowhere: neither report.json nor scores.json"),
        (lambda runs: [*runs, "--metrics=vqb/*"], "matches none of vqa/0/acc"),
        (lambda runs: [*runs, "--metrics=loss"], "loss is missing in b, run 1; b, run 2"),
    ],
)
def test_incomparable_runs_are_reported(change, message, runs, capsys):
    assert tool.main(change(runs)) == 2
    assert message in capsys.readouterr().err

import json

import numpy as np
import pytest
from PIL import Image

from mm1_jax.train.logs.report import is_reported, summarize_training, write_report
from mm1_jax.train.logs.sample_pictures import (
    TILE_HEIGHT,
    TILE_WIDTH,
    _answer_and_reference,
    choose_samples,
    sample_grid,
    sample_tile,
)

METRICS = {
    "digits_vqa/0/accuracy": 0.97,
    "digits_vqa/4/accuracy": 0.5,
    "digits_caption/0/exact_match": 0.25,
    "held_out_loss/0/digits_captions": 1.5,
    "something_else": 3.0,
}
CORPORA = {"digits_captions": {"documents": 1200, "epochs": 0.5}, "text": {"documents": 3}}


def step_records(num_steps, experts=False):
    record = {"step_seconds": 0.5, "tokens": 100, "images": 8, "loss": 2.0}
    if experts:
        record |= {"expert_load": [[0.75, 0.25], [0.5, 0.5]], "dropped_share": 0.125}
    return [{**record, "step": step + 1} for step in range(num_steps)]


def write(folder, samples=(), experts=False, failures=None):
    training = summarize_training(step_records(4, experts), num_parameters=12345)
    write_report(
        folder,
        title="A run",
        training=training,
        evaluation=METRICS,
        evaluators="[digits_vqa]\nshots: 4\n",
        failures=failures,
        samples=samples,
        accounting=CORPORA,
    )
    return (folder / "report.md").read_text()


def test_the_report_has_a_table_of_benchmarks_by_shots(tmp_path):
    text = write(tmp_path)
    assert "| benchmark | metric | 0 shots | 4 shots |" in text
    assert "| digits_vqa | accuracy | 0.9700 | 0.5000 |" in text
    assert "| digits_caption | exact_match | 0.2500 |  |" in text
    assert "| digits_captions | 1.5000 |" in text
    assert "| something_else | 3.0000 |" in text
    assert "| parameters | 12,345 |" in text
    assert "| tokens per second | 200 |" in text
    assert "| digits_captions | 1,200 | 0.5000 |" in text
    assert "samples.png" not in text and "Expert load" not in text


def test_report_json_is_flat_and_contains_every_metric(tmp_path):
    write(tmp_path, experts=True)
    values = json.loads((tmp_path / "report.json").read_text())
    assert METRICS.items() <= values.items()
    assert all(isinstance(value, (int, float)) for value in values.values())
    assert values["training/steps"] == 4
    assert values["training/seconds"] == 2.0
    assert values["expert_load/0/1"] == 0.25
    assert values["training/dropped_share"] == 0.125


def test_the_report_shows_the_load_of_every_expert(tmp_path):
    text = write(tmp_path, experts=True)
    assert "| MoE layer | expert 0 | expert 1 |" in text
    assert "| 0 | 0.7500 | 0.2500 |" in text
    assert "an even share would be 0.500" in text and "dropped: 0.1250" in text


def test_a_report_identifies_its_step_and_evaluators(tmp_path):
    evaluators = "[digits_vqa]\nshots: 4\n"
    assert not is_reported(tmp_path, 4, evaluators)
    write(tmp_path)
    assert is_reported(tmp_path, 4, evaluators)
    assert not is_reported(tmp_path, 5, evaluators)
    assert not is_reported(tmp_path, 4, evaluators.replace("4", "8"))


def test_a_report_with_a_failure_says_so_and_is_incomplete(tmp_path):
    write(tmp_path)
    text = write(tmp_path, failures={"scenes_vqa": "ValueError: no pictures"})
    assert "| scenes_vqa | ValueError: no pictures |" in text
    assert "| digits_vqa | accuracy | 0.9700 | 0.5000 |" in text
    assert not is_reported(tmp_path, 4, "[digits_vqa]\nshots: 4\n")


def test_a_report_needs_a_step():
    with pytest.raises(ValueError, match="at least one step"):
        summarize_training([], num_parameters=1)


def test_the_grid_has_a_tile_for_every_sample(tmp_path, fakes):
    samples = [fakes.sample(True), fakes.sample(False), fakes.sample(None, "other")]
    assert "samples.png" in write(tmp_path, samples)
    grid = np.asarray(Image.open(tmp_path / "samples.png"))
    assert grid.shape == (TILE_HEIGHT, 8 * TILE_WIDTH, 3)
    tiles = np.split(grid, 8, axis=1)
    for tile, sample in zip(tiles, samples, strict=False):
        np.testing.assert_array_equal(tile, sample_tile(sample))
    assert (tiles[3] == 255).all()
    assert sample_grid(samples, num_columns=2).shape == (2 * TILE_HEIGHT, 2 * TILE_WIDTH, 3)


def test_right_and_wrong_answers_have_frames_of_different_colors(fakes):
    right, wrong = (sample_tile(fakes.sample(correct))[3, 3] for correct in (True, False))
    assert right[1] > right[0] and wrong[0] > wrong[1]


def test_a_wrong_answer_is_shown_beside_the_reference():
    assert _answer_and_reference("3", "7") == ["answer 3, expected 7"]
    words = "a large red circle and a small blue square on it, to the left of another one"
    lines = _answer_and_reference(words, f"not {words}")
    assert lines[0].startswith("answer a large") and lines[2].startswith("expected not a")
    # As many lines as a tile has for them; what is cut says so.
    assert len(lines) == 4 and all(len(line) <= 28 for line in lines)
    assert lines[1].endswith("...") and lines[3].endswith("...")


def test_samples_are_chosen_evenly_and_only_with_pictures(fakes):
    many = [fakes.sample(True, "many") for _ in range(5)]
    few = [fakes.sample(True, "few") for _ in range(2)]
    blind = fakes.sample(True, "blind")
    blind.image = None
    assert choose_samples([*many, blind, *few], 4) == [*many[:2], *few]
    assert choose_samples([blind], 4) == []
    assert len(choose_samples([*many, *few], 100)) == 7

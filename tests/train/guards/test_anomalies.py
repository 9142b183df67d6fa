import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm1_jax.train.guards.anomalies import Anomalies, ExcludedSteps, NonFiniteLoss


def record(step, norm=1.0, loss=2.0):
    return {
        "step": step,
        "total_loss": loss,
        "grad_norm": norm,
        "learning_rate": 0.1,
        "loss/captions": loss,
    }


def judge(records, **fields):
    anomalies = Anomalies.default_config().set(**fields).instantiate()
    return [anomalies.judge(each) for each in records]


@pytest.mark.parametrize("bad", [{"norm": np.nan}, {"loss": np.inf}])
def test_non_finite_losses_stop_the_run_by_default(bad):
    with pytest.raises(NonFiniteLoss, match="step 3: .*captions") as error:
        judge([record(1), record(2), record(3, **bad)])
    assert error.value.step == 3


def test_skipped_steps_are_reported_and_too_many_in_a_row_stop_the_run():
    bad = [record(step, norm=np.nan) for step in range(1, 4)]
    assert all("is skipped" in text for text in judge(bad, policy="skip", max_in_a_row=3))
    with pytest.raises(NonFiniteLoss, match="3 in a row"):
        judge(bad, policy="skip", max_in_a_row=2)
    # A normal step in between resets the count.
    assert len(judge([*bad[:2], record(3), *bad[:2]], policy="skip", max_in_a_row=2)) == 5


def test_a_spike_is_relative_to_the_median():
    calm = [record(step, norm=1 + step % 3) for step in range(1, 31)]
    assert judge([*calm, record(31, norm=19)], spike_factor=10.0)[-1] is None
    with pytest.raises(NonFiniteLoss, match="10.5 times the median"):
        judge([*calm, record(31, norm=21)], spike_factor=10.0)


def test_a_norm_above_the_limit_stops_the_run():
    assert judge([record(1, norm=5.0)], max_grad_norm=5.0) == [None]
    with pytest.raises(NonFiniteLoss, match="norm 5.5 .*above anomalies.max_grad_norm=5"):
        judge([record(1), record(2, norm=5.5)], max_grad_norm=5.0)


def test_skipping_does_not_use_the_median():
    with pytest.raises(ValueError, match="max_grad_norm"):
        Anomalies.default_config().set(policy="skip", spike_factor=3.0).instantiate()


@pytest.mark.parametrize(
    ("loss", "norm", "accepted"),
    [(1, 1, True), (np.nan, 1, False), (1, np.inf, False), (1, 5.5, False)],
)
def test_the_compiled_step_accepts_finite_values_within_limits(loss, norm, accepted):
    cfg = Anomalies.default_config().set(policy="skip", max_grad_norm=5.0)
    accepts = jax.jit(cfg.instantiate().accepts)
    assert accepts(jnp.float32(loss), jnp.float32(norm)) == accepted


def test_excluded_steps_are_stored_in_the_run_folder(tmp_path):
    ExcludedSteps(tmp_path).add(7, write=True)
    excluded = ExcludedSteps(tmp_path)
    excluded.add(3, write=True)
    assert 7 in ExcludedSteps(tmp_path) and 3 in ExcludedSteps(tmp_path)
    assert json.loads((tmp_path / "excluded_steps.json").read_text()) == [3, 7]


@pytest.mark.parametrize("text", ["", "{", "3", '["a"]', "null"])
def test_damaged_excluded_steps_are_named(tmp_path, text):
    """They determine the training data, so damage is an error."""
    (tmp_path / "excluded_steps.json").write_text(text)
    with pytest.raises(ValueError, match="excluded_steps.json: damaged"):
        ExcludedSteps(tmp_path)


def spoilt(fakes, steps):
    """An input whose batches of the given steps are white, for `spoiling`."""

    def on_batch(number, batch):
        if number in steps:
            object.__setattr__(batch, "targets", np.full_like(batch.targets, 31))
            object.__setattr__(batch, "images", np.full_like(batch.images, 255))
        return batch

    return fakes.Input(on_batch)


@pytest.fixture
def spoiling(monkeypatch, fakes):
    """Makes the loss of a batch NaN if all its pictures are white."""
    original = fakes.Model.__call__

    def call(self, batch, *, dropless=False):
        output = original(self, batch, dropless=dropless)
        is_white = jnp.all(batch.images == 255)
        output.hidden = jnp.where(is_white, jnp.nan, output.hidden)
        return output

    monkeypatch.setattr(fakes.Model, "__call__", call)


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in map(json.loads, lines)}


def saved_params(trainer, folder, step):
    checkpointer = trainer.config.checkpointer.instantiate(
        directory=folder / "checkpoints", read_only=True
    )
    params = checkpointer.restore_params(trainer.program.abstract_state.params, step=step)
    checkpointer.close()
    return jax.device_get(params)


def test_a_skipped_step_does_not_change_the_parameters(
    make_trainer, fakes, spoiling, tmp_path, capsys
):
    options = {"input": spoilt(fakes, {4}), "anomalies": {"policy": "skip"}}
    trainer = make_trainer(5, save_every=1, **options)
    trainer.run()
    run = tmp_path / "run"
    assert "step 4 is skipped" in capsys.readouterr().out
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [each["skipped_steps"] for each in records] == [0, 0, 0, 1, 0]
    third, fourth, fifth = (saved_params(trainer, run, step) for step in (3, 4, 5))
    jax.tree.map(np.testing.assert_array_equal, third, fourth)
    assert np.any(fourth["head"] != fifth["head"])


def test_rolling_back_excludes_the_batch(make_trainer, fakes, spoiling, tmp_path, capsys):
    options = {"input": spoilt(fakes, {4}), "save_every": 2}
    make_trainer(**options, anomalies={"policy": "roll_back"}).run()
    assert "rolled back to step 2, excluding this one" in capsys.readouterr().out
    rolled = losses(tmp_path / "run")
    assert sorted(rolled) == [1, 2, 3, 5, 6]
    assert json.loads((tmp_path / "run" / "excluded_steps.json").read_text()) == [4]
    # Skipping the fourth step instead has the same effect.
    other = tmp_path / "other"
    options["input"] = spoilt(fakes, {4})
    make_trainer(**options, anomalies={"policy": "skip"}, output_dir=other).run()
    skipped = losses(other)
    assert {step for step in skipped if step != 4} == rolled.keys()
    for step, values in rolled.items():
        assert skipped[step] == pytest.approx(values)


def test_rolling_back_stops_if_it_does_not_help(make_trainer, fakes, spoiling, tmp_path):
    anomalies = {"policy": "roll_back", "max_in_a_row": 2}
    with pytest.raises(NonFiniteLoss, match="3 in a row"):
        make_trainer(input=spoilt(fakes, {3, 4, 5, 6}), anomalies=anomalies).run()


def test_the_guard_does_not_change_normal_steps(make_trainer, tmp_path):
    make_trainer().run()
    make_trainer(output_dir=tmp_path / "guarded", anomalies={"policy": "skip"}).run()
    ours, theirs = losses(tmp_path / "guarded"), losses(tmp_path / "run")
    assert ours.keys() == theirs.keys()
    for step in ours:
        assert ours[step] == pytest.approx(theirs[step], rel=1e-6)

import json
import os
import signal
import time

import jax
import numpy as np
import pytest
from bigram_trainer import killer, losses, records


def fail(number):
    raise ValueError("no | questions\nleft")


def test_the_evaluated_model_is_the_one_after_the_last_step(make_trainer, fakes, run):
    trainer = make_trainer(evaluators={"quiz": fakes.Evaluator()})
    trainer.run()
    checkpointer = trainer.config.checkpointer.instantiate(
        directory=run / "checkpoints", read_only=True
    )
    params = checkpointer.restore_params(trainer.program.abstract_state.params)
    checkpointer.close()
    evaluated = json.loads((run / "report.json").read_text())["quiz/0/sum"]
    np.testing.assert_allclose(np.sum(jax.device_get(params["head"])), evaluated, rtol=1e-5)


def test_an_evaluation_that_was_made_before_a_restart_is_not_repeated(make_trainer, fakes, run):
    with pytest.raises(KeyboardInterrupt):
        make_trainer(
            evaluators={"quiz": fakes.Evaluator(n=2)}, input=killer(fakes, 6), save_every=4
        ).run()
    assert [e["step"] for e in records(run, "evaluations.jsonl")] == [2, 4]
    evaluator = fakes.Evaluator(n=2)
    make_trainer(evaluators={"quiz": evaluator}, save_every=4).run()
    assert evaluator.runs == 1
    assert [e["step"] for e in records(run, "evaluations.jsonl")] == [2, 4, 6]


def test_a_failed_evaluation_still_writes_a_report_of_the_others(make_trainer, fakes, run, capsys):
    evaluators = {"broken": fakes.Evaluator(on_run=fail), "quiz": fakes.Evaluator()}
    with pytest.raises(SystemExit) as exit:
        make_trainer(evaluators=evaluators).run()
    assert exit.value.code == 3
    text = (run / "report.md").read_text()
    assert "| broken | ValueError: no \\| questions left |" in text
    assert "| quiz | accuracy | 0.7500 |" in text
    assert json.loads((run / "report.json").read_text())["quiz/0/accuracy"] == 0.75
    output = capsys.readouterr().out
    assert "error: the report lacks the evaluations that failed: broken" in output

    # The run is not finished: the next launch evaluates again, without training.
    lines = records(run)
    make_trainer(evaluators={"broken": fakes.Evaluator(), "quiz": fakes.Evaluator()}).run()
    assert "Failed evaluations" not in (run / "report.md").read_text()
    assert records(run) == lines


def test_a_failed_evaluation_does_not_end_training(make_trainer, fakes, run, unstopped):
    def fail_first(number):
        if number == 1:
            fail(number)

    make_trainer(evaluators={"quiz": fakes.Evaluator(n=3, on_run=fail_first)}).run()
    assert losses(run) == unstopped
    failed, made = records(run, "evaluations.jsonl")
    assert failed == {
        "step": 3,
        "evaluator": "quiz",
        "error": "ValueError: no | questions\nleft",
    }
    assert made["step"] == 6 and made["quiz/0/accuracy"] == 0.75


def test_changed_evaluators_evaluate_a_finished_run_again(make_trainer, fakes, run, capsys):
    make_trainer(evaluators={"quiz": fakes.Evaluator()}).run()
    lines = records(run)
    # A changed field, another evaluator or none each make a new report.
    for evaluators in ({"quiz": fakes.Evaluator(n=5)}, {"test": fakes.Evaluator(n=5)}, {}):
        make_trainer(evaluators=evaluators).run()
        assert all(evaluator.runs == 1 for evaluator in evaluators.values())
        assert "finished already" not in capsys.readouterr().out
    assert "quiz/0/accuracy" not in json.loads((run / "report.json").read_text())
    make_trainer().run()
    assert "finished already" in capsys.readouterr().out
    assert records(run) == lines


def test_a_state_is_saved_before_it_is_evaluated(make_trainer, fakes, run):
    saved = []

    def look(number):
        saved.append(max(int(p.name.split(".")[0]) for p in (run / "checkpoints").iterdir()))

    make_trainer(evaluators={"quiz": fakes.Evaluator(n=2, on_run=look)}).run()
    assert saved == [2, 4, 6]


@pytest.mark.parametrize("n", [3, 0], ids=["during training", "at the end"])
def test_a_signal_interrupts_an_evaluation(make_trainer, fakes, run, unstopped, n):
    def terminate(number):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    after = fakes.Evaluator(n=n)
    start = time.monotonic()
    with pytest.raises(SystemExit) as exit:
        make_trainer(evaluators={"quiz": fakes.Evaluator(n, terminate), "after": after}).run()
    assert time.monotonic() - start < 25
    assert exit.value.code == 143 and after.runs == 0
    assert (run / "checkpoints" / str(n or 6)).is_dir()
    assert not (run / "report.json").exists()

    evaluator = fakes.Evaluator(n)
    make_trainer(evaluators={"quiz": evaluator, "after": after}).run()
    assert losses(run) == unstopped
    # The interrupted evaluation is repeated.
    assert evaluator.runs == after.runs == (2 if n else 1)

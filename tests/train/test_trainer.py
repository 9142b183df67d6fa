import errno
import json
import os
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mm1_jax.checkpoints import checkpointer as checkpoint
from mm1_jax.image_buffer import ImageBuffer
from mm1_jax.train import trainer as trainer_module
from mm1_jax.train.guards.anomalies import NonFiniteLoss


def records(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def losses(folder):
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records(folder)]


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def unstopped(make_trainer, tmp_path):
    make_trainer(output_dir=tmp_path / "unstopped").run()
    return losses(tmp_path / "unstopped")


def killer(fakes, step):
    """An input whose batch number `step` cannot be made: the process ends without any notice."""

    def on_batch(number, batch):
        if number == step:
            raise KeyboardInterrupt
        return batch

    return fakes.Input(on_batch)


def test_a_run_logs_every_step_saves_and_reports(make_trainer, fakes, run, capsys):
    make_trainer(evaluators={"quiz": fakes.Evaluator(n=3)}).run()
    assert "what the streams hold" in capsys.readouterr().out
    lines = records(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all("loss/captions" in line or "loss/text" in line for line in lines)
    for line in lines:
        assert line["tokens_per_second"] == line["tokens"] / line["step_seconds"]
        assert line["images_per_second"] == line["images"] / line["step_seconds"]
        assert {"learning_rate", "grad_norm", "data_wait_seconds"} <= line.keys()
        assert "resumed_from" not in line
    assert lines[0]["images"] == 8
    assert [e["step"] for e in records(run, "evaluations.jsonl")] == [3, 6]
    assert sorted(int(p.name) for p in (run / "checkpoints").glob("[0-9]*")) == [2, 4, 6]
    assert {"report.md", "report.json", "samples.png", "tensorboard"} <= {
        p.name for p in run.iterdir()
    }
    assert list((run / "tensorboard").iterdir())


def test_summaries_say_what_each_corpus_has_given_up_to_their_step(make_trainer, run):
    make_trainer(summary_every_n_steps=2).run()
    given = {line["step"]: line.get("corpora/captions/documents") for line in records(run)}
    assert given == {1: None, 2: 2, 3: None, 4: 4, 5: None, 6: 6}


@pytest.mark.parametrize("killed_at", [1, 2, 4, 6])
def test_a_killed_run_continues_with_bit_equal_losses(
    make_trainer, fakes, run, unstopped, killed_at
):
    with pytest.raises(KeyboardInterrupt):
        make_trainer(input=killer(fakes, killed_at)).run()
    # What a kill in the middle of a write leaves.
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "los')
    make_trainer().run()
    assert losses(run) == unstopped
    saved = (killed_at - 1) // 2 * 2
    resumed = [line for line in records(run) if "resumed_from" in line]
    assert [(line["step"], line["resumed_from"]) for line in resumed] == [(saved + 1, saved)]


def test_sigterm_saves_the_step_that_is_being_made_and_exits_with_143(
    make_trainer, fakes, run, unstopped, capsys
):
    def terminate(number, batch):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        make_trainer(input=fakes.Input(terminate)).run()
    assert exit.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "SIGTERM: stopped after step 3" in capsys.readouterr().out
    assert losses(run) == unstopped[:3]
    assert (run / "checkpoints" / "3").is_dir()

    make_trainer().run()
    assert losses(run) == unstopped
    assert records(run)[3]["resumed_from"] == 3


def test_a_finished_run_is_left_as_it_is(make_trainer, fakes, run, capsys):
    make_trainer(evaluators={"quiz": fakes.Evaluator()}).run()
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    evaluator = fakes.Evaluator()
    make_trainer(evaluators={"quiz": evaluator}).run()
    assert evaluator.runs == 0
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before
    assert "finished already" in capsys.readouterr().out


def test_a_run_without_a_report_is_only_evaluated_again(make_trainer, fakes, run):
    make_trainer(evaluators={"quiz": fakes.Evaluator()}).run()
    report, lines = (run / "report.json").read_text(), records(run)
    (run / "report.json").unlink()

    def no_batch(number, batch):
        raise AssertionError("a finished run reads no batch")

    make_trainer(evaluators={"quiz": fakes.Evaluator()}, input=fakes.Input(no_batch)).run()
    assert (run / "report.json").read_text() == report
    assert records(run) == lines
    assert len(records(run, "evaluations.jsonl")) == 1


def test_more_steps_continue_a_finished_run(make_trainer, run):
    make_trainer(max_steps=2).run()
    make_trainer(max_steps=4).run()
    assert [line["step"] for line in records(run)] == [1, 2, 3, 4]
    assert json.loads((run / "report.json").read_text())["training/steps"] == 4


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


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(make_trainer, run):
    with pytest.raises(NonFiniteLoss) as error:
        make_trainer(learning_rate=1e30).run()
    message = str(error.value)
    step = int(message.split(":")[0].removeprefix("step "))
    assert "captions" in message and "text" in message and "learning rate" in message
    assert [line["step"] for line in records(run)] == list(range(1, step))
    saved = [int(p.name) for p in (run / "checkpoints").glob("[0-9]*")]
    assert all(number < step for number in saved)
    # The same folder refuses another learning rate.
    assert "new --output_dir" in message


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


def test_rows_that_the_devices_cannot_share_are_an_error_at_once(make_trainer, fakes):
    with pytest.raises(ValueError, match="input.batch_size=3 .* 4 devices .*trainer.parallelism"):
        make_trainer(input=fakes.Input(batch_size=3), num_devices=8)


@pytest.mark.parametrize(
    ("image_buffer", "message"),
    [
        (ImageBuffer(3, 5), "input.image_group_rows=3: .* 4 devices"),
        (ImageBuffer(4, 6), "input.images_per_row: .* 2, for 8"),
    ],
)
def test_groups_of_rows_that_the_devices_cannot_share_are_refused(
    make_trainer, fakes, image_buffer, message
):
    input = fakes.Input()
    input.image_buffer = image_buffer
    with pytest.raises(ValueError, match=message):
        make_trainer(input=input, num_devices=8)


def fail(number):
    raise ValueError("no | questions\nleft")


def test_a_failed_evaluation_leaves_a_report_of_the_others(make_trainer, fakes, run, capsys):
    evaluators = {"broken": fakes.Evaluator(on_run=fail), "quiz": fakes.Evaluator()}
    with pytest.raises(SystemExit) as exit:
        make_trainer(evaluators=evaluators).run()
    assert exit.value.code == 3
    text = (run / "report.md").read_text()
    assert "| broken | ValueError: no \\| questions left |" in text
    assert "| quiz | accuracy | 0.7500 |" in text
    assert json.loads((run / "report.json").read_text())["quiz/0/accuracy"] == 0.75
    output = capsys.readouterr().out
    assert "error: the report is without the evaluations that failed: broken" in output

    # It is no finished run: the next launch evaluates again, and trains no step.
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


def fill_disk(monkeypatch, step):
    """The disk is full where the checkpoint of `step` would be complete."""
    write_manifest = checkpoint.write_manifest

    def write(folder):
        if folder.name.partition(".")[0] == str(step):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_manifest(folder)

    monkeypatch.setattr(checkpoint, "write_manifest", write)


def test_a_last_save_that_fails_leaves_the_report(
    make_trainer, fakes, run, unstopped, monkeypatch, capsys, caplog
):
    with monkeypatch.context() as patch:
        fill_disk(patch, 6)
        with pytest.raises(SystemExit) as exit:
            make_trainer(evaluators={"quiz": fakes.Evaluator()}).run()
    assert exit.value.code == 3
    assert json.loads((run / "report.json").read_text())["quiz/0/accuracy"] == 0.75
    assert "Traceback" not in caplog.text
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "error" in line)
    assert "step 6 could not be saved" in line and "No space left" in line
    assert "continue after step 4" in line
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["2", "4"]
    make_trainer(evaluators={"quiz": fakes.Evaluator()}).run()
    assert losses(run) == unstopped
    assert (run / "checkpoints" / "6").exists()


def test_a_save_that_does_not_begin_is_no_saved_run(make_trainer, run, monkeypatch, capsys):
    trainer = make_trainer()

    def save(manager, step, *args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    with pytest.raises(SystemExit) as exit:
        trainer.run()
    assert exit.value.code == 3
    assert (run / "report.json").exists()
    assert "error: step 6 could not be saved; " in capsys.readouterr().out


def test_a_stopped_run_that_cannot_be_saved_does_not_say_that_it_was(
    make_trainer, fakes, run, monkeypatch, capsys
):
    def on_batch(number, batch):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    fill_disk(monkeypatch, 4)
    fill_disk(monkeypatch, 3)
    with pytest.raises(SystemExit) as exit:
        make_trainer(input=fakes.Input(on_batch)).run()
    assert exit.value.code == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "SIGTERM" in line)
    assert "could not be saved" in line and "saved in" not in line
    assert "continue after step 2" in line


def test_a_report_that_cannot_be_written_is_one_line(make_trainer, run, monkeypatch, capsys):
    def write_report(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "write_report", write_report)
        with pytest.raises(SystemExit) as exit:
            make_trainer().run()
    assert exit.value.code == 3
    assert "error: the report could not be written (No space left" in capsys.readouterr().out
    lines = records(run)
    make_trainer().run()
    assert (run / "report.json").exists() and records(run) == lines


def test_a_damaged_file_is_not_in_the_way(make_trainer, run):
    make_trainer().run()
    before = losses(run)
    for name in ("goodput.json", "report.json", "report.evals.txt", "checkpoints/best.json"):
        for text in ("{", "[]", "\udcff"):
            (run / name).write_bytes(text.encode(errors="surrogateescape"))
            make_trainer().run()
            report = json.loads((run / "report.json").read_text())
            assert report["training/steps"] == 6, (name, text)
    assert losses(run) == before


def test_changed_evaluators_judge_a_finished_run_again(make_trainer, fakes, run, capsys):
    make_trainer(evaluators={"quiz": fakes.Evaluator()}).run()
    lines = records(run)
    # Another field, another evaluator, one fewer: each makes another report.
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
def test_a_signal_ends_an_evaluation_in_the_middle(make_trainer, fakes, run, unstopped, n):
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
    # What was interrupted is made up for.
    assert evaluator.runs == after.runs == (2 if n else 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_ends_the_data_workers_too_is_no_error(
    make_trainer, fakes, run, unstopped, number
):
    def die(step, batch):
        if step == 4:
            os.kill(os.getpid(), number)
            raise RuntimeError("Worker process was terminated unexpectedly")
        return batch

    with pytest.raises(SystemExit) as exit:
        make_trainer(input=fakes.Input(die)).run()
    assert exit.value.code == 128 + number
    assert (run / "checkpoints" / "3").is_dir()
    make_trainer().run()
    assert losses(run) == unstopped


def test_data_workers_that_die_without_a_signal_are_an_error(make_trainer, fakes):
    def die(step, batch):
        raise RuntimeError("Worker process was terminated unexpectedly")

    with pytest.raises(RuntimeError, match="Worker process"):
        make_trainer(input=fakes.Input(die)).run()

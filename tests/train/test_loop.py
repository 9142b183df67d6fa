import errno
import os
import signal

import pytest
from bigram_trainer import losses, records

from mm1_jax.train import loop
from mm1_jax.train.guards.anomalies import NonFiniteLoss


def test_sigterm_saves_the_current_step_and_exits_with_143(
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


def test_a_non_finite_loss_stops_the_run_before_a_save(make_trainer, run):
    with pytest.raises(NonFiniteLoss) as error:
        make_trainer(learning_rate=1e30).run()
    message = str(error.value)
    step = int(message.split(":")[0].removeprefix("step "))
    assert "captions" in message and "text" in message and "learning rate" in message
    assert [line["step"] for line in records(run)] == list(range(1, step))
    saved = [int(p.name) for p in (run / "checkpoints").glob("[0-9]*")]
    assert all(number < step for number in saved)
    # The same folder rejects another learning rate.
    assert "new --output_dir" in message


def test_a_report_that_cannot_be_written_is_one_line(make_trainer, run, monkeypatch, capsys):
    def write_report(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_report", write_report)
        with pytest.raises(SystemExit) as exit:
            make_trainer().run()
    assert exit.value.code == 3
    assert "error: the report could not be written (No space left" in capsys.readouterr().out
    lines = records(run)
    make_trainer().run()
    assert (run / "report.json").exists() and records(run) == lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_also_ends_data_workers_is_not_an_error(
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

import errno
import json
import os
import signal

import orbax.checkpoint as ocp
import pytest
from bigram_trainer import losses

from mm1_jax.checkpoints import checkpointer as checkpoint


def fill_disk(monkeypatch, step):
    """Simulates a full disk when the checkpoint of `step` is completed."""
    write_manifest = checkpoint.write_manifest

    def write(folder):
        if folder.name.partition(".")[0] == str(step):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_manifest(folder)

    monkeypatch.setattr(checkpoint, "write_manifest", write)


def test_a_failed_last_save_still_writes_the_report(
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


def test_a_save_that_does_not_start_is_reported_as_failed(make_trainer, run, monkeypatch, capsys):
    trainer = make_trainer()

    def save(manager, step, *args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    with pytest.raises(SystemExit) as exit:
        trainer.run()
    assert exit.value.code == 3
    assert (run / "report.json").exists()
    assert "error: step 6 could not be saved; " in capsys.readouterr().out


def test_a_stopped_run_whose_save_failed_is_not_reported_as_saved(
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

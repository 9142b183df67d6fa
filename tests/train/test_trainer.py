import json

import pytest
from bigram_trainer import killer, losses, records

from mm1_jax.image_buffer import ImageBuffer


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


def test_summaries_count_documents_per_corpus_up_to_their_step(make_trainer, run):
    make_trainer(summary_every_n_steps=2).run()
    given = {line["step"]: line.get("corpora/captions/documents") for line in records(run)}
    assert given == {1: None, 2: 2, 3: None, 4: 4, 5: None, 6: 6}


@pytest.mark.parametrize("killed_at", [1, 2, 4, 6])
def test_a_killed_run_continues_with_bit_equal_losses(
    make_trainer, fakes, run, unstopped, killed_at
):
    with pytest.raises(KeyboardInterrupt):
        make_trainer(input=killer(fakes, killed_at)).run()
    # A kill in the middle of a write leaves half a line.
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "los')
    make_trainer().run()
    assert losses(run) == unstopped
    saved = (killed_at - 1) // 2 * 2
    resumed = [line for line in records(run) if "resumed_from" in line]
    assert [(line["step"], line["resumed_from"]) for line in resumed] == [(saved + 1, saved)]


def test_a_finished_run_is_not_changed(make_trainer, fakes, run, capsys):
    make_trainer(evaluators={"quiz": fakes.Evaluator()}).run()
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    evaluator = fakes.Evaluator()
    make_trainer(evaluators={"quiz": evaluator}).run()
    assert evaluator.runs == 0
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before
    assert "finished already" in capsys.readouterr().out


def test_a_finished_run_without_a_report_is_only_evaluated(make_trainer, fakes, run):
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


def test_indivisible_rows_are_an_immediate_error(make_trainer, fakes):
    with pytest.raises(ValueError, match="input.batch_size=3 .* 4 devices .*trainer.parallelism"):
        make_trainer(input=fakes.Input(batch_size=3), num_devices=8)


@pytest.mark.parametrize(
    ("image_buffer", "message"),
    [
        (ImageBuffer(3, 5), "input.image_group_rows=3: .* 4 devices"),
        (ImageBuffer(4, 6), "input.images_per_row: .* 2, for 8"),
    ],
)
def test_indivisible_groups_of_rows_are_rejected(make_trainer, fakes, image_buffer, message):
    input = fakes.Input()
    input.image_buffer = image_buffer
    with pytest.raises(ValueError, match=message):
        make_trainer(input=input, num_devices=8)


def test_damaged_logs_do_not_prevent_a_resume(make_trainer, run):
    make_trainer().run()
    before = losses(run)
    for name in ("goodput.json", "report.json", "report.evals.txt", "checkpoints/best.json"):
        for text in ("{", "[]", "\udcff"):
            (run / name).write_bytes(text.encode(errors="surrogateescape"))
            make_trainer().run()
            report = json.loads((run / "report.json").read_text())
            assert report["training/steps"] == 6, (name, text)
    assert losses(run) == before

"""`python -m mm1_jax evaluate --checkpoint` runs benchmarks on the model of a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mm1_jax.commands import evaluate as tool


@pytest.fixture(scope="module")
def benchmarks_dir(tmp_path_factory) -> Path:
    """A folder of GQA alone, with three questions and three exemplars."""
    folder = tmp_path_factory.mktemp("benchmarks") / "gqa"
    (folder / "images").mkdir(parents=True)
    for split, names in (("testdev", "abc"), ("train", "def")):
        questions = {}
        for name in names:
            pixels = np.full((8, 8, 3), ord(name), np.uint8)
            PIL.Image.fromarray(pixels).save(folder / "images" / f"{name}.jpg")
            questions[name] = {"question": "is it?", "imageId": name, "answer": "yes"}
        (folder / f"{split}_balanced_questions.json").write_text(json.dumps(questions))
    return folder.parent


def ask(folder: Path, output: Path, *flags: str) -> int:
    return tool.main(
        [f"--checkpoint={folder}", f"--output={output}", f"--json={output}.json", *flags]
    )


def test_a_run_is_evaluated_and_a_second_call_asks_nothing(
    run, benchmarks_dir, tmp_path, capsys, monkeypatch
):
    folder, _, _ = run
    output = tmp_path / "out"
    flags = (
        "--benchmarks=gqa",
        f"--benchmarks_dir={benchmarks_dir}",
        "--shots=0,2",
        "--limit=2",
        "--set=gqa.max_new_tokens=3",
    )
    assert ask(folder, output, *flags) == 0
    scores = json.loads(Path(f"{output}.json").read_text())
    assert {"gqa/0/acc", "gqa/2/acc"} <= set(scores)
    assert all(key.count("/") == 2 for key in scores)
    for key in ("gqa/0/acc", "gqa/2/acc"):
        assert scores[f"{key}_low95"] <= scores[key] <= scores[f"{key}_high95"]
    assert scores["average/0/score"] == scores["gqa/0/acc"]
    assert scores["average/0/num_benchmarks"] == 1
    assert scores == json.loads((output / "scores.json").read_text())
    report = (output / "report.md").read_text()
    assert "step 7" in report and "| shots | gqa | average |" in report
    assert "do not include coco, nocaps, textcaps, vqav2, textvqa, vizwiz, okvqa" in report
    lines = (output / "gqa" / "2_shot.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 2
    predictions = json.loads((output / "gqa" / "2_shot_predictions.json").read_text())
    assert [one["questionId"] for one in predictions] == [json.loads(x)["key"] for x in lines[1:]]

    from mm1_jax.evals import asking

    def generate(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(asking, "generate", generate)
    assert ask(folder, output, *flags) == 0
    assert json.loads(Path(f"{output}.json").read_text()) == scores
    # Answers of another checkpoint do not count.
    capsys.readouterr()
    assert ask(folder, output, *flags, "--step=3") == 2
    assert "answers are of another model or protocol" in capsys.readouterr().err
    # A higher limit keeps the present answers.
    monkeypatch.undo()
    assert ask(folder, output, *flags, "--limit=3") == 0
    more = (output / "gqa" / "2_shot.jsonl").read_text().splitlines()
    assert more[:3] == lines and len(more) == 4


def test_text_is_scored_and_exemplars_may_be_chosen_by_similarity(run, benchmarks_dir, tmp_path):
    for split, name in (("train", "train"), ("validation", "valid")):
        rows = [
            {"goal": f"open it, {split} {i}", "sol1": "push", "sol2": "pull", "label": i % 2}
            for i in range(3)
        ]
        path = benchmarks_dir / "piqa" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    flags = ("--benchmarks=gqa,piqa", f"--benchmarks_dir={benchmarks_dir}", "--exemplars=similar")
    few = ("--set=gqa.max_new_tokens=3", "--set=piqa.exemplars=None", "--batch_size=2")
    assert ask(run[0], output, *flags, *few, "--shots=1") == 0
    scores = json.loads((output / "scores.json").read_text())
    assert {"piqa/1/acc", "piqa/1/acc_norm", "gqa/1/acc"} <= set(scores)
    assert scores["text_core/1/score"] == scores["piqa/1/acc"]
    assert scores["text_core/1/num_benchmarks"] == 1
    assert (output / "gqa" / "exemplar_features.npz").exists()
    assert not (output / "piqa" / "exemplar_features.npz").exists()
    report = (output / "report.md").read_text()
    assert (
        "| shots | piqa | average |" in report
        and "do not include arc_easy, arc_challenge" in report
    )
    assert "exemplars most similar to the query by the model's vision encoder" in report
    for name in ("gqa", "piqa"):
        assert (output / name / "1_shot_cases.html").exists()
        assert f"({name}/1_shot_cases.html)" in report


def test_a_mesh_of_devices_gives_the_same_answers(run, benchmarks_dir, tmp_path):
    flags = (
        "--benchmarks=gqa",
        f"--benchmarks_dir={benchmarks_dir}",
        "--shots=0",
        "--batch_size=4",
    )
    answers = []
    for mesh in ((), ("--mesh=data=4",), ("--mesh=run",)):
        output = tmp_path / "-".join(("out", *mesh))
        asked = ("--benchmarks=gqa", "--set=gqa.max_new_tokens=3", *flags, *mesh)
        assert ask(run[0], output, *asked) == 0
        answers.append((output / "gqa" / "0_shot.jsonl").read_text())
    assert answers[0] == answers[1] == answers[2]


def test_two_processes_give_the_same_answers_as_one(run, by_two, benchmarks_dir, tmp_path):
    asked = (
        "--benchmarks=gqa",
        f"--benchmarks_dir={benchmarks_dir}",
        "--set=gqa.max_new_tokens=3",
        "--shots=0,2",
    )
    assert ask(run[0], tmp_path / "one", *asked) == 0
    # Some of the answers are there already.
    log = tmp_path / "two" / "gqa" / "0_shot.jsonl"
    log.parent.mkdir(parents=True)
    first = (tmp_path / "one" / "gqa" / "0_shot.jsonl").read_text().splitlines(keepends=True)[:2]
    log.write_text("".join(first))
    codes, said = by_two(f"--output={tmp_path / 'two'}", *asked)
    assert codes == [0, 0], said
    assert [", step 7\n" in output for output, _ in said] == [True, False]
    for name in ("gqa/0_shot.jsonl", "gqa/2_shot.jsonl", "scores.json"):
        one, two = ((tmp_path / output / name).read_text() for output in ("one", "two"))
        assert one == two, name


def test_two_processes_with_different_options_name_the_differences(
    by_two, benchmarks_dir, tmp_path
):
    """Options are compared before a model is loaded, and the benchmark's files after that."""
    other = tmp_path / "other_benchmarks"
    shutil.copytree(benchmarks_dir, other)
    asked = ("--benchmarks=gqa", "--shots=0,2", f"--benchmarks_dir={benchmarks_dir}")
    path = other / "gqa" / "testdev_balanced_questions.json"
    path.write_text(path.read_text().replace("?", "??"))
    for of_second, fact in (
        ("--shots=0", "--shots: 0,2 in process 0; 0 in process 1"),
        (f"--benchmarks_dir={other}", "data of gqa: "),
    ):
        codes, said = by_two(*asked, of_second=[of_second])
        assert codes == [2, 2], said
        assert all(fact in errors and "Traceback" not in errors for _, errors in said), said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--benchmarks=gqa", "--judge_url=http://judge.example/v1"], "use https://, or allow it"),
        (["--benchmarks=gqb"], "did you mean gqa"),
        (["--benchmarks=coco"], "coco: no such folder"),
        (["--benchmarks=gqa", "--shots=x"], "--shots=x: expected numbers"),
        (["--benchmarks=gqa", "--shots=4"], "shots=4, but there are only 3 records"),
        (["--benchmarks=gqa", "--set=seed=1"], "expected NAME.FIELD=VALUE"),
        (["--benchmarks=gqa", "--set=gqa.max_tokens=1"], "max_new_tokens"),
        (["--benchmarks=gqa", "--shots=0", "--step=4"], "step=4: no complete checkpoint"),
        (["--benchmarks=gqa", "--shots=0", "--mesh=rows=2"], "expected sizes of some of data"),
        (["--benchmarks=gqa", "--shots=0", "--mesh=data=16"], "do not fit 8 devices"),
    ],
)
def test_an_invalid_command_explains_how_to_fix_it(
    flags, message, run, benchmarks_dir, tmp_path, capsys
):
    arguments = (f"--benchmarks_dir={benchmarks_dir}", *flags)
    assert ask(run[0], tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    assert ask(tmp_path / "x", tmp_path / "out", "--benchmarks=gqa") == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [[], ["--checkpoint=x", "--score_only"], ["--checkpoint=x"], ["--score_only"]],
)
def test_incompatible_flags_are_rejected(flags):
    with pytest.raises(SystemExit):
        tool.parse(flags)

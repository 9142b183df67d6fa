import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mm1_jax.commands import evaluate as tool

# Entries of the stored results that are not scores of predictions.
NOT_SCORED = {"METEOR", "published", "official_csv", "source", "note", "needs"}
DEMO = "caption/captions_val2014_fakecap_results"


def run(*arguments: object) -> int:
    return tool.main(["--score_only", *map(str, arguments)])


def scores(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    file = tmp_path / "scores.json"
    assert run(*arguments, f"--json={file}") == 0
    return json.loads(file.read_text())


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in content))
    else:
        path.write_text(json.dumps(content))
    return path


def numbers(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if name in NOT_SCORED:
            continue
        if isinstance(value, Mapping):
            yield from numbers(value, f"{at}/{name}")
        elif isinstance(value, list):
            yield from ((f"{at}/{name}/{i}", item) for i, item in enumerate(value))
        else:
            yield f"{at}/{name}", value


@pytest.fixture
def metrics_data() -> Path:
    folder = os.environ.get("MM1_TEST_DATA")
    if not folder:
        pytest.skip("MM1_TEST_DATA is not set")
    return Path(folder, "metrics")


CAPTIONS = ("coco80_fold0", "coco80_fold1", "openstax", "nlg_eval")


@pytest.mark.parametrize("part", [*CAPTIONS, "answers"])
def test_every_stored_result_is_reproduced(tmp_path, metrics_data, part):
    expected = json.loads((metrics_data / "expected.json").read_text())
    del expected[DEMO]
    assert len(dict(numbers(expected))) > 150
    if part == "answers":
        expected = {key: x for key, x in expected.items() if not key.startswith("caption/")}
        names, predictions = {key.split("/")[0] for key in expected}, metrics_data
    else:
        expected = {f"caption/{part}": expected.pop(f"caption/{part}")}
        names, predictions = {"caption"}, metrics_data / "caption" / f"{part}.json"
    flags = (f"--benchmarks={','.join(sorted(names))}", f"--predictions={predictions}")
    got, wanted = dict(numbers(scores(tmp_path, *flags))), dict(numbers(expected))
    assert {name: got.get(name) for name in wanted} == pytest.approx(wanted, abs=1e-6)


def test_no_stored_result_is_left_out(metrics_data):
    expected = json.loads((metrics_data / "expected.json").read_text())
    captions = {key for key in expected if key.startswith("caption/")}
    assert captions == {DEMO, *(f"caption/{name}" for name in CAPTIONS)}


def test_coco_results_find_adjacent_annotations(tmp_path, metrics_data):
    folder = metrics_data / "caption"
    file = folder / "coco80_fold0_results.json"
    (beside,) = scores(tmp_path, "--benchmarks=coco", f"--predictions={file}").values()
    together = f"--predictions={folder / 'coco80_fold0.json'}"
    (whole,) = scores(tmp_path, "--benchmarks=coco", together).values()
    assert beside == whole


def test_cocos_demo_reports_missing_annotations(metrics_data, capsys):
    file = metrics_data / f"{DEMO}.json"
    assert run("--benchmarks=caption", f"--predictions={file}") == 2
    assert "give --annotations=FILE" in capsys.readouterr().err


ANSWERS = [{"answer": "red", "answer_id": i} for i in range(10)]


def test_official_results_are_scored_with_official_annotations(tmp_path):
    results = write(tmp_path / "run.json", [{"question_id": 1, "answer": "Red."}])
    annotations = write(
        tmp_path / "val.json", {"annotations": [{"question_id": 1, "answers": ANSWERS}]}
    )
    flags = (f"--predictions={results}", f"--annotations={annotations}")
    assert scores(tmp_path, "--benchmarks=vqav2", *flags) == {
        "vqav2/run": {
            "n": 1,
            "acc_official": 0.0,
            "acc_official_lower": 100.0,
            "acc_processed": 100.0,
        }
    }


def test_vizwiz_joins_by_image_and_distinguishes_people_by_confidence(tmp_path):
    people = [{"answer": "red", "answer_confidence": "yes"}] * 8
    people += [{"answer": "red", "answer_confidence": "no"}] * 2
    results = write(tmp_path / "run.json", [{"image": "a.jpg", "answer": "red"}])
    annotations = write(tmp_path / "val.json", [{"image": "a.jpg", "answers": people}])
    flags = (f"--predictions={results}", f"--annotations={annotations}")
    got = scores(tmp_path, "--benchmarks=vizwiz", *flags)["vizwiz/run"]
    assert got["acc_official"] == 100
    # Equal answers are left out together: without "yes", two "no" give 2/3; without "no", eight
    # "yes" give 1.
    assert got["acc_official_missing_answer_id"] == pytest.approx(100 * (8 * 2 / 3 + 2) / 10)


def test_ok_vqa_learns_stems_from_its_annotations(tmp_path):
    answers = [{"answer": "zorp", "raw_answer": "zorping"}] * 10
    results = write(tmp_path / "run.json", [{"question_id": 1, "answer": "zorping"}])
    annotations = write(
        tmp_path / "val.json", {"annotations": [{"question_id": 1, "answers": answers}]}
    )
    flags = (f"--predictions={results}", f"--annotations={annotations}")
    got = scores(tmp_path, "--benchmarks=okvqa", *flags)["okvqa/run"]
    assert (got["acc_processed"], got["acc_stemmed"]) == (0, 100)


def test_each_short_answer_benchmark_uses_its_rule(tmp_path):
    rows = [{"question_id": 1, "prediction": "104", "answer": "100"}]
    rows += [{"question_id": 2, "prediction": "Yes.", "answer": "yes"}]
    file = write(tmp_path / "x.jsonl", rows)
    names = ("gqa", "docvqa", "chartqa")
    flags = [f"--predictions={name}={file}" for name in names]
    got = scores(tmp_path, f"--benchmarks={','.join(names)}", *flags)
    assert got["gqa/x"] == {"n": 2, "acc": 50.0}
    assert got["docvqa/x"] == {"n": 2, "anls": pytest.approx(100 * (2 / 3 + 3 / 4) / 2)}
    assert got["chartqa/x"] == {"n": 2, "relaxed_acc": 50.0}


def test_gqa_questions_are_an_object_by_id(tmp_path):
    results = write(tmp_path / "run.json", [{"questionId": "07", "prediction": "left"}])
    annotations = write(tmp_path / "gqa.json", {"07": {"answer": "left", "question": "?"}})
    flags = (f"--predictions={results}", f"--annotations={annotations}")
    assert scores(tmp_path, "--benchmarks=gqa", *flags)["gqa/run"]["acc"] == 100


def test_pope_joins_by_order_and_averages_the_three_splits(tmp_path):
    rows = [{"question_id": 1, "label": "yes", "answer": "Yes"}]
    rows += [{"question_id": 2, "label": "no", "answer": "Yes"}]
    folder = tmp_path / "answers"
    for split in ("adversarial", "popular", "random"):
        write(folder / f"{split}.jsonl", rows[: 1 + (split == "popular")])
    got = scores(tmp_path, "--benchmarks=pope", f"--predictions={folder}")
    assert got["pope/mean"]["f1"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    replies = write(tmp_path / "said.jsonl", [{"answer": "Yes"}, {"answer": "No, none"}])
    labels = write(tmp_path / "labels.jsonl", [{"label": "yes"}, {"label": "no"}])
    flags = (f"--predictions={replies}", f"--annotations={labels}")
    assert scores(tmp_path, "--benchmarks=pope", *flags)["pope/said"]["accuracy"] == 1


def test_mme_reads_official_text_files_and_sums_a_half(tmp_path):
    folder = tmp_path / "mme"
    folder.mkdir()
    names = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
    for name in names:
        lines = ["a.png\tIs it?\tYes\tyes", "a.png\tIs it not?\tNo\tNo."]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    got = scores(tmp_path, "--benchmarks=mme", f"--predictions={folder}")
    assert got["mme/Cognition"] == {"score": 800.0}
    assert "mme/Perception" not in got


def test_mmmu_replays_recorded_random_choices_and_draws_missing_ones_reproducibly(tmp_path):
    row = {
        **{"id": "validation_Art_1", "question_type": "multiple-choice", "answer": "B"},
        **{"index2ans": {"A": "x", "B": "y"}, "response": "no idea"},
    }
    recorded = row | {"random_choice": True, "official_parsed": "B"}
    other = row | {"id": "validation_Music_1", "response": "B"}
    file = write(tmp_path / "m.jsonl", [recorded, other])
    got = scores(tmp_path, "--benchmarks=mmmu", f"--predictions={file}")["mmmu/m"]
    assert (got["n"], got["overall"], got["n_random"]) == (2, 1.0, 1)
    assert got["per_subject"] == {"Art": 1.0, "Music": 1.0}
    file = write(tmp_path / "m.jsonl", [row])
    twice = [scores(tmp_path, "--benchmarks=mmmu", f"--predictions={file}")["mmmu/m"] for _ in "ab"]
    assert twice[0] == twice[1] and twice[0]["n_random"] == 1


def test_mmmu_scores_parsed_answers_with_the_official_answers(tmp_path):
    parsed = write(tmp_path / "p.json", {"validation_Art_1": "B", "validation_Art_2": "12"})
    truth = write(
        tmp_path / "answers.json",
        {
            "validation_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"},
            "validation_Art_2": {"question_type": "short-answer", "ground_truth": ["12.0", "13"]},
        },
    )
    flags = (f"--predictions={parsed}", f"--annotations={truth}")
    assert scores(tmp_path, "--benchmarks=mmmu", *flags)["mmmu/p"]["overall"] == 1


def test_scienceqa_accepts_the_official_problems(tmp_path):
    said = write(tmp_path / "s.jsonl", [{"question_id": "4", "text": "B"}])
    problems = write(
        tmp_path / "problems.json",
        {"4": {"choices": ["x", "y"], "answer": 1, "image": "image.png"}, "5": {"choices": []}},
    )
    flags = (f"--predictions={said}", f"--annotations={problems}")
    got = scores(tmp_path, "--benchmarks=scienceqa", *flags)["scienceqa/s"]
    assert got == {"n": 1, "acc": 100.0, "n_img": 1, "img_acc": 100.0}


def test_mmbench_reads_tables_and_seed_reads_official_questions(tmp_path):
    table = tmp_path / "b.tsv"
    table.write_text("index\tA\tB\tprediction\tanswer\n1\tx\ty\tA\tA\n1000001\ty\tx\tA\tB\n")
    got = scores(tmp_path, "--benchmarks=mmbench", f"--predictions={table}")["mmbench/b"]
    assert (got["circular_acc"], got["vanilla_acc"]) == (0, 100)
    said = write(tmp_path / "s.jsonl", [{"question_id": "1_0", "prediction": "(A) x"}])
    questions = write(
        tmp_path / "SEED-Bench.json",
        {"questions": [{"question_id": "1_0", "question_type_id": 1, "answer": "A"}]},
    )
    flags = (f"--predictions={said}", f"--annotations={questions}")
    assert scores(tmp_path, "--benchmarks=seed", *flags)["seed/s"]["image_acc"] == 100


CASES = [
    # The same rows after a byte order mark.
    ("\ufeffquestion_id,answer\n1,dog\n0,cat\n", 100.0),
    ("question_id;answer\n1.0;dog\n 0;cat\n", 100.0),
    ("qid,answer\n1,dog\n0,cat\n", "'qid' may be the id: rename it to question_id"),
    ("answer\ncat\ndog\n", 100.0),
    ("question_id,answer\n1,dog\n1,cat\n", "'1' repeats the id at"),
    ("question_id,answer\n1,dog\n", "1 of the 2 questions of"),
    ("question_id,answer\n1,dog\n0\n", "line 3: has 1 fields, but the header has 2"),
]


@pytest.mark.parametrize(("table", "outcome"), CASES)
def test_predictions_are_paired_by_id_or_rejected(tmp_path, capsys, table, outcome):
    file = tmp_path / "said.csv"
    file.write_text(table, encoding="utf-8")
    truth = [{"question_id": i, "answers": [x] * 10} for i, x in enumerate(("cat", "dog"))]
    annotations = write(tmp_path / "val.json", {"annotations": truth})
    flags = ("--benchmarks=vqav2", f"--predictions={file}", f"--annotations={annotations}")
    if isinstance(outcome, str):
        assert run(*flags) == 2
        assert outcome in capsys.readouterr().err
        return
    got = scores(tmp_path, *flags)["vqav2/said"]
    assert got["acc_official"] == outcome
    by_order = "question_id" not in table
    assert got.get("paired_by_order") == (2 if by_order else None)
    assert ("by their order" in capsys.readouterr().err) == by_order


def test_seed_counts_both_rows_of_a_repeated_question(tmp_path, capsys):
    rows = [{"question_id": x, "question_type_id": 1, "answer": y} for x, y in ("1A", "2B", "1C")]
    questions = write(tmp_path / "SEED-Bench.json", {"questions": rows})
    said = [{"question_id": x, "prediction": y} for x, y in ("2B", "1A", "1B")]
    flags = ("--benchmarks=seed", f"--annotations={questions}")
    file = write(tmp_path / "s.jsonl", said)
    got = scores(tmp_path, *flags, f"--predictions={file}")["seed/s"]
    assert got["n"] == 3 and got["acc"] == pytest.approx(100 * 2 / 3)
    write(file, said[:2])
    assert run(*flags, f"--predictions={file}") == 2
    assert "has 1 predictions for '1'" in capsys.readouterr().err


def test_mmmu_compares_letters_if_the_options_are_unknown(tmp_path, capsys):
    truth = {f"validation_Art_{i}": {"question_type": "multiple-choice", "ground_truth": x}
             for i, x in enumerate("EFA")}  # fmt: skip
    said = dict(zip(truth, ("E", "F", "A, I think"), strict=True))
    file, annotations = write(tmp_path / "p.json", said), write(tmp_path / "a.json", truth)
    flags = (f"--predictions={file}", f"--annotations={annotations}")
    got = scores(tmp_path, "--benchmarks=mmmu", *flags)["mmmu/p"]
    assert (got["overall"], got["n_random"]) == (pytest.approx(2 / 3), 0)
    assert "1 replies to questions with options are not a letter" in capsys.readouterr().err


def test_mmmus_parsed_answers_have_the_published_score(tmp_path, metrics_data):
    lines = (metrics_data / "mmmu" / "qwen_vl.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    is_choice = {row["id"]: row["question_type"] == "multiple-choice" for row in rows}
    said = {
        row["id"]: row["official_parsed"] if is_choice[row["id"]] else row["response"]
        for row in rows
    }
    truth = {row["id"]: {name: row[name] for name in ("question_type", "answer")} for row in rows}
    file, annotations = write(tmp_path / "p.json", said), write(tmp_path / "a.json", truth)
    flags = (f"--predictions={file}", f"--annotations={annotations}")
    got = scores(tmp_path, "--benchmarks=mmmu", *flags)["mmmu/p"]
    assert got["overall"] == pytest.approx(0.3611, abs=5e-5) and got["n_random"] == 0


def test_every_asked_scienceqa_problem_needs_an_answer(tmp_path, capsys):
    def problem(split: str, image: str | None) -> dict[str, Any]:
        return {"choices": ["x", "y"], "answer": 1, "image": image, "split": split}

    problems = {
        "1": problem("test", None),
        "2": problem("test", "a.png"),
        "3": problem("val", None),
    }
    annotations = write(tmp_path / "problems.json", problems)
    flags = ("--benchmarks=scienceqa", f"--annotations={annotations}")

    def said(*keys: str) -> str:
        rows = [{"question_id": key, "text": "B"} for key in keys]
        return f"--predictions={write(tmp_path / 's.jsonl', rows)}"

    assert scores(tmp_path, *flags, said("2", "1"))["scienceqa/s"]["n"] == 2
    # The questions with an image, which the benchmark asks.
    assert scores(tmp_path, *flags, said("2"))["scienceqa/s"]["n"] == 1
    assert run(*flags, said("1")) == 2
    assert "1 of the 2 questions of" in capsys.readouterr().err


def test_the_authors_files_can_be_annotations(tmp_path):
    """POPE's JSON lines are in a .json file, and MMBench's table contains pictures."""
    labels = tmp_path / "coco_pope_random.json"
    labels.write_text('{"question_id": 0, "label": "yes"}\n{"question_id": 1, "label": "no"}\n')
    said = write(tmp_path / "r.jsonl", [{"question_id": i, "text": "Yes"} for i in (0, 1)])
    flags = (f"--predictions={said}", f"--annotations={labels}")
    assert scores(tmp_path, "--benchmarks=pope", *flags)["pope/r"]["accuracy"] == 0.5
    table = tmp_path / "mmbench.tsv"
    rows = [f"{i}\tcat\tdog\t\tA\t{'A' * 200_000}" for i in (0, 1)]
    table.write_text("\n".join(["index\tA\tB\tC\tanswer\timage", *rows]) + "\n")
    said = write(
        tmp_path / "m.json", [{"index": i, "prediction": x} for i, x in ((0, "A"), (1, "B"))]
    )
    flags = (f"--predictions={said}", f"--annotations={table}")
    assert scores(tmp_path, "--benchmarks=mmbench", *flags)["mmbench/m"]["vanilla_acc"] == 50


def test_mathvista_marks_answers_extracted_by_rules(tmp_path, capsys):
    row = {"pid": "1", "answer": "4", "answer_type": "integer", "choices": None}
    file = write(tmp_path / "v.jsonl", [row | {"response": "it is 4"}])
    got = scores(tmp_path, "--benchmarks=mathvista", f"--predictions={file}")["mathvista/v"]
    assert got == {"n": 1, "accuracy": 100.0, "correct": 1, "n_by_rule": 1}
    assert "rules extracted 1 of 1" in capsys.readouterr().err


def test_judgments_are_aggregated(tmp_path):
    folder = tmp_path / "l"
    for number in (1, 2):
        review = {"question_id": 0, "category": "conv", "content": f"8 {2 * number}\nGood."}
        write(folder / f"m_review{number}.jsonl", [review])
    got = scores(tmp_path, "--benchmarks=llava_bench", f"--predictions={folder}")
    assert got["llava_bench/m_mean"] == {"value": 37.5, "n_reviews": 2}
    grades = write(tmp_path / "m_grades.jsonl", [{"id": "v1_0", "score": [0.5, 1.0]}])
    questions = write(tmp_path / "mm-vet.json", {"v1_0": {"capability": ["ocr"]}})
    flags = (f"--predictions={grades}", f"--annotations={questions}")
    got = scores(tmp_path, "--benchmarks=mmvet", *flags)["mmvet/m"]
    assert (got["runs"], got["capabilities"]) == ([50, 100], {"ocr": 75})


@pytest.mark.parametrize(
    ("benchmark", "records", "message"),
    [
        (
            "pope",
            [{"question_id": 1, "answer": "no"}],
            "record 1 (question_id 1): no field 'label'",
        ),
        (
            "pope",
            [{"label": "maybe", "answer": "no"}],
            "field 'label': expected 'yes' or 'no', got",
        ),
        ("textvqa", [{"prediction": "x", "answers": [1]}], "field 'answers': expected the answers"),
        ("textvqa", [{"answers": ["x"]}], "no field 'prediction'"),
        ("vqav2", [], "holds no records"),
        ("mmvet", [{"id": "a", "score": [2]}], "expected grades of 0 to 1"),
        ("mmvet", [{"id": "a", "score": [1]}, {"id": "b", "score": [1, 1]}], "expected 1 grades"),
        ("llava_bench", [{"category": "c", "content": "?"}], "first line of two grades"),
        (
            "mmbench",
            [{"index": 1, "prediction": "A", "answer": "A"}] * 2,
            "'1' repeats the id at",
        ),
        (
            "mme",
            [{"category": "OCR", "image": "a", "answer": "Yes", "prediction": "Yes"}],
            "image 'a' has 1 questions",
        ),
    ],
)
def test_a_bad_record_is_named_with_what_was_expected(
    tmp_path, capsys, benchmark, records, message
):
    file = write(tmp_path / "x.jsonl", records)
    assert run(f"--benchmarks={benchmark}", f"--predictions={file}") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}") and message in error


def test_predictions_and_annotations_must_have_the_same_questions(tmp_path, capsys):
    results = write(tmp_path / "run.json", [{"question_id": 1, "answer": "x"}])
    truth = [{"question_id": 1, "answers": ["x"]}, {"question_id": 2, "answers": ["x"]}]
    annotations = write(tmp_path / "val.json", truth)
    flags = ("--benchmarks=vqav2", f"--predictions={results}", f"--annotations={annotations}")
    assert run(*flags) == 2
    assert "1 of the 2 questions of" in capsys.readouterr().err
    write(annotations, truth[1:])
    assert run(*flags) == 2
    assert "has no annotation for '1'" in capsys.readouterr().err
    write(results, [{"question_id": 2, "answer": "x"}] * 2)
    assert run(*flags) == 2
    assert "'2' repeats the id at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks=popr", "--predictions=x"], "did you mean pope"),
        (["--benchmarks=pope", "--predictions=missing"], "no such file or folder"),
        (["--benchmarks=pope,mme", "--predictions=FILE"], "give --predictions=pope=PATH"),
        (["--benchmarks=pope", "--predictions=mme=FILE"], "'mme' is not among"),
        (["--benchmarks=all", "--predictions=FOLDER"], "no subfolder has the name of a benchmark"),
        (["--benchmarks=pope", "--predictions=FOLDER"], "no file of pope"),
        (["--benchmarks=pope", "--predictions=TEXT"], "TEXT.md: holds no records"),
        (["--benchmarks=pope", "--predictions=BROKEN"], "BROKEN.jsonl, line 2: not JSON"),
        (
            ["--benchmarks=caption", "--predictions=FILE", "--caption_metrics=X"],
            "metric 'X'",
        ),
    ],
)
def test_an_invalid_command_explains_how_to_fix_it(tmp_path, capsys, arguments, message):
    paths = {
        "FILE": write(tmp_path / "FILE.jsonl", [{"answer": "yes"}]),
        "FOLDER": tmp_path / "FOLDER",
        "TEXT": tmp_path / "TEXT.md",
        "BROKEN": tmp_path / "BROKEN.jsonl",
    }
    paths["FOLDER"].mkdir()
    paths["TEXT"].write_text("")
    paths["BROKEN"].write_text('{"answer": "yes"}\n{"answer"\n')
    for name, path in paths.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_list_describes_every_benchmark(capsys):
    assert tool.main(["--list"]) == 0
    listed = capsys.readouterr().out
    from mm1_jax.evals.predictions.registry import SCORERS

    assert all(name in listed for name in SCORERS)
    assert all(scorer.layout in listed for scorer in SCORERS.values())


def test_benchmark_groups_of_the_command_line_equal_those_of_the_registry():
    from mm1_jax.evals.benchmarks.registry import GROUPS

    assert tuple(GROUPS) == tool.GROUPS


def test_help_is_fast_and_needs_no_jax():
    start = time.monotonic()
    code = (
        "import sys; from mm1_jax.__main__ import main\n"
        "try: main(['evaluate', '--help'])\n"
        "finally: print(sorted({'jax', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "--predictions" in result.stdout and result.stdout.endswith("[]\n")
    assert time.monotonic() - start < 10


def test_scoring_needs_no_jax(tmp_path):
    file = write(tmp_path / "x.jsonl", [{"question_id": 1, "label": "yes", "answer": "Yes"}])
    code = (
        "import sys; sys.modules['jax'] = None; from mm1_jax.__main__ import main\n"
        f"main(['evaluate', '--score_only', '--benchmarks=pope', '--predictions={file}'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "pope/x" in result.stdout

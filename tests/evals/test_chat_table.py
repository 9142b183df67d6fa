"""The table of chat models: order of columns, published rows, and what a run lacks."""

import csv
import io
import json

import pytest

from mm1_jax.commands import evaluate as tool
from mm1_jax.evals import chat_table
from mm1_jax.evals.benchmarks.registry import BENCHMARKS, TABLE4

SCORES = {
    **{"vqav2_chat/0/acc_processed": 70.25, "textvqa_chat/0/acc_processed": 50.0},
    **{"mmmu/0/overall": 0.25, "seed/0/image_acc": 61.0, "pope/0/f1": 0.875},
    **{"mathvista/0/accuracy": 20.0, "mathvista/4/accuracy": 21.0, "mathvista/8/accuracy": 22.0},
    **{"mme/0/Perception": 1400.0, "mme/0/Cognition": 250.0, "mmbench/0/circular_acc": 60.0},
    "mathvista/0/records_left_out": 900.0,
}


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_columns_and_published_rows_are_those_of_the_paper():
    header, _, *lines = chat_table.markdown(chat_table.published_rows()).splitlines()
    assert cells_of(header)[1:] == [
        *("VQAv2", "TVQA", "SQA-I", "MMMU val/test", "MathV", "MME-P", "MME-C", "MMB"),
        *("SEED all/img", "POPE", "LLaVA-W", "MM-Vet"),
    ]
    largest = next(cells_of(line) for line in lines if line.startswith("| MM1-30B-Chat"))
    assert largest == [
        *("MM1-30B-Chat (published)", "83.7", "73.5", "81.0", "44.7/40.3", "39.4", "1637.6"),
        *("431.4", "75.1", "65.9/72.1", "87.6", "89.3", "48.7"),
    ]


def test_every_number_is_of_a_benchmark_of_the_table():
    assert {part.benchmark for part in chat_table.PARTS} == {*TABLE4} <= {*BENCHMARKS}
    for part in chat_table.PARTS:
        cfg = BENCHMARKS[part.benchmark]()
        if part.metric == cfg.headline:
            assert part.scale == cfg.headline_scale, part.title


def test_a_run_has_its_numbers_and_dashes():
    row = chat_table.row_of("mine", SCORES)
    text = chat_table.markdown([*chat_table.published_rows(), row])
    line = next(line for line in text.splitlines() if line.startswith("| **mine**"))
    assert cells_of(line)[1:] == [
        *("70.2", "50.0", "-", "25.0/-", "20.0*", "1400.0", "250.0", "60.0", "-/61.0", "87.5"),
        *("-", "-"),
    ]
    assert "random subset" in text
    assert "| **mine** | 20.0 | 21.0 | 22.0 |" in text
    assert "| MM1-30B-Chat (published) | 39.4 | 41.9 | 44.4 |" in text


def test_csv_has_a_column_per_number_and_says_which_rows_are_published():
    rows = [*chat_table.published_rows(), chat_table.row_of("mine", SCORES)]
    read = list(csv.DictReader(io.StringIO(chat_table.csv_text(rows))))
    assert [row["source"] for row in read] == ["published"] * 7 + ["run"]
    assert read[-1]["MMMU val"] == "25" and read[-1]["MMMU test"] == "-"
    assert read[4]["SEED image"] == "72.1" and read[4]["MathVista testmini 8 shots"] == "44.4"


def test_the_command_prints_rows_of_several_runs(tmp_path, capsys):
    for step, value in ((9, 1.0), (10, 70.0)):
        folder = tmp_path / "run" / "evaluation" / str(step)
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(json.dumps({"vqav2_chat/0/acc_processed": value}))
    run = tmp_path / "run"
    flags = [f"--chat_table={run}", f"--chat_table=other={run / 'evaluation' / '9'}"]
    assert tool.main([*flags, f"--output={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "| **run** | 70.0 |" in printed and "| **other** | 1.0 |" in printed
    assert (tmp_path / "out" / "chat_table.md").read_text() in printed
    assert (tmp_path / "out" / "chat_table.csv").read_text().count("\n") == 1 + 7 + 2


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "no scores.json"),
        ("{", "scores cannot be read"),
        ("[]", "expected an object"),
        ('{"gqa/0/acc": 1.0}', "has no score of the table"),
    ],
)
def test_a_folder_without_scores_is_named(tmp_path, capsys, scores, message):
    if scores is not None:
        (tmp_path / "scores.json").write_text(scores)
    assert tool.main([f"--chat_table={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert message in error and str(tmp_path) in error

import math

import pytest

from mm1_jax.train.logs.json_lines import JsonLines


@pytest.fixture
def lines(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        lines.write({"step": step, "loss": 1 / step + 1e-9})
    return lines


def test_numbers_keep_all_digits(lines):
    assert [record["loss"] for record in lines.records()] == [1 / s + 1e-9 for s in (1, 2, 3)]


def test_non_finite_numbers_become_null(lines):
    lines.write({"step": 4, "loss": math.nan, "load": [1.0, math.inf]})
    assert list(lines.records())[-1] == {"step": 4, "loss": None, "load": [1.0, None]}


def test_rewinding_removes_later_steps_and_half_a_line(lines):
    before = lines.path.read_text().splitlines(keepends=True)
    with lines.path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in lines.records()] == [1, 2, 3]
    assert lines.rewind(3)
    assert lines.path.read_text() == "".join(before)
    assert not lines.rewind(3)
    assert lines.rewind(1)
    assert lines.path.read_text() == before[0]
    lines.write({"step": 2})
    assert [record["step"] for record in lines.records()] == [1, 2]


@pytest.mark.parametrize("damaged", ["\x00\x00", '{"step": 2, "lo', "[2]", "{}", "\udcff"])
def test_a_damaged_line_affects_no_other(lines, damaged, caplog):
    first, _, last = lines.path.read_text().splitlines()
    text = f"{first}\n{damaged}\n{last}\n"
    lines.path.write_text(text, errors="surrogateescape")
    assert [record["step"] for record in lines.records()] == [1, 3]
    assert lines.rewind(3)
    assert lines.path.read_text() == f"{first}\n{last}\n"
    assert f"{lines.path}: 1 damaged lines" in caplog.text


def test_a_line_without_a_newline_is_not_a_record(lines):
    lines.path.write_text(lines.path.read_text().rstrip("\n"))
    assert [record["step"] for record in lines.records()] == [1, 2]


def test_a_missing_file_has_no_records(tmp_path):
    lines = JsonLines(tmp_path / "none.jsonl")
    assert list(lines.records()) == []
    assert not lines.rewind(0)

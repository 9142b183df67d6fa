"""Numbers on command lines: in their range, or exit code 2 and a sentence with the flag."""

import argparse
import importlib
import re
from pathlib import Path

import pytest

from mm1_jax.flags import number, whole

ROOT = Path(__file__).parent.parent

# A flag of each command that takes one, with what it needs besides.
COMMANDS = {
    "convert_checkpoint": ["import", "--source=x", "--output=y", "--num_experts"],
    "evaluate": ["--checkpoint=x", "--benchmarks=embedded", "--limit"],
    "snapshot": ["--config=mm1_tiny", "--output=x", "--steps"],
    "benchmark_input": ["--config=mm1_tiny", "--rounds"],
    "benchmark_decoding": ["--repeats"],
    "train_tokenizer": ["--data_dir=x", "--output=y", "--vocab_size"],
    "convert_records": ["--format=text", "--input=x", "--output=y", "--num_workers"],
}


@pytest.mark.parametrize("tool", COMMANDS)
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_number_out_of_range_is_refused_with_its_flag(tool, value, capsys):
    *others, flag = COMMANDS[tool]
    with pytest.raises(SystemExit) as raised:
        importlib.import_module(f"tools.{tool}").main([*others, f"{flag}={value}"])
    assert raised.value.code == 2
    assert f"argument {flag}: '{value}': expected a" in capsys.readouterr().err


def test_every_number_on_a_command_line_has_a_range():
    files = [*ROOT.glob("tools/*.py"), *ROOT.glob("mm1_jax/**/*.py")]
    assert not [path for path in files if re.search(r"\btype=(int|float)\b", path.read_text())]


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (whole(), ("1", "12"), ("0", "1.0", "", "nan")),
        (whole(0), ("0",), ("-1",)),
        (number(), ("0", "1e-3"), ("-1", "nan", "inf", "x")),
        (number(most=1.0, exclusive=True), ("1", ".5"), ("0", "1.1")),
    ],
)
def test_ranges_end_where_they_say(parse, good, bad):
    for text in good:
        assert parse(text) == float(text)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected a"):
            parse(text)

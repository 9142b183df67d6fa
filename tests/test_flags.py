"""Wrong numbers and paths on command lines exit with code 2 and name the flag."""

import argparse
import importlib
import re
from pathlib import Path

import pytest

from mm1_jax.flags import local_path, local_text, number, whole
from mm1_jax.storage import raise_if_remote

ROOT = Path(__file__).parent.parent

# The last flag takes the number; the others are those that the command requires.
COMMANDS = {
    "convert_checkpoint": ["import", "--source=x", "--output=y", "--num_experts"],
    "evaluate": ["--checkpoint=x", "--benchmarks=embedded", "--limit"],
    "evaluate_encoder": ["--checkpoint=x", "--batch_size"],
    "snapshot": ["--config=mm1_tiny", "--output=x", "--steps"],
    "benchmark_input": ["--config=mm1_tiny", "--rounds"],
    "benchmark_decoding": ["--repeats"],
    "train_tokenizer": ["--data_dir=x", "--output=y", "--vocab_size"],
    "convert_records": ["--format=text", "--input=x", "--output=y", "--num_workers"],
}


@pytest.mark.parametrize("tool", COMMANDS)
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_number_out_of_range_is_rejected_with_its_flag(tool, value, capsys):
    *others, flag = COMMANDS[tool]
    with pytest.raises(SystemExit) as raised:
        room = "tools" if tool.startswith("benchmark") else "mm1_jax.commands"
        importlib.import_module(f"{room}.{tool}").main([*others, f"{flag}={value}"])
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
def test_ranges_include_or_exclude_their_bounds(parse, good, bad):
    for text in good:
        assert parse(text) == float(text)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected a"):
            parse(text)


@pytest.mark.parametrize("text", ["gs://bucket/a", "s3://bucket/a", "hdfs://host/a", "gs:/bucket"])
def test_a_path_in_a_store_is_refused(text, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=local_path)
    with pytest.raises(SystemExit) as end:
        parser.parse_args([f"--output={text}"])
    assert end.value.code == 2
    assert f"argument --output: value={text}: expected a local path" in capsys.readouterr().err
    with pytest.raises(ValueError, match="input.data_dir=.*: expected a local path"):
        raise_if_remote("input.data_dir", Path(text))


@pytest.mark.parametrize("text", ["a", "a/b:c", "/a", "../a", "C", "a:b/c", "", "./gs://a"])
def test_a_local_path_is_unchanged(text):
    assert local_path(text) == Path(text) and local_text(text) == text


@pytest.mark.parametrize(
    "file",
    [*(ROOT / "tools").glob("*.py"), *(ROOT / "mm1_jax").rglob("*.py")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_file_option_is_documented_as_local(file):
    assert "type=Path" not in file.read_text()

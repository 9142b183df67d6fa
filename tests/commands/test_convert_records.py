import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from foreign_formats import contents, write_numbers

from mm1_jax.commands import convert_records as tool
from mm1_jax.data.input import lengths_of_folder
from mm1_jax.data.mixed_input import used_corpora
from mm1_jax.data.record_files import Manifest, RecordFiles
from mm1_jax.data.tokenizers.sentencepiece import SHIPPED_MODEL
from mm1_jax.launch.launch import Launch

NUMBERED = "--format=foreign_formats:Numbered"


def run(*arguments) -> int:
    return tool.main([str(argument) for argument in arguments])


def start(*arguments) -> subprocess.Popen:
    """Starts the command in a process that can import the formats of the tests."""
    folder = Path(__file__).parents[1] / "data" / "ingest"
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    # Shells ignore SIGINT in background jobs, and child processes inherit ignored signals, but not
    # signals with a handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "mm1_jax", "convert_records", *arguments],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def source(tmp_path) -> Path:
    return write_numbers(tmp_path / "source", [60, 30, 10])


@pytest.fixture
def captions(tmp_path) -> Path:
    """A JSONL file of ten captions, one without a picture."""
    folder = tmp_path / "captions"
    folder.mkdir()
    lines = []
    for index in range(10):
        if index != 3:
            (folder / f"{index}.jpg").write_bytes(b"picture %d" % index)
        lines.append(json.dumps({"image": f"{index}.jpg", "caption": f"caption {index}"}))
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_a_file_is_converted_to_records_and_the_command_reports_it(captions, tmp_path, capsys):
    output = tmp_path / "records"
    command = ("--format=jsonl", f"--input={captions}", f"--output={output}", "--license=CC0")
    assert run(*command) == 0
    out = capsys.readouterr().out
    assert f"{output / 'manifest.json'}: 9 records of captions in 1 shard," in out
    assert "1 of 10 entries were rejected" in out and str(output / "quarantine.jsonl") in out
    assert Manifest.read(output).license == "CC0"
    records = RecordFiles(output)
    assert [records[i]["image"] for i in range(9)] == [
        b"picture %d" % i for i in range(10) if i != 3
    ]
    before = contents(output)
    assert run(*command) == 0
    assert "converted before; nothing is left" in capsys.readouterr().out
    assert contents(output) == before


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> str:
    """The name of a module with a config `books` that reads `tmp_path / "data"`."""
    module = tmp_path / "modules" / "own_module.py"
    module.parent.mkdir()
    module.write_text(
        "from experiments.small_data import mm1_tiny_textbooks\n"
        "def named_configs():\n"
        "    return {'books': mm1_tiny_textbooks}\n"
    )
    monkeypatch.syspath_prepend(module.parent)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tokenizer.model").write_bytes(SHIPPED_MODEL.read_bytes())
    return "own_module"


def test_the_lengths_table_is_the_one_that_an_input_reads(tmp_path, capsys, own_module):
    text, folder = tmp_path / "pages.jsonl", tmp_path / "data" / "recipes_text"
    pages = [{"text": f"Page {n} is about {n} squares."} for n in range(50)]
    text.write_text("\n".join(map(json.dumps, pages)))
    command = ("--format=text", "--input", text, "--output", folder, "--module", own_module)
    pieces = "input.tokenizer.num_pieces"
    assert run(*command, "--lengths_for=books", f"--config.{pieces}=704") == 0
    out = capsys.readouterr().out
    assert "examples to train on" in out
    made = sorted((folder / "lengths").iterdir())
    overrides = {"input.data_dir": str(tmp_path / "data"), pieces: "704"}
    launch = Launch("books", own_module, overrides)
    cfg = launch.resolved_config().input
    corpora = {corpus.name: corpus for corpus in used_corpora(cfg)}
    for split in ("train", "test"):
        for name, table in lengths_of_folder(cfg, folder, split).items():
            assert len(table) == len(corpora[name].instantiate(split=split))
    assert sorted((folder / "lengths").iterdir()) == made


def test_lengths_for_a_folder_that_the_config_does_not_read_are_an_error(
    tmp_path, capsys, own_module
):
    text = tmp_path / "books.txt"
    text.write_text("A page.")
    command = ("--format=text", "--input", text, "--output", tmp_path / "data" / "poems")
    fields = "--config.input.tokenizer.num_pieces=704"
    assert run(*command, "--module", own_module, "--lengths_for=books", fields) == 2
    assert "no corpus of the config reads" in capsys.readouterr().err
    # The error comes before the conversion.
    assert not (tmp_path / "data" / "poems").exists()


def test_verify_finds_a_changed_shard(captions, tmp_path, capsys):
    output = tmp_path / "records"
    run("--format=jsonl", f"--input={captions}", f"--output={output}")
    capsys.readouterr()
    assert run("--verify", f"--output={output}") == 0
    assert "all 1 shards are as they were written" in capsys.readouterr().out
    (shard,) = output.glob("*.array_record")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert run("--verify", f"--output={output}") == 1
    assert f"{shard}: damaged or missing" in capsys.readouterr().out


def test_the_formats_are_described(capsys):
    assert run("--list") == 0
    out = capsys.readouterr().out
    assert set(tool.FORMATS) <= set(out.split())
    assert "caption_kind" in out


def test_a_repeatedly_killed_command_ends_like_an_uninterrupted_one(source, tmp_path):
    # The delays add up to two seconds; shards hold three records.
    command = (NUMBERED, f"--input={source}", "--option.seconds=0.02", "--max_shard_bytes=5K")
    output, straight = tmp_path / "killed", tmp_path / "straight"
    process = start(*command, f"--output={straight}", "--num_workers=1")
    _, error = process.communicate()
    assert process.returncode == 0, error
    for num_parts in (1, 8):
        process = start(*command, f"--output={output}", "--num_workers=2")
        while process.poll() is None and len(list(output.glob("progress/*-*.json"))) < num_parts:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    # Started immediately, while workers of the killed command may still run.
    process = start(*command, f"--output={output}", "--num_workers=2")
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert contents(output) == contents(straight)


def test_workers_end_with_a_killed_command(source, tmp_path):
    output = tmp_path / "records"
    process = start(
        *(NUMBERED, f"--input={source}", f"--output={output}"),
        *("--option.seconds=60", "--num_workers=2"),
    )
    while len(list(output.glob("progress/0*.lock"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    # Workers inherit standard output, which closes only when they have ended.
    process.communicate(timeout=10)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_ctrl_c_prints_how_to_resume(source, tmp_path, num_workers):
    output = tmp_path / "records"
    process = start(
        *(NUMBERED, f"--input={source}", f"--output={output}"),
        *("--option.seconds=0.1", "--max_shard_bytes=2K", f"--num_workers={num_workers}"),
    )
    while not list(output.glob("progress/*-01.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "the same command resumes" in error and "Traceback" not in error
    assert not list(output.glob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format=webdatset",), "no such format; did you mean webdataset"),
        (("--format=nowhere:Format",), "--format=nowhere: cannot import 'nowhere'"),
        (("--format=pathlib:Path",), "it is not a subclass of Format"),
        (("--format=jsonl", "--option.knd=text"), "no such option; did you mean kind?"),
        (("--format=mmc4", "--option.min_similarity=x"), "expected a value of type float"),
        (("--format=webdataset",), "expected tar shards of WebDataset"),
        (("--format=jsonl", "--input=/nowhere"), "/nowhere"),
    ],
)
def test_mistakes_are_named(captions, tmp_path, capsys, arguments, message):
    output = tmp_path / "records"
    assert run(f"--input={captions}", f"--output={output}", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_another_command_is_rejected_with_the_difference(captions, tmp_path, capsys):
    command = ("--format=jsonl", f"--input={captions}", f"--output={tmp_path / 'records'}")
    assert run(*command) == 0
    assert run(*command, "--filters=mm1", "--option.kind=captions") == 2
    error = capsys.readouterr().err
    assert "filters: [] before" in error and "options: kind: null before" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--format, --input, --output: required"),
        (("--verify",), "--output: required"),
        (("--max_shard_bytes=0",), "expected bytes, such as"),
        (
            ("--max_bad_fraction=30", "--list"),
            "--max_bad_fraction: '30': expected a number at",
        ),
        (("--num_workers=0", "--list"), "--num_workers: '0': expected a whole number, at least 1"),
        (("--filters=mm2",), "invalid choice: 'mm2'"),
    ],
)
def test_incomplete_commands_are_errors(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_summary_counts_split_skipped_kept_and_rejected_entries(tmp_path, capsys):
    source = tmp_path / "pages"
    source.mkdir()
    mark = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"
    pages = [
        {"texts": [f"one {mark}", "<PERSON> two", None], "images": [None, None, "lost.jpg"]},
        {"texts": ["a", "b"], "images": [None]},
        {"texts": ["a"], "images": [None, None]},
        {"texts": "a", "images": "b"},
    ]
    (source / "pages.jsonl").write_text("\n".join(map(json.dumps, pages)))
    output = tmp_path / "records"
    assert run("--format=jsonl", f"--input={source}", f"--output={output}", "--num_workers=1") == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines] == [
        "marks of the end of a document, at which pages and texts were cut: 1",
        "images that are missing from pages: 1",
        "1  image ...: there is no such file",
        "records that hold <PERSON>, which is kept as text: 1",
        f"3 of 4 entries were rejected; {output / 'quarantine.jsonl'} lists them",
        "2  N texts beside N images",
        "1  texts and images are not both lists",
        "For example pages.jsonl:2: 2 texts beside 1 images",
    ]
    counts = Manifest.read(output).counts
    assert counts["records"] == 2 and counts["end_of_document_marks"] == 1


def test_options_have_the_types_of_the_format():
    formats = tool.FORMATS
    parsed = tool.parse_options(formats["mmc4"], {"min_similarity": "0.5", "images": "a=b"})
    assert parsed == {"min_similarity": 0.5, "images": "a=b"}
    assert tool.split_options(["--option.a=b=c", "--list"]) == (["--list"], {"a": "b=c"})


@pytest.mark.parametrize(
    ("text", "size"), [("7", 7), ("2K", 2048), ("1MB", 2**20), ("3g", 3 * 2**30)]
)
def test_sizes_are_parsed_with_and_without_units(text, size):
    assert tool.parse([f"--max_shard_bytes={text}", "--list"]).max_shard_bytes == size


def test_mm1s_filters_apply_to_captions_and_drop_benchmark_images(captions, tmp_path, capsys):
    # The stand-ins for pictures cannot be decoded, so MM1's filters drop them.
    command = ("--format=jsonl", f"--input={captions}")
    assert run(*command, f"--output={tmp_path / 'a'}", "--filters=mm1") == 2
    assert "none of 10 entries became a record" in capsys.readouterr().err
    benchmark = f"--benchmark_images={captions.parent / '5.jpg'}"
    assert run(*command, f"--output={tmp_path / 'b'}", benchmark) == 0
    out = capsys.readouterr().out
    assert "1  EvaluationOverlap.same_bytes" in out and "overlap.jsonl lists the images" in out


def test_without_a_terminal_progress_is_printed_as_lines(capsys, monkeypatch):
    monkeypatch.setattr(tool, "SECONDS_BETWEEN_LINES", 0)
    display = tool.Display()
    display(tool.Progress("converting", 1, 3, 500))
    assert capsys.readouterr().err.startswith("converting: 1 of 3 units, 500 entries, ")


def test_without_beam_the_extra_is_named(captions, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    command = ("--format=jsonl", f"--input={captions}", f"--output={tmp_path / 'records'}")
    assert run(*command, "--runner=beam") == 2
    assert "pip install 'mm1_jax[beam]'" in capsys.readouterr().err


def test_beam_writes_the_same_files(source, tmp_path):
    pytest.importorskip("apache_beam")
    for name, flags in (("beam", ["--runner=beam"]), ("here", ["--num_workers=1"])):
        process = start(NUMBERED, f"--input={source}", f"--output={tmp_path / name}", *flags)
        _, error = process.communicate()
        assert process.returncode == 0, error
    assert contents(tmp_path / "beam") == contents(tmp_path / "here")

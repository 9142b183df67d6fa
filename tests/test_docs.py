"""Every command in README and docs is run here, or stands in a block that says what it needs.

A block of commands is marked by a comment on the line before it:

    <!-- needs: a trained runs/mm1_3b -->

Options of all commands are parsed, so that no page names an option, a config or a field that does
not exist. Commands without a mark are run, at reduced sizes, and so are some of the others.
"""

import argparse
import configparser
import contextlib
import functools
import importlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import PIL.Image
import pytest
from drawn_model import drawn_params
from flax import nnx

from mm1_jax import __version__
from mm1_jax.__main__ import COMMANDS
from mm1_jax.__main__ import main as run_command
from mm1_jax.launch.config_options import split_overrides
from mm1_jax.launch.launch import Launch
from mm1_jax.launch.named_configs import named_configs
from mm1_jax.launch.run_folder import RunFolder
from mm1_jax.train.train_state import TrainState

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "experiments/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs" / "studies" / "README.md",
]
NEEDS = re.compile(r"<!-- needs: \S.* -->")
# Commands that other tests run, and where: the suite, and a launch of mm1_tiny at small sizes.
ELSEWHERE = {
    "python -m pytest": ".ci/run",
    "python -m mm1_jax.launch --config=mm1_tiny": "tests/end_to_end/test_runs.py",
    "ruff check .": "tests/test_style.py",
    "ruff format --check .": "tests/test_style.py",
}
# Few records of the corpora that are drawn, which packing looks at before the first batch.
FEW = tuple(
    f"--config.input.streams.{stream}.corpora.{corpus}.corpus.source.num_records=64"
    for stream, corpora in enumerate((4, 2, 2))
    for corpus in range(corpora)
)
# Commands that are run here, in this order, and what makes them quick.
RUN = {
    "python -m mm1_jax.launch --list": (),
    "python -m mm1_jax.launch --config=mm1_tiny --print_config": (),
    "python -m mm1_jax.launch --config=mm1_tiny --output_dir=runs/nine "
    "--config.model.connector.num_image_tokens=9": ("--print_config",),
    "python -m mm1_jax.launch --module=my_experiments --config=mm1_tiny_long --print_config": (),
    "python -m mm1_jax.launch --config=mm1_tiny --print_config=json": (),
    "python -m mm1_jax.launch --config_file=mine.json --config.trainer.max_steps=100": (
        "--print_config",
    ),
    "python -m mm1_jax.launch --config=mm1_7b_moe --small": ("--print_config",),
    "python -m mm1_jax convert_records --list": (),
    "python -m mm1_jax hash_batches --config=mm1_tiny --steps=0:8 --hosts=4 --workers=2 "
    "--state=state.json": ("--steps=0:2", "--workers=0", *FEW),
    "python -m mm1_jax show_batch --config=mm1_tiny --step=5 --output=batch.html": (
        "--rows=0:2",
        *FEW,
    ),
    "python -m mm1_jax show_batch --module=places --config=mm1_tiny_places --output=batch.html": (
        *("--rows=0:2", *FEW),
    ),
    "python -m mm1_jax generate --checkpoint=runs/mm1_tiny --image=digit.png "
    '--prompt="what digit is this?"': ("--max_new_tokens=2",),
    "python -m mm1_jax evaluate --checkpoint=runs/mm1_tiny --benchmarks=embedded --shots=0,4 "
    "--limit=100": ("--shots=0", "--limit=2", "--batch_size=2", "--benchmarks=digits_vqa"),
    "python -m mm1_jax convert_checkpoint export --checkpoint=runs/mm1_tiny --output=mm1_tiny_hf": (
        "--skip_comparison",
    ),
}
# Beginnings of options that set fields, and options of lm-evaluation-harness and of a test.
OF_CONFIGS = {"--config", "--option", "--set"} | {
    *("--model_args", "--apply_chat_template", "--use_cache", "--batch_size", "--files"),
}
# Lines that set up an environment, and words of the shell.
SETUP = ("python3 -m venv", ". .venv/bin/activate", "pip install", "export ", "wait", "pyright")


class Command(NamedTuple):
    """A command of a page; `needs` is whether its block is marked."""

    page: Path
    needs: bool
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def _blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yields the line before each block of commands, and the block."""
    for match in re.finditer(r"([^\n]*)\n```bash\n(.*?)\n```", page.read_text(), re.DOTALL):
        yield match[1], match[2]


def _commands(page: Path) -> Iterator[Command]:
    for before, block in _blocks(page):
        lines = block.replace("\\\n", " ").split("\n")
        for text in (part for line in lines for part in re.split(r"&&|;| & | &$| \| ", line)):
            # Drops the words of a loop, variables, redirections, comments and spaces.
            text = re.sub(r"^\s*((for .* in .*|do|done)(\s+|$))?(\w+=\S+\s+(?=\S))*", "", text)
            text = " ".join(re.sub(r"\s(#|> ).*", "", text).split())
            if text:
                yield Command(page, bool(NEEDS.fullmatch(before)), _plain(text))


def _plain(text: str) -> str:
    """Returns the command as it is called in an active environment."""
    text = text.removeprefix(".venv/bin/")
    return f"python -m {text}" if text.startswith("pytest") else text


ALL = [command for page in PAGES for command in _commands(page)]


def _is_setup(text: str) -> bool:
    return text.startswith(SETUP)


def test_every_command_is_run_or_says_what_it_needs():
    known = (*RUN, *ELSEWHERE)
    lost = [
        f"{command.page.relative_to(ROOT)}: {command.text}"
        for command in ALL
        if not command.needs
        and not _is_setup(command.text)
        and not any(command.text == each or command.text.startswith(f"{each} -n") for each in known)
    ]
    assert not lost, "\n".join(lost)


def test_every_command_that_is_run_is_on_a_page():
    assert RUN.keys() <= {command.text for command in ALL}
    assert all((ROOT / each).exists() for each in ELSEWHERE.values())


class _Parsed(BaseException):
    """Ends a command when its options have been parsed."""


def _parse(command: Command, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Parses the options of a command of this project, and runs nothing of it."""
    words = [os.path.expandvars(word).replace("$i", "0") for word in command.words]
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_end(*args, **kwargs):
        raise _Parsed(parse_args(*args, **kwargs))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
    with pytest.raises(_Parsed) as parsed:
        if words[1] != "-m":
            _tool(ROOT / words[1]).main(words[2:])
        elif words[2] == "mm1_jax":
            run_command(words[3:])
        else:
            importlib.import_module(f"{words[2]}.__main__").main(words[3:])
    return parsed.value.args[0]


def _tool(path: Path):
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_docs", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


OURS = re.compile(r"python (-m (mm1_jax|mm1_jax\.launch|mm1_jax\.rehearse)|tools/\w+\.py)( |$)")


@pytest.mark.parametrize("text", sorted({each.text for each in ALL if OURS.match(each.text)}))
def test_options_configs_and_fields_exist(text, folder, monkeypatch):
    monkeypatch.chdir(folder)
    command = next(each for each in ALL if each.text == text)
    options = _parse(command, monkeypatch)
    if getattr(options, "module", None) is not None:
        # The module is a file on the page; its commands are run below.
        return
    names = [
        getattr(options, "config", None),
        *(getattr(options, "configs", None) or "").split(","),
    ]
    unknown = {name for name in names if name} - named_configs().keys()
    assert not unknown
    _, overrides = split_overrides(command.words)
    if overrides and getattr(options, "config", None):
        Launch(options.config, None, overrides).resolved_config()


@pytest.mark.parametrize("text", sorted({each.text for each in ALL if not OURS.match(each.text)}))
def test_other_programs_extras_and_tests_exist(text):
    words = shlex.split(text)
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    for names in re.findall(r"\[([\w,-]+)\]", text):
        assert set(names.split(",")) <= set(extras["options.extras_require"]), text
    if words[:3] == ["python", "-m", "pytest"]:
        paths = [word for word in words[3:] if word.startswith("tests")]
        assert all((ROOT / path.partition("::")[0]).exists() for path in paths), text
    elif words[:2] == ["python", "-m"]:
        package = words[2].partition(".")[0]
        assert package == "lmms_eval" or importlib.util.find_spec(words[2]), text
    else:
        assert _is_setup(text) or words[0] in ("ruff", "mkdocs", "mm1_jax", "printf"), text


def _inline(page: Path) -> set[str]:
    """Returns the pieces of code inside of sentences and tables."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", text))


@functools.cache
def _help(*words: str) -> str:
    """Returns the --help text of a command, or of a file of tools/."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        if words[0].startswith("tools/"):
            _tool(ROOT / words[0]).main([*words[1:], "--help"])
        else:
            run_command([*words, "--help"])
    return output.getvalue()


def test_commands_and_files_in_sentences_exist():
    for page in PAGES:
        for code in _inline(page):
            if match := re.match(r"python -m mm1_jax[ .](\w+)( import| export)?", code):
                name, part = match[1], (match[2] or "").strip()
                assert name in {*COMMANDS, "NAME", "evals"}, f"{page}: {code}"
                text = _help(name, *filter(None, [part])) if name in COMMANDS else ""
            elif match := re.match(r"python (tools/\w+\.py)", code):
                text = _help(match[1])
            else:
                continue
            for option in re.findall(r"--\w+", code):
                assert f"{option}" in text or option in OF_CONFIGS, f"{page}: {code}"
        for path in re.findall(
            r"\b(?:tools|tests|experiments|launch_files)/[\w/]+\.\w+", page.read_text()
        ):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_options_in_sentences_exist():
    parts = [("convert_checkpoint", "import"), ("convert_checkpoint", "export")]
    texts = [_help(*words) for words in (*((name,) for name in COMMANDS), *parts)]
    texts += [_help(f"tools/{path.name}") for path in sorted((ROOT / "tools").glob("bench*.py"))]
    texts += [_help("tools/inject_faults.py")]
    known = {option for text in texts for option in re.findall(r"--\w+", text)} | OF_CONFIGS
    for page in PAGES:
        for code in _inline(page):
            if code.startswith("--"):
                unknown = set(re.findall(r"--\w+", code)) - known
                assert not unknown, f"{page}: {code}"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if target.startswith(("http://", "https://")):
                continue
            path, _, heading = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page}: {target}"
            headings = (
                {
                    re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
                    for line in file.read_text().splitlines()
                    if line.startswith("#")
                }
                if heading
                else {""}
            )
            assert heading in headings, f"{page}: {target}"


def _python(page: str, first_line: str) -> str:
    """Returns the Python block of a page that begins with a line."""
    text = (ROOT / "docs" / page).read_text()
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if block.startswith(first_line)
    )
    return code


SMALL = {
    "input.batch_size": "2",
    "input.max_sequence_length": "96",
    "input.max_images": "4",
    "model.vision_encoder.num_layers": "1",
    "model.decoder.num_layers": "1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder as a reader has it: modules of the guides, data, a picture, and a small run."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "places.py").write_text(_python("bring_your_data.md", '"""Photographs of places'))
    (folder / "subsampling.py").write_text(_python("fork_and_change.md", '"""A connector that'))
    (folder / "my_experiments.py").write_text(_python("fork_and_change.md", '"""Variants of'))
    photos = folder / "data" / "places" / "photos"
    photos.mkdir(parents=True)
    PIL.Image.new("RGB", (32, 32), "gray").save(photos / "bridge.jpg")
    line = '{"title": "Bridge", "image": "photos/bridge.jpg", "description": "An old bridge."}\n'
    (photos.parent / "places.jsonl").write_text(line * 8)
    PIL.Image.new("L", (32, 32), "black").save(folder / "digit.png")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        run_command(["launch", "--config=mm1_tiny", "--print_config=json"])
    (folder / "mine.json").write_text(output.getvalue())
    return folder


@pytest.fixture(scope="module")
def small_run(folder):
    """Writes `runs/mm1_tiny` with random parameters, at a small size."""
    launch = Launch("mm1_tiny", None, SMALL)
    cfg = launch.resolved_config()
    run = folder / "runs" / "mm1_tiny"
    run.mkdir(parents=True)
    RunFolder(run).claim(launch, cfg)
    model = nnx.eval_shape(lambda: cfg.model.instantiate(rngs=nnx.Rngs(0)))
    _, shapes = nnx.split(model, nnx.Param)
    state = TrainState(jnp.int32(1), drawn_params(nnx.to_pure_dict(shapes), seed=0), ())
    checkpointer = cfg.trainer.checkpointer.instantiate(directory=run / "checkpoints")
    checkpointer.save(1, state, {"step": 1})
    checkpointer.wait()
    checkpointer.close()


@pytest.fixture
def text(request) -> str:
    """Returns a command; writes the run that it uses."""
    if "runs/mm1_tiny" in request.param:
        request.getfixturevalue("small_run")
    return request.param


@pytest.mark.parametrize("text", RUN, indirect=True)
def test_the_command_runs(text, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    words = [*shlex.split(text)[3:], *RUN[text]]
    assert run_command(["launch", *words] if "mm1_jax.launch" in text else words) == 0
    assert capsys.readouterr().out
    if "export" in text:
        assert (folder / "mm1_tiny_hf" / "config.json").exists()


def test_the_connector_of_the_guide_maps_features(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    cfg = Launch("mm1_tiny_subsampling", "subsampling", SMALL).resolved_config()
    assert cfg.input.num_image_tokens == cfg.model.connector.num_image_tokens == 4
    model = nnx.eval_shape(lambda: cfg.model.instantiate(rngs=nnx.Rngs(0)))
    features = jax.ShapeDtypeStruct((2, 16, cfg.model.vision_encoder.model_dim), jnp.float32)
    embeddings = jax.eval_shape(lambda model, x: model.connector(x), model, features)
    assert embeddings.shape == (2, 4, cfg.model.decoder.model_dim)


def test_the_test_of_the_corpus_passes(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    tests: dict[str, Any] = {}
    exec(_python("bring_your_data.md", "import pytest"), tests)
    passed = [test() for name, test in tests.items() if name.startswith("test_")]
    assert len(passed) == 2


def test_all_files_name_the_same_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\n" in citation
    assert f"\n## [{__version__}]\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_picture_of_the_data_flow_is_that_of_its_script(tmp_path):
    script = tmp_path / "make_data_flow.py"
    shutil.copy(ROOT / "docs" / "images" / "make_data_flow.py", script)
    subprocess.run([sys.executable, script], check=True)
    stored = (ROOT / "docs" / "images" / "data_flow.svg").read_text()
    assert (tmp_path / "data_flow.svg").read_text() == stored

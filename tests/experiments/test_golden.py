"""Every named experiment builds, and its resolved config equals the golden text.

After an intended change, rewrite the texts: `MM1_UPDATE_GOLDEN=1 pytest tests/experiments`.
"""

import functools
import os
import random
from pathlib import Path

import pytest
from golden_texts import TABLE, golden_files, whole_text

from mm1_jax.config import ConfigBase
from mm1_jax.experiment import Experiment
from mm1_jax.launch.named_configs import named_configs
from mm1_jax.storage import write_whole

GOLDEN = Path(__file__).parent.parent.parent / "experiments" / "golden"
NAMES = sorted(named_configs())
# Number of fields per config, and of lines of all files, that are changed one at a time.
NUM_FIELDS, NUM_LINES = 6, 100


@functools.cache
def _config(name: str) -> Experiment.Config:
    return Experiment.resolve(named_configs()[name]())


@functools.cache
def _text(name: str) -> str:
    return _config(name).debug_string() + "\n"


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    stored = {path.name: path.read_text() for path in GOLDEN.iterdir()}
    if not os.environ.get("MM1_UPDATE_GOLDEN"):
        return stored
    made = golden_files({name: _text(name) for name in NAMES}, stored)
    for name in stored.keys() - made.keys():
        (GOLDEN / name).unlink(missing_ok=True)
    for name, content in made.items():
        write_whole(GOLDEN / name, content)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_config_equals_the_golden_text(name, files):
    assert f"{name}.txt" in files, f"no golden text of {name}; make it with MM1_UPDATE_GOLDEN=1"
    assert whole_text(name, files) == _text(name), (
        f"{name} changed; if meant, run with MM1_UPDATE_GOLDEN=1"
    )


def test_every_golden_text_belongs_to_a_config(files):
    assert sorted(files) == sorted([TABLE, *(f"{name}.txt" for name in NAMES)])


def test_golden_files_equal_those_of_an_update(files):
    assert golden_files({name: _text(name) for name in NAMES}, files) == files


def _changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, (list, tuple)):
        return (*value, "changed")
    if isinstance(value, dict):
        return {**value, "changed": 0}
    return "changed"


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_field_is_detected(name, files):
    cfg = _config(name).clone()
    golden = whole_text(name, files)
    fields: list[tuple[ConfigBase, str]] = []

    def enter(path, value, children):
        if isinstance(value, ConfigBase):
            fields.extend((value, field) for field in value.keys())  # noqa: SIM118
        return children

    cfg.visit(lambda path, value: None, enter)
    for part, field in random.Random(name).sample(fields, NUM_FIELDS):
        before = getattr(part, field)
        part.set(**{field: _changed(before)})
        assert cfg.debug_string() + "\n" != golden, f"{field} of {part.klass}"
        part.__dict__[field] = before


def test_a_changed_line_is_detected(files):
    lines = [
        (file, i)
        for file, content in files.items()
        for i, line in enumerate(content.splitlines())
        if file != TABLE or line.startswith(("| mm1", "| llama"))
    ]
    for file, i in random.Random(0).sample(lines, NUM_LINES):
        content = files[file].splitlines()
        line = content.pop(i)
        name = line.split()[1] if file == TABLE else file.removesuffix(".txt")
        fewer = {**files, file: "".join(f"{each}\n" for each in content)}
        try:
            text = whole_text(name, fewer)
        except (ValueError, KeyError):
            continue
        assert text != _text(name), f"{file}: {line}"


def test_items_keys_and_fields_are_sorted_as_in_the_config():
    base = ["a['y']: 1", "a['x']: 1", "b[2].c: 1", "b[10].c: 1", "d: 1"]
    other = ["a['y']: 1", "a['x']: 2", "a['w']: 1", "b[2].c: 1", "b[3].c: 1", "b[10].c: 1"]
    texts = {"mm1_tiny": "\n".join(base) + "\n", "mm1_other": "\n".join(other) + "\n"}
    texts |= dict.fromkeys(("mm1_1b", "mm1_7b_moe", "aim_600m"), "x: 1\n")
    files = golden_files(texts, {})
    assert files["mm1_other.txt"].splitlines() == [
        "base: mm1_tiny",
        *("- a['x']: 1", "+ a['x']: 2", "+ a['w']: 1", "+ b[3].c: 1", "- d: 1"),
    ]
    assert {name: whole_text(name, files) for name in texts} == texts

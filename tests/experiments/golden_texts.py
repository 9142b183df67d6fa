"""Golden texts of named configs: four in full, the others as differences from one of these.

    NAME.txt        all lines of a resolved config; or `base: OTHER`, then the lines that only
                    OTHER has (`- path: value`) and those that only NAME has (`+ path: value`)
    mesh_rules.md   one table of all mesh rules; `trainer.mesh_rules` names those of a config in it

The files are in `experiments/golden`.
"""

import ast
import re
from collections.abc import Iterable, Mapping

from mm1_jax.parallel.parallelism import Parallelism

WHOLE = ("mm1_tiny", "mm1_1b", "mm1_7b_moe", "aim_600m")
TABLE = "mesh_rules.md"

_RULES = "trainer.mesh_rules"
_TITLE = """# Mesh rules of the named configs

Devices as a regular expression, in the order in which they are tried, and the fields of their
`Parallelism` that are not its defaults. Written by `MM1_UPDATE_GOLDEN=1 pytest tests/experiments`.
"""
_DEFAULTS = Parallelism.default_config().debug_string().splitlines()
# Values that are not strings.
_BARE = re.compile(r"-?\d[\d.e-]*|None|True|False|<.*>")


def whole_text(name: str, files: Mapping[str, str]) -> str:
    """Assembles the text of a config from the contents of the files."""
    rules = _rules(files[TABLE])
    lines: list[str] = []
    for line in _lines(name, files):
        is_reference = line.startswith(f"{_RULES}: ")
        lines += rules[line.rpartition(" ")[2]] if is_reference else [line]
    return "".join(f"{line}\n" for line in _in_order(lines))


def golden_files(texts: Mapping[str, str], files: Mapping[str, str]) -> dict[str, str]:
    """Makes the contents of all files from whole texts.

    Args:
        files: The present contents. A config keeps its base; a new config gets the base with the
            fewest differences.
    """
    owners: dict[tuple[str, ...], str] = {}
    lines: dict[str, list[str]] = {}
    for name in sorted(texts):
        lines[name] = texts[name].splitlines()
        if rules := tuple(line for line in lines[name] if line.startswith(_RULES)):
            others = [line for line in lines[name] if line not in rules]
            owner = owners.setdefault(rules, name)
            lines[name] = _in_order([*others, f"{_RULES}: of {owner}"])
    made = {TABLE: _table({name: rules for rules, name in owners.items()})}
    for name, own in lines.items():
        if name not in WHOLE:
            base = _base(files.get(f"{name}.txt", ""))
            if base not in lines:
                base = min(WHOLE, key=lambda other: len(_differences(lines[other], own)))
            own = [f"base: {base}", *_differences(lines[base], own)]
        made[f"{name}.txt"] = "".join(f"{line}\n" for line in own)
    return made


def _base(content: str) -> str | None:
    first = content.partition("\n")[0]
    return first.removeprefix("base: ") if first.startswith("base: ") else None


def _lines(name: str, files: Mapping[str, str]) -> list[str]:
    content = files[f"{name}.txt"]
    base = _base(content)
    if base is None:
        return content.splitlines()
    removed = {line[2:] for line in content.splitlines() if line.startswith("- ")}
    added = [line[2:] for line in content.splitlines() if line.startswith("+ ")]
    of_base = _lines(base, files)
    if lost := removed.difference(of_base):
        raise ValueError(f"{name}.txt removes lines that {base} does not have: {sorted(lost)}")
    return [line for line in of_base if line not in removed] + added


def _differences(base: list[str], own: list[str]) -> list[str]:
    removed, added = (
        [line for line in a if line not in b] for a, b in ((base, {*own}), (own, {*base}))
    )
    return _in_order([*(f"- {line}" for line in removed), *(f"+ {line}" for line in added)])


def _in_order(lines: Iterable[str]) -> list[str]:
    """Sorts lines as in a config: fields by name, items by number, keys in their given order."""
    keys: dict[str, int] = {}

    def order(line: str) -> list[str | int]:
        path = line.removeprefix("- ").removeprefix("+ ").partition(": ")[0]
        return [
            int(number) if number else keys.setdefault(key, len(keys)) if key else field
            for key, number, field in re.findall(r"(\['.*?'\])|\[(\d+)\]|([^.\[]+)", path)
        ]

    return [line for _, line in sorted([(order(x), x) for x in lines], key=lambda pair: pair[0])]


def _rules(table: str) -> dict[str, list[str]]:
    """Maps the first config that has a set of mesh rules to the lines of these rules."""
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    rules: dict[str, list[list[str]]] = {}
    for name, devices, *cells in rows:
        lines = [f"devices: {_text(devices)}", *(f"parallelism.{line}" for line in _DEFAULTS)]
        for field, cell in zip(header[2:], cells, strict=True):
            for i, value in enumerate(cell.split()):
                path = f"{field[:-2]}[{i}]" if field.endswith("[]") else field
                lines.append(f"parallelism.{path}: {_text(value)}")
        rules.setdefault(name, []).append(lines)
    return {
        name: [f"{_RULES}[{i}].{line}" for i, lines in enumerate(each) for line in lines]
        for name, each in rules.items()
    }


def _table(rules: Mapping[str, Iterable[str]]) -> str:
    rows: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name, lines in rules.items():
        for line in lines:
            path, _, text = line.removeprefix(f"{_RULES}[").partition(": ")
            number, _, field = path.partition("].")
            field = field.removeprefix("parallelism.")
            if f"{field}: {text}" not in _DEFAULTS:
                row = rows.setdefault((name, number), {})
                row.setdefault(re.sub(r"\[\d+\]", "[]", field), []).append(_cell(text))
    fields = sorted({field for row in rows.values() for field in row} - {"devices"})
    header = ["rules of", "devices", *fields]
    cells = [
        [name, *(" ".join(row.get(field, [])) for field in header[1:])]
        for (name, _), row in rows.items()
    ]
    table = [header, ["---"] * len(header), *cells]
    return _TITLE + "\n" + "".join(f"| {' | '.join(row)} |\n" for row in table)


def _cell(text: str) -> str:
    return text if _BARE.fullmatch(text) else ast.literal_eval(text)


def _text(cell: str) -> str:
    return cell if _BARE.fullmatch(cell) else repr(cell)

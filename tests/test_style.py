"""Lint, format, types, and the prose rules that a machine can check."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("mm1_jax", "experiments", "tools", "tests")

# No docstring or comment begins with one of these words.
OPENINGS = {
    "docstring": r'"{3}\s*(What|Of|That|Those|How|Whether|Which|Whose)\b',
    "comment": r"\A#\s*(What|Of|Those|Whose)\b",
}

# Phrases that are right in no docstring, comment or message -> what to write instead.
PHRASES = {
    r"(go|goes|going|went|gone) on": "resume or continue",
    r"(mend|mends|mended|mending)": "fix",
    r"anew": "again",
    r"afresh": "again",
    r"how manieth": "index",
    r"(put|puts|left|leave|leaves) aside": "move, or except",
    r"as (it|they) came": "unchanged",
    r"one's own": "your own",
    r"to be had": "available",
    r"everybody": "all processes, all users",
    r"what (becomes|became|is made|was made) of": "the result of",
    r"what( [\w']+){1,5} (make|makes|made) of": "the result of",
    r"(give|gives|gave|given) back": "return",
    r"(comes|come|came) to (its|an|the) end": "end",
    r"passed over": "skipped",
    r"put right": "correct",
    r"sought": "search for",
    r"written over": "overwritten",
    r"written down": "recorded",
    r"(told|tell|tells) of": "report",
    r"in the place of": "instead of",
    r"(tell|tells) if": "returns whether",
    r"of so many": "of N",
    r"(one|put) behind (the other|each other|another)": "one after the other",
    r"that (is|are) (?-i:none)": "that is not one",
    r"that (is|are) no (?!longer|more|less)": "that is not a",
    r"(thereof|therein|whereof|wherein|hitherto|henceforth)": "of it, in it, so far",
}

# British stems -> American ones.
SPELLINGS = {
    "analyse": "analyze",
    "artefact": "artifact",
    "behaviour": "behavior",
    "cancell(?=ed|ing)": "cancel",
    "catalogue": "catalog",
    "centre": "center",
    "centred": "centered",
    "colour": "color",
    "defence": "defense",
    "favour": "favor",
    "grey": "gray",
    "judgement": "judgment",
    "labell(?=ed|ing)": "label",
    "learnt": "learned",
    "licence": "license",
    "modell(?=ed|ing)": "model",
    "neighbour": "neighbor",
    "programme(?=s?\\b)": "program",
    "spelt": "spelled",
    "spoilt": "spoiled",
    r"(emphas|factor|final|general|initial|local|material|maxim|minim|normal|optim|organ|parallel"
    r"|penal|quant|random|recogn|regular|rematerial|serial|special|stabil|summar|synchron|token"
    r"|util|vector|visual)is(?=e|ing|ation|able)": r"\1iz",
}  # fmt: skip


def pattern(words: str) -> str:
    """Lets spaces match line breaks of comments, and of strings that follow each other."""
    return words.replace(" ", r"""(?:[\s#]|["']\s+f?["'])+""")


PHRASE_RULES = {
    re.compile(rf"\b(?:{pattern(words)})(?!\w)", re.IGNORECASE): better
    for words, better in PHRASES.items()
}
# Parts of names, paths and calls are exempt.
SPELLING_RULES = {
    re.compile(rf"(?<![\w./-])(?:{stem})(?P<end>\w*)(?![(\w]|[./]\w)", re.IGNORECASE): (
        better + r"\g<end>"
    )
    for stem, better in SPELLINGS.items()
}

STRING = r"""(?:(?<!\w)[bfru]{0,2}(?:"{3}.*?"{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))"""
TEXT = re.compile(
    rf"(?P<docstring>(?:\A(?:#.*?\n)*|(?<=:\n))\s*{STRING})"
    rf"|(?P<comment>#[^\n]*(?:\n *#[^\n]*)*)"
    rf"|(?P<string>{STRING}(?:\s*{STRING})*)",
    re.DOTALL | re.IGNORECASE,
)


def broken(text: str, rules: dict[re.Pattern, str]) -> Iterator[tuple[int, str]]:
    """Yields the place of each broken rule, and what to write instead."""
    for rule, better in rules.items():
        for match in rule.finditer(text):
            words = " ".join(match[0].split())
            yield match.start(), f'"{words}": write "{match.expand(better)}"'


def line_of(text: str, place: int) -> int:
    return 1 + text.count("\n", 0, place)


def without_code(text: str) -> str:
    """Blanks fenced blocks and spans between backticks."""
    code = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
    return code.sub(lambda span: re.sub(r"[^\n]", " ", span[0]), text)


def problems(source: str, messages: bool = True) -> Iterator[tuple[int, str]]:
    """Yields lines of Python code where prose breaks a rule, and the better words.

    Args:
        messages: Strings are texts that users read, and not data.
    """
    for text in TEXT.finditer(source):
        kind, prose = text.lastgroup, text[0]
        found = [] if kind == "string" and not messages else [*broken(prose, PHRASE_RULES)]
        if kind != "string":
            found += broken(without_code(prose), SPELLING_RULES)
        if kind in OPENINGS and (opening := re.search(OPENINGS[kind], prose)):
            found.append((opening.start(1), f'"{opening[1]}": begin with a verb or a named noun'))
        if kind == "comment" and (banner := re.search(r"[-=*#~_]{4,}", prose)):
            found.append((banner.start(), f'"{banner[0]}": leave the banner out'))
        for place, problem in found:
            yield line_of(source, text.start() + place), problem


def check(*command: str) -> None:
    result = subprocess.run(
        (sys.executable, "-m", *command), cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_finds_nothing():
    check("ruff", "check", ".")


def test_the_code_is_formatted():
    check("ruff", "format", "--check", ".")


@pytest.mark.slow
def test_pyright_finds_nothing():
    """Slow, as its first run fetches Node.js."""
    check("pyright")


SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
DOCS = [
    *(path for folder in (".", ".github", "experiments") for path in (ROOT / folder).glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def texts(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yields names and contents of files."""
    return ((path.relative_to(ROOT).as_posix(), path.read_text()) for path in paths)


def test_prose_is_plain_technical_english():
    wrong = [
        f"{name}:{line}: {problem}"
        for name, source in texts(SOURCES)
        for line, problem in problems(source, messages=not name.startswith("tests/"))
    ]
    assert not wrong, "\n".join(wrong)


def test_sources_are_ascii():
    wrong = [
        f"{name}:{number}: write {character!a} as an escape"
        for name, source in texts(SOURCES)
        if not source.isascii()
        for number, line in enumerate(source.split("\n"), start=1)
        for character in re.findall(r"[^\x00-\x7f]", line)
    ]
    assert not wrong, "\n".join(wrong)


def test_docs_are_plain_technical_english():
    wrong = [
        f"{name}:{line_of(text, place)}: {problem}"
        for name, text in texts(DOCS)
        for place, problem in broken(without_code(text), PHRASE_RULES | SPELLING_RULES)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source, expected",
    [
        ('"""What reads rows."""', ['1: "What": begin with a verb']),
        ('#!/bin/python\n"""That of a row."""', ['2: "That"']),
        ('def f():\n    """Of a row, its length."""', ['2: "Of"']),
        ('class Row:\n\n    r"""\n    Whose it is.\n    """', ['4: "Whose"']),
        ('"""Reads rows.\n\nThe run goes\non here."""', ['3: "goes on": write "resume']),
        ("x = 1  # Rows are read\n# anew.", ['2: "anew": write "again"']),
        ('f("then it goes "\n  f"on")', ['1: "goes']),
        ("f('mend the source')", ['1: "mend": write "fix"']),
        ("# The Colours, normalised.", ['"colors"', '"normalized"']),
        ('"""Reads the colours of\n`colour_of`."""', ['1: "colours": write "colors"']),
        ("# Of a row.\nx = 1  # How long it is.", ['1: "Of": begin with a verb']),
        ("# ---- rows ----", ['1: "----": leave the banner out']),
        # Code, names and data are exempt.
        ("# `normalise(x)` in parallel.rematerialisation and colour_of(x).", []),
        ('x = "the colours of a song"', []),
        ("mend = anew(goes, on)", []),
        ('"""Whatever a row holds, and so on."""', []),
        ('x = [\n    "what it says # mended"]', ['2: "mended"']),
    ],
)
def test_a_broken_prose_rule_is_found(source: str, expected: list[str]):
    found = [f"{line}: {problem}" for line, problem in problems(source)]
    assert len(found) == len(expected), found
    assert all(part.lower() in line.lower() for part, line in zip(expected, found, strict=True))


def test_strings_of_tests_are_data():
    assert not [*problems('x = "mend"', messages=False)]


def test_code_in_docs_is_exempt():
    text = without_code("```\ncolour\n```\n`grey` rows\nin colour")
    assert [*broken(text, SPELLING_RULES)] == [(30, '"colour": write "color"')]
    assert line_of(text, 30) == 5

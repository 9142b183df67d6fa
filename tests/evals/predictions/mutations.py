"""Random changes of realistic prediction files, and an independent score of each file.

    python tests/evals/predictions/mutations.py --files=2000 --seed=0

A file is a function of its seed: small predictions of a benchmark, with or without annotations, one
or more changes, and a file format. Changes that keep the meaning must keep every number exactly.
After any other change the scorer must raise a ValueError that names a file, or agree with the rules
below. The rules do not use the package, and take rows that they make or read themselves.
"""

import argparse
import csv
import gzip
import io
import json
import math
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mm1_jax.evals.predictions.registry import SCORERS
from mm1_jax.evals.predictions.scorer import ScoringJob

Row = dict[str, Any]
# Expected metrics of a file; None if it must be rejected.
Expected = Mapping[str, float] | None


@dataclass(frozen=True)
class Layout:
    """Layout of the predictions of one benchmark, and the rule that scores them.

    Attributes:
        make: Makes a reference row for an id.
        replies: Possible replies of models.
        is_right: Returns the share of a point for a reply, given its reference row.
        scores: Returns metrics of the shares, given the reference rows.
        id: Field of the id.
        reply: Field of the reply, if references are in a separate file.
        may_repeat: An id may occur twice.
        is_numeric: A reply may be a number.
        annotations: References are in a separate file: "always", "never" or "either".
        scores_part: Unanswered questions are left out of the score.
    """

    make: Callable[[random.Random, int], Row]
    replies: tuple[str, ...]
    is_right: Callable[[str, Row], float]
    scores: Callable[[list[float], list[Row]], dict[str, float]]
    id: str = "question_id"
    reply: str = "prediction"
    may_repeat: bool = False
    is_numeric: bool = False
    annotations: str = "either"
    scores_part: bool = False


def _mean(values: list[float]) -> float:
    return 100 * math.fsum(values) / len(values)


def _vqa_share(reply: str, row: Row) -> float:
    same = row["answers"].count(reply)
    return (same * min(1, (same - 1) / 3) + (10 - same) * min(1, same / 3)) / 10


def _pope(shares: list[float], rows: list[Row]) -> dict[str, float]:
    return {"n": len(rows), "accuracy": _mean(shares) / 100}


def _mmbench(shares: list[float], rows: list[Row]) -> dict[str, float]:
    rounds: dict[int, dict[int, float]] = {}
    for share, row in zip(shares, rows, strict=True):
        rounds.setdefault(int(row["index"]) % 10**6, {})[int(row["index"]) // 10**6] = share
    return {
        "circular_acc": _mean([min(each.values()) for each in rounds.values()]),
        "vanilla_acc": _mean([each[0] for each in rounds.values()]),
    }


def _seed(shares: list[float], rows: list[Row]) -> dict[str, float]:
    return {"n": len(rows), "acc": _mean(shares)}


def _letters(rng: random.Random) -> Row:
    count = rng.choice((3, 4, 6))
    return {
        "options": {"ABCDEF"[i]: f"word {i}" for i in range(count)},
        "answer": rng.choice("ABCDEF"[:count]),
    }


def _letter(reply: str, row: Row) -> float:
    return float(reply == row["answer"])


LAYOUTS: Mapping[str, Layout] = {
    "vqav2": Layout(
        lambda rng, i: {
            "question_id": 100 + i,
            "answers": [rng.choice(("cat", "dog", "red\nbus")) for _ in range(10)],
        },
        ("cat", "dog", "red\nbus", "caf\u00e9", 'a "b", c', ""),
        _vqa_share,
        lambda shares, rows: {"n": len(rows), "acc_official": _mean(shares)},
        reply="answer",
    ),
    "gqa": Layout(
        lambda rng, i: {"question_id": f"{i:03}", "answer": rng.choice(("left", "yes"))},
        ("left", "yes", "no", "\u4f60\u597d", ""),
        lambda reply, row: float(reply == row["answer"]),
        lambda shares, rows: {"n": len(rows), "acc": _mean(shares)},
    ),
    "pope": Layout(
        lambda rng, i: {"question_id": i, "label": rng.choice(("yes", "no")), "image": "a.jpg"},
        ("Yes", "No", "no, nothing", "maybe", "No\tno"),
        lambda reply, row: float((reply not in ("No", "no, nothing")) == (row["label"] == "yes")),
        _pope,
        reply="answer",
    ),
    "scienceqa": Layout(
        lambda rng, i: (
            {"question_id": str(i), "n_choices": 4, "answer": rng.choice("ABCD")}
            | {"has_image": False}
        ),
        ("A", "B", "C", "D", "E", "none"),
        _letter,
        lambda shares, rows: {"n": len(rows), "acc": _mean(shares)},
        annotations="never",
    ),
    "seed": Layout(
        lambda rng, i: {"question_id": i, "question_type_id": 1 + i % 12, **_letters(rng)},
        ("A", "B", "C", "D", "E", "F", "zzz"),
        _letter,
        _seed,
        may_repeat=True,
    ),
    "mmbench": Layout(
        lambda rng, i: {"index": i // 2 + 10**6 * (i % 2), **_letters(rng)},
        ("A", "B", "C", "D", "E", "F", "zzz"),
        _letter,
        _mmbench,
        id="index",
    ),
    "mmmu": Layout(
        lambda rng, i: {
            "id": f"validation_Art_{i}",
            "question_type": "multiple-choice",
            "ground_truth": rng.choice("ABEF"),
        },
        ("A", "B", "E", "F", "zzz"),
        lambda reply, row: float(reply == row["ground_truth"]),
        lambda shares, rows: {"n": len(rows), "overall": _mean(shares) / 100},
        id="id",
        reply="response",
        annotations="always",
    ),
    "mathvista": Layout(
        lambda rng, i: {"pid": str(i), "answer_type": "text", "answer": rng.choice(("x", "y"))},
        ("x", "y", "z", "\U0001f600"),
        _letter,
        lambda shares, rows: {"n": len(rows), "accuracy": _mean(shares)},
        id="pid",
        reply="extraction",
        is_numeric=True,
    ),
    "coco": Layout(
        lambda rng, i: {"image_id": i, "caption": f"a dog beside {i} cats, {rng.choice('xyz')}"},
        ("a dog", "caf\u00e9 dogs", "two cats, on it.", ""),
        lambda reply, row: 0.0,
        lambda shares, rows: {"n": len(rows)},
        id="image_id",
        reply="caption",
        annotations="always",
        scores_part=True,
    ),
}


@dataclass
class File:
    """Rows of predictions, rows of annotations if separate, and the file format of the former."""

    layout: Layout
    rows: list[Row]
    references: list[Row] | None
    kind: str = "json"
    suffix: str = ".json"
    encoding: str = "utf-8"
    newline: str = "\n"
    indent: int | None = None
    ascii: bool = True
    packed: bool = False
    blank_lines: bool = False
    damage: Callable[[bytes], bytes] | None = None
    raw: bytes | None = None
    has_odd_reference: bool = False

    def content(self) -> bytes:
        if self.raw is not None:
            return self.raw
        text = self._text()
        if self.blank_lines:
            text = self.newline + text + self.newline * 2
        data = text.encode(self.encoding)
        if self.damage is not None:
            data = self.damage(data)
        return gzip.compress(data, mtime=0) if self.packed else data

    def _text(self) -> str:
        if self.kind == "json":
            text = json.dumps(self.rows, ensure_ascii=self.ascii, indent=self.indent)
            return text.replace("\n", self.newline) + self.newline
        if self.kind == "jsonl":
            lines = [json.dumps(row, ensure_ascii=self.ascii) for row in self.rows]
            return self.newline.join([*lines, ""])
        file = io.StringIO(newline="")
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        separator = {"csv": ",", "tsv": "\t", "semicolon": ";"}[self.kind]
        writer = csv.DictWriter(file, names, delimiter=separator, lineterminator=self.newline)
        writer.writeheader()
        for row in self.rows:
            cells = {
                name: json.dumps(x) if isinstance(x, list | dict) else x for name, x in row.items()
            }
            writer.writerow(cells)
        return file.getvalue()


Mutation = Callable[[random.Random, File], None]


def _reorder(rng: random.Random, file: File) -> None:
    """Reorders rows but keeps the relative order of rows with the same id, which pairs them."""
    order = rng.sample(range(len(file.rows)), len(file.rows))
    places: dict[Any, list[int]] = {}
    for place in sorted(order):
        places.setdefault(_canonical(file.rows[place][file.layout.id]), []).append(place)
    keys = [_canonical(file.rows[place][file.layout.id]) for place in order]
    file.rows = [file.rows[places[key].pop(0)] for key in keys]


def _write_as(rng: random.Random, file: File) -> None:
    file.kind = rng.choice(("json", "jsonl", "csv", "tsv", "semicolon"))
    own = {"semicolon": ".csv"}.get(file.kind, f".{file.kind}")
    file.suffix = rng.choice((own, own, ".json", ".jsonl", ".csv", ".tsv", ".dat"))
    if file.kind in ("csv", "tsv", "semicolon"):
        # Only the suffix identifies a table.
        file.suffix = own


def _bom(rng: random.Random, file: File) -> None:
    file.encoding = rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32"))
    file.ascii = rng.random() < 0.5


def _crlf(rng: random.Random, file: File) -> None:
    file.newline = "\r\n"
    file.indent = rng.choice((None, 0, 2))


def _spell_ids(rng: random.Random, file: File) -> None:
    for row in file.rows:
        key = row[file.layout.id]
        if isinstance(key, int):
            row[file.layout.id] = rng.choice((key, str(key), float(key), f" {key} ", f"{key}.0"))


def _extra_fields(rng: random.Random, file: File) -> None:
    for i, row in enumerate(file.rows):
        row["latency"], row["run"], row["comment"] = i / 7 + 0.1, "x", None


def _key_order(rng: random.Random, file: File) -> None:
    file.rows = [dict(rng.sample(list(row.items()), len(row))) for row in file.rows]


def _looks(rng: random.Random, file: File) -> None:
    file.ascii, file.packed = rng.random() < 0.5, rng.random() < 0.3
    file.indent, file.blank_lines = rng.choice((None, 0, 4)), rng.random() < 0.5


KEEPING: tuple[Mutation, ...] = (
    *(_reorder, _write_as, _bom, _crlf, _spell_ids, _extra_fields, _key_order, _looks),
)


def _drop(rng: random.Random, file: File) -> None:
    del file.rows[rng.randrange(len(file.rows))]


def _duplicate(rng: random.Random, file: File) -> None:
    row = dict(rng.choice(file.rows))
    if rng.random() < 0.5:
        row[file.layout.reply] = rng.choice(file.layout.replies)
    file.rows.insert(rng.randrange(len(file.rows) + 1), row)


def _replace(rng: random.Random, file: File) -> None:
    """Replaces a row by a copy of another: one id occurs twice, and one is missing."""
    _drop(rng, file)
    _duplicate(rng, file)


def _answer_anew(rng: random.Random, file: File) -> None:
    for row in file.rows:
        row[file.layout.reply] = rng.choice(file.layout.replies)


def _rename_id(rng: random.Random, file: File) -> None:
    name = rng.choice(("qid", "Question_ID", "key", "sample_id", "\ufeffquestion_id", ""))
    for row in file.rows:
        row[name] = row.pop(file.layout.id)


def _no_id(rng: random.Random, file: File) -> None:
    for row in file.rows:
        del row[file.layout.id]


def _stranger(rng: random.Random, file: File) -> None:
    row = dict(rng.choice(file.rows))
    row[file.layout.id] = rng.choice((99999, "x", 10**30, "-1"))
    file.rows.append(row)


def _odd_value(rng: random.Random, file: File) -> None:
    row, values = rng.choice(file.rows), (None, math.nan, 7, 1e999, [], ["A"], {}, True, "\ud83d")
    name = rng.choice((file.layout.id, file.layout.reply, *row))
    row[name] = rng.choice((*values, -(10**40), [[[[]]]], {"a": {"b": 1}}))


def _odd_reference(rng: random.Random, file: File) -> None:
    rows = file.rows if file.references is None else file.references
    row = rng.choice(rows)
    row[rng.choice(list(row))] = rng.choice((None, math.nan, 7, -1, [], [1], {}, True, "", "zz"))
    file.has_odd_reference = True


def _missing_field(rng: random.Random, file: File) -> None:
    row = rng.choice(file.rows)
    del row[rng.choice(list(row))]


def _damage(rng: random.Random, file: File) -> None:
    _write_as(rng, file)
    seed = rng.random()

    def damage(data: bytes) -> bytes:
        own = random.Random(seed)
        place = own.randrange(len(data))
        return own.choice(
            (
                data[:place],
                data[:place] + bytes([own.randrange(256)]) + data[place + 1 :],
                data[:place] + data[place + 1 :],
                data[:place]
                + own.choice((b'"', b"{", b",", b"\n", b"\x00", b"\xff"))
                + data[place:],
                data + data,
                data[place:],
            )
        )

    file.damage = damage


def _other_file(rng: random.Random, file: File) -> None:
    deep = 100_000
    file.raw = rng.choice(
        (
            *(
                b"",
                b"null",
                b"[]",
                b"{}",
                b"5",
                b'"x"',
                b"[1, 2]",
                b"[[]]",
                b'{"a": 1}',
                b"\xff\xfe",
            ),
            *(
                b"PK\x03\x04 x",
                b"\x1f\x8b\x08 x",
                b"[" * deep,
                b'{"a":' * deep,
                b"a,b\n",
                b"a,a\n1,2",
            ),
            *(b"\x00" * 50, b"[" + b"9" * 5000 + b"]", b'[{"question_id": ' + b"9" * 5000 + b"}]"),
            *(b'{"a": 1, "a": 2}', b"<html></html>", b"a\tb\n1\n", b'"a', b"\xef\xbb\xbf"),
        )
    )
    file.suffix = rng.choice((".json", ".jsonl", ".csv", ".tsv"))


def _latin_1(rng: random.Random, file: File) -> None:
    file.rows[0][file.layout.reply] = "caf\u00e9"
    file.ascii, file.encoding = False, "latin-1"
    for row in file.rows[1:]:
        row[file.layout.reply] = "a"


CHANGING: tuple[Mutation, ...] = (
    *(_drop, _duplicate, _replace, _answer_anew, _rename_id, _no_id, _stranger, _odd_value),
    *(
        _odd_value,
        _odd_reference,
        _odd_reference,
        _missing_field,
        _damage,
        _damage,
        _other_file,
        _latin_1,
    ),
)


def _canonical(key: Any) -> str | None:
    if isinstance(key, bool) or not isinstance(key, int | float | str):
        return None
    if isinstance(key, float):
        return str(int(key)) if math.isfinite(key) and key == int(key) else None
    text = str(key).strip()
    number, point, zeros = text.partition(".")
    is_whole = point and zeros and not zeros.strip("0") and number.lstrip("+-").isdigit()
    return number if is_whole else text


def _is_null(key: Any) -> bool:
    return key is None or isinstance(key, float) and math.isnan(key)


def expected_score(layout: Layout, rows: list[Row], references: list[Row] | None) -> Expected:
    """Scores rows by the rules; returns None if the rows must be rejected."""
    if not rows:
        return None
    if references is None:
        pairs = [(row, row) for row in rows]
        ids = [_canonical(row[layout.id]) for row in rows if not _is_null(row.get(layout.id))]
        if layout.id in ("index",) and len(ids) < len(rows):
            return None
        if None in ids or not layout.may_repeat and len({*ids}) < len(ids):
            return None
    elif all(_is_null(row.get(layout.id)) for row in rows):
        others = {*rows[0]} - {layout.reply, layout.id}
        if len(rows) != len(references) or others or layout.scores_part:
            return None
        pairs = list(zip(rows, references, strict=True))
    else:
        keys = [_canonical(row.get(layout.id)) for row in rows]
        asked = [str(row[layout.id]) for row in references]
        if layout.scores_part:
            asked = [key for key in asked if key in keys]
            references = [row for row in references if str(row[layout.id]) in keys]
        if None in keys or Counter(keys) != Counter(asked):
            return None
        queues: dict[str, list[Row]] = {}
        for key, row in zip(keys, rows, strict=True):
            queues.setdefault(str(key), []).append(row)
        pairs = [(queues[key].pop(0), row) for key, row in zip(asked, references, strict=True)]
    replies = [said.get(layout.reply) for said, _ in pairs]
    kinds = (str, int, float) if layout.is_numeric else str
    if any(not isinstance(x, kinds) or isinstance(x, bool) or _is_null(x) for x in replies):
        return None
    try:
        shares = [
            layout.is_right(reply, row) for reply, (_, row) in zip(replies, pairs, strict=True)
        ]
        return layout.scores(shares, [row for _, row in pairs])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def read_rows(data: bytes) -> list[Row] | None:
    """Reads the rows of a damaged file with the standard library; returns None if that fails."""
    try:
        text = data.decode("utf-8-sig")
        if text.lstrip()[:1] in ("[", "{"):
            try:
                rows = json.loads(text)
            except ValueError:
                rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            separator = next(mark for mark in "\t,;" if mark in text.split("\n")[0])
            text = text.lstrip("\r\n")
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
            rows = [row for row in rows if any(row.values())]
    except (ValueError, StopIteration, RecursionError, csv.Error):
        return None
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else None


@dataclass(frozen=True)
class Outcome:
    """The outcome for one file; `problem` is empty if the scorer was right."""

    name: str
    changes: tuple[str, ...]
    was_scored: bool
    problem: str


def try_file(seed: int, folder: Path) -> Outcome:
    """Makes the file of a seed, scores it, and compares."""
    rng = random.Random(seed)
    name = rng.choice(list(LAYOUTS))
    layout = LAYOUTS[name]
    references = [layout.make(rng, i) for i in range(rng.choice((2, 6, 10)))]
    if layout.may_repeat and rng.random() < 0.3:
        references.append({**layout.make(rng, 0)})
    replies = [rng.choice(layout.replies) for _ in references]
    is_apart = rng.random() < 0.6
    has_annotations = {"always": True, "never": False, "either": is_apart}[layout.annotations]
    if has_annotations:
        rows = [
            {layout.id: row[layout.id], layout.reply: reply}
            for row, reply in zip(references, replies, strict=True)
        ]
    else:
        # One file holds both replies and references.
        if layout.reply == "answer" and name != "pope":
            layout = replace(layout, reply="prediction")
        rows = [
            {**row, layout.reply: reply} for row, reply in zip(references, replies, strict=True)
        ]
    file = File(layout, rows, references if has_annotations else None)
    base = _scored(name, file, folder)
    is_keeping = rng.random() < 0.5
    mutations = rng.sample(KEEPING, rng.randint(1, 4)) if is_keeping else [rng.choice(CHANGING)]
    for mutation in mutations:
        mutation(rng, file)
    changes = tuple(mutation.__name__.strip("_") for mutation in mutations)
    got = _scored(name, file, folder)
    return Outcome(name, changes, isinstance(got, dict), _problem(file, is_keeping, base, got))


def _scored(name: str, file: File, folder: Path) -> dict[str, Any] | Exception:
    path, annotations = folder / f"predictions{file.suffix}", None
    try:
        path.write_bytes(file.content())
    except UnicodeEncodeError:
        # A lone surrogate, which only escaped JSON can hold.
        file.ascii, file.kind, file.suffix = True, "json", ".json"
        path = folder / f"predictions{file.suffix}"
        path.write_bytes(file.content())
    if file.references is not None:
        annotations = folder / "annotations.json"
        annotations.write_text(json.dumps(file.references))
    try:
        return SCORERS[name].score([path], ScoringJob(annotations))["predictions"]
    except Exception as error:
        # `_problem` reports everything but a ValueError.
        return error


def _problem(file: File, is_keeping: bool, base: Any, got: Any) -> str:
    if isinstance(base, Exception):
        return f"refused before any change: {base}"
    if isinstance(got, Exception):
        if not isinstance(got, ValueError) or isinstance(got, UnicodeError):
            return "".join(traceback.format_exception(got))
        if "predictions." not in str(got) and "annotations.json" not in str(got):
            return f"names no file: {got}"
        return f"refused, and the meaning is the same: {got}" if is_keeping else ""
    if is_keeping:
        return "" if got == base else f"{got} where {base} was before"
    if file.has_odd_reference:
        # The changed reference is another question, which no rule covers.
        return ""
    rows = file.rows
    if file.damage is not None or file.raw is not None:
        found = read_rows(file.content())
        if found is None:
            return f"scored what cannot be read: {got}"
        if not _is_known(file, found):
            return ""
        rows = found
    elif file.encoding == "latin-1":
        return f"scored what is not UTF-8: {got}"
    wanted = expected_score(file.layout, rows, file.references)
    if wanted is None:
        return f"scored what must be refused: {got}"
    wrong = {key: x for key, x in wanted.items() if not math.isclose(got[key], x, abs_tol=1e-9)}
    return f"{got}, by the rule {wrong}" if wrong else ""


def _is_known(file: File, rows: list[Row]) -> bool:
    """Returns whether the rules cover the replies and the references of damaged rows."""
    if any(row.get(file.layout.reply) not in file.layout.replies for row in rows):
        return False
    # Tables hold lists of references as texts.
    return file.references is not None or file.kind in ("json", "jsonl")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    flags = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    num_problems = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(flags.seed, flags.seed + flags.files):
            outcome = try_file(seed, Path(folder))
            counts[outcome.changes[0], "scored" if outcome.was_scored else "refused"] += 1
            if outcome.problem:
                num_problems += 1
                print(f"seed {seed}, {outcome.name}, {', '.join(outcome.changes)}")
                print(f"  {outcome.problem[-1500:]}")
    for (change, what), count in sorted(counts.items()):
        print(f"{change:<16} {what:<8} {count}")
    print(f"{flags.files} files, {num_problems} wrong")
    return bool(num_problems)


if __name__ == "__main__":
    sys.exit(main())

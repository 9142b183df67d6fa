"""Log of a model's answers, one JSON line each, from which a stopped evaluation resumes.

    {"key": "12", "text": "a dog", "undecodable": [], "prompt": .., "reference": .., "correct": ..}

`text` holds the generated text, or the likelihoods of the options as a JSON list. `prompt` and the
fields after it are for people to read.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm1_jax.evals.answers import Answer, Likelihood, OptionAnswer, TextAnswer
from mm1_jax.storage import utf8
from mm1_jax.stored_config import with_present_names


class AnswerLog:
    """Answers by the key of their task, in memory and, given a path, in a file.

    The first line of the file is a header of everything that determines the answers. A file with
    another header is refused.
    """

    def __init__(
        self,
        path: Path | None = None,
        header: Mapping[str, Any] | None = None,
        *,
        has_options: bool = False,
        read_only: bool = False,
        may_lack: Collection[str] = (),
    ):
        """Reads the answers in the file. An incomplete last line of a killed process is cut off.

        Args:
            has_options: The answers are likelihoods of options, not texts.
            read_only: Another process creates the file and appends the answers.
            may_lack: Header entries that earlier code did not write. A file without them is
                accepted as if it had these values.

        Raises:
            ValueError: The file has another header, is damaged, or is missing with `read_only`.
        """
        self._path = None if read_only else path
        self._answers: dict[str, Answer] = {}
        if path is None:
            return
        first = json.dumps(dict(header or {}), sort_keys=True)
        data = path.read_bytes() if path.exists() else b""
        whole, newline, torn = data.rpartition(b"\n")
        if torn and not read_only:
            os.truncate(path, len(whole + newline))
        if not newline and read_only:
            raise ValueError(f"{path}: missing; all processes must see the same --output")
        if not newline:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(first)
            return
        found, *lines = whole.decode(errors="replace").split("\n")
        there, wanted = _header(found), _header(first)
        if {name: wanted[name] for name in may_lack if name in wanted} | there != wanted:
            raise ValueError(
                f"{path}: its answers are of another model or protocol.\n  file: {found}\n  now:  "
                f"{first}\nGive another --output, or remove the file"
            )
        for number, line in enumerate(lines, start=2):
            try:
                fields = json.loads(line)
                self._answers[fields["key"]] = _decoded(fields, has_options)
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: not an answer ({type(error).__name__} {error}); "
                    "remove the line to ask its task again"
                ) from error

    def __len__(self) -> int:
        return len(self._answers)

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def get(self, key: str) -> Answer | None:
        return self._answers.get(key)

    def add(self, key: str, answer: Answer, **context: Any) -> None:
        """Adds an answer; `context` holds further fields of its line, for people to read."""
        self._answers[key] = answer
        if self._path is not None:
            fields = {"key": key, **_encoded(answer), **context}
            self._append(json.dumps(fields, ensure_ascii=False))

    def _append(self, line: str) -> None:
        assert self._path is not None
        with self._path.open("ab") as file:
            file.write(utf8(line + "\n"))


def _header(line: str) -> dict[str, Any]:
    """Parses a header and updates names of classes that moved. A damaged line matches no header."""
    try:
        return dict(json.loads(with_present_names(line)))
    except (ValueError, TypeError):
        return {"damaged": line}


def _encoded(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, TextAnswer):
        return asdict(answer)
    text = json.dumps([asdict(one) for one in answer.likelihoods])
    return {"text": text, "undecodable": ()}


def _decoded(fields: Mapping[str, Any], has_options: bool) -> Answer:
    if has_options:
        return OptionAnswer(tuple(Likelihood(**one) for one in json.loads(fields["text"])))
    return TextAnswer(fields["text"], tuple(fields.get("undecodable", ())))

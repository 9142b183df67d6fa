"""Answers of a model as they come: a JSON line each, so that a stopped evaluation goes on."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mm1_jax.storage import utf8


@dataclass(frozen=True)
class Answer:
    """What a model said to a task.

    Attributes:
        text: Up to the first stop string.
        undecodable: Why pictures of the prompt could not be shown, one reason each.
    """

    text: str
    undecodable: tuple[str, ...] = ()


class AnswerLog:
    """Answers by the key of their task: in memory, and in a file where there is one.

    The first line of the file says what decides the answers. A file of other answers is refused.
    """

    def __init__(
        self,
        path: Path | None = None,
        header: Mapping[str, Any] | None = None,
        *,
        read_only: bool = False,
    ):
        """Reads what is there; half a line, which a killed process leaves, is cut off.

        Args:
            read_only: The file is there, and another process adds the answers to it.

        Raises:
            ValueError: The answers there have another header, or the file is damaged.
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
            raise ValueError(f"{path}: not there; all processes need to see the same --output")
        if not newline:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(first)
            return
        found, *lines = whole.decode(errors="replace").split("\n")
        if found != first:
            raise ValueError(
                f"{path}: holds answers that were given otherwise.\n  there: {found}\n  now:   "
                f"{first}\nGive another --output, or remove the file"
            )
        for number, line in enumerate(lines, start=2):
            try:
                fields = json.loads(line)
                self._answers[fields["key"]] = Answer(
                    fields["text"], tuple(fields.get("undecodable", ()))
                )
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: not an answer ({type(error).__name__} {error}); "
                    "remove the line, and it is asked again"
                ) from error

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        return self._answers.get(key)

    def add(self, key: str, answer: Answer, **context: Any) -> None:
        """Keeps an answer; `context` stands beside it in the file, for people to read."""
        self._answers[key] = answer
        if self._path is not None:
            self._append(json.dumps({"key": key, **asdict(answer), **context}, ensure_ascii=False))

    def _append(self, line: str) -> None:
        assert self._path is not None
        with self._path.open("ab") as file:
            file.write(utf8(line + "\n"))

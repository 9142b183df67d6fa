"""A file with one JSON object per line, each with the number of its step: `metrics.jsonl`, say."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from mm1_jax.storage import write_whole


class JsonLines:
    """Appends records; numbers keep all their digits, what is not finite is written as null.

    A record is in the file, as far as the operating system goes, when `write` returns.
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps({name: _finite(value) for name, value in record.items()}, allow_nan=False)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write(line + "\n")
        except OSError:
            # Half a line, of a full disk, would hide all that come after it.
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            raise

    def records(self) -> Iterator[dict[str, Any]]:
        """The records in order, without the half line that a killed process may leave."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if line.endswith(b"\n") and isinstance(record, dict) and "step" in record:
                    yield record

    def rewind(self, step: int) -> bool:
        """Keeps the records up to `step` only; whether anything was taken away."""
        if not self.path.exists():
            return False
        kept = [json.dumps(record) for record in self.records() if record["step"] <= step]
        text = "".join(line + "\n" for line in kept)
        present = self.path.read_text(errors="replace")
        if text == present:
            return False
        # Half a line, at the end, is of a process that was killed.
        if damaged := present.count("\n") - sum(1 for _ in self.records()):
            logging.warning("%s: %d damaged lines are left out", self.path, damaged)
        write_whole(self.path, text)
        return True


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value

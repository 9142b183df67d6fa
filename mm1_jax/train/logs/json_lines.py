"""JSON lines files with one object per line, each with a step number, such as `metrics.jsonl`."""

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
    """Appends records with full numeric precision; non-finite numbers are written as null.

    When `write` returns, the record has been handed to the operating system.
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
            # A partial line, left by a full disk, would corrupt the record written after it.
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            raise

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields the records in order, skipping partial lines left by killed processes."""
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
        """Removes records after `step`; returns whether anything was removed."""
        if not self.path.exists():
            return False
        kept = [json.dumps(record) for record in self.records() if record["step"] <= step]
        text = "".join(line + "\n" for line in kept)
        present = self.path.read_text(errors="replace")
        if text == present:
            return False
        # A partial last line was left by a killed process and is not counted as damage.
        if damaged := present.count("\n") - sum(1 for _ in self.records()):
            logging.warning("%s: %d damaged lines are removed", self.path, damaged)
        write_whole(self.path, text)
        return True


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value

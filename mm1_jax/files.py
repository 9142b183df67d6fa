"""Files that are there whole or not at all, also when the process is killed."""

from pathlib import Path


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file beside `path`, and gives it that name when it is complete."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data.encode() if isinstance(data, str) else data)
    partial.replace(path)

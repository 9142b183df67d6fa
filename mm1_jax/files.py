"""Files and folders that are there whole or not at all, also when the process is killed."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file beside `path`, and gives it that name when it is complete."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data.encode() if isinstance(data, str) else data)
    partial.replace(path)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into, which gets that name when the block ends.

    Another process may be faster, with the same content: then its folder stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.partial-"))
    try:
        yield partial
        # mkdtemp's folder is its owner's alone; others read what is in this one.
        partial.chmod(0o755)
        if not folder.exists():
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

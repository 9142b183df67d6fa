"""Checkpoint folder of a run, and the identity file that ties it to the run.

    run.json    in the output folder and next to the checkpoints: id of the run, its output folder,
                name of its config, time of its first launch, version of mm1_jax at its latest one

Checkpoints may be stored anywhere (`trainer.checkpointer.location`), so two runs may use the same
folder by mistake, and the second would resume from the state of the first. `run.json` prevents
this. Checkpoints of older versions lack it.
"""

import fcntl
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

from etils import epath

IDENTITY = "run.json"
CONFIG = "config.txt"
LOCK = "launch.lock"
# Stores that both etils and tensorstore support, and the package that etils needs for each.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}


def checkpoint_folder(location: str | None, output_dir: Path) -> epath.Path:
    """Returns the folder of a run's checkpoints.

    Args:
        location: An absolute path, gs:// or s3://. A relative path is relative to the output
            folder, so that later launches and tools find the same folder. Defaults to `checkpoints`
            in the output folder.

    Raises:
        ValueError: The store is not supported or cannot be opened.
    """
    if location is None or "://" not in location:
        return epath.Path(output_dir.absolute() / (location or "checkpoints"))
    field, scheme = f"trainer.checkpointer.location={location}", location.partition("://")[0]
    if scheme not in _PACKAGES:
        raise ValueError(
            f"{field}: expected a local path or one of "
            f"{', '.join(f'{known}://' for known in _PACKAGES)}"
        )
    path = epath.Path(location)
    try:
        path.exists()
    except ImportError:
        raise ValueError(
            f"{field}: {scheme}:// needs a package that is not installed; "
            f"pip install {_PACKAGES[scheme]}, or name a local path"
        ) from None
    # The store's client may raise any error if network, credentials or bucket are missing.
    except Exception as error:
        raise ValueError(f"{field}: cannot be opened ({type(error).__name__}: {error})") from error
    return path


def checkpoints_of(output_dir: Path) -> epath.Path:
    """Returns the checkpoint folder of the run in an output folder.

    Raises:
        ValueError: The checkpoints belong to another run.
    """
    folder = checkpoint_folder(stored_location(output_dir), output_dir)
    identity = read_identity(folder)
    if identity is None:
        if newest_step(folder) is not None and (output_dir / CONFIG).exists():
            _warn_unknown_run(folder)
    elif not _belongs_to(identity, output_dir):
        raise ValueError(another_run_message(folder, identity, output_dir))
    return folder


def stored_location(output_dir: Path) -> str | None:
    """Returns the checkpoint location in the stored config of a run."""
    config = output_dir / CONFIG
    if not config.exists():
        return None
    found = re.search(
        r"^trainer\.checkpointer\.location: '(.*)'$", config.read_text(), re.MULTILINE
    )
    return None if found is None else found[1]


def newest_step(folder: epath.Path) -> int | None:
    """Returns the step of the newest complete checkpoint; None if there is none."""
    # The folder name of an incomplete checkpoint is not a plain step number.
    if not folder.exists():
        return None
    names = [path.name for path in folder.iterdir()]
    return max((int(name) for name in names if name.isdecimal()), default=None)


def read_identity(folder: Path | epath.Path) -> dict[str, Any] | None:
    """Returns the identity stored in a folder; None if it is missing or damaged."""
    try:
        identity = json.loads((folder / IDENTITY).read_text())
        return identity if {"run", "output_dir"} <= identity.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _belongs_to(identity: dict[str, Any], output_dir: Path) -> bool:
    ours = read_identity(output_dir)
    if ours is None:
        return identity["output_dir"] == str(output_dir.resolve())
    return identity["run"] == ours["run"]


def raise_if_taken(folder: epath.Path, output_dir: Path) -> None:
    """Raises ValueError if a launch into `output_dir` must not save to `folder`."""
    identity = read_identity(folder)
    if identity is None:
        return
    owner = Path(identity["output_dir"])
    newest = newest_step(folder)
    if _belongs_to(identity, output_dir):
        # The output folder may have been moved. A copy of it is an error if it would share
        # checkpoints stored elsewhere with the original.
        is_copy = owner != output_dir.resolve() and read_identity(owner) == identity
        if is_copy and not Path(folder).is_relative_to(output_dir.absolute()):
            raise ValueError(another_run_message(folder, identity, output_dir))
    elif newest is not None or not owner.exists() or is_running(owner):
        raise ValueError(another_run_message(folder, identity, output_dir))


def another_run_message(folder: epath.Path, identity: dict[str, Any], output_dir: Path) -> str:
    """Builds the error message for checkpoints that do not belong to the run in `output_dir`."""
    return (
        f"the checkpoints in {folder} belong to the run in {identity['output_dir']} "
        f"({identity.get('config')}, {identity.get('created')}), not to the run in {output_dir}; "
        "give each run its own trainer.checkpointer.location, or remove "
        f"{folder / IDENTITY} if they belong to this run"
    )


def is_running(output_dir: Path) -> bool:
    """Returns whether a launch into this folder is running on this host."""
    try:
        with (output_dir / LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@functools.cache
def _warn_unknown_run(folder: epath.Path) -> None:
    """Prints once that the owner of these checkpoints is unknown."""
    print(
        f"note: {folder} has no {IDENTITY}, which older versions did not write; its checkpoints "
        "are assumed to belong to this run",
        file=sys.stderr,
    )

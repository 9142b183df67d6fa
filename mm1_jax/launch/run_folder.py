"""Output folder of a run: how the run was launched, and whether a second launch may resume it.

    launch.json   name of the config, its module and the overrides of the command line
    config.txt    resolved config, one `path: value` per line
    config.json   its fields as JSON
    run.json      identity of the run, also stored next to its checkpoints
    launch.lock   id of the process that runs there

A launch into a folder that holds a run resumes it if the configs differ only in MAY_CHANGE.
A run keeps its defaults where they have changed in the meantime (`stored_config.DEFAULTS`).
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

from mm1_jax import __version__
from mm1_jax.checkpoints.checkpoint_folder import (
    CONFIG,
    IDENTITY,
    LOCK,
    checkpoint_folder,
    checkpoints_of,
    newest_step,
    raise_if_taken,
    read_identity,
)
from mm1_jax.config_file import derived
from mm1_jax.launch.launch import Launch
from mm1_jax.overrides import is_overridden
from mm1_jax.storage import write_whole
from mm1_jax.stored_config import (
    Difference,
    Fields,
    Scalar,
    config_differences,
    flat_fields,
    read_fields,
)

# Fields that may differ between launches into one folder, with all fields inside them: evaluation,
# logging, checkpointing, the location of the data (checkpoints identify data by its content), and
# the speed of reading. None of them changes what is learned.
# A new `trainer.max_steps` is accepted only if it does not stretch the schedule: the resolved
# `trainer.optimizer.decay_steps` follows it unless set, and may not change.
MAY_CHANGE = (
    "evals",
    "input.data_dir",
    "input.max_bad_fraction",
    "input.num_workers",
    "input.prefetch",
    "trainer.anomalies",
    "trainer.checkpointer",
    "trainer.corruption",
    "trainer.max_steps",
    # A state can be restored onto any mesh; losses then agree up to rounding.
    "trainer.mesh_rules",
    "trainer.parallelism",
    "trainer.profile",
    "trainer.progress",
    "trainer.summary_every_n_steps",
    "trainer.wandb",
    "trainer.watchdog",
)


class RunFolder:
    """Output folder of one run."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    @property
    def holds_a_run(self) -> bool:
        return self._config_path.exists()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder against other launches; the system unlocks it when the process ends.

        Raises:
            ValueError: Another process holds the lock, or the folder is not writable.
        """
        with self._explained_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / LOCK).open("a+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ValueError(
                    f"--output_dir={self.path}: process {file.read().strip() or 'unknown'} is "
                    "running there; wait until it ends, stop it, or choose another folder"
                ) from None
            except OSError as error:
                logging.warning(
                    "%s: cannot be locked against other launches (%s)", self.path, error
                )
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def claim(self, launch: Launch, cfg: Any) -> dict[str, Scalar]:
        """Claims the folder for this launch and writes its config there.

        A run that ended before its first checkpoint cannot be resumed, so its config does not
        matter, and the logs that it appended to are removed.

        Returns:
            Values that replace those of `cfg`, for `Launch.resolved_config`: defaults that have
            changed since the resumed run was launched.

        Raises:
            ValueError: The folder holds a run with another config, the checkpoints belong to
                another or an unknown run, or a folder is not writable.
        """
        cfg, kept, checkpoints, newest = self._checked(launch, cfg)
        with self._explained_errors():
            if self.holds_a_run and newest is None:
                for log in self.path.glob("quarantine*.jsonl"):
                    log.unlink()
                for name in ("goodput.json", "excluded_steps.json"):
                    (self.path / name).unlink(missing_ok=True)
                shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
            self.path.mkdir(parents=True, exist_ok=True)
            self._write_identity(launch, checkpoints)
            write_whole(self._launch_path, json.dumps(_stated(launch), indent=2) + "\n")
            text = cfg.debug_string() + "\n"
            fields = {
                "text": _digest(text),
                "config": launch.config,
                "fields": flat_fields(cfg),
                "derived": derived(launch.written_config(), cfg),
            }
            write_whole(self._fields_path, json.dumps(fields, indent=2) + "\n")
            # Written last: a folder without this file holds no run.
            write_whole(self._config_path, text)
        return kept

    def check(self, launch: Launch, cfg: Any) -> None:
        """Raises ValueError as `claim` does for a run of another config, and writes nothing."""
        self._checked(launch, cfg)

    def _checked(
        self, launch: Launch, cfg: Any
    ) -> tuple[Any, dict[str, Scalar], epath.Path, int | None]:
        """Returns the config to train with, kept values, the checkpoints, and the newest step."""
        checkpoints = self._checkpoints(cfg)
        newest = newest_step(checkpoints)
        kept: dict[str, Scalar] = {}
        if newest is not None:

            def is_kept(difference: Difference) -> bool:
                return difference.is_default and not is_overridden(
                    difference.path, launch.overrides
                )

            cfg, kept = self._as_stored(launch, cfg, is_kept)
            self._raise_if_changed(cfg, "Launch into a new --output_dir, or undo the change.")
            self._raise_if_beyond(cfg.trainer.max_steps, newest)
        return cfg, kept, checkpoints, newest

    def load_experiment(self) -> Any:
        """Makes the resolved config of the run again, from its name and overrides.

        Where the code now makes other values, those that the run was trained with are used.
        """
        self._raise_if_empty()
        launch = self._stored_launch()
        cfg = launch.resolved_config()
        cfg, _ = self._as_stored(launch, cfg, lambda each: not may_change(each.path))
        checkpoints_of(self.path)
        self._raise_if_changed(cfg, "Use the code that the run was launched with.")
        return cfg

    def stored_fields(self) -> dict[str, Scalar]:
        """Returns the values in the config of the run, by path.

        Raises:
            ValueError: There is no run, or its config is damaged.
        """
        self._raise_if_empty()
        return read_fields(self._stored_config())

    def newest_step(self) -> int | None:
        """Returns the step of the run's newest checkpoint; None if there is none."""
        return newest_step(checkpoints_of(self.path))

    def launch_name(self) -> str:
        """Returns the name of the config that the run was launched with."""
        return self._stored_launch().name

    def _raise_if_empty(self) -> None:
        if not self.holds_a_run:
            raise ValueError(
                f"{self.path}: no run there ({self._config_path.name} is missing); "
                "give the output folder of a launch"
            )

    def _stored_config(self) -> Fields | str:
        """Returns the fields of the run's config, or its text if they are missing or outdated."""
        text = self._stored_text()
        try:
            stored = json.loads(self._fields_path.read_text())
            if stored["text"] == _digest(text):
                return stored["fields"]
        except (OSError, ValueError, LookupError, TypeError):
            pass
        return text

    def _stored_text(self) -> str:
        text = self._config_path.read_bytes().decode(errors="replace")
        if ": " not in text or not text.endswith("\n"):
            raise ValueError(
                f"{self._config_path}: damaged, so that it is not known what the run was trained "
                "with; put back a copy, or what `--print_config` prints for the code and the "
                "command of its launch"
            )
        return text

    @property
    def _launch_path(self) -> Path:
        return self.path / "launch.json"

    @property
    def _config_path(self) -> Path:
        return self.path / CONFIG

    @property
    def _fields_path(self) -> Path:
        return self._config_path.with_suffix(".json")

    def _stored_launch(self) -> Launch:
        path = self._launch_path
        try:
            launch = Launch(**json.loads(path.read_text()))
            if isinstance(launch.config, str) and isinstance(launch.overrides, dict):
                return launch
            reason = "config is not a name, or overrides are not an object"
        except (OSError, ValueError, TypeError) as error:
            reason = str(error)
        raise ValueError(
            f"{path}: missing or damaged ({reason}); repeat the command of the run's launch, which "
            "writes it again"
        )

    def _checkpoints(self, cfg: Any) -> epath.Path:
        """Returns the folder that a run with this config saves to and resumes from.

        Raises:
            ValueError: Its checkpoints belong to another or an unknown run, or the checkpoints of
                this run are elsewhere.
        """
        location = getattr(getattr(cfg.trainer, "checkpointer", None), "location", None)
        folder = checkpoint_folder(location, self.path)
        raise_if_taken(folder, self.path)
        newest = newest_step(folder)
        if newest is not None and not self.holds_a_run:
            raise ValueError(
                f"{folder} holds checkpoints up to step {newest}, but {self._config_path}, the "
                "config of their run, is missing; restore it, remove the checkpoints, or choose "
                "another --output_dir and trainer.checkpointer.location"
            )
        if self.holds_a_run:
            before = checkpoints_of(self.path)
            if newest is None and (lost := newest_step(before)) is not None:
                raise ValueError(
                    f"{folder} (trainer.checkpointer.location) holds no checkpoint, but the run in "
                    f"{self.path} has made {lost} steps, saved in {before}; set the field to that "
                    "folder, move the folder, or launch into a new --output_dir"
                )
            # A run with an identity stores it next to its checkpoints.
            is_known = read_identity(folder) is not None or read_identity(self.path) is None
            if newest is not None and folder != before and not is_known:
                raise ValueError(
                    f"{folder} (trainer.checkpointer.location) holds checkpoints up to step "
                    f"{newest} of an unknown run, and the run in {self.path} stores its own in "
                    f"{before}; choose another folder, or copy {self.path / IDENTITY} there if "
                    "they belong to this run"
                )
        return folder

    def _write_identity(self, launch: Launch, checkpoints: epath.Path) -> None:
        known = read_identity(self.path) or {
            "run": uuid.uuid4().hex,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        identity = known | {
            "output_dir": str(self.path.resolve()),
            "config": launch.config,
            # The version of the latest launch.
            "mm1_jax": __version__,
        }
        text = json.dumps(identity, indent=2) + "\n"
        write_whole(self.path / IDENTITY, text)
        try:
            checkpoints.mkdir(parents=True, exist_ok=True)
            (checkpoints / IDENTITY).write_text(text)
        except OSError as error:
            raise ValueError(
                f"{checkpoints}: cannot write checkpoints there ({error.strerror or error}); "
                "choose another trainer.checkpointer.location"
            ) from error

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"--output_dir={self.path}: cannot write there ({error.strerror}); "
                "choose a folder that can be written to"
            ) from error

    def _raise_if_beyond(self, max_steps: int, newest: int) -> None:
        if max_steps < newest:
            raise ValueError(
                f"trainer.max_steps={max_steps}: the run in {self.path} has already made {newest} "
                "steps; give at least as many, or launch into a new --output_dir"
            )

    def _as_stored(
        self, launch: Launch, cfg: Any, is_kept: Callable[[Difference], bool]
    ) -> tuple[Any, dict[str, Scalar]]:
        """Returns `cfg` with the stored values for which `is_kept`, and these values by path."""
        stored = self._stored_config()
        kept = [each for each in config_differences(stored, cfg) if is_kept(each)]
        if not kept:
            return cfg, {}
        values = {each.path: each.stored for each in kept}
        cfg = launch.resolved_config(values)
        for each in config_differences(stored, cfg):
            values.pop(each.path, None)
        if values:
            changes = "; ".join(str(each) for each in kept if each.path in values)
            print(
                f"note: {self.path}: the run keeps the values that it was trained with "
                f"(stored -> now): {changes}",
                file=sys.stderr,
            )
        return cfg, values

    def _raise_if_changed(self, cfg: Any, advice: str) -> None:
        differences = config_differences(self._stored_config(), cfg)
        fixed = [each for each in differences if not may_change(each.path)]
        if not fixed:
            return
        lines = "".join(f"\n  {each}" for each in fixed)
        hint = ""
        decay = next((each for each in fixed if each.path.endswith(".decay_steps")), None)
        if decay and decay.stored:
            hint = (
                f" (decay_steps follows max_steps; --config.{decay.path}={decay.stored} "
                "keeps the schedule of the run.)"
            )
        raise ValueError(
            f"The run in {self.path} has another config (stored -> now):{lines}\n{advice}{hint}"
        )


def load_experiment(folder: str | os.PathLike) -> Any:
    """Returns the resolved config of the run in `folder`."""
    return RunFolder(folder).load_experiment()


def _stated(launch: Launch) -> dict[str, Any]:
    """Returns a launch as JSON, without options that were not given."""
    unless_given = {"file": None, "small": False}
    return {
        name: value
        for name, value in asdict(launch).items()
        if name not in unless_given or value != unless_given[name]
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def may_change(path: str) -> bool:
    """Returns whether a field may differ between launches into one folder."""
    # Every field of this name follows `input.data_dir`.
    if path.rpartition(".")[2] == "data_dir":
        return True
    return any(path == p or path.startswith((f"{p}.", f"{p}[")) for p in MAY_CHANGE)

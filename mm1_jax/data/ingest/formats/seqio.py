"""Text of a seqio task or mixture; the library comes with the extra `seqio` and needs TensorFlow.

    python -m mm1_jax convert_records --format=seqio --input=my_project/tasks.py \\
        --option.module=my_project.tasks --option.task=wiki --output=data/wiki
"""

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.readers.compressed import decode_text
from mm1_jax.data.readers.entries import Documents, Entry, Rejected
from mm1_jax.data.readers.source_files import Unit, entry_id
from mm1_jax.data.record_files import BadRecord, RecordKind
from mm1_jax.data.records import records_of, text_record


class Seqio(Format):
    """Text of a seqio Task or Mixture; the input is the Python file that adds it, which is run.

    A unit is a shard of a task's source. Nothing is shuffled, trimmed or repeated: every example of
    the tasks of a mixture comes once, one task after the other. The rates of a mixture are ignored,
    as training has its own weights. The text of a field is the original text if the task kept it
    (`targets_pretokenized`), or else its decoded tokens.

    Args:
        task: The name of the task or mixture.
        module: The name of the module to import the file as, such as my_project.tasks for
            my_project/tasks.py; defaults to the name of the file.
        split: The split of the task.
        field: The feature that holds the text; several, separated by commas, become a line each.
    """

    name = "seqio"
    kind = RecordKind.TEXT

    def __init__(
        self,
        *,
        task: str | None = None,
        module: str | None = None,
        split: str = "train",
        field: str = "targets",
    ):
        self._task = task
        self._module = module
        self._split = split
        self._fields = field.split(",")

    def units(self, source: Path) -> list[Unit]:
        return [Unit(source, part) for part in range(len(self._shards(source)))]

    def read(self, unit: Unit) -> Iterator[Entry]:
        try:
            task, shard = self._shards(unit.path)[unit.part]
        except (ValueError, IndexError) as error:
            yield Rejected(entry_id(unit.path, unit.part), str(error))
            return
        vocabularies = {name: each.vocabulary for name, each in task.output_features.items()}

        def record(entry: str, example: Mapping[str, Any]) -> Record | Documents:
            texts = [_text(name, example, vocabularies.get(name)) for name in self._fields]
            return text_record(entry, "\n".join(texts))

        yield from records_of(self._examples(task, shard), record)

    def _examples(
        self, task: Any, shard: Any
    ) -> Iterator[tuple[str, Mapping[str, Any]] | Rejected]:
        name = f"{task.name}:{self._split}:{shard.index}"
        place = 0
        try:
            dataset = task.get_dataset(
                # Disables trimming.
                sequence_length=None,
                split=self._split,
                shuffle=False,
                # For preprocessors that draw random numbers: every pass must be the same.
                seed=0,
                shard_info=shard,
                num_epochs=1,
                try_in_mem_cache=False,
            )
            for example in dataset.as_numpy_iterator():
                yield entry_id(name, place), example
                place += 1
        except Exception as error:  # The exceptions of tasks and TensorFlow share no base class.
            yield Rejected(entry_id(name, place), f"{_reason(error)}; what follows is not read")

    def _shards(self, path: Path) -> list[tuple[Any, Any]]:
        """Returns the shards of each task; raises ValueError if task, split or field is unknown."""
        if not self._task:
            raise ValueError("the format 'seqio' needs a name: --option.task=NAME")
        seqio = _library()
        _import(path, self._module or path.stem)
        try:
            found = seqio.get_mixture_or_task(self._task)
            tasks = found.tasks if isinstance(found, seqio.Mixture) else [found]
            tasks = [task for task in tasks if self._split in task.splits]
            if not tasks:
                raise ValueError(f"no split {self._split!r}; there are {', '.join(found.splits)}")
            shards = []
            for task in tasks:
                if missing := [each for each in self._fields if each not in task.output_features]:
                    there = ", ".join(task.output_features)
                    raise ValueError(f"no feature {', '.join(missing)}; there are {there}")
                number = len(task.source.list_shards(self._split))
                shards += [(task, seqio.ShardInfo(index, number)) for index in range(number)]
        except Exception as error:  # Sources that are created lazily may raise anything.
            raise ValueError(f"task {self._task!r} of {path}: {error}") from error
        return shards


def _library() -> Any:
    try:
        return importlib.import_module("seqio")
    except ImportError as error:
        raise ValueError(
            f"the format 'seqio' needs seqio ({error}): pip install 'mm1_jax[seqio]'"
        ) from error


def _import(path: Path, module: str) -> None:
    """Imports the file as that module, once per process, as a task can be added only once."""
    parts = module.split(".")
    names = path.resolve().with_suffix("").parts
    if names[-1] == "__init__":
        names = names[:-1]
    if path.suffix != ".py" or not path.is_file() or list(names[-len(parts) :]) != parts:
        raise ValueError(
            f"{path}: expected the Python file of the module {module!r}, which adds the task "
            "(--option.module)"
        )
    root = str(Path(*names[: -len(parts)]))
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        found = importlib.import_module(module)
    except Exception as error:  # The file may do anything.
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    if found.__file__ is None or not path.samefile(found.__file__):
        raise ValueError(f"{path}: another module {module!r} is {found.__file__}")


def _reason(error: Exception) -> str:
    # TensorFlow adds a traceback, and dataset numbers that differ every time.
    line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: " + re.sub(r"(\w+Dataset\w*):\d+", r"\1", line)


def _text(name: str, example: Mapping[str, Any], vocabulary: Any) -> str:
    value = example.get(f"{name}_pretokenized", example.get(name))
    if isinstance(value, bytes):
        return decode_text(value)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu":
        text = vocabulary.decode(value.tolist())
        if isinstance(text, str):
            return text
    raise BadRecord(f"{name}: a {type(value).__name__}, expected a text or its tokens")

"""Configs that earlier code stored as text, compared with those that the code makes now.

Stored texts lie in the output folder of a run (`config.txt`), in each of its checkpoints (`model`)
and in folders of converted weights (`weights.json`).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from mm1_jax.config import ConfigBase
from mm1_jax.overrides import restore_values

C = TypeVar("C", bound=ConfigBase)

# Former names of classes, and of modules whose classes have moved, with their present ones.
RENAMED = {
    "mm1_jax.train.optimizer.Optimizer": "mm1_jax.train.optimizer.AdamW",
    "mm1_jax.data.parquet_source": "mm1_jax.data.sources.parquet",
    "mm1_jax.data.webdataset_source": "mm1_jax.data.sources.webdataset",
    "mm1_jax.data.tfds_source": "mm1_jax.data.sources.tfds",
    "mm1_jax.data.sources": "mm1_jax.data.sources.base",
    "mm1_jax.data.sources.ArrayRecordSource": (
        "mm1_jax.data.sources.array_record.ArrayRecordSource"
    ),
    "mm1_jax.data.sources.JsonlSource": "mm1_jax.data.sources.jsonl.JsonlSource",
    "mm1_jax.data.sources.local": "mm1_jax.data.sources.base",
    "mm1_jax.data.sources.local.ArrayRecordSource": (
        "mm1_jax.data.sources.array_record.ArrayRecordSource"
    ),
    "mm1_jax.data.sources.local.JsonlSource": "mm1_jax.data.sources.jsonl.JsonlSource",
    "mm1_jax.data.tokenizer": "mm1_jax.data.tokenizers.sentencepiece",
    "mm1_jax.data.hf_tokenizer": "mm1_jax.data.tokenizers.hf",
    "mm1_jax.data.seqio_tokenizer": "mm1_jax.data.tokenizers.seqio",
    "mm1_jax.parallelism": "mm1_jax.parallel.parallelism",
    "mm1_jax.train.anomalies": "mm1_jax.train.guards.anomalies",
    "mm1_jax.train.checkpoint": "mm1_jax.checkpoints.checkpointer",
    "mm1_jax.train.corruption": "mm1_jax.train.guards.corruption",
    "mm1_jax.train.initial_weights": "mm1_jax.checkpoints.initial_weights",
    "mm1_jax.train.profile": "mm1_jax.train.logs.profile",
    "mm1_jax.train.progress": "mm1_jax.train.logs.progress",
    "mm1_jax.train.wandb_run": "mm1_jax.train.logs.wandb_run",
    "mm1_jax.train.watchdog": "mm1_jax.train.guards.watchdog",
}
_QUOTED_NAME = re.compile(r"'(mm1_jax[\w.]*)\.(\w+)'")

# Defaults that a field has had, oldest first and the present one last, by class and path inside its
# config, each as the text of a config spells it ("None" where it is not set). A run keeps the
# default that it was trained with. The oldest also stands for runs from before the field: a new
# field whose default means "as before" has an entry of one default. Entries are only ever added to;
# the class is named as it is called now.
DEFAULTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("mm1_jax.models.connectors.c_abstractor.CAbstractor", "norm.eps"): ("1e-06", "1e-05"),
}


@dataclass(frozen=True)
class Difference:
    """One field that two configs do not agree on; None where it has its unset default.

    Attributes:
        is_default: Whether the field has its default in both, and the default has changed.
    """

    path: str
    stored: str | None
    now: str | None
    is_default: bool = False

    def __str__(self) -> str:
        stored, now = ("not set" if text is None else text for text in (self.stored, self.now))
        return f"{self.path}: {stored} -> {now}"


def config_differences(stored: str | Iterable[str], cfg: ConfigBase) -> list[Difference]:
    """The differences between the text of a config, or its lines, and a config, by path."""
    lines = stored.splitlines() if isinstance(stored, str) else stored
    old = {path: with_present_names(text) for path, text in fields_of(lines).items()}
    new = fields_of(cfg.debug_string().splitlines())
    defaults = _defaults(cfg)
    for path, texts in defaults.items():
        if path not in old and texts[0] != "None":
            old[path] = texts[0]

    def is_default(path: str) -> bool:
        *before, now = defaults.get(path, ("",))
        return new.get(path, "None") == now and old.get(path, "None") in before

    return [
        Difference(path, old.get(path), new.get(path), is_default(path))
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]


def with_present_names(text: str) -> str:
    """The text of a value, with classes and functions of this package under their present names."""

    def present(match: re.Match) -> str:
        module, name = match.groups()
        full = f"{module}.{name}"
        return repr(RENAMED.get(full) or f"{RENAMED.get(module, module)}.{name}")

    return _QUOTED_NAME.sub(present, text)


def as_stored(stored: Iterable[str], cfg: C, *, only_defaults: bool = False) -> C:
    """A copy of `cfg` with the values that it has in the lines of a stored text.

    Args:
        only_defaults: Restores defaults that have changed, and nothing that was chosen.
    """
    values = {
        each.path: each.stored or "None"
        for each in config_differences(stored, cfg)
        if each.is_default or (each.stored is not None and not only_defaults)
    }
    return restore_values(cfg, values)


def former_defaults(cfg: ConfigBase) -> list[str]:
    """Says which fields have a default of earlier code, one text a field."""
    fields = fields_of(cfg.debug_string().splitlines())
    return [
        f"{path}={fields.get(path)} (the default is {texts[-1]} now)"
        for path, texts in _defaults(cfg).items()
        if fields.get(path, "None") in texts[:-1]
    ]


def fields_of(lines: Iterable[str]) -> dict[str, str]:
    """Texts of values by path."""
    return {path: value for path, _, value in (line.partition(": ") for line in lines)}


def _defaults(cfg: ConfigBase) -> dict[str, tuple[str, ...]]:
    """The entries of DEFAULTS that are about fields of `cfg`, by path."""
    found: dict[str, tuple[str, ...]] = {}

    def enter(path: str, value: Any, children: list | None) -> list | None:
        klass = getattr(value, "klass", None) if isinstance(value, ConfigBase) else None
        names = [f"{each.__module__}.{each.__name__}" for each in getattr(klass, "__mro__", ())]
        for (name, field), texts in DEFAULTS.items():
            if name in names:
                found[f"{path}.{field}" if path else field] = texts
        return children

    cfg.visit(lambda path, value: None, enter)
    return found

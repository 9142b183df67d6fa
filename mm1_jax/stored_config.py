"""Stored configs as flat dicts from path to value, and their comparison with present configs.

The fields of a config are stored in the output folder of a run (`config.json`), in each of its
checkpoints (`model`) and in folders of converted weights (`weights.json`), each with the lines of
its text for people. Earlier code stored only the text.
"""

import ast
import enum
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mm1_jax.config import REQUIRED, ConfigBase
from mm1_jax.former_names import MOVED
from mm1_jax.overrides import restore_values

C = TypeVar("C", bound=ConfigBase)

# A JSON value. Classes and functions are "module.name", enum members "Enum.NAME".
Scalar = bool | int | float | str | None
Fields = Mapping[str, Scalar]
# Fields, or a config's text, or the lines of that text.
Stored = Fields | str | Iterable[str]

# Present names of renamed classes, and of modules whose classes have moved.
RENAMED = {
    **MOVED,
    "mm1_jax.train.optimizer.Optimizer": "mm1_jax.train.optimizers.adamw.AdamW",
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
    "mm1_jax.train.optimizer.AdamW": "mm1_jax.train.optimizers.adamw.AdamW",
    "mm1_jax.train.optimizer.Adafactor": "mm1_jax.train.optimizers.adafactor.Adafactor",
}
# Former classes of `mm1_jax.evals.benchmarks`, by the class that replaces them.
_NOW_ONE_CLASS = {
    "mm1_jax.evals.benchmark.Benchmark": """
        digits.DigitsVQA digits.DigitsCaption scenes.ScenesVQA scenes.ScenesCaption
        scenes.SceneNames easy_vqa.EasyVQA coco_captions.CocoCaptions nocaps.NoCaps
        textcaps.TextCaps vqav2.VqaV2 vqav2.OkVqa textvqa.TextVqa vizwiz.VizWiz gqa.Gqa
        scienceqa.ScienceQA mmmu.Mmmu mathvista.MathVista mme.Mme mmbench.MmBench
        seed_bench.SeedBench pope.Pope llava_bench.LlavaBench mmvet.MmVet arc.ArcEasy
        arc.ArcChallenge piqa.Piqa lambada.Lambada winogrande.WinoGrande hellaswag.HellaSwag
        sciq.SciQ triviaqa.TriviaQA webqs.WebQs
    """,
    "mm1_jax.evals.benchmarks.annotations.AnnotationSource": """
        coco_captions.CocoCaptionsSource nocaps.NoCapsSource textcaps.TextCapsSource
        textvqa.TextVqaSource vizwiz.VizWizSource gqa.GqaSource mmmu.MmmuSource
        mathvista.MathVistaSource mme.MmeSource mmbench.MmBenchSource seed_bench.SeedBenchSource
        pope.PopeSource llava_bench.LlavaBenchSource mmvet.MmVetSource
    """,
    "mm1_jax.evals.benchmarks.rows.RowSource": """
        arc.ArcSource piqa.PiqaSource lambada.LambadaSource winogrande.WinoGrandeSource
        hellaswag.HellaSwagSource sciq.SciQSource triviaqa.TriviaQASource webqs.WebQsSource
    """,
    "mm1_jax.evals.benchmarks.vqav2.CocoQuestions": """
        vqav2.CocoQuestionsSource
    """,
    "mm1_jax.evals.benchmarks.scienceqa.ScienceQuestions": """
        scienceqa.ScienceQASource
    """,
}
RENAMED |= {
    f"mm1_jax.evals.benchmarks.{name}": now
    for now, names in _NOW_ONE_CLASS.items()
    for name in names.split()
}
# Texts of fields that runs do not store, which `--print_config` prints.
_NO_VALUES = ("REQUIRED", "{}", "[]", "()")
_NAME = re.compile(r"(?<![\w./])(mm1_jax[\w.]*)\.(\w+)(?![\w./])")

# All defaults that a field has had, by class and path inside the class's config: oldest first, the
# present one last, as `flat_fields` returns them (None for unset). A run keeps the default that it
# was trained with. The oldest default also applies to runs from before the field existed: a new
# field whose default means "as before" has an entry with one default. Entries may only be extended.
# Classes have their present names.
DEFAULTS: dict[tuple[str, str], tuple[Scalar, ...]] = {
    ("mm1_jax.models.connectors.c_abstractor.CAbstractor", "norm.eps"): (1e-6, 1e-5),
    ("mm1_jax.train.optimizers.optimizer.Optimizer", "schedule"): ("Schedule.COSINE",),
    ("mm1_jax.train.optimizers.optimizer.Optimizer", "stable_steps"): (0,),
    ("mm1_jax.train.optimizers.optimizer.Optimizer", "parameters_dtype"): ("float32",),
    ("mm1_jax.train.optimizers.optimizer.Optimizer", "accumulation_dtype"): ("float32",),
    ("mm1_jax.train.optimizers.adamw.AdamW", "moments_dtype"): ("float32",),
    ("mm1_jax.train.trainer.Trainer", "norms_by_part"): (False,),
    ("mm1_jax.train.loss.Loss", "weighting"): ("token",),
    ("mm1_jax.models.decoder.Decoder", "document_mask"): (True,),
}


# Fields that change what a part computes but not the shapes of its parameters.
_NOT_IN_SHAPES = (
    *(
        "activation",
        "document_mask",
        "eps",
        "experts_per_token",
        "factor",
        "high_freq_factor",
        "low_freq_factor",
    ),
    *("original_max_position_embeddings", "padding_token", "patch_size", "pattern", "pooling"),
    "theta",
)
_PIXEL_FIELDS = ("pixel_mean", "pixel_std")


@dataclass(frozen=True)
class Difference:
    """A field with different values in two configs; None means unset.

    Attributes:
        is_default: Both values are defaults of the field, which have changed in between.
    """

    path: str
    stored: Scalar
    now: Scalar
    is_default: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {shown(self.stored)} -> {shown(self.now)}"


def flat_fields(cfg: ConfigBase) -> dict[str, Scalar]:
    """Returns the values in a config by path, without unset fields."""
    values = cfg.to_flat_dict(omit_default_values=(None, REQUIRED))
    return {path: scalar(value) for path, value in values.items()}


def computational_fields(fields: Fields) -> dict[str, Scalar]:
    """Returns the fields of a part that change what it computes but not its shapes."""
    return {
        path: value
        for path, value in fields.items()
        if path.rpartition(".")[2].startswith(_PIXEL_FIELDS)
        or path.rpartition(".")[2] in _NOT_IN_SHAPES
    }


def read_fields(stored: Stored) -> dict[str, Scalar]:
    """Returns the values of a stored config by path; classes have their present names."""
    if not isinstance(stored, Mapping):
        lines = stored.splitlines() if isinstance(stored, str) else stored
        parts = (line.partition(": ") for line in lines)
        stored = {path: _parsed(text) for path, _, text in parts if text not in _NO_VALUES}
    return {
        path: with_present_names(value) if isinstance(value, str) else value
        for path, value in stored.items()
    }


def with_present_names(text: str) -> str:
    """Replaces former names of this package's classes and functions in a text."""

    def present(match: re.Match) -> str:
        module, name = match.groups()
        return RENAMED.get(match[0]) or f"{RENAMED.get(module, module)}.{name}"

    return _NAME.sub(present, text)


def config_differences(stored: Stored, cfg: ConfigBase) -> list[Difference]:
    """Returns the differences between a stored config and a config, sorted by path."""
    old, new, defaults = with_first_defaults(stored, cfg), flat_fields(cfg), _defaults(cfg)

    def is_default(path: str) -> bool:
        *before, now = defaults.get(path, ())
        return _alike(new.get(path), now) and any(_alike(old.get(path), x) for x in before)

    return [
        replace(each, is_default=each.path in defaults and is_default(each.path))
        for each in stored_differences(old, new)
    ]


def with_first_defaults(stored: Stored, cfg: ConfigBase) -> dict[str, Scalar]:
    """Returns stored values by path, with the first default of fields from before they existed."""
    first = {path: values[0] for path, values in _defaults(cfg).items() if values[0] is not None}
    return first | read_fields(stored)


def stored_differences(old: Stored, new: Stored) -> list[Difference]:
    """Returns the differences between two stored configs, sorted by path.

    A field is unset if it is stored as None, and also if it is not stored.
    """
    old, new = read_fields(old), read_fields(new)
    return [
        Difference(path, old.get(path), new.get(path))
        for path in sorted(old.keys() | new.keys())
        if not _alike(old.get(path), new.get(path))
    ]


def as_stored(stored: Stored, cfg: C, *, only_defaults: bool = False) -> C:
    """Returns a copy of `cfg` with the values of a stored config.

    Args:
        only_defaults: Restores only defaults that have changed since.
    """
    fields = read_fields(stored)

    def is_stored(each: Difference) -> bool:
        # The first default of a field applies to configs from before the field.
        return each.path in fields or each.stored is not None

    values = {
        each.path: each.stored
        for each in config_differences(fields, cfg)
        if each.is_default or (is_stored(each) and not only_defaults)
    }
    return restore_values(cfg, values)


def former_defaults(cfg: ConfigBase) -> list[str]:
    """Returns a line for each field whose value is a former default."""
    fields = flat_fields(cfg)
    return [
        f"{path}={fields.get(path)!r} (the default is {values[-1]!r} now)"
        for path, values in _defaults(cfg).items()
        if any(_alike(fields.get(path), value) for value in values[:-1])
    ]


def scalar(value: Any) -> Scalar:
    """Converts a leaf of a config to JSON; a value of another type becomes its text."""
    if isinstance(value, type | types.FunctionType | types.MethodType):
        return f"{value.__module__}.{value.__name__}"
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    return value if value is None or type(value) in (bool, int, float, str) else repr(value)


def _parsed(text: str) -> Scalar:
    """Parses the text of a value in a config's text."""
    if member := re.fullmatch(r"<(\w+\.\w+): .*>", text):
        return member[1]
    if text in ("inf", "-inf", "nan"):
        return float(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _alike(a: Scalar, b: Scalar) -> bool:
    """Returns whether values are equal and of one type: 1 differs from 1.0 and True."""
    return type(a) is type(b) and a == b


def shown(value: Scalar) -> str:
    """Returns the text of a value for people."""
    return "not set" if value is None else repr(value)


def _defaults(cfg: ConfigBase) -> dict[str, tuple[Scalar, ...]]:
    """Returns the entries of DEFAULTS for fields of `cfg`, by path."""
    found: dict[str, tuple[Scalar, ...]] = {}

    def enter(path: str, value: Any, children: list | None) -> list | None:
        klass = getattr(value, "klass", None) if isinstance(value, ConfigBase) else None
        names = [f"{each.__module__}.{each.__name__}" for each in getattr(klass, "__mro__", ())]
        for (name, field), values in DEFAULTS.items():
            if name in names:
                found[f"{path}.{field}" if path else field] = values
        return children

    cfg.visit(lambda path, value: None, enter)
    return found

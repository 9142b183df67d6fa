"""The design of a study: arms, shared stages, metrics, seeds, and claims with their least effect.

A study is a module `experiments.studies.NAME` with a function `study()`. It may have
`named_configs()` for configs of its own. The design is committed before the final runs.

A cell is one arm with one seed. Values of overrides may contain `{seed}`, and `{STAGE}` for the run
folder of a stage with the same seed:

    Arm("half", "mm1_tiny_chat", {"trainer.initial_weights.decoder.path": "{pretraining}"})
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mm1_jax.experiment_folders import EXPERIMENTS
from mm1_jax.launch.named_configs import import_module, named_configs

_NAME = re.compile(r"\w+")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
# Fields that follow the seed of a cell; an override may set them to something else.
_SEEDS = ("trainer.seed", "input.seed")


@dataclass(frozen=True)
class Run:
    """A named config with overrides, launched once per seed.

    Attributes:
        overrides: Values as on a command line, by path.
        minutes: Expected duration on two quiet cores, for the plan.
        text: Description for the report.
    """

    name: str
    config: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    minutes: float = 0.0
    text: str = ""

    def stages(self) -> list[str]:
        """Returns the names of the stages whose folders the overrides name."""
        found = [name for x in self.overrides.values() for name in _PLACEHOLDER.findall(x)]
        return [name for name in dict.fromkeys(found) if name != "seed"]

    def overrides_of(self, seed: int, folders: Mapping[str, Path]) -> dict[str, str]:
        """Returns the overrides of a seed.

        Args:
            folders: The run folder of each stage.
        """
        values = {name: str(folder) for name, folder in folders.items()} | {"seed": str(seed)}
        overrides = {path: str(seed) for path in _SEEDS} | dict(self.overrides)
        return {
            path: _PLACEHOLDER.sub(lambda match: values[match[1]], text)
            for path, text in overrides.items()
        }


class Arm(Run):
    """A run whose metrics are compared with those of other arms."""


class Stage(Run):
    """A run that several arms start from, made once per seed.

    Studies with a stage of the same name share its run.
    """


@dataclass(frozen=True)
class Metric:
    """A column of the results: the mean of some keys of a run's `report.json`.

    Attributes:
        minus: Keys whose mean is subtracted.
    """

    name: str
    keys: tuple[str, ...]
    text: str = ""
    minus: tuple[str, ...] = ()

    def value(self, report: Mapping[str, Any]) -> float:
        """Returns the value in a report; raises ValueError if the report lacks a key."""
        keys = (*self.keys, *self.minus)
        lacking = [key for key in keys if not isinstance(report.get(key), int | float)]
        if lacking:
            known = ", ".join(key for key in report if not key.startswith("training/"))
            raise ValueError(f"no {', '.join(lacking)} for the metric {self.name!r}; has {known}")
        mean, subtracted = (
            sum(float(report[key]) for key in keys) / max(1, len(keys))
            for keys in (self.keys, self.minus)
        )
        return mean - subtracted


class Score(NamedTuple):
    """A metric of an arm."""

    arm: str
    metric: str

    def __str__(self) -> str:
        return f"{self.metric} of {self.arm}"


@dataclass(frozen=True)
class Claim:
    """A claim that one score is higher than another, or that two scores are alike.

    Attributes:
        smallest: Smallest difference of interest.
        alike: Claims that the difference is smaller than `smallest` in both directions.
    """

    text: str
    higher: Score
    lower: Score
    smallest: float
    alike: bool = False


class Cell(NamedTuple):
    """One arm with one seed."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """A design.

    Attributes:
        design: One or more sentences: what is compared, by which metric, and what would count.
        reference: The arm that all arms are compared with in the report.
        full_size: Commands or configs that run the same comparison at the size of the paper.
        name, module: Set by `load_study`.
    """

    design: str
    arms: Sequence[Arm]
    reference: str
    metrics: Sequence[Metric]
    claims: Sequence[Claim]
    seeds: Sequence[int] = (0, 1, 2)
    stages: Sequence[Stage] = ()
    full_size: str = ""
    name: str = ""
    module: str = ""

    def __post_init__(self) -> None:
        arms, stages = [x.name for x in self.arms], [x.name for x in self.stages]
        metrics = [metric.name for metric in self.metrics]
        for kind, names in (("arm", arms), ("stage", stages), ("metric", metrics)):
            for name in names:
                if not _NAME.fullmatch(name) or names.count(name) > 1:
                    raise ValueError(
                        f"{kind} {name!r}: expected a name of its own, of \\w characters"
                    )
        known = set(stages)
        for run in (*self.stages, *self.arms):
            for name in run.stages():
                if name not in known:
                    raise ValueError(
                        f"{run.name}: {{{name}}} is no stage; the stages are {', '.join(stages)}"
                    )
        for score in (x for claim in self.claims for x in (claim.higher, claim.lower)):
            if score.arm not in arms or score.metric not in metrics:
                raise ValueError(f"claim about the {score}: there is no such arm or metric")
        if self.reference not in arms:
            raise ValueError(f"reference={self.reference!r}: expected one of {', '.join(arms)}")

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def stages_of(self, run: Run) -> list[Stage]:
        """Returns all stages that a run needs, in the order in which they are made."""
        needed = set(run.stages())
        for stage in reversed(self.stages):
            if stage.name in needed:
                needed |= set(stage.stages())
        return [stage for stage in self.stages if stage.name in needed]

    def cells(self, seeds: Sequence[int] | None = None) -> list[Cell]:
        """Returns the cells in the order of their indices: all arms of the first seed first."""
        seeds = self.seeds if seeds is None else seeds
        return [Cell(arm.name, seed) for seed in seeds for arm in self.arms]

    def digest(self, run: Run) -> str:
        """Returns a digest of the design of a run, which results carry."""
        parts = [[x.config, dict(x.overrides)] for x in (*self.stages_of(run), run)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def studies() -> Iterator[str]:
    """Yields the names of the shipped studies and of the user's own."""
    package = import_module(f"{EXPERIMENTS}.studies", "--study")
    found = {path.stem for folder in package.__path__ for path in Path(folder).glob("[a-z]*.py")}
    yield from sorted(found)


def load_study(name: str) -> Study:
    """Returns the study of a module `experiments.studies.NAME`.

    Raises:
        ValueError: There is no such study, or its design is inconsistent.
    """
    if name not in (known := list(studies())):
        raise ValueError(f"--study={name}: there is no such study; known: {', '.join(known)}")
    module = import_module(f"{EXPERIMENTS}.studies.{name}", "--study")
    if not hasattr(module, "study"):
        raise ValueError(f"{module.__name__} has no function study() that returns its design")
    study = module.study()
    if not isinstance(study, Study):
        raise ValueError(f"{module.__name__}.study() returned {study!r}, expected a Study")
    object.__setattr__(study, "name", name)
    object.__setattr__(study, "module", module.__name__)
    return study


def module_of(study: Study, run: Run) -> str | None:
    """Returns the module of a run's config if it is that of the study; None for any other."""
    module = import_module(study.module, "--study")
    if not hasattr(module, "named_configs"):
        return None
    return study.module if run.config in named_configs(study.module) else None

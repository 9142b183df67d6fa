"""Pages of scenes, each followed by the made-up name of its shape or color; only names are scored.

A page names two shapes or two colors, and the next page has other names, as in `scene_names`. The
words between a picture and its name are a field, so that a curriculum can start without any: small
models learn to take a name from an earlier picture if it stands right behind the picture, and keep
it when words come between.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from mm1_jax.batch import Document, Image, Record, Text
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import DrawnSource, Kind
from mm1_jax.data.corpora.questions import question_prompt
from mm1_jax.data.corpora.scene_names import ASPECTS, NAMES, shown_values
from mm1_jax.data.corpora.scenes import COLORS, SHAPES, Scene, ScenesSource
from mm1_jax.data.images import resize
from mm1_jax.field_types import PositiveInt

VALUES = {"shape": SHAPES, "color": tuple(COLORS)}
# The words before the answer of `scene_names`.
QUESTION = question_prompt("what is this {aspect} called?")


@dataclass(frozen=True)
class NamedWorld:
    """The aspect that is named, the names of two of its values, and values of the other aspect."""

    aspect: str
    names: dict[str, str]
    others: tuple[str, ...]


class NamePagesSource(DrawnSource):
    """Pages (INTERLEAVED), or single questions (QUESTIONS) with `exemplars`, of one split."""

    @config_class
    class Config(DrawnSource.Config):
        kind: Required[Kind] = REQUIRED  # INTERLEAVED or QUESTIONS
        num_records: PositiveInt = 65_536  # In the training split.
        num_pictures: PositiveInt = 8  # Per page.
        # Text between a picture and its name; `{aspect}` becomes "shape" or "color".
        words: str = QUESTION
        # The aspect that is not named: drawn for each picture, or once for all pictures of a page.
        # Without words, only the latter tells which aspect a page names.
        other_aspect: Literal["random", "constant"] = "random"
        # Values that are neither named nor shown. With `named="held_out"`, one of the two named
        # values is one of these, and it is the one that questions ask for.
        held_out: Sequence[str] = ()
        named: Literal["others", "held_out"] = "others"
        # Number of pictures per color and shape, and their side in pixels. Each is rendered once,
        # as rendering 512 pictures would take as long as the step of a small model.
        pool: PositiveInt = 100
        side: PositiveInt = 32

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        if cfg.kind not in (Kind.INTERLEAVED, Kind.QUESTIONS):
            raise ValueError(f"source.kind={cfg.kind}; expected INTERLEAVED or QUESTIONS")
        if unknown := sorted({*cfg.held_out} - {*SHAPES, *COLORS}):
            known = ", ".join((*SHAPES, *COLORS))
            raise ValueError(f"source.held_out has {unknown[0]!r}; expected some of {known}")
        self._held_out = {
            aspect: [value for value in values if value in cfg.held_out]
            for aspect, values in VALUES.items()
        }
        self._values = {
            aspect: [value for value in values if value not in cfg.held_out]
            for aspect, values in VALUES.items()
        }
        if any(len(values) < 2 for values in self._values.values()):
            raise ValueError(
                f"source.held_out={cfg.held_out}: expected to leave two shapes and two colors"
            )
        self._aspects = [
            aspect for aspect in ASPECTS if cfg.named == "others" or self._held_out[aspect]
        ]
        if not self._aspects:
            raise ValueError("source.named='held_out' without a value in source.held_out")

    def drawn(self, index: int) -> Record:
        cfg, rng = self._config, self._rng(index)
        world = self._world(rng)
        if cfg.kind is Kind.INTERLEAVED:
            return self._record(rng, world, shown_values(rng, world.names, cfg.num_pictures))
        asked = rng.choice(sorted(world.names))
        if cfg.named == "held_out":
            (asked,) = (value for value in world.names if value in cfg.held_out)
        return self._record(rng, world, [asked]) | {"names": sorted(world.names.values())}

    def exemplars(self, index: int, count: int, *, swapped: bool = False) -> list[Record]:
        """Returns few-shot examples of a question's world, with both names if `count` allows it.

        Args:
            swapped: Gives each of the two values the name of the other one.
        """
        world = self._world(self._rng(index))
        rng = self._rng(index, "exemplars", count)
        shown = shown_values(rng, world.names, count)
        if swapped:
            first, second = world.names
            names = {first: world.names[second], second: world.names[first]}
            world = replace(world, names=names)
        return [self._record(rng, world, [value]) for value in shown]

    def _rng(self, *parts: object) -> random.Random:
        cfg = self._config
        names = (cfg.kind.value, self.split, cfg.seed, *parts)
        return random.Random("/".join(["name_pages", *map(str, names)]))

    def _world(self, rng: random.Random) -> NamedWorld:
        cfg = self._config
        aspect = rng.choice(self._aspects)
        values = rng.sample(self._values[aspect], 2)
        if cfg.named == "held_out":
            values[0] = rng.choice(self._held_out[aspect])
        names = dict(zip(values, rng.sample(NAMES, 2), strict=True))
        (other,) = (each for each in ASPECTS if each != aspect)
        others = self._values[other]
        if cfg.other_aspect == "constant":
            others = [rng.choice(others)]
        return NamedWorld(aspect, names, tuple(others))

    def _record(
        self, rng: random.Random, world: NamedWorld, values: Sequence[str]
    ) -> dict[str, Any]:
        words = self._config.words.format(aspect=world.aspect)
        return {
            "images": [self._picture(rng, world, value) for value in values],
            "prompts": [words] * len(values),
            "answers": [world.names[value] for value in values],
        }

    def _picture(self, rng: random.Random, world: NamedWorld, value: str) -> Any:
        pair = (value, rng.choice(world.others))
        shape, color = pair if world.aspect == "shape" else reversed(pair)
        number = rng.randrange(self._config.pool)
        scene = _scene(self.split, color, shape, number)
        return functools.partial(_rendered, scene, self._config.side)


def name_document(record: Record) -> Document:
    """Returns the pictures, each with its unscored words and its scored name behind it."""
    segments: list[Image | Text] = []
    parts = (record[name] for name in ("images", "prompts", "answers"))
    for image, prompt, answer in zip(*parts, strict=True):
        segments.append(Image(image))
        if prompt:
            segments.append(Text(prompt, scored=False))
        segments.append(Text(answer))
    return Document(tuple(segments))


def corpus(name: str, kind: Kind, **source: Any) -> Corpus.Config:
    """Returns the corpus of a kind; `source` sets fields of `NamePagesSource`."""
    return Corpus.default_config().set(
        name=name,
        source=NamePagesSource.default_config().set(kind=kind, **source),
        to_document=name_document,
    )


@functools.cache
def _scenes(split: str) -> ScenesSource:
    return ScenesSource.default_config().set(kind=Kind.CAPTIONS).instantiate(split=split)


@functools.cache
def _scene(split: str, color: str, shape: str, number: int) -> Scene:
    """Returns a scene of one color and shape by its number, with one to four shapes."""
    rng = random.Random(f"name_pages/{split}/{color}/{shape}/{number}")
    return _scenes(split).alike(rng, color=color, shape=shape)


@functools.lru_cache(maxsize=8192)
def _rendered(scene: Scene, side: int) -> UInt8[np.ndarray, "side side 3"]:
    return resize(scene.render(), side)

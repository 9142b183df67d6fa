"""Scenes whose shapes or colors have made-up names, which only earlier images of a page reveal.

A world gives names to two shapes or to two colors; the next world gives other names. So names
cannot be memorized: the name of what an image shows must be taken from earlier images on the same
page. This is the fast binding of new words of Tsimpoukelli et al. (2021, arXiv 2106.13884), small
enough for minutes of training.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mm1_jax.batch import Record
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import TO_DOCUMENT, Kind, page_record
from mm1_jax.data.corpora.questions import question_prompt
from mm1_jax.data.corpora.scenes import COLORS, SHAPES, Scene, ScenesSource

# Nonsense words, no two of which begin alike.
NAMES = (
    *("blick", "dax", "fep", "gorp", "kiki", "lorp", "mib", "nulu", "pim", "rif", "sarn", "toma"),
    *("vap", "wug", "yob", "zup"),
)
ASPECTS = ("shape", "color")
# The number of images of a page.
MIN_PICTURES, MAX_PICTURES = 4, 10


@dataclass(frozen=True)
class World:
    """The aspect that is named, a shape or a color, and the names of two of its values."""

    aspect: str
    names: dict[str, str]

    @property
    def question(self) -> str:
        return f"what is this {self.aspect} called?"

    def record(self, scene: Scene) -> dict[str, Any]:
        """Returns the question about a scene of one shape, with its answer."""
        (shape,) = scene.shapes
        value = shape.shape if self.aspect == "shape" else shape.color
        return {"images": [scene.render], "question": self.question, "answer": self.names[value]}


class SceneNamesSource(ScenesSource):
    """Pages or questions about scenes of one split; each record has a world of its own."""

    def __init__(self, cfg: ScenesSource.Config, *, split: str):
        super().__init__(cfg, split=split)
        if cfg.kind not in (Kind.INTERLEAVED, Kind.QUESTIONS):
            raise ValueError(f"source.kind={cfg.kind}; expected INTERLEAVED or QUESTIONS")

    def drawn(self, index: int) -> Record:
        rng = self._rng(index)
        world = _world(rng)
        if self._config.kind is Kind.QUESTIONS:
            return world.record(self._scene(rng, world, rng.choice(sorted(world.names)))) | {
                "names": sorted(world.names.values())
            }
        records = self._records(rng, world, rng.randint(MIN_PICTURES, MAX_PICTURES))
        answered = (f"{question_prompt(each['question'])} {each['answer']}" for each in records)
        pairs = zip(records, answered, strict=True)
        return page_record([part for each, text in pairs for part in (*each["images"], text)])

    def exemplars(self, index: int, count: int) -> list[Record]:
        """Returns few-shot examples of a question's world, with both names if `count` allows it."""
        world = _world(self._rng(index))
        return self._records(self._rng(index, "exemplars", count), world, count)

    def _rng(self, *parts: object) -> random.Random:
        cfg = self._config
        names = (cfg.kind.value, self.split, cfg.seed, *parts)
        return random.Random("/".join(["scene_names", *map(str, names)]))

    def _records(self, rng: random.Random, world: World, count: int) -> list[Record]:
        shown = shown_values(rng, world.names, count)
        return [world.record(self._scene(rng, world, value)) for value in shown]

    def _scene(self, rng: random.Random, world: World, value: str) -> Scene:
        return self.alike(rng, count=1, **{world.aspect: value})


def corpus(kind: Kind, **source: Any) -> Corpus.Config:
    """Returns the corpus of a kind; `source` sets fields of `SceneNamesSource`."""
    return Corpus.default_config().set(
        name=f"scene_names_{kind.value}",
        source=SceneNamesSource.default_config().set(kind=kind, **source),
        to_document=TO_DOCUMENT[kind],
    )


def shown_values(rng: random.Random, values: Iterable[str], count: int) -> list[str]:
    """Draws the values that pictures show: each once if `count` allows it, then random ones."""
    values = sorted(values)
    rng.shuffle(values)
    shown = (values + rng.choices(values, k=count))[:count]
    rng.shuffle(shown)
    return shown


def _world(rng: random.Random) -> World:
    aspect = rng.choice(ASPECTS)
    values = rng.sample(SHAPES if aspect == "shape" else sorted(COLORS), 2)
    return World(aspect, dict(zip(values, rng.sample(NAMES, 2), strict=True)))

"""Mixes streams by row, and the corpora of a stream by example; each lookup takes O(1).

Streams are packed separately: a row is captions, or interleaved, or text. Weights are integers, so
45/45/10 is exactly 9:9:2, and the order is deterministic. In any run of rows, the count of a stream
is within one row of its share for two streams and for 9:9:2. No order achieves that for all weights
(29:57:14 is off by up to 1.26).
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Int

from mm1_jax.config import (
    REQUIRED,
    ConfigBase,
    Configurable,
    InstantiableConfig,
    Required,
    config_class,
)
from mm1_jax.field_types import NonEmpty, NonNegativeInt

# Longest period of an interleaving (the sum of the weights over their gcd), which is the size of
# its table. No sensible weights have a longer one.
_MAX_PERIOD = 1 << 20

# grain's index_shuffle walks cycles of a 16-bit cipher: 4 us per call from 65536 indices, 20 us for
# 1000, 1 ms for 16. Up to this size a table is faster, and small.
_MAX_TABLE = 1 << 12


@config_class
class CorpusWeight(ConfigBase):
    """A corpus and its share of the examples of a stream."""

    corpus: Required[InstantiableConfig] = REQUIRED
    weight: NonNegativeInt = 1


class Stream(Configurable):
    """Rows of one kind: their share of all rows, and the corpora whose examples fill them."""

    @config_class
    class Config(Configurable.Config):
        name: Required[NonEmpty] = REQUIRED
        weight: NonNegativeInt = 1
        corpora: Required[list[CorpusWeight]] = REQUIRED
        # Text-only examples for the space that is left in rows whose images are used up, such as a
        # quarter of a caption row. A splitter with `max_positions` makes them short enough.
        fillers: list[CorpusWeight] = []

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg)
        self.name = cfg.name
        self.weight = cfg.weight
        # A corpus of weight 0 is never built, so its data need not exist.
        chosen = [entry for entry in cfg.corpora if entry.weight]
        if not chosen:
            raise ValueError(
                f"Stream {cfg.name!r} has weight {cfg.weight} but no corpus with a weight above 0; "
                "give one of its corpora a weight, or the stream the weight 0."
            )
        self.corpora = [entry.corpus.instantiate(split=split) for entry in chosen]
        self.corpus_weights = [entry.weight for entry in chosen]
        chosen = [entry for entry in cfg.fillers if entry.weight]
        self.fillers = [entry.corpus.instantiate(split=split) for entry in chosen]
        self.filler_weights = [entry.weight for entry in chosen]


@config_class
class Stage(ConfigBase):
    """New weights of streams, by name, from a step on; other streams keep theirs."""

    from_step: Required[NonNegativeInt] = REQUIRED
    weights: Required[dict[str, NonNegativeInt]] = REQUIRED


class CorpusShare(NamedTuple):
    """A corpus in a mixture: its number, name, weight and size."""

    corpus: int
    name: str
    weight: int
    num_records: int


class MixedStream(NamedTuple):
    """A stream of a mixture, without configs and data."""

    name: str
    weight: int
    corpora: tuple[CorpusShare, ...]
    fillers: tuple[CorpusShare, ...] = ()


class StreamSchedule:
    """Maps every row to its stream, and to its index within the stream.

    A packing shard emits `rows_per_shard` rows per step. Each shard is shifted by its rows, so the
    rows of a step are a run of the interleaving and every batch follows the weights; unshifted, all
    shards would draw the same stream. Every stage begins a new interleaving.
    """

    def __init__(self, stages: Sequence[tuple[int, tuple[int, ...]]], *, rows_per_shard: int):
        """`stages` pairs the first step of each stage, beginning at 0, with its stream weights."""
        self.stages = tuple(stages)
        self._rows_per_shard = rows_per_shard

    def stream(self, shard: int, step: int, shard_row: int) -> tuple[int, int]:
        """Returns the stream of a row, and how many of its rows the shard has emitted before."""
        size = self._rows_per_shard
        stage = self._stage(step)
        first, weights = self.stages[stage]
        stream, rank = select(shard * size + (step - first) * size + shard_row, weights)
        rank -= count(shard * size, stream, weights)
        for (start, before), (end, _) in zip(self.stages[:stage], self.stages[1:], strict=False):
            last = shard * size + (end - start) * size
            rank += count(last, stream, before) - count(shard * size, stream, before)
        return stream, rank

    def _stage(self, step: int) -> int:
        return max(i for i, (first, _) in enumerate(self.stages) if first <= step)


class _Period(NamedTuple):
    """One period of an interleaving: choice and rank at each place, and the places per choice."""

    length: int
    choices: list[int]
    ranks: list[int]
    places: tuple[np.ndarray, ...]


@functools.lru_cache(maxsize=256)
def _period(weights: tuple[int, ...]) -> _Period:
    if any(weight < 0 for weight in weights) or not sum(weights):
        raise ValueError(f"Weights {weights} must be non-negative integers, not all zero.")
    reduced = np.array(weights, np.int64) // np.gcd.reduce(weights)
    length = int(reduced.sum())
    if length > _MAX_PERIOD:
        raise ValueError(
            f"Weights {weights} repeat only after {length} draws; round them to smaller integers "
            f"(a period of at most {_MAX_PERIOD})."
        )
    # The j-th of n draws belongs at (j + 1/2) / n of the period. Division is correctly rounded, so
    # equal fractions are equal floats, and ties go to the lower choice on every machine.
    choices = np.repeat(np.arange(len(reduced)), reduced)
    ranks = np.concatenate([np.arange(n) for n in reduced])
    order = np.lexsort((choices, (2 * ranks + 1) / reduced[choices]))
    choices, ranks = choices[order], ranks[order]
    places = tuple(np.flatnonzero(choices == k) for k in range(len(reduced)))
    return _Period(length, choices.tolist(), ranks.tolist(), places)


def select(i: int, weights: tuple[int, ...]) -> tuple[int, int]:
    """Returns the choice at place i of an endless interleaving, and how often it came before.

    Examples:
        >>> [select(i, (2, 1)) for i in range(4)]
        [(0, 0), (1, 0), (0, 1), (0, 2)]
    """
    period = _period(weights)
    rounds, place = divmod(i, period.length)
    choice = period.choices[place]
    return choice, rounds * len(period.places[choice]) + period.ranks[place]


def count(i: int, choice: int, weights: tuple[int, ...]) -> int:
    """Returns how often `choice` is chosen before place i."""
    period = _period(weights)
    rounds, place = divmod(i, period.length)
    places = period.places[choice]
    return rounds * len(places) + int(np.searchsorted(places, place))


def most_in_a_run(weights: tuple[int, ...], amounts: Sequence[int], length: int) -> int:
    """Returns the largest sum of amounts over `length` consecutive places of the interleaving.

    Args:
        amounts: The amount at a place of each choice.
    """
    period = sum(weights) // math.gcd(*weights)
    each = [amounts[select(i, weights)[0]] for i in range(period + length)]
    before = np.concatenate([[0], np.cumsum(each)])
    return int(np.max(before[length:] - before[:-length]))


def hash_seed(*parts: int | str) -> int:
    """Hashes numbers and names to a 32-bit seed, equal on all machines and in all processes."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def permutation(size: int, seed: int) -> Int[np.ndarray, "n"]:
    """Shuffles range(size) with integer arithmetic only, so that no NumPy release changes it."""
    x = np.arange(size, dtype=np.uint64) + np.uint64(seed << 32)
    # The output function of splitmix64: each input bit changes half of the output bits.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


@functools.lru_cache(maxsize=256)
def _shuffle_table(size: int, seed: int) -> np.ndarray:
    return permutation(size, seed).astype(np.uint16)


def shuffle_index(position: int, size: int, seed: int) -> int:
    """Returns the element at a position of a shuffled range(size), in constant memory."""
    if size <= _MAX_TABLE:
        return int(_shuffle_table(size, seed)[position])
    return index_shuffle(position, max_index=size - 1, seed=seed, rounds=4)


class Mixture:
    """Maps the n-th draw from a stream to a record, for `num_shards` packers that share the stream.

    The records of a corpus, reshuffled every epoch, are distributed round-robin over the shards.
    Each shard draws from the corpora of a stream by their weights, independently of the others. So
    every record comes once per epoch, even in a corpus smaller than the number of shards, and no
    shard needs to know the progress of the others.
    """

    def __init__(self, streams: Sequence[MixedStream], *, seed: int, num_shards: int):
        self.streams = tuple(streams)
        self.num_shards = num_shards
        self.weights = tuple(stream.weight for stream in self.streams)
        self._seeds = {
            share.corpus: hash_seed(seed, share.name)
            for stream in self.streams
            for share in (*stream.corpora, *stream.fillers)
        }

    def record(self, stream: int, shard: int, number: int) -> tuple[int, int, int]:
        """Returns the corpus, epoch and index of a shard's `number`-th record of a stream."""
        return self._draw(self.streams[stream].corpora, shard, number)

    def filler(self, stream: int, shard: int, number: int) -> tuple[int, int, int]:
        """Returns the corpus, epoch and index of a shard's `number`-th filler of a stream."""
        return self._draw(self.streams[stream].fillers, shard, number)

    def _draw(
        self, corpora: Sequence[CorpusShare], shard: int, number: int
    ) -> tuple[int, int, int]:
        weights = tuple(share.weight for share in corpora)
        # Shards begin at different places of the interleaving; otherwise all would draw the same
        # corpus in the same step.
        choice, rank = select(shard + number, weights)
        share = corpora[choice]
        drawn = rank - count(shard, choice, weights)
        epoch, position = divmod(shard + drawn * self.num_shards, share.num_records)
        # The seed of a corpus is a hash: seed + epoch would repeat the shuffles of seed + 1.
        seed = (self._seeds[share.corpus] + epoch) % 2**32
        return share.corpus, epoch, shuffle_index(position, share.num_records, seed)

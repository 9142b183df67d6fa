"""Mixes streams by row, and the corpora of a stream by example; each lookup takes O(1).

Streams are packed separately: a row is captions, or interleaved, or text. Weights are integers, so
45/45/10 is exactly 9:9:2, and the order is deterministic. In any run of rows, the count of a stream
is within one row of its share for two streams and for 9:9:2. No order achieves that for all weights
(29:57:14 is off by up to 1.26).

The corpora of a stream with a `Pool` get their weights from their sizes and categories, when the
input is built.
"""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
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
from mm1_jax.field_types import NonEmpty, NonNegativeInt, Positive

# Longest period of an interleaving (the sum of the weights over their gcd), which is the size of
# its table. No sensible weights have a longer one.
_MAX_PERIOD = 1 << 20

# Sum of the integer weights that a pool rounds its shares to: a share of 1% is off by at most 0.08%
# of itself.
_POOL_PERIOD = 1 << 16

# grain's index_shuffle walks cycles of a 16-bit cipher: 4 us per call from 65536 indices, 20 us for
# 1000, 1 ms for 16. Up to this size a table is faster, and small.
_MAX_TABLE = 1 << 12


@config_class
class CorpusWeight(ConfigBase):
    """A corpus and its share of the examples of a stream.

    In a stream with a pool, a weight of 0 leaves a corpus out, and the pool computes the others.
    """

    corpus: Required[InstantiableConfig] = REQUIRED
    weight: NonNegativeInt = 1
    # For a stream with a pool: the category of the corpus, and how often its examples are drawn
    # relative to those of corpora of this category without a repeat.
    category: NonEmpty | None = None
    repeat: Positive | None = None


@config_class
class Pool(ConfigBase):
    """Computes the weights of a stream's corpora from their numbers of usable examples.

    The examples of a category are drawn equally often, up to `repeat`. Without categories, this
    holds for all examples, as in MM1's fine-tuning.

    `relative` is the rule of MM1.5 (section 3.2): the number of examples of a category per example
    of the category `reference`. A category in neither field counts by its size. The paper does not
    say whether its ratios count examples or tokens; the shares that it reports (37.2%, 22.5%,
    11.3%, 5.6%, 2.3% and 1.1%) are those of examples under these ratios.
    """

    # Category -> share of all examples of the stream. The other categories divide the rest.
    shares: dict[str, Positive] = {}
    # Category -> examples per example of the category `reference`.
    relative: dict[str, Positive] = {}
    reference: NonEmpty = "general"


class Stream(Configurable):
    """Rows of one kind: their share of all rows, and the corpora whose examples fill them."""

    @config_class
    class Config(Configurable.Config):
        name: Required[NonEmpty] = REQUIRED
        weight: NonNegativeInt = 1
        corpora: Required[list[CorpusWeight]] = REQUIRED
        # Computes the weights of the corpora from their sizes; None takes them as they are.
        pool: Pool | None = None
        # Text-only examples for the space that is left in rows whose images are used up, such as a
        # quarter of a caption row. A splitter with `max_positions` makes them short enough.
        fillers: list[CorpusWeight] = []

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg)
        self.name = cfg.name
        self.weight = cfg.weight
        # A corpus of weight 0 is never built, so its data need not exist.
        self.entries = [entry for entry in cfg.corpora if entry.weight]
        if not self.entries:
            raise ValueError(
                f"Stream {cfg.name!r} has weight {cfg.weight} but no corpus with a weight above 0; "
                "give one of its corpora a weight, or the stream the weight 0."
            )
        self.pool = cfg.pool
        _check_pool(cfg.name, self.entries, cfg.pool)
        self.corpora = [entry.corpus.instantiate(split=split) for entry in self.entries]
        self.filler_entries = [entry for entry in cfg.fillers if entry.weight]
        self.fillers = [entry.corpus.instantiate(split=split) for entry in self.filler_entries]


@config_class
class Stage(ConfigBase):
    """New weights of streams, by name, from a step on; other streams keep theirs."""

    from_step: Required[NonNegativeInt] = REQUIRED
    weights: Required[dict[str, NonNegativeInt]] = REQUIRED


class CorpusShare(NamedTuple):
    """A corpus in a mixture: its number, name, weight, size, and place in a pool."""

    corpus: int
    name: str
    weight: int
    num_records: int
    category: str | None = None
    repeat: float = 1.0


class MixedStream(NamedTuple):
    """A stream of a mixture, without configs and data."""

    name: str
    weight: int
    corpora: tuple[CorpusShare, ...]
    fillers: tuple[CorpusShare, ...] = ()
    is_pooled: bool = False


def pooled_shares(
    pool: Pool, entries: Sequence[CorpusWeight], num_examples: Sequence[int]
) -> list[Fraction]:
    """Returns the share of each corpus in the examples of a stream, exactly."""
    amounts = [
        max(number, 1) * Fraction(entry.repeat or 1)
        for entry, number in zip(entries, num_examples, strict=True)
    ]
    sizes: dict[str | None, Fraction] = {}
    for entry, amount in zip(entries, amounts, strict=True):
        sizes[entry.category] = sizes.get(entry.category, Fraction(0)) + amount
    free = {
        category: Fraction(pool.relative[category]) * sizes[pool.reference]
        if category in pool.relative
        else size
        for category, size in sizes.items()
        if category not in pool.shares
    }
    fixed = {category: Fraction(share) for category, share in pool.shares.items()}
    # Without free categories, the shares need not add up to 1.
    rest = 1 - sum(fixed.values()) if free else Fraction(0)
    total = sum(free.values())
    of_category = fixed | {category: rest * each / total for category, each in free.items()}
    whole = sum(of_category.values())
    return [
        of_category[entry.category] / whole * amount / sizes[entry.category]
        for entry, amount in zip(entries, amounts, strict=True)
    ]


def pooled_weights(
    shares: Sequence[Fraction], num_records: Sequence[int], num_usable: Sequence[int]
) -> list[int]:
    """Returns the integer weights with which corpora are drawn to have these shares.

    Draws go over all records, of which the unusable ones are skipped.
    """
    draws = [
        share * records / max(usable, 1)
        for share, records, usable in zip(shares, num_records, num_usable, strict=True)
    ]
    total = sum(draws)
    return [max(1, round(_POOL_PERIOD * each / total)) for each in draws]


def _check_pool(stream: str, entries: Sequence[CorpusWeight], pool: Pool | None):
    """Raises ValueError if the corpora of a stream contradict its pool."""
    field = f"input.streams, stream {stream!r}"
    if pool is None:
        for entry in entries:
            if entry.category is not None or entry.repeat is not None:
                raise ValueError(
                    f"{field}: corpus {entry.corpus.name!r} has a category or a repeat, which "
                    "only a pool reads; set the stream's pool to a Pool(), or leave both None."
                )
        return
    for entry in entries:
        if entry.weight != 1:
            raise ValueError(
                f"{field}: corpus {entry.corpus.name!r} has weight={entry.weight}, but the pool "
                "computes the weights; leave it 1, or 0 to leave the corpus out, and set repeat."
            )
    categories = {entry.category for entry in entries}
    compared = {*pool.relative, pool.reference} if pool.relative else set()
    if missing := sorted((pool.shares.keys() | compared) - categories):
        raise ValueError(
            f"{field}: its pool names the categories {missing}, of which it has no corpus; its "
            f"corpora are of {sorted(str(category) for category in categories)}."
        )
    if both := sorted(pool.shares.keys() & compared):
        raise ValueError(
            f"{field}: its pool gives the categories {both} a share, and compares them with "
            "others in `relative`; choose one."
        )
    if categories - pool.shares.keys() and sum(pool.shares.values()) >= 1:
        raise ValueError(
            f"{field}: the shares {pool.shares} of its pool leave nothing for other categories; "
            "let them add up to less than 1."
        )


class StreamSchedule:
    """Maps every row to its stream, and to its index within the stream.

    A packing shard emits `rows_per_shard` rows per step. Each shard is shifted by its rows, so the
    rows of a step are a run of the interleaving and every batch follows the weights; unshifted, all
    shards would draw the same stream. Every stage begins a new interleaving.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, tuple[int, ...]]],
        *,
        rows_per_shard: int,
        names: Sequence[str] = (),
    ):
        """`stages` pairs the first step of each stage, beginning at 0, with its stream weights."""
        self.stages = tuple(stages)
        self._rows_per_shard = rows_per_shard
        self._names = names

    @classmethod
    def of(
        cls,
        streams: Sequence[MixedStream],
        stages: Sequence[tuple[int, Mapping[str, int]]],
        *,
        rows_per_shard: int,
    ) -> "StreamSchedule":
        """Creates the schedule of streams whose weights change, by name, at the given steps.

        Raises:
            ValueError: The steps do not increase, or a stage names a stream that does not exist.
        """
        weights = {stream.name: stream.weight for stream in streams}
        made = [(0, tuple(weights.values()))]
        for first, changed in stages:
            if first <= made[-1][0]:
                raise ValueError(
                    f"input.stages: from_step={first} must be above {made[-1][0]}, the first step "
                    "of the previous stage."
                )
            if unknown := sorted(changed.keys() - weights.keys()):
                raise ValueError(
                    f"input.stages, from_step={first}: there are no streams {unknown}; expected "
                    f"some of {list(weights)}."
                )
            weights |= changed
            if min(weights.values()) < 0 or not any(weights.values()):
                raise ValueError(
                    f"input.stages, from_step={first}: the weights {weights} must be non-negative "
                    "integers, not all 0."
                )
            made.append((first, tuple(weights.values())))
        return cls(made, rows_per_shard=rows_per_shard, names=list(weights))

    def num_rows(self, stream: int, num_steps: int, batch_size: int) -> float:
        """Returns the number of rows of a stream in the first steps."""
        ends = [first for first, _ in self.stages[1:]] + [num_steps]
        return sum(
            batch_size * max(0, min(end, num_steps) - first) * weights[stream] / sum(weights)
            for (first, weights), end in zip(self.stages, ends, strict=True)
        )

    def fingerprint(self) -> dict[str, dict[str, int]]:
        """Returns the weights of later stages by stream, under the names of the stages."""
        return {
            f"stages.{first}": dict(zip(self._names, weights, strict=True))
            for first, weights in self.stages[1:]
        }

    def describe(self) -> list[str]:
        """Returns a line per later stage with the shares of the streams."""
        lines = []
        for first, weights in self.stages[1:]:
            shares = zip(self._names, weights, strict=True)
            parts = (f"{name} {weight / sum(weights):.1%}" for name, weight in shares)
            lines.append(f"  from step {first:,} on: {', '.join(parts)}")
        return lines

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

"""The base of inputs: batches of rows that are drawn from streams of corpora.

A subclass says what a row holds. A batch is a function of (config, seed, step) alone. It does not
depend on the rows that a host asks for, on the number of workers, or on restarts.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm1_jax.config import (
    REQUIRED,
    Configurable,
    InstantiableConfig,
    Required,
    config_class,
    derived,
)
from mm1_jax.data.accounting import Accounting
from mm1_jax.data.batches import BatchMaker, RowPlan, RowPlanner
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.images import ImageTransform
from mm1_jax.data.input_iterator import InputIterator, merge_states
from mm1_jax.data.mixture import (
    CorpusShare,
    CorpusWeight,
    MixedStream,
    Pool,
    Stage,
    Stream,
    pooled_shares,
    pooled_weights,
)
from mm1_jax.data.quarantine import Quarantine
from mm1_jax.data.record_files import MANIFEST
from mm1_jax.data.snapshot import Snapshot
from mm1_jax.data.sources.array_record import ArrayRecordSource, source_folder
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer, check_tokenizer, tokenizer_path
from mm1_jax.field_types import NonNegativeInt, PositiveInt, Seed, Share


class MixedInput(Configurable):
    """Batches of rows, mixed from the streams' corpora.

    Attributes:
        corpora: The corpora that rows are read from.
        corpus_names: A batch's `corpus_ids` are indices into this list.
        num_usable: Number of examples per epoch of each corpus.
        plan: The records of every row of every batch.
        batch_maker: Makes the planned rows of a batch.
        snapshot: The rows that replace a plan made here; None if there are none.
    """

    @config_class
    class Config(Configurable.Config):
        streams: Required[list[Stream.Config]] = REQUIRED
        # Other stream weights from later steps on, as in continued pre-training.
        stages: list[Stage] = []
        # Folder that relative paths of sources and tokenizer start from.
        data_dir: str = "data"
        tokenizer: InstantiableConfig = Tokenizer.default_config()
        image_transform: InstantiableConfig = ImageTransform.default_config()
        batch_size: Required[PositiveInt] = REQUIRED  # Rows, over all hosts.
        # Size of the vision encoder's images, set by the experiment.
        image_size: NonNegativeInt | None = derived(None)
        seed: Seed = 0
        # Processes that read and decode; 0 means one thread of this process.
        num_workers: NonNegativeInt = 0
        # Batches prefetched per worker, or by the thread; 0 without workers disables prefetching.
        prefetch: NonNegativeInt = 2
        # The run stops when a larger fraction of a corpus's documents is bad.
        max_bad_fraction: Share = 0.01

    corpora: list[Corpus]
    corpus_names: list[str]
    num_usable: list[int]
    plan: RowPlan
    batch_maker: BatchMaker
    snapshot: Snapshot | None = None
    # None for text-only input.
    image_transform: ImageTransform | None = None
    _fingerprint: dict[str, Any]

    def __init__(
        self,
        cfg: Config,
        *,
        split: str = "train",
        quarantine_path: Path | str | None = None,
        num_steps: int | None = None,
    ):
        """Builds the tokenizer; a subclass builds the corpora and the plan.

        The constructors of subclasses also take `hosts`: the processes of the run, which share what
        is computed once for all of them.

        Args:
            quarantine_path: File for the records that cannot be used.
            num_steps: Steps of the run, for the epochs that `describe` tells.
        """
        super().__init__(cfg)
        self.split = split
        self.num_steps = num_steps
        self.batch_size: int = cfg.batch_size
        self.image_size = set_by_experiment(cfg, "image_size")
        self.num_workers = cfg.num_workers
        self.prefetch = cfg.prefetch
        self.max_bad_fraction = cfg.max_bad_fraction
        self.quarantine_path = None if quarantine_path is None else Path(quarantine_path)
        self.tokenizer: Tokenizer = cfg.tokenizer.instantiate()
        check_tokenizer(self.tokenizer)

    def _build_streams(self) -> list[Stream]:
        """Builds the corpora of the streams in use."""
        # A stream of weight 0 is never built, so its data need not exist.
        streams = [stream.instantiate(split=self.split) for stream in used_streams(self.config)]
        self.corpora = [
            corpus for stream in streams for corpus in (*stream.corpora, *stream.fillers)
        ]
        self.corpus_names = [corpus.name for corpus in self.corpora]
        _check_unique("stream", [stream.name for stream in streams])
        _check_unique("corpus", self.corpus_names)
        for corpus in self.corpora:
            if not len(corpus):
                raise ValueError(
                    f"Corpus {corpus.name!r} has no records in split {self.split!r}; "
                    "give it weight 0, or fix its source."
                )
        return streams

    @staticmethod
    def num_corpora(cfg: "MixedInput.Config") -> int:
        """Returns the number of corpora of an Input of this config."""
        return len(used_corpora(cfg))

    def iterator(self, rows: range | None = None, num_workers: int | None = None) -> InputIterator:
        """Returns an iterator over batches from step 0 that makes only the given rows.

        Args:
            rows: None means all rows of the batch.
            num_workers: Its share of the config's `num_workers` if a host has several iterators;
                None means all.
        """
        return InputIterator(
            self.batch_maker,
            range(self.batch_size) if rows is None else rows,
            accounting=self._accounting(),
            quarantine=Quarantine(self.quarantine_path),
            fingerprint=self.fingerprint(),
            num_workers=self.num_workers if num_workers is None else num_workers,
            prefetch=self.prefetch,
        )

    @staticmethod
    def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Merges the states of iterators over parts of the batch into one of the whole batch."""
        return merge_states(states)

    def accounting(self, state: Mapping[str, Any]) -> dict[str, dict[str, int | float]]:
        """Returns the counts and the epochs of each corpus, as of a saved state."""
        return self._accounting().report(state)

    def _accounting(self) -> Accounting:
        num_usable = dict(zip(self.corpus_names, self.num_usable, strict=True))
        return Accounting(num_usable, self.max_bad_fraction)

    def planner(self, rows: range) -> RowPlanner:
        """Returns a planner of the given rows of every batch, at step 0."""
        return self.plan.planner(rows)

    def fingerprint(self) -> dict[str, Any]:
        """Returns everything that determines the batches; a saved state relies on it."""
        return copy.deepcopy(self._fingerprint)

    def describe(self) -> str:
        """Describes the rows and streams in a few lines."""
        raise NotImplementedError


def used_streams(cfg: MixedInput.Config) -> list[Stream.Config]:
    """Returns the streams whose weight is ever above 0."""
    later = {name for stage in cfg.stages for name, weight in stage.weights.items() if weight}
    return [stream for stream in cfg.streams if stream.weight or stream.name in later]


def used_corpora(cfg: MixedInput.Config) -> list[Any]:
    """Returns the corpora that an Input of this config reads, fillers included, in number order."""
    return [
        entry.corpus
        for stream in used_streams(cfg)
        for entry in (*stream.corpora, *stream.fillers)
        if entry.weight
    ]


def mixed_streams(
    streams: Sequence[Stream], num_examples: Sequence[int], num_usable: Sequence[int]
) -> list[MixedStream]:
    """Returns the streams of a mixture, with the weights of pooled corpora.

    Args:
        num_examples: Number of examples of each corpus, by corpus number.
        num_usable: Number of those that are usable.
    """
    numbers = itertools.count()

    def corpus_shares(
        corpora: Sequence[Corpus], entries: Sequence[CorpusWeight], pool: Pool | None = None
    ) -> tuple[CorpusShare, ...]:
        own = [next(numbers) for _ in corpora]
        weights = [entry.weight for entry in entries]
        if pool is not None:
            usable = [num_usable[i] for i in own]
            shares = pooled_shares(pool, entries, usable)
            weights = pooled_weights(shares, [num_examples[i] for i in own], usable)
        return tuple(
            CorpusShare(i, corpus.name, weight, num_examples[i], entry.category, entry.repeat or 1)
            for i, corpus, weight, entry in zip(own, corpora, weights, entries, strict=True)
        )

    return [
        MixedStream(
            stream.name,
            stream.weight,
            corpus_shares(stream.corpora, stream.entries, stream.pool),
            corpus_shares(stream.fillers, stream.filler_entries),
            stream.pool is not None,
        )
        for stream in streams
    ]


def set_by_experiment(cfg: MixedInput.Config, name: str) -> int:
    """Returns a field that the experiment sets; raises ValueError if it is None."""
    value = getattr(cfg, name)
    if value is None:
        raise ValueError(
            f"input.{name} is None; the experiment sets it from the model. Outside of an "
            f"experiment, set it to the model's {name}."
        )
    return value


def check_image_size(cfg: MixedInput.Config) -> None:
    """Raises ValueError if the transform of images has another size than the input."""
    size = cfg.image_transform.image_size
    if size not in (None, cfg.image_size):
        raise ValueError(
            f"input.image_transform.image_size={size} disagrees with input.image_size="
            f"{cfg.image_size}; leave the former None."
        )


def check_weights(streams: Sequence[Stream.Config]) -> None:
    """Raises ValueError if no stream has a weight."""
    if not any(stream.weight for stream in streams):
        raise ValueError("input.streams has no stream with a weight above 0.")


def check_files(cfg: MixedInput.Config, split: str) -> None:
    """Raises ValueError if files are missing, listing all of them and the commands to make them."""
    sources = [corpus.source for corpus in used_corpora(cfg)]
    folders = [
        source_folder(source, split) for source in sources if source.klass is ArrayRecordSource
    ]
    missing = [folder for folder in dict.fromkeys(folders) if not (folder / MANIFEST).is_file()]
    lines = [
        f"  python -m mm1_jax convert_records --format=FORMAT --input=PATH --output={folder}"
        for folder in missing
    ]
    model = tokenizer_path(cfg.tokenizer)
    if not model.is_file():
        missing.append(model)
        lines.append(
            f"  python -m mm1_jax train_tokenizer --data_dir={cfg.data_dir} --output={model}"
            + (f" --vocab_size={cfg.tokenizer.num_pieces}" if cfg.tokenizer.num_pieces else "")
        )
    if missing:
        raise ValueError(
            f"no data at {', '.join(map(str, missing))}. Name its folder with --data_dir, or make "
            "it (`python -m mm1_jax convert_records --list` shows the formats):\n"
            + "\n".join(lines)
        )


def _check_unique(what: str, names: Sequence[str]):
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"input.streams: the {what} names {twice} occur more than once.")

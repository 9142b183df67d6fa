"""Batches of pictures with their captions, to pre-train vision encoders: one record per row.

Nothing is packed, so no table of lengths is needed, and the plan of a step is a function of its
number. A record that cannot be used leaves its row empty; no other row changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from mm1_jax.batch import Document, Image, ImageTextBatch, Text
from mm1_jax.config import config_class, maybe_instantiate
from mm1_jax.data.accounting import Counts, empty_counts
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.images import Augmentation, BadImage, ImageTransform
from mm1_jax.data.lengths import Hosts
from mm1_jax.data.mixed_input import (
    MixedInput,
    check_files,
    check_image_size,
    check_weights,
    mixed_streams,
    set_by_experiment,
)
from mm1_jax.data.mixture import MixedStream, Mixture, StreamSchedule, hash_seed
from mm1_jax.data.packing import PlannedRecord, PlannedRow
from mm1_jax.data.quarantine import Quarantined
from mm1_jax.data.random_view import RandomView
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.field_types import NonNegativeInt

# A bos, a token of text and an eos.
_LEAST_LENGTH = 3
# Numbers of the random streams of a record.
_CAPTION, _VIEW = 0, 1


class PairInput(MixedInput):
    """Batches of one picture and its caption per row, mixed from the streams' corpora."""

    @config_class
    class Config(MixedInput.Config):
        # Tokens of a caption with its bos and eos; longer ones are cut. 0 reads pictures alone.
        max_sequence_length: NonNegativeInt = 77
        # Random views of training pictures, in place of the fit of `image_transform`; corpora with
        # an augmentation of their own have that instead.
        augmentation: RandomView.Config | None = None

    def __init__(
        self,
        cfg: Config,
        *,
        split: str = "train",
        quarantine_path: Path | str | None = None,
        num_steps: int | None = None,
        hosts: Hosts | None = None,
    ):
        """Builds the corpora and the plan; the arguments are those of a `MixedInput`.

        Nothing is computed that `hosts` could share.
        """
        _check_sizes(cfg)
        check_weights(cfg.streams)
        check_files(cfg, split)
        super().__init__(cfg, split=split, quarantine_path=quarantine_path, num_steps=num_steps)
        self.max_sequence_length: int = cfg.max_sequence_length
        transform: ImageTransform = cfg.image_transform.set(image_size=cfg.image_size).instantiate()
        self.image_transform = transform
        streams = self._build_streams()
        self.num_usable = [len(corpus) for corpus in self.corpora]
        plan = PairPlan(
            mixed_streams(streams, self.num_usable, self.num_usable),
            batch_size=cfg.batch_size,
            seed=cfg.seed,
            stages=[(stage.from_step, stage.weights) for stage in cfg.stages],
        )
        self.plan = self._plan = plan
        self.random_view: RandomView | None = (
            maybe_instantiate(cfg.augmentation) if split == "train" else None
        )
        self.batch_maker = PairBatchMaker(
            plan,
            PairLoader(
                self.corpora,
                tokenizer=self.tokenizer,
                image_transform=transform,
                random_view=self.random_view,
                max_sequence_length=cfg.max_sequence_length,
                seed=cfg.seed,
            ),
        )
        self._fingerprint = self._own_fingerprint() | plan.fingerprint()

    def _own_fingerprint(self) -> dict[str, Any]:
        cfg = self.config
        return {
            "split": self.split,
            "augmentation": self.random_view and _line(self.random_view.config),
            "max_sequence_length": self.max_sequence_length,
            "image_size": self.image_size,
            "image_transform": _line(cfg.image_transform),
            "tokenizer": self.tokenizer.fingerprint(),
        } | {
            f"{corpus.name}.{part}": value
            for corpus in self.corpora
            for part, value in (
                ("documents", corpus.fingerprint()),
                ("augmentation", corpus.augmentation and _line(corpus.augmentation.config)),
            )
        }

    def describe(self) -> str:
        """Describes the rows and streams in a few lines."""
        size = self.image_size
        text = f"up to {self.max_sequence_length} tokens" if self.max_sequence_length else "no text"
        head = (
            f"{self.split}: {self.batch_size} pictures of {size} x {size} pixels with {text} each"
        )
        return "\n".join([head, *self._plan.describe(self.num_steps)])


class PairPlan:
    """The record of every row of every step.

    Each row of the batch is a packing shard of the mixture: it draws its records independently of
    the others, so a plan needs no state but the step.
    """

    def __init__(
        self,
        streams: Sequence[MixedStream],
        *,
        batch_size: int,
        seed: int,
        stages: Sequence[tuple[int, Mapping[str, int]]] = (),
    ):
        self.batch_size = batch_size
        self._seed = seed
        self._mixture = Mixture(streams, seed=seed, num_shards=batch_size)
        self._schedule = StreamSchedule.of(streams, stages, rows_per_shard=1)

    def row(self, step: int, row: int) -> PlannedRow:
        """Returns the record of a row of a step."""
        stream, number = self._schedule.stream(row, step, 0)
        corpus, epoch, index = self._mixture.record(stream, row, number)
        return PlannedRow(
            stream, (PlannedRecord(corpus, epoch, index, num_tokens=0, num_images=1),)
        )

    def planner(self, rows: range) -> "PairPlanner":
        """Returns a planner of the given rows of every batch, at step 0."""
        return PairPlanner(self, rows)

    def fingerprint(self) -> dict[str, Any]:
        """Returns everything that determines the rows, under names that explain a difference."""
        fields: dict[str, Any] = {"batch_size": self.batch_size, "seed": self._seed}
        for stream in self._mixture.streams:
            fields[f"{stream.name}.weight"] = stream.weight
            for share in stream.corpora:
                fields[f"{stream.name}.{share.name}.weight"] = share.weight
                fields[f"{stream.name}.{share.name}.records"] = share.num_records
        return fields | self._schedule.fingerprint()

    def describe(self, num_steps: int | None = None) -> list[str]:
        """Returns lines that describe each stream.

        Args:
            num_steps: Steps of the run, to tell the epochs.
        """
        lines, streams = [], self._mixture.streams
        total = sum(stream.weight for stream in streams)
        for k, stream in enumerate(streams):
            lines.append(f"  {stream.name}: {stream.weight / total:.1%} of the rows")
            draws = sum(share.weight for share in stream.corpora)
            for share in stream.corpora:
                part = share.weight / draws
                text = f"    {share.name}: {part:.1%} of these, {share.num_records:,} records"
                if num_steps is not None:
                    rows = self._schedule.num_rows(k, num_steps, self.batch_size)
                    text += f", {rows * part / share.num_records:.2f} epochs"
                lines.append(text)
        return lines + self._schedule.describe()


class PairPlanner:
    """Plans the given rows of successive batches; its state is `step`."""

    def __init__(self, plan: PairPlan, rows: range):
        if rows.step != 1 or not 0 <= rows.start < rows.stop <= plan.batch_size:
            raise ValueError(f"rows={rows} must be a run of rows of a batch of {plan.batch_size}.")
        self._plan = plan
        self._rows = rows
        self.step = 0
        # A placeholder, as only the step is saved; saved states hold an array of this rank.
        self.next_index = np.zeros((1, 1), np.int64)

    def next_rows(self) -> list[PlannedRow]:
        """Returns the rows of the current step and advances to the next."""
        planned = [self._plan.row(self.step, row) for row in self._rows]
        self.step += 1
        return planned

    def skip(self) -> None:
        """Advances to the next step."""
        self.step += 1

    def restore(self, step: int, next_index: Int[np.ndarray, "v k"]) -> None:
        """Moves to a saved step."""
        self.step = step


class Pair(NamedTuple):
    """A picture and the tokens of its caption."""

    pixels: UInt8[np.ndarray, "s s 3"]
    tokens: list[int]


class PairLoader:
    """Loads the pairs of planned rows."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        *,
        tokenizer: Tokenizer,
        image_transform: ImageTransform,
        random_view: RandomView | None,
        max_sequence_length: int,
        seed: int,
    ):
        self.corpora = corpora
        self.max_sequence_length = max_sequence_length
        self.image_size = image_transform.image_size
        self._tokenizer = tokenizer
        self._image_transform = image_transform
        self._random_view = random_view
        self._seeds = [hash_seed(seed, "pairs", corpus.name) for corpus in corpora]

    def load(self, record: PlannedRecord) -> Pair:
        """Returns the pair of a record; raises BadRecord or BadImage if there is none."""
        corpus = self.corpora[record.corpus]
        # Identifies the record and the epoch, independent of where and when it is read.
        key = (self._seeds[record.corpus], record.epoch, record.index)
        document = corpus.document(record.index, np.random.default_rng((*key, _CAPTION)))
        image, text = _pair_of(document, reads_text=self.reads_text)
        tokens = []
        if text is not None:
            tokens = text_tokens(self._tokenizer, text, self.max_sequence_length)
        return Pair(self._pixels(image, corpus.augmentation, (*key, _VIEW)), tokens)

    def _pixels(
        self, image: Image, augmentation: Augmentation | None, seed: tuple[int, ...]
    ) -> UInt8[np.ndarray, "s s 3"]:
        if augmentation is not None:
            rng = np.random.default_rng(seed)
            return self._image_transform.views([image], lambda x: augmentation(x, rng))[0]
        if self._random_view is not None:
            return self._random_view(image, self._image_transform, seed)
        return self._image_transform(image)

    @property
    def reads_text(self) -> bool:
        return self.max_sequence_length > 0

    def row_seed(self, record: PlannedRecord) -> int:
        """Returns 32 random bits that identify the record and the epoch."""
        return hash_seed(self._seeds[record.corpus], record.epoch, record.index)


@dataclass(frozen=True)
class PairBatchMaker:
    """Makes batches of pairs."""

    batch_type: ClassVar[type] = ImageTextBatch

    plan: PairPlan
    loader: PairLoader

    def planner(self, rows: range) -> PairPlanner:
        """Returns a planner of the given rows of every batch, at step 0."""
        return self.plan.planner(rows)

    def make(
        self,
        planned: Sequence[PlannedRow],
        rows: range,
        empty: Callable[..., np.ndarray] = np.empty,
    ) -> tuple[ImageTextBatch, Counts, list[Quarantined]]:
        """Makes the batch of these rows."""
        loader, num_rows, size = self.loader, len(rows), self.loader.image_size
        batch = ImageTextBatch(
            # Not `np.zeros`: see `rows.BufferPart`.
            images=empty((num_rows, size, size, 3), np.uint8),
            tokens=np.zeros((num_rows, loader.max_sequence_length), np.int32),
            lengths=np.zeros(num_rows, np.int32),
            row_seeds=np.zeros(num_rows, np.uint32),
            corpus_ids=np.full(num_rows, -1, np.int32),
        )
        counts = empty_counts(len(loader.corpora))
        quarantined = []
        for b, row in enumerate(planned):
            (record,) = row.records
            batch.row_seeds[b] = loader.row_seed(record)
            try:
                pair = loader.load(record)
            except (BadRecord, BadImage) as error:
                name = loader.corpora[record.corpus].name
                quarantined.append(Quarantined(name, record.index, record.epoch, str(error)))
                batch.images[b] = 0
                counts[record.corpus] += (1, 0, 0, 1, 0)
                continue
            length = len(pair.tokens)
            batch.images[b] = pair.pixels
            batch.tokens[b, :length] = pair.tokens
            batch.lengths[b] = length
            batch.corpus_ids[b] = record.corpus
            counts[record.corpus] += (1, length, 1, 0, 0)
        return batch, counts, quarantined


def text_tokens(tokenizer: Tokenizer, text: str, max_length: int) -> list[int]:
    """Returns bos, the tokens of a text and eos; a text that is too long is cut before the eos."""
    return [tokenizer.bos, *tokenizer.encode(text)[: max_length - 2], tokenizer.eos]


def _pair_of(document: Document, *, reads_text: bool) -> tuple[Image, str | None]:
    """Returns the picture and the text of a document, without the text if it is not read."""
    images = document.images
    texts = [each.text for each in document.segments if isinstance(each, Text)]
    others = len(document.segments) - len(images) - len(texts)
    if len(images) != 1 or others or (reads_text and len(texts) != 1):
        raise BadRecord(
            f"a document of {len(images)} pictures, {len(texts)} texts and {others} other "
            f"segments, expected a picture{' and a text' if reads_text else ''}"
        )
    return images[0], texts[0] if reads_text else None


def _check_sizes(cfg: PairInput.Config) -> None:
    if set_by_experiment(cfg, "image_size") < 1:
        raise ValueError(f"input.image_size={cfg.image_size} must be at least 1.")
    check_image_size(cfg)
    if 0 < cfg.max_sequence_length < _LEAST_LENGTH:
        raise ValueError(
            f"input.max_sequence_length={cfg.max_sequence_length} has no room for bos, text and "
            f"eos: set it to {_LEAST_LENGTH} or more, or to 0 to read no text."
        )
    fillers = [stream.name for stream in cfg.streams if stream.fillers]
    if fillers:
        raise ValueError(
            f"input.streams: {fillers} have fillers, and a row of a picture and its caption has "
            "nothing to fill; leave them out."
        )


def _line(cfg: Any) -> str | None:
    """Returns a config as one line."""
    return None if cfg is None else cfg.debug_string(kv_separator="=", field_separator=" ")

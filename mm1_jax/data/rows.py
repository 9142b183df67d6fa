"""Planned rows -> rows of a Batch: read, tokenise, decode, concatenate. Without state.

Nothing here may change the shape of a row, because the plan is made. A picture that fails to decode
keeps its image positions and its slot, which points at no picture, and its document is not scored;
a record that cannot be read keeps its positions likewise. All other bits of the batch stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from mm1_jax.batch import Batch, Example, Image
from mm1_jax.data.corpora.base import BadRecord, Corpus
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.images import BadImage, ImageTransform
from mm1_jax.data.mixture import hash_seed
from mm1_jax.data.packing import PlannedRecord, PlannedRow
from mm1_jax.data.quarantine import Quarantined


@dataclass(frozen=True)
class LoadedExample:
    """An example with its pictures decoded; None is a picture that could not be."""

    tokens: Int[np.ndarray, "t"]
    targets: Int[np.ndarray, "t"]
    loss_mask: Bool[np.ndarray, "t"]
    images: Sequence[UInt8[np.ndarray, "h w 3"] | None]
    corpus: int


class RowShape(NamedTuple):
    """The sizes of a row of a batch."""

    max_sequence_length: int
    max_images: int
    image_size: int


class RowLoader:
    """Makes the examples of planned rows."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        *,
        example_builder: ExampleBuilder,
        image_transform: ImageTransform,
        seed: int,
    ):
        self.corpora = corpora
        self.example_builder = example_builder
        self.image_transform = image_transform
        self.seed = seed
        self._corpus_seeds = [hash_seed(seed, "augmentation", corpus.name) for corpus in corpora]

    def load(self, row: PlannedRow) -> tuple[list[LoadedExample], list[Quarantined]]:
        """The examples of a row, and those of its records that could not be used."""
        loaded, bad = [], []
        for record in row.records:
            example, reason = self._load(record)
            loaded.append(example)
            if reason is not None:
                name = self.corpora[record.corpus].name
                bad.append(Quarantined(name, record.index, record.epoch, reason))
        return loaded, bad

    def _load(self, record: PlannedRecord) -> tuple[LoadedExample, str | None]:
        corpus = self.corpora[record.corpus]
        try:
            example = self.example_builder.example(corpus.document(record.index))
        except BadRecord as error:
            return self._blank(record), str(error)
        found = (len(example.tokens), len(example.images))
        if found != (record.num_tokens, record.num_images):
            raise ValueError(
                f"Corpus {corpus.name!r}, record {record.index}: {found[0]} tokens and {found[1]} "
                f"images, but its lengths table says {record.num_tokens} and {record.num_images}. "
                "The data or the tokenizer changed after the table was made; make it again."
            )
        images, reasons = [], []
        for number, image in enumerate(example.images):
            try:
                images.append(self._transform(image, record, number))
            except BadImage as error:
                images.append(None)
                reasons.append(f"image {number}: {error}")
        loss_mask = np.zeros_like(example.loss_mask) if reasons else example.loss_mask
        loaded = LoadedExample(example.tokens, example.targets, loss_mask, images, record.corpus)
        return loaded, "; ".join(reasons) or None

    def _transform(self, image: Image, record: PlannedRecord, number: int) -> np.ndarray:
        augmentation = self.corpora[record.corpus].augmentation
        if augmentation is None:
            return self.image_transform(image)
        # Everything that names this picture in this epoch, and nothing of where or when it is read.
        seed = (self._corpus_seeds[record.corpus], record.epoch, record.index, number)
        return self.image_transform(image, augmentation, np.random.default_rng(seed))

    def _blank(self, record: PlannedRecord) -> LoadedExample:
        # Image tokens first: the slots of later documents follow from how many stand before them.
        tokens = np.zeros(record.num_tokens, np.int32)
        image_positions = record.num_images * self.example_builder.num_image_tokens
        tokens[:image_positions] = self.example_builder.tokenizer.image_token
        return LoadedExample(
            tokens=tokens,
            targets=np.zeros_like(tokens),
            loss_mask=np.zeros(record.num_tokens, bool),
            images=[None] * record.num_images,
            corpus=record.corpus,
        )


def concatenate(
    rows: Sequence[Sequence[LoadedExample]],
    shape: RowShape,
    *,
    first_row: int = 0,
) -> Batch:
    """Lays examples one after the other into rows; picture k of row b is `b * max_images + k`.

    Args:
        first_row: Number of the first row in the global batch: `image_index` counts pictures in the
            buffer of the global batch, of which this batch holds a part.
    """
    num_rows, length, size = len(rows), shape.max_sequence_length, shape.image_size
    tokens, targets, positions, segment_ids = np.zeros((4, num_rows, length), np.int32)
    corpus_ids = np.full((num_rows, length), -1, np.int32)
    loss_mask = np.zeros((num_rows, length), bool)
    pictures = np.zeros((num_rows * shape.max_images, size, size, 3), np.uint8)
    image_index = np.full((num_rows, shape.max_images), -1, np.int32)
    for b, examples in enumerate(rows):
        start, slot = 0, 0
        for number, example in enumerate(examples, start=1):
            span = slice(start, start + len(example.tokens))
            start = span.stop
            _check_budget(start, slot + len(example.images), shape)
            tokens[b, span] = example.tokens
            targets[b, span] = example.targets
            loss_mask[b, span] = example.loss_mask
            positions[b, span] = np.arange(len(example.tokens))
            segment_ids[b, span] = number
            corpus_ids[b, span] = example.corpus
            for picture in example.images:
                if picture is not None:
                    place = b * shape.max_images + slot
                    pictures[place] = picture
                    image_index[b, slot] = first_row * shape.max_images + place
                slot += 1
    return Batch(
        tokens=tokens,
        targets=targets,
        loss_mask=loss_mask,
        positions=positions,
        segment_ids=segment_ids,
        corpus_ids=corpus_ids,
        images=pictures,
        image_index=image_index,
    )


def assemble(
    examples: Sequence[Example],
    image_transform: Callable[[Image], UInt8[np.ndarray, "s s 3"] | None],
    shape: RowShape,
    *,
    num_rows: int | None = None,
    corpus: int = 0,
) -> Batch:
    """One example per row, padded on the right: prompts, or documents to score on their own.

    Args:
        image_transform: Its result None leaves the slot of a picture empty.
        num_rows: Rows of the batch, when more than there are examples; the rest is padding.
        corpus: The corpus id that all examples get.
    """
    rows = [
        [
            LoadedExample(
                example.tokens,
                example.targets,
                example.loss_mask,
                [image_transform(image) for image in example.images],
                corpus,
            )
        ]
        for example in examples
    ]
    num_rows = len(rows) if num_rows is None else num_rows
    if num_rows < len(rows):
        raise ValueError(f"num_rows={num_rows} is too small for {len(rows)} examples.")
    return concatenate(rows + [[]] * (num_rows - len(rows)), shape)


def _check_budget(num_tokens: int, num_images: int, shape: RowShape):
    if num_tokens > shape.max_sequence_length or num_images > shape.max_images:
        raise ValueError(
            f"A row of {num_tokens} tokens and {num_images} images does not fit "
            f"max_sequence_length={shape.max_sequence_length}, max_images={shape.max_images}."
        )

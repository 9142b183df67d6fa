"""Planned rows -> rows of a Batch: read, tokenize, decode, concatenate. Stateless.

Pixels are copied into the batch as soon as they are made: memory that is kept is new memory, whose
page faults take longer than the copies.

The plan is fixed, so nothing here may change the shape of a row. An image that fails to decode
keeps its positions, its `image_index` is -1, and its document is not scored. A record that cannot
be read is treated likewise, and so is a document whose images find no room in the buffer. The rest
of the batch is unaffected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from mm1_jax.batch import Batch, Example, Image
from mm1_jax.data.images import Augmentation, BadImage, ImageTransform
from mm1_jax.data.mixture import hash_seed
from mm1_jax.data.packing import PlannedRecord, PlannedRow
from mm1_jax.data.quarantine import Quarantined
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.snapshot import Examples
from mm1_jax.image_buffer import ImageBuffer, RowSlots


@dataclass(frozen=True)
class LoadedExample:
    """An example, and the slots of its images in the batch's image buffer.

    A slot is -1 if its image could not be decoded or has no place in the buffer.
    """

    tokens: Int[np.ndarray, "t"]
    targets: Int[np.ndarray, "t"]
    loss_mask: Bool[np.ndarray, "t"]
    slots: Sequence[int]
    corpus: int


class RowShape(NamedTuple):
    """The sizes of a row of a batch."""

    max_sequence_length: int
    max_images: int
    image_size: int


class BufferPart:
    """The pixels in some slots of the batch's image buffer."""

    def __init__(self, slots: range, image_size: int, empty: Callable[..., np.ndarray] = np.empty):
        """`empty` makes the array of pixels, without initial values."""
        self.slots = slots
        # Not `np.zeros`: for memory that is already zero, numpy requests no huge pages, and the
        # faults of small pages take ten times as long as all the copies.
        self._pixels = empty((len(slots), image_size, image_size, 3), np.uint8)
        self._is_empty = np.ones(len(slots), bool)

    def put(self, slot: int, pixels: UInt8[np.ndarray, "s s 3"]):
        """Copies an image into its slot, if this part has the slot."""
        if slot in self.slots:
            self._pixels[slot - self.slots.start] = pixels
            self._is_empty[slot - self.slots.start] = False

    def images(self) -> UInt8[np.ndarray, "j s s 3"]:
        """Returns the images of all slots; empty slots are black."""
        self._pixels[self._is_empty] = 0
        return self._pixels


class RowLoader:
    """Loads the examples of planned rows."""

    def __init__(
        self,
        examples: Examples,
        *,
        corpus_names: Sequence[str],
        augmentations: Sequence[Augmentation | None],
        image_transform: ImageTransform | None,
        num_image_tokens: int,
        image_token: int,
        seed: int,
    ):
        """`corpus_names` and `augmentations` are indexed by corpus number."""
        self.corpus_names = corpus_names
        self._examples = examples
        self._augmentations = augmentations
        self._image_transform = image_transform
        self._num_image_tokens = num_image_tokens
        self._image_token = image_token
        self._corpus_seeds = [hash_seed(seed, "augmentation", name) for name in corpus_names]

    def load(
        self, row: PlannedRow, slots: RowSlots, part: BufferPart
    ) -> tuple[list[LoadedExample], list[Quarantined]]:
        """Returns the examples of a row, and its records that could not be used.

        Args:
            slots: Slots of the images of each record; -1 if the document found no room, in which
                case it is not scored.
            part: Receives the images.
        """
        loaded, bad = [], []
        for place, (record, numbers) in enumerate(zip(row.records, slots, strict=True)):
            example, reason = self._load(row, place, numbers, part)
            loaded.append(example)
            if reason is not None:
                name = self.corpus_names[record.corpus]
                number = self._examples.record_number(row, place)
                bad.append(Quarantined(name, number, record.epoch, reason))
        return loaded, bad

    def load_images(self, row: PlannedRow, slots: RowSlots, part: BufferPart):
        """Loads the images of a row that belong to this part of the buffer, and no others."""
        for place, numbers in enumerate(slots):
            wanted = [i if i in part.slots else -1 for i in numbers]
            if any(i >= 0 for i in wanted):
                self._load(row, place, wanted, part)

    def _load(
        self, row: PlannedRow, place: int, slots: Sequence[int], part: BufferPart
    ) -> tuple[LoadedExample, str | None]:
        record = row.records[place]
        try:
            example = self._examples.example(row, place)
        except BadRecord as error:
            return self._blank(record), str(error)
        found = (len(example.tokens), len(example.images))
        if found != (record.num_tokens, record.num_images):
            raise ValueError(
                f"Corpus {self.corpus_names[record.corpus]!r}, example {record.index}: {found[0]} "
                f"tokens and {found[1]} images, but its lengths table says {record.num_tokens} and "
                f"{record.num_images}. The data or the tokenizer changed after the table was "
                "computed; compute it again."
            )
        shown = [-1] * len(slots)
        reasons = []
        for number, views in enumerate(_pictures(example.images)):
            wanted = [i for i in views if slots[i] >= 0]
            try:
                pixels = self._views([example.images[i] for i in wanted], record, number)
            except BadImage as error:
                reasons.append(f"image {number}: {error}")
                continue
            for i, each in zip(wanted, pixels, strict=True):
                part.put(slots[i], each)
                shown[i] = slots[i]
        is_scored = -1 not in shown
        loss_mask = example.loss_mask if is_scored else np.zeros_like(example.loss_mask)
        loaded = LoadedExample(example.tokens, example.targets, loss_mask, shown, record.corpus)
        return loaded, "; ".join(reasons) or None

    def _views(
        self, images: Sequence[Image], record: PlannedRecord, number: int
    ) -> list[np.ndarray]:
        """Returns the pixels of views of the `number`-th picture of a document."""
        if not images:
            return []
        assert self._image_transform is not None, "no example of a model of text has images"
        augmentation = self._augmentations[record.corpus]
        if augmentation is None:
            return self._image_transform.views(images)
        # Identifies the picture and the epoch, independent of where and when it is read.
        seed = (self._corpus_seeds[record.corpus], record.epoch, record.index, number)
        return self._image_transform.views(
            images, lambda pixels: augmentation(pixels, np.random.default_rng(seed))
        )

    def _blank(self, record: PlannedRecord) -> LoadedExample:
        # Image tokens come first. Later documents find their images by counting those before them.
        tokens = np.zeros(record.num_tokens, np.int32)
        image_positions = record.num_images * self._num_image_tokens
        tokens[:image_positions] = self._image_token
        return LoadedExample(
            tokens=tokens,
            targets=np.zeros_like(tokens),
            loss_mask=np.zeros(record.num_tokens, bool),
            slots=[-1] * record.num_images,
            corpus=record.corpus,
        )


def _pictures(images: Sequence[Image]) -> list[list[int]]:
    """Returns the indices of the views of each picture."""
    pictures: list[list[int]] = []
    for i, image in enumerate(images):
        if image.continues:
            pictures[-1].append(i)
        else:
            pictures.append([i])
    return pictures


def concatenate(
    rows: Sequence[Sequence[LoadedExample]], shape: RowShape, part: BufferPart
) -> Batch:
    """Concatenates examples into rows, beside the part of the image buffer of these rows."""
    num_rows, length = len(rows), shape.max_sequence_length
    tokens, targets, positions, segment_ids = np.zeros((4, num_rows, length), np.int32)
    corpus_ids = np.full((num_rows, length), -1, np.int32)
    loss_mask = np.zeros((num_rows, length), bool)
    image_index = np.full((num_rows, shape.max_images), -1, np.int32)
    for b, examples in enumerate(rows):
        start, k = 0, 0
        for number, example in enumerate(examples, start=1):
            span = slice(start, start + len(example.tokens))
            start = span.stop
            _check_budget(start, k + len(example.slots), shape)
            tokens[b, span] = example.tokens
            targets[b, span] = example.targets
            loss_mask[b, span] = example.loss_mask
            positions[b, span] = np.arange(len(example.tokens))
            segment_ids[b, span] = number
            corpus_ids[b, span] = example.corpus
            image_index[b, k : k + len(example.slots)] = example.slots
            k += len(example.slots)
    return Batch(
        tokens=tokens,
        targets=targets,
        loss_mask=loss_mask,
        positions=positions,
        segment_ids=segment_ids,
        corpus_ids=corpus_ids,
        images=part.images(),
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
    """Builds a batch of one example per row, padded on the right: prompts, or documents to score.

    Args:
        image_transform: Returns None to leave the slot of an image empty.
        num_rows: Rows of the batch, if more than there are examples; the rest are padding.
        corpus: The corpus id of all examples.
    """
    num_rows = len(examples) if num_rows is None else num_rows
    if num_rows < len(examples):
        raise ValueError(f"num_rows={num_rows} is too small for {len(examples)} examples.")
    buffer = ImageBuffer(1, shape.max_images)
    part = BufferPart(buffer.slots(range(num_rows)), shape.image_size)
    rows: list[list[LoadedExample]] = [[] for _ in range(num_rows)]
    slots = buffer.place([[len(example.images)] for example in examples])
    for row, example, (numbers,) in zip(rows, examples, slots, strict=False):
        shown = []
        for image, slot in zip(example.images, numbers, strict=True):
            pixels = image_transform(image)
            if pixels is not None:
                part.put(slot, pixels)
            shown.append(-1 if pixels is None else slot)
        row.append(LoadedExample(example.tokens, example.targets, example.loss_mask, shown, corpus))
    return concatenate(rows, shape, part)


def _check_budget(num_tokens: int, num_images: int, shape: RowShape):
    if num_tokens > shape.max_sequence_length or num_images > shape.max_images:
        raise ValueError(
            f"A row of {num_tokens} tokens and {num_images} images does not fit "
            f"max_sequence_length={shape.max_sequence_length}, max_images={shape.max_images}."
        )

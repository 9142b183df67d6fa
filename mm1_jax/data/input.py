"""The Input of packed rows: builds corpora and plan, and checks that they fit together."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from mm1_jax.config import REQUIRED, Required, config_class, derived, maybe_instantiate
from mm1_jax.data.batches import PackedBatchMaker
from mm1_jax.data.chat_formats.base import ChatFormat
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.images import Augmentation
from mm1_jax.data.input_iterator import differences
from mm1_jax.data.lengths import Hosts, Lengths, corpus_lengths
from mm1_jax.data.mixed_input import (
    MixedInput,
    check_files,
    check_image_size,
    check_weights,
    mixed_streams,
    set_by_experiment,
    used_corpora,
)
from mm1_jax.data.packing import Packing
from mm1_jax.data.quarantine import Quarantine, check_bad_fraction
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.rows import RowLoader, RowShape
from mm1_jax.data.snapshot import CorpusExamples, Examples, Form, Snapshot
from mm1_jax.data.sources.array_record import ArrayRecordSource, source_folder
from mm1_jax.data.tiling import Tiling
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.field_types import NonNegativeInt, Positive, PositiveInt
from mm1_jax.image_buffer import ImageBuffer

# About this many documents of a corpus are read to describe its views.
_NUM_SHOWN = 200


class Input(MixedInput):
    """Batches of packed rows, mixed from the streams' corpora."""

    @config_class
    class Config(MixedInput.Config):
        # The format of conversations, in training, evaluation and chat; one of `chat_formats/`.
        chat_format: ChatFormat.Config | None = None
        # Shows pictures as tiles and an overview; None shows one view of each.
        tiling: Tiling.Config | None = None
        max_sequence_length: Required[PositiveInt] = REQUIRED
        max_images: Required[NonNegativeInt] = REQUIRED  # Per row.
        # Size of the connector, set by the experiment.
        num_image_tokens: NonNegativeInt | None = derived(None)
        # This many consecutive rows of the batch share an image buffer of `images_per_row` slots
        # per row, over which the vision encoder runs. None gives each row `max_images` slots of its
        # own. Documents without room are counted and not scored. `describe` tells how many slots
        # suffice.
        image_group_rows: PositiveInt = 1
        images_per_row: Positive | None = None
        # A folder written by `python -m mm1_jax snapshot`, whose rows replace a plan made here.
        snapshot: str | None = None
        packing: Packing.Config = Packing.default_config()

    def __init__(
        self,
        cfg: Config,
        *,
        split: str = "train",
        quarantine_path: Path | str | None = None,
        num_steps: int | None = None,
        hosts: Hosts | None = None,
    ):
        """Builds the corpora and the plan; the arguments are those of a `MixedInput`."""
        num_image_tokens = set_by_experiment(cfg, "num_image_tokens")
        image_size = set_by_experiment(cfg, "image_size")
        _check_sizes(cfg, num_image_tokens, image_size)
        check_weights(cfg.streams)
        # Only training reads snapshots; held-out data is read from its records.
        snapshot = None
        if cfg.snapshot is not None and split == "train":
            snapshot = Snapshot(Path(cfg.snapshot))
        has_rows = snapshot is not None and snapshot.form is Form.ROWS
        if not has_rows:
            check_files(cfg, split)
        super().__init__(cfg, split=split, quarantine_path=quarantine_path, num_steps=num_steps)
        self.snapshot = snapshot
        self.max_sequence_length: int = cfg.max_sequence_length
        self.max_images: int = cfg.max_images
        self.shape = RowShape(cfg.max_sequence_length, cfg.max_images, image_size)
        self.image_buffer = self.buffer_of(cfg)
        self.num_image_tokens = num_image_tokens
        if cfg.max_images:
            self.image_transform = cfg.image_transform.set(image_size=image_size).instantiate()
        self.chat_format = chat_format(cfg, self.tokenizer)
        if split == "train":
            _warn_of_unread_format(cfg)
        self.example_builder = example_builder(cfg, self.tokenizer)
        if has_rows:
            assert self.snapshot is not None
            self._read_rows(self.snapshot)
        else:
            self._read_records(hosts)
        row_loader = RowLoader(
            self.examples,
            corpus_names=self.corpus_names,
            augmentations=self.augmentations,
            image_transform=self.image_transform,
            num_image_tokens=num_image_tokens,
            image_token=self.tokenizer.image_token,
            seed=cfg.seed,
        )
        self.batch_maker = PackedBatchMaker(self.plan, row_loader, self.shape, self.image_buffer)

    def _read_records(self, hosts: Hosts | None) -> None:
        """Builds the corpora, and plans their rows or takes the plan from a snapshot of ids."""
        cfg = self.config
        streams = self._build_streams()
        self.augmentations: list[Augmentation | None] = [each.augmentation for each in self.corpora]
        self.lengths: list[Lengths] = [self._lengths(corpus, hosts) for corpus in self.corpora]
        self.num_usable = [lengths.num_usable for lengths in self.lengths]
        self.packing: Packing = cfg.packing.instantiate(
            streams=mixed_streams(streams, [len(each) for each in self.lengths], self.num_usable),
            lengths=self.lengths,
            batch_size=cfg.batch_size,
            max_sequence_length=cfg.max_sequence_length,
            max_images=cfg.max_images,
            seed=cfg.seed,
            stages=[(stage.from_step, stage.weights) for stage in cfg.stages],
        )
        sources = {f"{each.name}.source": each.source.fingerprint() for each in self.corpora}
        self._fingerprint = self._own_fingerprint() | sources | self.packing.fingerprint()
        self.plan: Packing | Snapshot = self.packing
        self.examples: Examples = CorpusExamples(self.corpora, self.lengths, self.example_builder)
        if self.snapshot is not None:
            self._check_snapshot(self.snapshot, self._fingerprint)
            self.plan = self.snapshot

    def _read_rows(self, snapshot: Snapshot) -> None:
        """Takes everything that corpora would provide from a snapshot of rows."""
        cfg = self.config
        own = self._own_fingerprint() | {
            "batch_size": cfg.batch_size,
            "max_sequence_length": cfg.max_sequence_length,
            "max_images": cfg.max_images,
            "seed": cfg.seed,
        }
        self._check_snapshot(snapshot, {**snapshot.fingerprint, **own})
        self._fingerprint = snapshot.fingerprint
        self.corpus_names = list(snapshot.corpora)
        self.num_usable = list(snapshot.corpora.values())
        augmentations = {
            entry.corpus.name: maybe_instantiate(entry.corpus.augmentation)
            for stream in cfg.streams
            for entry in (*stream.corpora, *stream.fillers)
        }
        self.augmentations = [augmentations[name] for name in self.corpus_names]
        self.plan = self.examples = snapshot

    def _check_snapshot(self, snapshot: Snapshot, here: Mapping[str, Any]) -> None:
        if differing := differences(snapshot.fingerprint, here, "of the snapshot"):
            raise ValueError(
                f"input.snapshot={str(snapshot.folder)!r} is of an input with different batches:"
                f"\n{differing}\nUse the config and the data that it was made with, or make it "
                "again with `python -m mm1_jax snapshot`."
            )

    def _own_fingerprint(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "num_image_tokens": self.num_image_tokens,
            "image_size": self.image_size,
            "image_buffer": list(self.image_buffer),
            "image_transform": self.config.image_transform.debug_string(
                kv_separator="=", field_separator=" "
            ),
            "tokenizer": self.tokenizer.fingerprint(),
        } | self._tiling_fingerprint()

    def _tiling_fingerprint(self) -> dict[str, str]:
        tiling = self.example_builder.tiling
        return {} if tiling is None else {"tiling": tiling.fingerprint()}

    @staticmethod
    def buffer_of(cfg: "Input.Config") -> ImageBuffer:
        """Returns the image buffer of the batches of an Input of this config."""
        return ImageBuffer.make(
            batch_size=cfg.batch_size,
            max_images=cfg.max_images,
            image_group_rows=cfg.image_group_rows,
            images_per_row=cfg.images_per_row,
        )

    def describe(self) -> str:
        """Describes the rows and streams in a few lines."""
        lines = [
            f"{self.split}: {self.batch_size} rows of {self.max_sequence_length} positions and "
            f"{self.max_images} images per step, {self.num_image_tokens} positions per image"
        ]
        if self.snapshot is not None:
            lines.append(f"  {self.snapshot.num_steps:,} steps of {self.snapshot.folder}")
        if self.plan is self.examples:
            return "\n".join(lines)
        lines += self.packing.describe(self.num_steps)
        if self.example_builder.tiling is not None:
            lines.append(self._describe_views())
        if not self.max_images:
            return "\n".join([*lines, "  images: none"])
        group_rows = self.config.image_group_rows
        return "\n".join([*lines, self.packing.describe_buffer(self.image_buffer, group_rows)])

    def _describe_views(self) -> str:
        """Describes the views per picture of a few documents of each corpus."""
        shares = []
        for corpus in self.corpora:
            pictures = views = 0
            for index in range(0, len(corpus), max(1, len(corpus) // _NUM_SHOWN)):
                with contextlib.suppress(BadRecord):
                    images = self.example_builder.tiled(corpus.document(index)).images
                    pictures += sum(not image.continues for image in images)
                    views += len(images)
            if pictures:
                shares.append(f"{corpus.name} {views / pictures:.2f} (of {pictures} pictures)")
        return f"  views per picture: {', '.join(shares) or 'no pictures found'}"

    def _lengths(self, corpus: Corpus, hosts: Hosts | None) -> Lengths:
        lengths = corpus_lengths(
            corpus, self.example_builder, num_workers=self.num_workers, hosts=hosts
        )
        Quarantine(self.quarantine_path).add((*lengths.unusable, *lengths.refused))
        check_bad_fraction(
            corpus.name,
            bad=len(lengths.unusable),
            documents=len(corpus),
            limit=self.max_bad_fraction,
            example=lengths.unusable[0].reason if lengths.unusable else "",
        )
        if len(lengths.refused) == len(corpus):
            raise ValueError(
                f"corpus {corpus.name!r}: every conversation is too long, such as "
                f"{lengths.refused[0].reason}; raise input.max_sequence_length or input.max_images"
            )
        return lengths


def packed(input: MixedInput) -> Input:
    """Returns an input of packed rows; raises ValueError for another one."""
    if not isinstance(input, Input):
        raise ValueError(
            f"the config's input is a {type(input).__name__}, and this command reads packed rows: "
            "choose a config with an Input"
        )
    return input


def lengths_of_folder(cfg: Input.Config, folder: Path, split: str) -> dict[str, Lengths]:
    """Computes the length tables of the corpora that read a folder, and caches them there.

    Besides the folder, only the tokenizer of the input needs to exist.

    Raises:
        ValueError: No corpus of the input reads the folder, or there is no tokenizer.
    """
    builder = example_builder(cfg, cfg.tokenizer.instantiate())
    return {
        corpus.name: corpus_lengths(
            corpus.instantiate(split=split), builder, num_workers=cfg.num_workers
        )
        for corpus in corpora_of_folder(cfg, folder, split)
    }


def corpora_of_folder(cfg: Input.Config, folder: Path, split: str) -> list[Any]:
    """Returns the corpora of an input that read a folder; raises ValueError if there are none."""
    folders = [
        (source_folder(corpus.source, split), corpus)
        for corpus in used_corpora(cfg)
        if issubclass(corpus.source.klass, ArrayRecordSource)
    ]
    reading = [corpus for path, corpus in folders if path.resolve() == folder.resolve()]
    if not reading:
        others = sorted({str(path) for path, _ in folders})
        raise ValueError(f"no corpus of the config reads {folder}; it reads {', '.join(others)}")
    return reading


def chat_format(cfg: Input.Config, tokenizer: Tokenizer) -> ChatFormat | None:
    """Returns the chat format of a resolved config; None if it has none.

    Raises:
        ValueError: The tokenizer lacks a special token of the format.
    """
    if cfg.chat_format is None:
        return None
    made: ChatFormat = cfg.chat_format.instantiate()
    tokenizer.stop_token(made.stop)
    lacking = [name for name in made.special_tokens if name not in tokenizer.special_tokens]
    if lacking:
        raise ValueError(
            f"input.chat_format writes {', '.join(map(repr, lacking))}, which input.tokenizer has "
            "not among its special tokens; use the tokenizer and the template of the same folder"
        )
    return made


def _warn_of_unread_format(cfg: Input.Config):
    documents = [getattr(corpus, "to_document", None) for corpus in used_corpora(cfg)]
    if cfg.chat_format is not None and not any(hasattr(each, "chat_format") for each in documents):
        logging.warning(
            "input.chat_format=%s has no effect on training, only on evaluation and chat: no "
            "corpus of input.streams renders conversations in it, with "
            "to_document=ConversationDocument",
            cfg.chat_format.klass.__name__,
        )


def example_builder(cfg: Input.Config, tokenizer: Tokenizer) -> ExampleBuilder:
    """Returns the builder of a resolved config's examples."""
    return ExampleBuilder(
        tokenizer,
        num_image_tokens=set_by_experiment(cfg, "num_image_tokens"),
        max_sequence_length=cfg.max_sequence_length,
        max_images=cfg.max_images,
        tiling=tiling_of(cfg),
    )


def tiling_of(cfg: Input.Config) -> Tiling | None:
    """Returns the tiling of a resolved config's pictures."""
    if cfg.tiling is None or not cfg.max_images:
        return None
    size = cfg.tiling.tile_size
    image_size = set_by_experiment(cfg, "image_size")
    if size not in (None, image_size):
        raise ValueError(
            f"input.tiling.tile_size={size} disagrees with input.image_size={image_size}; leave "
            "the former None."
        )
    tiling = cfg.tiling.set(tile_size=image_size).instantiate()
    if tiling.most_views > cfg.max_images:
        raise ValueError(
            f"input.tiling: a picture may have {tiling.most_views} views, and a row has room for "
            f"input.max_images={cfg.max_images}. Raise max_images (and max_sequence_length), or "
            "allow fewer tiles."
        )
    return tiling


def _check_sizes(cfg: Input.Config, num_image_tokens: int, image_size: int):
    for name in ("num_image_tokens", "image_size") if cfg.max_images else ():
        if getattr(cfg, name) < 1:
            raise ValueError(f"input.{name}={getattr(cfg, name)} must be at least 1.")
    positions = cfg.max_images * num_image_tokens
    # At equality, a row with text never has `max_images` images, but it is still a valid row.
    if positions > cfg.max_sequence_length:
        raise ValueError(
            f"input.max_images={cfg.max_images} images of {num_image_tokens} positions take "
            f"{positions}, more than a row has: input.max_sequence_length="
            f"{cfg.max_sequence_length}. Lower max_images, raise max_sequence_length, or let the "
            "connector emit fewer tokens."
        )
    check_image_size(cfg)

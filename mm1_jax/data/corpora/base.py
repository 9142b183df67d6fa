"""A corpus: a source of records, and the function that turns them into documents."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mm1_jax.batch import Document, Image, Markup, Record, Stop, Text
from mm1_jax.config import (
    REQUIRED,
    ConfigOr,
    Configurable,
    InstantiableConfig,
    Required,
    config_class,
    maybe_instantiate,
)
from mm1_jax.data.images import Augmentation, BadImage
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.sources.base import Source
from mm1_jax.data.splitting import ConversationSplitter, DocumentPiece, Splitter
from mm1_jax.field_types import NonEmpty


class Corpus(Configurable):
    """Documents by number, with the name under which losses are reported."""

    @config_class
    class Config(Configurable.Config):
        name: Required[NonEmpty] = REQUIRED
        source: Required[InstantiableConfig] = REQUIRED
        to_document: Required[ConfigOr[Callable[[Record], Document]]] = REQUIRED
        # Splits documents that are longer than a row; None truncates them, and makes conversations
        # of a chat format bad records.
        splitter: Splitter.Config | ConversationSplitter.Config | None = None
        # Applied to the images of the training split.
        augmentation: Augmentation.Config | None = None

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg)
        self.name: str = cfg.name
        try:
            self.source: Source = cfg.source.instantiate(split=split)
        except ValueError as error:
            raise ValueError(f"Corpus {cfg.name!r}: {error}") from error
        self.augmentation: Augmentation | None = (
            maybe_instantiate(cfg.augmentation) if split == "train" else None
        )
        self.splitter: Splitter | ConversationSplitter | None = maybe_instantiate(cfg.splitter)
        self._to_document: Callable[[Record], Document] = maybe_instantiate(cfg.to_document)

    def __len__(self) -> int:
        return len(self.source)

    def document(self, index: int, rng: np.random.Generator | None = None) -> Document:
        """Returns the whole document of a record; raises BadRecord if there is none.

        Args:
            rng: Chooses among alternatives, such as several captions, if `to_document` has a method
                `draw(record, rng)`; None takes the document of the record alone.
        """
        record = self.source[index]
        if not isinstance(record, Mapping):
            raise ValueError(
                f"corpus {self.name!r}, record {index}: {type(self.source).__name__} returned "
                f"{_described(record)}, expected a dict of fields"
            )
        try:
            draw = getattr(self._to_document, "draw", None)
            if rng is None or draw is None:
                document = self._to_document(record)
            else:
                document = draw(record, rng)
        # Raised by `to_document` if a field is missing or has another type.
        except (LookupError, TypeError, AttributeError) as error:
            fields = ", ".join(sorted(record))
            raise BadRecord(
                f"{self.name}, record {index}: {type(error).__name__} {error}; fields: {fields}"
            ) from error
        except (BadRecord, BadImage):
            raise
        except (ValueError, ArithmeticError, AssertionError) as error:
            raise ValueError(
                f"corpus {self.name!r}, record {index}: {self._function} failed with "
                f"{type(error).__name__}: {error}"
            ) from error
        if (fault := _fault_of(document)) is not None:
            raise ValueError(
                f"corpus {self.name!r}, record {index}: {self._function} returned {fault}, "
                "expected a Document whose segments are Text, Image, Markup and Stop"
            )
        return document

    @property
    def _function(self) -> str:
        name = getattr(self._to_document, "__name__", type(self._to_document).__name__)
        return f"to_document={name}"

    def piece(self, piece: DocumentPiece) -> Document:
        """Returns the document of a piece of a record."""
        document = self.document(piece.record)
        if piece.end is None:
            return document
        assert self.splitter is not None, "only a splitter makes pieces"
        return self.splitter.piece(document, piece)

    def fingerprint(self) -> str:
        """Describes everything that determines the documents."""
        fields = self._config.debug_string(kv_separator="=").splitlines()
        making = [line for line in fields if line.startswith(("to_document", "splitter"))]
        own = getattr(self._to_document, "fingerprint", lambda: None)()
        if own is not None:
            # Fields such as `data_dir` do not determine documents, and the content of files does.
            making = [line for line in making if not line.startswith("to_document")]
            making.append(f"to_document={own}")
        return " ".join([self.source.fingerprint(), *making])


def _fault_of(document: Any) -> str | None:
    """Returns a description of an invalid document; None if the document is valid."""
    if not isinstance(document, Document):
        return _described(document)
    if not isinstance(document.segments, tuple | list):
        return f"a Document with segments={_described(document.segments)}"
    for segment in document.segments:
        match segment:
            case Text(text=str(), scored=bool() | np.bool_()):
                continue
            case Image(data=bytes() | np.ndarray()):
                continue
            case Image(data=data) if callable(data):
                continue
            case Markup(text=str()) | Stop(text=str() | None):
                continue
            case Text(text=str(), scored=value):
                return f"a Text with scored={_described(value)}"
            case Text(text=value) | Image(data=value) | Markup(text=value) | Stop(text=value):
                return f"a {type(segment).__name__} that holds {_described(value)}"
            case _:
                return f"a Document with the segment {_described(segment)}"
    return None


def _described(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"

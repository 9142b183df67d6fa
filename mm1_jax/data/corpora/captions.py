"""Captioned images: `{"image", "caption"}`, or a list `captions` of `{text, kind}`, best first."""

from typing import NamedTuple

import numpy as np

from mm1_jax.batch import Document, Image, Record, Text
from mm1_jax.config import Configurable, config_class
from mm1_jax.data.record_files import BadRecord
from mm1_jax.field_types import Positive


class Caption(NamedTuple):
    """A caption, without spaces around it, and its kind."""

    text: str
    kind: str


def captions_of(record: Record) -> list[Caption]:
    """Returns the captions of a record that are not blank; raises BadRecord if there are none."""
    if "caption" in record:
        found = [(record["caption"], "caption")]
    else:
        found = [(each["text"], each.get("kind", "caption")) for each in record["captions"]]
    kept = [Caption(text.strip(), kind) for text, kind in found if text and text.strip()]
    if not kept:
        raise BadRecord("no caption that is not blank")
    return kept


def caption_document(record: Record) -> Document:
    """Returns the image, followed by its first caption that is not blank."""
    return Document((Image(record["image"]), Text(captions_of(record)[0].text)))


def image_document(record: Record) -> Document:
    """Returns the image alone, for training without text."""
    return Document((Image(record["image"]),))


class CaptionChoice(Configurable):
    """The image with one of its captions, which a `PairInput` draws again in every epoch."""

    @config_class
    class Config(Configurable.Config):
        # Kind of caption -> probability, relative to the other kinds that a record has; captions of
        # one kind are equally probable, and those of other kinds are never used. If empty, all
        # captions of a record are equally probable.
        weights: dict[str, Positive] = {}

    def __call__(self, record: Record) -> Document:
        """Returns the document with the first caption of these kinds."""
        return _document(record, self._captions(record)[0])

    def draw(self, record: Record, rng: np.random.Generator) -> Document:
        """Returns the document with a random caption."""
        captions, weights = self._captions(record), self._config.weights
        kinds = [caption.kind for caption in captions]
        shares = np.array([weights.get(kind, 1.0) / kinds.count(kind) for kind in kinds])
        if not weights:
            shares[:] = 1
        ends = np.cumsum(shares)
        place = int(np.searchsorted(ends, rng.uniform() * ends[-1], side="right"))
        return _document(record, captions[min(place, len(captions) - 1)])

    def _captions(self, record: Record) -> list[Caption]:
        weights = self._config.weights
        captions = captions_of(record)
        kept = [caption for caption in captions if not weights or caption.kind in weights]
        if not kept:
            raise BadRecord(
                f"no caption of the kinds {', '.join(weights)}; it has "
                + ", ".join(sorted({caption.kind for caption in captions}))
            )
        return kept


def _document(record: Record, caption: Caption) -> Document:
    return Document((Image(record["image"]), Text(caption.text)))

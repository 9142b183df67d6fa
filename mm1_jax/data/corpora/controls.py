"""Controls of experiments: a corpus with one thing taken away.

A model that is trained on `ShuffledPictures` cannot see what it is asked about. `ScoredPrompts`
trains on the questions of conversations as well as on the answers.
"""

import itertools
from dataclasses import replace

from mm1_jax.batch import Document, Record, Text
from mm1_jax.config import (
    REQUIRED,
    Configurable,
    InstantiableConfig,
    Required,
    config_class,
    maybe_instantiate,
)
from mm1_jax.data.sources.base import Source


class ShuffledPictures(Source):
    """Gives each record the pictures of other records."""

    @config_class
    class Config(Source.Config):
        source: Required[InstantiableConfig] = REQUIRED

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        self._source: Source = cfg.source.instantiate(split=split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        # Far from the record itself, as neighbors may show the same picture.
        start = index + len(self) // 2
        others = (self._source[(start + i) % len(self)] for i in itertools.count())
        pictures = (picture for other in others for picture in other["images"])
        return {**record, "images": list(itertools.islice(pictures, len(record["images"])))}

    def fingerprint(self) -> str:
        """Describes everything that determines the records."""
        return f"pictures of other records: {self._source.fingerprint()}"


class ScoredPrompts(Configurable):
    """Makes documents whose texts are all scored; markup of a chat format stays unscored."""

    @config_class
    class Config(Configurable.Config):
        document: Required[InstantiableConfig] = REQUIRED

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        self._document = maybe_instantiate(cfg.document)

    def __call__(self, record: Record) -> Document:
        document = self._document(record)
        segments = tuple(
            replace(segment, scored=True) if isinstance(segment, Text) else segment
            for segment in document.segments
        )
        return replace(document, segments=segments)

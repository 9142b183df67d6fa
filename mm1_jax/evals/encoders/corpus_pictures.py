"""Pictures of a corpus, such as the embedded ones: the test split is scored."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mm1_jax.batch import Image, Text
from mm1_jax.config import REQUIRED, InstantiableConfig, Required, config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.record_files import BadRecord
from mm1_jax.evals.encoders.pictures import CaptionedPictures, LabeledPictures, PictureSource
from mm1_jax.evals.encoders.prompts import DEFAULT_TEMPLATES
from mm1_jax.field_types import NonEmpty


class CorpusPictures(PictureSource):
    """The first picture of each document of a corpus.

    Records have the name of their class in a field, or the document's text is the caption.
    """

    @config_class
    class Config(PictureSource.Config):
        corpus: Required[InstantiableConfig] = REQUIRED
        # Field of a record with the name of its class; None for captions.
        class_field: str | None = None
        templates: tuple[NonEmpty, ...] = DEFAULT_TEMPLATES

    @property
    def has_captions(self) -> bool:
        return self._config.class_field is None

    def labeled(self, split: str) -> LabeledPictures:
        cfg, corpus = self._config, self._corpus(split)
        if cfg.class_field is None:
            raise ValueError(
                f"{corpus.name}: no classes; set data.class_field to the field of a record that "
                "has the name of its class"
            )
        names = self._names_of(corpus)
        # Classes are those of the training split, so that both splits agree.
        train = names if split == "train" else self._names_of(self._corpus("train"))
        classes = sorted({*train, *names})
        labels = np.array([classes.index(name) for name in names])
        about = f"classes of the corpus, {len(cfg.templates)} templates of the config"
        return LabeledPictures(
            _Documents(corpus), labels, tuple(classes), tuple(cfg.templates), about
        )

    def captioned(self) -> CaptionedPictures:
        corpus = self._corpus("test")
        captions = []
        for i in range(len(corpus)):
            texts = [x.text for x in corpus.document(i).segments if isinstance(x, Text)]
            if not texts:
                raise ValueError(f"{corpus.name}, record {i}: no caption")
            captions.append((" ".join(texts),))
        return CaptionedPictures(_Documents(corpus), captions)

    def _corpus(self, split: str) -> Corpus:
        return self._config.corpus.instantiate(split=split)

    def _names_of(self, corpus: Corpus) -> list[str]:
        return [self._class(corpus, i) for i in range(len(corpus))]

    def _class(self, corpus: Corpus, index: int) -> str:
        record, field = corpus.source[index], self._config.class_field
        if field not in record:
            raise ValueError(
                f"{corpus.name}, record {index}: no field {field!r}; it has {', '.join(record)}"
            )
        return str(record[field])


class _Documents(Sequence[Image]):
    def __init__(self, corpus: Corpus):
        self._corpus = corpus

    def __len__(self) -> int:
        return len(self._corpus)

    def __getitem__(self, index: Any) -> Any:
        images = self._corpus.document(index).images
        if not images:
            raise BadRecord(f"{self._corpus.name}, record {index}: no picture")
        return images[0]

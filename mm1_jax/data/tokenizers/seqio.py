"""Seqio vocabularies as tokenizers, for models whose data uses seqio.

The library comes with the extra `seqio`, and loads TensorFlow in every process that reads data. A
SentencePiece model without extra ids does not need it: `sentencepiece.Tokenizer` reads it.
"""

import functools
import hashlib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import sentencepiece

from mm1_jax.config import Configurable, config_class
from mm1_jax.data.tokenizers.sentencepiece import (
    Tokenizer,
    Vocabulary,
    tokenizer_path,
    without_lone_surrogates,
)
from mm1_jax.field_types import NonNegativeInt


class SeqioTokenizer(Tokenizer):
    """A `seqio.Vocabulary` with the special tokens of documents.

    The image placeholder is an extra id, or by default the first id after the vocabulary. Other
    extra ids keep the meaning that the vocabulary gives them; no answer contains one.
    """

    @config_class
    class Config(Tokenizer.Config):
        # Import path of a vocabulary, or of a callable that returns one:
        # "my_project.tasks.VOCABULARY", "seqio.ByteVocabulary". Excludes `model_path`.
        vocabulary: str | None = None
        # Number of ids after the pieces of the model at `model_path`.
        extra_ids: NonNegativeInt = 0
        # One of the extra ids; None means the first id after the vocabulary.
        image_token: NonNegativeInt | None = None

    @staticmethod
    def vocabulary(cfg: Any) -> Vocabulary:
        """Returns the vocabulary for the model."""
        tokenizer = cfg.instantiate()
        return Vocabulary(tokenizer.vocab_size, tokenizer.image_token)

    def __init__(self, cfg: Config):
        # Skips the constructor of Tokenizer, which reads the model without extra ids.
        Configurable.__init__(self, cfg)
        if cfg.num_pieces is not None:
            raise ValueError("tokenizer.num_pieces is set by the seqio vocabulary; leave it None")
        self._vocabulary = _vocabulary(cfg)
        size, num_extra = self._vocabulary.vocab_size, self._vocabulary.extra_ids
        self._extra_ids = range(size - num_extra, size)
        self.pad = _id(self._vocabulary, "pad_id") or 0
        eos = _id(self._vocabulary, "eos_id")
        if eos is None:
            raise ValueError(f"tokenizer: {self._vocabulary} has no eos token (eos_id)")
        self.eos = eos
        bos = _id(self._vocabulary, "bos_id")
        # Documents are never told apart by bos.
        self.bos = self.pad if bos is None else bos
        self.image_token = size if cfg.image_token is None else cfg.image_token
        if self.image_token != size and self.image_token not in self._extra_ids:
            raise ValueError(
                f"tokenizer.image_token={self.image_token} is not one of the {num_extra} extra "
                f"ids, from {size - num_extra} on; set it to one, or to None for an id of its own"
            )
        self._special = {self.pad, self.bos, self.eos, _id(self._vocabulary, "unk_id")}
        unknown = _id(self._vocabulary, "unk_id")
        self._reserved = {self.bos, self.eos, self.image_token} - {unknown}
        model = getattr(self._vocabulary, "tokenizer", None)
        if isinstance(model, sentencepiece.SentencePieceProcessor):
            self._special.update(i for i in range(size) if model.is_control(i))
        num_ids = max(size, self.image_token + 1)
        self.vocab_size = -(-num_ids // cfg.vocab_multiple) * cfg.vocab_multiple

    def fingerprint(self) -> str:
        """Returns a digest of the vocabulary and of the id of the image placeholder."""
        digest = hashlib.blake2b(f"{self.image_token} {self._extra_ids}".encode(), digest_size=8)
        model = getattr(self._vocabulary, "sp_model", None)
        if model is None:
            # Any other vocabulary is identified by the texts of its ids.
            texts = map(self._decode, range(self._vocabulary.vocab_size))
            model = "\0".join([type(self._vocabulary).__name__, *texts]).encode()
        digest.update(model)
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without special tokens. Empty text has no ids.

        Raises:
            BadRecord: The text spells the image placeholder, as "<extra_id_0>" may, or another
                special token.
        """
        text = without_lone_surrogates(text)
        ids = [int(i) for i in self._vocabulary.encode(text)] if text else []
        return self._checked(ids, text)

    @functools.cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of control pieces and of extra ids by name."""
        model = getattr(self._vocabulary, "tokenizer", None)
        if not isinstance(model, sentencepiece.SentencePieceProcessor):
            return {}
        ids = [i for i in range(self._extra_ids.start) if model.is_control(i)]
        ids += [i for i in self._extra_ids if i < model.get_piece_size()]
        # Seqio spells extra ids with sentencepiece's sign for a space.
        return {model.id_to_piece(i).removeprefix("\u2581"): i for i in ids}

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; special tokens and vocabulary padding are dropped."""
        return self._vocabulary.decode([int(i) for i in ids if self._is_text(int(i))])

    def __getstate__(self) -> dict[str, Any]:
        # Not every vocabulary can be pickled, so it is made again from the config.
        return {"_config": self._config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_config"])

    def _decode(self, i: int) -> str:
        return str(self._vocabulary.decode([i]))

    def _is_text(self, i: int) -> bool:
        return 0 <= i < self._extra_ids.start and i not in self._special


def _id(vocabulary: Any, name: str) -> int | None:
    """Returns the id of a special token; None if the vocabulary has none."""
    try:
        value = getattr(vocabulary, name)
    except NotImplementedError:
        return None
    return None if value is None or value < 0 else int(value)


def _vocabulary(cfg: Any) -> Any:
    """Loads the vocabulary that a config names."""
    if (cfg.vocabulary is None) == (cfg.model_path is None):
        raise ValueError("tokenizer: set either vocabulary or model_path")
    try:
        seqio = importlib.import_module("seqio")
    except ImportError as error:
        raise ValueError(
            f"SeqioTokenizer needs seqio ({error}): pip install 'mm1_jax[seqio]'"
        ) from error
    if cfg.model_path is not None:
        path = tokenizer_path(cfg)
        if not path.is_file():
            raise ValueError(f"tokenizer.model_path={str(path)!r} is not a file")
        vocabulary: Any = seqio.SentencePieceVocabulary(str(path), extra_ids=cfg.extra_ids)
    else:
        if cfg.extra_ids:
            raise ValueError("tokenizer.extra_ids applies to model_path; a vocabulary has its own")
        module, _, name = cfg.vocabulary.rpartition(".")
        try:
            vocabulary = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"tokenizer.vocabulary={cfg.vocabulary!r}: {error}; expected MODULE.NAME of a "
                "seqio.Vocabulary"
            ) from error
        if not isinstance(vocabulary, seqio.Vocabulary) and callable(vocabulary):
            vocabulary = vocabulary()
    if not isinstance(vocabulary, seqio.Vocabulary):
        raise ValueError(f"tokenizer.vocabulary={cfg.vocabulary!r} is not a seqio.Vocabulary")
    try:
        # Vocabularies load their model on first use.
        size = vocabulary.vocab_size
    except Exception as error:  # The exceptions of these libraries share no base class.
        raise ValueError(f"tokenizer: {error}") from error
    if not isinstance(size, int):
        raise ValueError(f"tokenizer: vocab_size={size!r} of the vocabulary, expected an integer")
    return vocabulary

"""Text to token ids and back: a sentencepiece model and the special tokens of documents.

`python -m mm1_jax train_tokenizer` trains such models; a tiny one, trained on the embedded corpora,
ships with the package. They use byte fallback, so every text can be encoded without an unknown
token. Any other sentencepiece model (of Llama, Mistral, T5, ...) works as well: the image
placeholder gets the first id after its pieces, and another token stands in for a missing pad or
bos, as documents are never told apart by them.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece

from mm1_jax.config import Configurable, config_class, derived
from mm1_jax.data.record_files import BadRecord
from mm1_jax.field_types import PositiveInt

SHIPPED_MODEL = Path(__file__).parents[1] / "assets" / "tiny.model"

# Ids in models trained by `train`; other models have no image piece. Control symbols never match
# text: a document that spells "<image>" or "<s>" is encoded as those characters.
PAD, BOS, EOS = 0, 1, 2
IMAGE_PIECE = "<image>"
IMAGE_TOKEN = 4


class Vocabulary(NamedTuple):
    """The size of the embedding table, and the id of the image placeholder."""

    vocab_size: int
    image_token: int


class Tokenizer(Configurable):
    """A sentencepiece model with the special tokens of documents."""

    @config_class
    class Config(Configurable.Config):
        # A sentencepiece model file, relative to `data_dir`; None means the one that ships with the
        # package.
        model_path: str | None = None
        data_dir: str | None = derived(None)  # `input.data_dir`
        # The vocabulary size is rounded up to a multiple of this, so that it shards evenly.
        vocab_multiple: PositiveInt = 64
        # Number of pieces of the model, for configs that are inspected before the file exists. An
        # existing file must have as many.
        num_pieces: PositiveInt | None = None

    @staticmethod
    def vocabulary(cfg: Any) -> "Vocabulary":
        """Returns the vocabulary; if there is no file, that of a model trained by `train`."""
        if cfg.num_pieces is None or tokenizer_path(cfg).is_file():
            tokenizer = cfg.instantiate()
            return Vocabulary(tokenizer.vocab_size, tokenizer.image_token)
        return Vocabulary(_round_up(cfg.num_pieces, cfg.vocab_multiple), IMAGE_TOKEN)

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        path = tokenizer_path(cfg)
        self._model = _load(path)
        pieces = self._model.get_piece_size()
        if cfg.num_pieces not in (None, pieces):
            raise ValueError(
                f"tokenizer.num_pieces={cfg.num_pieces}, but {path} has {pieces}; set the field "
                "to that, or train a model of that size with `python -m mm1_jax train_tokenizer`"
            )
        pad, bos, eos = (self._model.pad_id(), self._model.bos_id(), self._model.eos_id())
        if eos < 0:
            raise ValueError(
                f"tokenizer.model_path={str(path)!r} has no eos piece (eos_id is -1); choose a "
                "model that has one, or train one with `python -m mm1_jax train_tokenizer`"
            )
        self.eos = eos
        self.pad = pad if pad >= 0 else 0
        self.bos = next(i for i in (bos, pad, eos) if i >= 0)
        image_token = self._model.piece_to_id(IMAGE_PIECE)
        self.image_token = image_token if self._model.is_control(image_token) else pieces
        self.vocab_size = _round_up(max(pieces, self.image_token + 1), cfg.vocab_multiple)
        # Ids that no text may be encoded with; the unknown token is allowed.
        self._reserved = {i for i in (bos, eos, pad) if i >= 0} | {self.image_token}
        self._reserved.discard(self._model.unk_id())

    @property
    def sentencepiece(self) -> sentencepiece.SentencePieceProcessor:
        """The sentencepiece model."""
        return self._model

    @property
    def not_text(self) -> tuple[int, ...]:
        """The ids that no answer contains: all but text and eos, including vocabulary padding."""
        return tuple(i for i in range(self.vocab_size) if i != self.eos and not self._is_text(i))

    def fingerprint(self) -> str:
        """Returns a digest of the model."""
        return hashlib.blake2b(self._model.serialized_model_proto(), digest_size=8).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without special tokens. Empty text has no ids."""
        return self._checked(self._model.encode(without_lone_surrogates(text)), text)

    def encode_after(self, text: str) -> list[int]:
        """Returns the ids of a text that follows other text of the same conversation.

        A space at its start is encoded once, although some tokenizers put one before every text.
        """
        return self.encode(text[1:] if self._adds_space and text.startswith(" ") else text)

    def encode_markup(self, text: str) -> list[int]:
        """Returns the ids of template text, in which special tokens are written by name.

        Everything between them is encoded as by `encode_after`.

        Raises:
            ValueError: The text has the name of the image placeholder, which stands for an Image.
        """
        ids: list[int] = []
        end = 0
        for match in self._special_pattern.finditer(text):
            name = match[match.lastindex or 0]
            if (i := self.special_tokens[name]) == self.image_token:
                raise ValueError(
                    f"the markup {text!r} has the name of the image placeholder, {name!r}; a chat "
                    "format puts an Image there"
                )
            ids += [*self.encode_after(text[end : match.start()]), i]
            end = match.end()
        return ids + self.encode_after(text[end:])

    def stop_token(self, name: str | None = None) -> int:
        """Returns the id of the special token of this name; None is the end-of-sequence token."""
        if name is None:
            return self.eos
        if name not in self.special_tokens:
            close = ", ".join(map(repr, sorted(self.special_tokens)[:8])) or "none"
            raise ValueError(
                f"the chat format ends answers with {name!r}, which is no special token of "
                f"input.tokenizer; it has {close}"
            )
        return self.special_tokens[name]

    @functools.cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of special tokens by name; markup may write them, and text never does."""
        model = self._model
        pieces = ((model.id_to_piece(i), i) for i in range(model.get_piece_size()))
        return {piece: i for piece, i in pieces if model.is_control(i)}

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """Finds the names of special tokens in markup; its last group is the name."""
        names = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names))})" if names else "(?!)")

    @functools.cached_property
    def _adds_space(self) -> bool:
        """True if `encode` puts a space before a text."""
        return self.encode("a a") == self.encode("a") * 2

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; special tokens and vocabulary padding are dropped."""
        return self._model.decode([int(i) for i in ids if self._is_text(int(i))])

    def _checked(self, ids: list[int], text: str) -> list[int]:
        """Returns the ids of a text if all of them stand for text.

        Raises:
            BadRecord: The text spells a reserved token.
        """
        if not self._reserved.isdisjoint(ids):
            i = next(i for i in ids if i in self._reserved)
            raise BadRecord(f"token {i} is not for text, and a text spells it: {text!a:.200}")
        return ids

    def _is_text(self, i: int) -> bool:
        model = self._model
        return 0 <= i < model.get_piece_size() and not (model.is_control(i) or model.is_unknown(i))


def without_lone_surrogates(text: str) -> str:
    """Replaces lone surrogates by "?"; JSON can hold them, but UTF-8 cannot encode them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def check_tokenizer(tokenizer: Any) -> None:
    """Raises ValueError if a tokenizer makes ids that the embedding table has no row for."""
    name, size = type(tokenizer).__name__, tokenizer.vocab_size
    special = {role: getattr(tokenizer, role) for role in ("pad", "bos", "eos", "image_token")}
    encoded = list(tokenizer.encode("A text, 42."))
    for role, ids in (*((role, [i]) for role, i in special.items()), ("encode", encoded)):
        wrong = [i for i in ids if not isinstance(i, int | np.integer) or not 0 <= i < size]
        if wrong:
            raise ValueError(
                f"input.tokenizer: {name}.{role} gives {wrong[0]!r}, expected integers from 0 to "
                f"{size - 1} (its vocab_size is {size})"
            )
    if special["image_token"] in encoded:
        raise ValueError(
            f"input.tokenizer: {name}.encode gives the image_token {special['image_token']} for "
            "text; the placeholder needs an id of its own"
        )


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def train(texts: Iterable[str], vocab_size: int) -> bytes:
    """Trains a model and returns the content of its file.

    Whitespace is kept and Unicode is not normalized, so `decode(encode(text))` is `text` (except
    for U+2581, sentencepiece's own sign for a space). Training uses one thread: with more, the
    result depends on their timing.

    Raises:
        ValueError: There is no text, or it needs more than `vocab_size` pieces.
        Exception: An exception raised by `texts`, unchanged.
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size={vocab_size} must be at least 1")
    chunks: list[bytes] = []
    # The library replaces exceptions of its input by an error of its own.
    errors: list[BaseException] = []
    is_empty = True

    def sentences() -> Iterator[str]:
        nonlocal is_empty
        try:
            for text in texts:
                is_empty = is_empty and not text.strip()
                yield without_lone_surrogates(text)
        except BaseException as error:
            errors.append(error)

    class Writer:
        def write(self, chunk: bytes) -> None:
            chunks.append(chunk)

    try:
        _train(sentences(), Writer(), vocab_size)
    except RuntimeError as error:
        needed = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        if errors:
            raise errors[0] from None
        if is_empty:
            raise ValueError("there is no text to train a tokenizer on") from None
        if needed is None:
            raise ValueError(f"no tokenizer can be trained on these texts: {error}") from error
        raise ValueError(
            f"vocab_size={vocab_size}: the bytes and characters of the texts alone take "
            f"{needed[1]} pieces; choose a larger size"
        ) from error
    if errors:
        raise errors[0]
    return b"".join(chunks)


def _train(texts: Iterator[str], writer: Any, vocab_size: int) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts,
        model_writer=writer,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        unk_id=3,
        pad_piece="<pad>",
        control_symbols=[IMAGE_PIECE],
        # Separate from words, so that a word is one token at the end of a sentence too.
        user_defined_symbols=list(".,:;?!"),
        num_threads=1,
        minloglevel=2,
    )


def tokenizer_path(cfg: Any) -> Path:
    """Returns the file of a tokenizer."""
    return Path(cfg.data_dir or ".", cfg.model_path) if cfg.model_path else SHIPPED_MODEL


def _load(path: Path) -> sentencepiece.SentencePieceProcessor:
    if not path.is_file():
        raise ValueError(
            f"tokenizer.model_path={str(path)!r} is not a file. Train one with `python -m mm1_jax "
            "train_tokenizer`, or leave the field unset to use the shipped model."
        )
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
        raise ValueError(
            f"tokenizer.model_path={str(path)!r} is not a sentencepiece model: {error}"
        ) from error

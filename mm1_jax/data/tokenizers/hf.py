"""Hugging Face tokenizers (`tokenizer.json`) with the special tokens of documents.

The library `tokenizers` comes with the extra `hf`.
"""

import functools
import hashlib
import importlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mm1_jax.config import Configurable, config_class
from mm1_jax.data.tokenizers.sentencepiece import (
    IMAGE_PIECE,
    Tokenizer,
    Vocabulary,
    tokenizer_path,
    without_lone_surrogates,
)
from mm1_jax.field_types import NonNegativeInt
from mm1_jax.storage import read_json_object

# The file beside a tokenizer.json that names its special tokens.
CONFIG_FILE = "tokenizer_config.json"
# All files that may name special tokens, in order of preference.
TOKEN_FILES = (CONFIG_FILE, "special_tokens_map.json", "generation_config.json", "config.json")


class HFTokenizer(Tokenizer):
    """A Hugging Face tokenizer from a `tokenizer.json`, as of Llama 3, Qwen and most others.

    The image placeholder is its special token "<image>", or else the first id after all tokens.
    Special tokens never match text: a document that spells one is encoded as those characters.
    """

    @config_class
    class Config(Tokenizer.Config):
        # Special tokens; None means those in the files beside `model_path`. Another token stands in
        # for a missing bos or pad, as documents are never told apart by them.
        bos: str | None = None
        eos: str | None = None
        pad: str | None = None
        # Embedding rows of a decoder that was trained with this tokenizer, if they outnumber its
        # ids.
        min_vocab_size: NonNegativeInt = 0

    @staticmethod
    def vocabulary(cfg: Any) -> Vocabulary:
        """Returns the vocabulary for the model; `num_pieces` stands in for a missing file."""
        if cfg.num_pieces is None or tokenizer_path(cfg).is_file():
            tokenizer = cfg.instantiate()
            return Vocabulary(tokenizer.vocab_size, tokenizer.image_token)
        return Vocabulary(_vocab_size(cfg, cfg.num_pieces + 1), cfg.num_pieces)

    def __init__(self, cfg: Config):
        # Skips the constructor of Tokenizer, which reads a sentencepiece model.
        Configurable.__init__(self, cfg)
        if cfg.model_path is None:
            raise ValueError("tokenizer.model_path is None: name a tokenizer.json")
        path = tokenizer_path(cfg)
        self._tokenizer = load_tokenizer(path)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        num_ids = 1 + max(self._tokenizer.get_vocab().values())
        image_token = self._tokenizer.token_to_id(IMAGE_PIECE)
        has_image = image_token in self._special
        self.image_token = image_token if has_image else num_ids
        num_pieces = num_ids - 1 if has_image and image_token == num_ids - 1 else num_ids
        if cfg.num_pieces not in (None, num_pieces):
            raise ValueError(
                f"tokenizer.num_pieces={cfg.num_pieces}, but {path} has {num_pieces}; set the "
                "field to that"
            )
        self._num_ids = num_ids
        beside = special_tokens(path, self._tokenizer)

        def id_of(name: str) -> int | None:
            token = getattr(cfg, name) or getattr(beside, name)
            found = None if token is None else self._tokenizer.token_to_id(token)
            if token is not None and found is None:
                raise ValueError(f"tokenizer.{name}={token!r}: {path} has no such token")
            return found

        bos, eos, pad = (id_of(name) for name in ("bos", "eos", "pad"))
        if eos is None:
            raise ValueError(
                f"tokenizer.eos is None, and none of {', '.join(TOKEN_FILES)} beside {path} names "
                f'the eos token; write {{"eos_token": TOKEN}} into {CONFIG_FILE} there'
            )
        self.eos = eos
        # A model generates eos but never padding, so padding must be another token.
        spare = next((i for i in sorted(self._special) if i not in (eos, self.image_token)), None)
        self.pad = pad if pad not in (None, eos) else (self.image_token if spare is None else spare)
        self.bos = next(i for i in (bos, pad, eos) if i is not None)
        self._special |= {self.bos, self.pad, self.image_token, *([] if bos is None else [bos])}
        self.vocab_size = _vocab_size(cfg, max(num_ids, self.image_token + 1))
        special = f"{self.bos} {self.eos} {self.image_token} "
        content = (special + self._tokenizer.to_str()).encode()
        self._fingerprint = hashlib.blake2b(content, digest_size=8).hexdigest()
        unknown = _unknown_token(self._tokenizer)
        self._reserved = {self.eos, *self._special} - {unknown}
        _keep_out_of_text(self._tokenizer, self._reserved)

    def fingerprint(self) -> str:
        """Returns a digest of the tokenizer and of its special tokens."""
        return self._fingerprint

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without special tokens. Empty text has no ids."""
        text = without_lone_surrogates(text)
        return self._checked(self._tokenizer.encode(text, add_special_tokens=False).ids, text)

    @functools.cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of special tokens by name."""
        return {
            token: i
            for i in sorted({*self._special, self.eos})
            if (token := self._tokenizer.id_to_token(i)) is not None
        }

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        added = self._tokenizer.get_added_tokens_decoder()
        patterns = []
        for token in sorted(self.special_tokens, key=len, reverse=True):
            flags = added.get(self.special_tokens[token])
            # Some tokens, such as those of Phi-3, swallow the whitespace beside them.
            before = r"\s*" * (flags is not None and flags.lstrip)
            after = r"\s*" * (flags is not None and flags.rstrip)
            patterns.append(f"{before}({re.escape(token)}){after}")
        return re.compile("|".join(patterns) if patterns else "(?!)")

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; special tokens and vocabulary padding are dropped."""
        kept = [int(i) for i in ids if self._is_text(int(i))]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Pickling loses this setting.
        self._tokenizer.encode_special_tokens = True

    def _is_text(self, i: int) -> bool:
        return 0 <= i < self._num_ids and i not in self._special and i != self.eos


def load_tokenizer(path: Path) -> Any:
    """Loads a `tokenizers.Tokenizer` that encodes special tokens in a text as text."""
    if not path.is_file():
        raise ValueError(f"tokenizer.model_path={str(path)!r} is not a file")
    try:
        # Drops a byte order mark, which the library cannot parse.
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_a_tokenizer(path, error) from None
    return load_tokenizer_text(text, path)


def load_tokenizer_text(text: str, path: Path) -> Any:
    """Loads a tokenizer from the content of a tokenizer.json; errors call it `path`."""
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError as error:
        raise ValueError(
            f"HFTokenizer needs tokenizers ({error}): pip install 'mm1_jax[hf]'"
        ) from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The library raises plain Exceptions.
        raise _not_a_tokenizer(path, error) from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _unknown_token(tokenizer: Any) -> int | None:
    """Returns the id of the unknown token, if there is one."""
    model = json.loads(tokenizer.to_str())["model"]
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else tokenizer.token_to_id(token)


def _keep_out_of_text(tokenizer: Any, reserved: Collection[int]) -> None:
    """Ensures that no text is encoded with the reserved ids, even if it spells their tokens.

    `encode_special_tokens` is enough unless a token is also a word of the model, as in most Unigram
    and WordLevel models. In that case, texts are cut after the first character of the token.
    """
    tokens = {i: token for i in reserved if (token := tokenizer.id_to_token(i))}

    def spoken() -> list[str]:
        return [
            token
            for i, token in tokens.items()
            if i in tokenizer.encode(token, add_special_tokens=False).ids
        ]

    if not spoken():
        return
    library = importlib.import_module("tokenizers")
    tokenizer.add_special_tokens(
        [library.AddedToken(token, special=True, normalized=False) for token in spoken()]
    )
    tokenizer.encode_special_tokens = True
    if not (found := spoken()):
        return
    before = [] if tokenizer.pre_tokenizer is None else [tokenizer.pre_tokenizer]
    cuts = [
        f"{re.escape(token[0])}(?={re.escape(token[1:])})" if len(token) > 1 else re.escape(token)
        for token in found
    ]
    split = library.pre_tokenizers.Split(library.Regex("|".join(cuts)), "isolated")
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([*before, split])


def _not_a_tokenizer(path: Path, error: Exception) -> ValueError:
    return ValueError(f"tokenizer.model_path={str(path)!r} is not a tokenizer.json: {error}")


class SpecialTokens(NamedTuple):
    """The bos, eos and pad tokens that a file beside a tokenizer.json names; None where missing."""

    file: str
    bos: str | None
    eos: str | None
    pad: str | None


def special_tokens(path: Path, tokenizer: Any) -> SpecialTokens:
    """Returns the special tokens of the first file that names an eos token.

    If no file does, returns those that `CONFIG_FILE` names.

    Raises:
        ValueError: A file is damaged, or names a token that the tokenizer lacks.
    """
    first = _declared(path.with_name(CONFIG_FILE), tokenizer)
    if first.eos is not None:
        return first
    others = (_declared(path.with_name(file), tokenizer) for file in TOKEN_FILES[1:])
    return next((tokens for tokens in others if tokens.eos is not None), first)


def _declared(path: Path, tokenizer: Any) -> SpecialTokens:
    content = read_json_object(path) if path.is_file() else {}
    if path.name == "config.json" and isinstance(inner := content.get("text_config"), dict):
        content = {**inner, **content}
    tokens = [_token(path, content, name, tokenizer) for name in ("bos", "eos", "pad")]
    return SpecialTokens(path.name, *tokens)


def _token(beside: Path, content: Any, name: str, tokenizer: Any) -> str | None:
    if beside.name in (CONFIG_FILE, "special_tokens_map.json"):
        field = f"{name}_token"
        token = content.get(field)
        # Older files have each token as an object.
        token = token.get("content") if isinstance(token, dict) else token
        if not token:
            return None
        if not isinstance(token, str) or tokenizer.token_to_id(token) is None:
            raise ValueError(f"{beside}: {field}={token!r}: the tokenizer has no such token")
        return token
    field = f"{name}_token_id"
    number = content.get(field)
    # A model may have several eos tokens; it was trained with the first one.
    number = number[0] if isinstance(number, list) and number else number
    if number is None or number == -1:
        return None
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{beside}: {field}={number!r}: expected the id of a token")
    # Unset ids of a config are defaults of its class, which may be ordinary tokens here.
    added = tokenizer.get_added_tokens_decoder().get(number)
    return added.content if added is not None and added.special else None


def _vocab_size(cfg: Any, num_ids: int) -> int:
    rounded = -(-num_ids // cfg.vocab_multiple) * cfg.vocab_multiple
    return max(cfg.min_vocab_size, rounded)

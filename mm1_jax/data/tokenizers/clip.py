"""CLIP's byte-pair encoding of lower-cased text, read from OpenAI's or Hugging Face's files.

Pure Python; nothing is downloaded. OpenAI's file is `bpe_simple_vocab_16e6.txt.gz`, which open_clip
ships as well; Hugging Face's are `vocab.json` and, beside it, `merges.txt`.
"""

import functools
import gzip
import hashlib
import html
import itertools
import json
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm1_jax.config import Configurable, config_class
from mm1_jax.data.tokenizers.sentencepiece import (
    Tokenizer,
    Vocabulary,
    tokenizer_path,
    without_lone_surrogates,
)
from mm1_jax.field_types import PositiveInt
from mm1_jax.storage import read_json_object

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
NUM_TOKENS = 49_408
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_END = "</w>"  # Marks the last piece of a word.
# The file holds more merges than CLIP uses: 256 bytes, these at the end of a word, bos and eos.
_NUM_MERGES = NUM_TOKENS - 2 * 256 - 2
# CLIP's pattern without its names of special tokens; `_words` tells letters from numerals.
_PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
_QUOTES = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)
_CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]")


class CLIPTokenizer(Tokenizer):
    """The tokenizer of CLIP: 49,408 tokens, of which bos and eos are the last two.

    Text is cleaned as CLIP's reference does: HTML entities are resolved, quotes straightened, runs
    of white space made one space, letters lower-cased. The reference also repairs wrongly decoded
    text by the package ftfy, which is not done here. Special tokens never match text.

    There is no token to stand for an image, so the tokenizer serves text encoders alone.
    """

    @config_class
    class Config(Tokenizer.Config):
        # OpenAI's file, or a vocab.json beside a merges.txt, relative to `data_dir`.
        model_path: str | None = BPE_FILE
        num_pieces: PositiveInt | None = NUM_TOKENS

    @staticmethod
    def vocabulary(cfg: Any) -> Vocabulary:
        """Returns the vocabulary for the model; `num_pieces` stands in for a missing file."""
        if cfg.num_pieces is None or tokenizer_path(cfg).is_file():
            tokenizer = cfg.instantiate()
            return Vocabulary(tokenizer.vocab_size, tokenizer.image_token)
        return Vocabulary(_rounded(cfg, cfg.num_pieces), cfg.num_pieces - 2)

    def __init__(self, cfg: Config):
        # Skips the constructor of Tokenizer, which reads a sentencepiece model.
        Configurable.__init__(self, cfg)
        path = tokenizer_path(cfg)
        if cfg.model_path is None or not path.is_file():
            raise ValueError(
                f"tokenizer.model_path={cfg.model_path!r}: {path} is not a file; name {BPE_FILE} "
                "(it is in the package open_clip_torch), or the vocab.json of a CLIP model on "
                "Hugging Face with its merges.txt beside it"
            )
        try:
            ids, merges = _read_json(path) if path.suffix == ".json" else _read_bpe(path)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise ValueError(
                f"tokenizer.model_path={str(path)!r} has no byte-pair encoding of CLIP: {error}"
            ) from error
        if cfg.num_pieces not in (None, len(ids)):
            raise ValueError(
                f"tokenizer.num_pieces={cfg.num_pieces}, but {path} has {len(ids)}; set the field "
                "to that"
            )
        self._ids = ids
        self._merges = merges
        self.bos, self.eos = ids[BOS], ids[EOS]
        self.pad, self.image_token = self.eos, self.bos
        self.vocab_size = _rounded(cfg, max(ids.values()) + 1)
        content = repr((sorted(ids.items(), key=lambda item: item[1]), list(merges)))
        self._fingerprint = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def fingerprint(self) -> str:
        """Returns a digest of the vocabulary and the merges."""
        return self._fingerprint

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without special tokens. Empty text has no ids."""
        cleaned = clean(without_lone_surrogates(text))
        return [i for word in _words(cleaned) for i in self._word_ids(word)]

    @functools.cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of special tokens by name."""
        return {BOS: self.bos, EOS: self.eos}

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the cleaned text of `ids`, with a space after each word."""
        pieces = "".join(self._pieces[int(i)] for i in ids if self._is_text(int(i)))
        of_character = {character: byte for byte, character in _characters().items()}
        words = (
            bytes(of_character[character] for character in word) for word in pieces.split(_END)
        )
        return b" ".join(words).decode("utf-8", "replace").strip()

    def hugging_face_files(self) -> dict[str, bytes]:
        """Returns the files of a CLIPTokenizer in transformers by name."""
        merges = "".join(f"{left} {right}\n" for left, right in self._merges)
        return {
            "vocab.json": json.dumps(self._ids, ensure_ascii=False).encode(),
            "merges.txt": f"#version: 0.2\n{merges}".encode(),
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_word_ids"}

    @functools.cached_property
    def _word_ids(self) -> Any:
        """Maps a word to its ids; most words of captions recur."""
        return functools.lru_cache(maxsize=1 << 16)(self._encode_word)

    @functools.cached_property
    def _pieces(self) -> dict[int, str]:
        return {i: piece for piece, i in self._ids.items()}

    def _encode_word(self, word: str) -> tuple[int, ...]:
        characters = _characters()
        pieces = [characters[byte] for byte in word.encode()]
        pieces[-1] += _END
        while len(pieces) > 1:
            ranks = [
                self._merges.get(pair, len(self._merges)) for pair in itertools.pairwise(pieces)
            ]
            if (best := min(ranks)) == len(self._merges):
                break
            pair, merged, at = pieces[ranks.index(best) :][:2], [], 0
            while at < len(pieces):
                is_pair = pieces[at : at + 2] == pair
                merged.append("".join(pair) if is_pair else pieces[at])
                at += 2 if is_pair else 1
            pieces = merged
        return tuple(self._ids[piece] for piece in pieces)

    def _is_text(self, i: int) -> bool:
        return i in self._pieces and i not in (self.bos, self.eos)


def clean(text: str) -> str:
    """Returns the text as CLIP encodes it."""
    # Twice, as in the reference: web captions have entities of entities.
    text = html.unescape(html.unescape(text))
    text = _CONTROLS.sub("", unicodedata.normalize("NFC", text).translate(_QUOTES))
    return " ".join(text.split()).lower()


def _words(text: str) -> Iterator[str]:
    """Yields runs of letters, single numerals, and runs of other characters."""
    for piece in _PIECES.findall(text):
        if piece[0].isalnum() and not piece.isalpha():
            # Numerals such as superscripts are not digits for `re`.
            for is_letters, run in itertools.groupby(piece, str.isalpha):
                characters = list(run)
                yield from ["".join(characters)] if is_letters else characters
        else:
            yield piece


@functools.cache
def _characters() -> dict[int, str]:
    """Returns the visible character that stands for each byte, as in GPT-2."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }


def _read_bpe(path: Path) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Reads OpenAI's file: a line about itself, then a merge per line."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
    merges = _merges(text.splitlines()[1 : _NUM_MERGES + 1])
    # The order of the characters is part of the format: visible bytes first.
    characters = list(_characters().values())
    pieces = [*characters, *(each + _END for each in characters)]
    pieces += ["".join(pair) for pair in merges] + [BOS, EOS]
    return {piece: i for i, piece in enumerate(pieces)}, merges


def _read_json(path: Path) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Reads Hugging Face's files."""
    ids = read_json_object(path)
    lines = path.with_name("merges.txt").read_text("utf-8").splitlines()
    merges = _merges(lines[1:] if lines and lines[0].startswith("#version") else lines)
    pieces = {*_characters().values(), *(each + _END for each in _characters().values())}
    pieces |= {"".join(pair) for pair in merges} | {BOS, EOS}
    if lacking := sorted(pieces - ids.keys()):
        raise ValueError(f"{path.name} lacks {len(lacking)} pieces, such as {lacking[0]!r}")
    if not all(type(i) is int and i >= 0 for i in ids.values()):
        raise ValueError(f"the ids in {path.name} are not all whole numbers")
    return dict(ids), merges


def _merges(lines: Sequence[str]) -> dict[tuple[str, str], int]:
    """Returns the rank of each pair of pieces."""
    merges: dict[tuple[str, str], int] = {}
    for line in lines:
        if not line.strip():
            continue
        pair = line.split()
        if len(pair) != 2:
            raise ValueError(f"the merge {line!a:.80} is not a pair")
        merges[pair[0], pair[1]] = len(merges)
    return merges


def _rounded(cfg: CLIPTokenizer.Config, number: int) -> int:
    return -(-number // cfg.vocab_multiple) * cfg.vocab_multiple

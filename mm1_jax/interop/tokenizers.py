"""Tokenizers in and out: files of a foreign folder, the image token added, and files for one."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from mm1_jax.config import InstantiableConfig
from mm1_jax.data.hf_tokenizer import CONFIG_FILE, HFTokenizer, load_tokenizer, special_tokens
from mm1_jax.data.tokenizer import IMAGE_PIECE, Tokenizer, tokenizer_path
from mm1_jax.interop.exporter import HF_MODEL, TOKENIZER_CODE, Vocabulary
from mm1_jax.weights_folder import StoredParams

SENTENCEPIECE, JSON = "tokenizer.model", "tokenizer.json"


class ImportedTokenizer(NamedTuple):
    """What is kept of a foreign tokenizer.

    Attributes:
        files: Name -> content, for the folder of weights.
        cfg: The tokenizer, read from the folder that it came from.
    """

    files: dict[str, bytes]
    cfg: InstantiableConfig


def import_tokenizer(source: Path, num_rows: int) -> ImportedTokenizer | None:
    """The tokenizer in a folder; None without one.

    Args:
        source: A folder, or one of the files.
        num_rows: Rows of the decoder's embedding.

    Raises:
        ValueError: It cannot be read, or has no token that ends a text.
    """
    folder = source if source.is_dir() else source.parent
    names = [SENTENCEPIECE, JSON] if source.is_dir() else [source.name]
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        return None
    path = folder / name
    if path.suffix == ".model":
        cfg = Tokenizer.default_config().set(model_path=str(path))
        cfg.instantiate()
        return ImportedTokenizer({SENTENCEPIECE: path.read_bytes()}, cfg)
    cfg = HFTokenizer.default_config().set(model_path=str(path), min_vocab_size=num_rows)
    tokenizer: Any = cfg.instantiate()
    files = {
        JSON: with_image_token(path, tokenizer.image_token),
        CONFIG_FILE: _json(special_tokens(path)),
    }
    return ImportedTokenizer(files, cfg)


def with_image_token(path: Path, image_token: int) -> bytes:
    """A tokenizer.json that has the token "<image>" by this id."""
    content = json.loads(path.read_text())
    added = content.setdefault("added_tokens", [])
    if not any(token["content"] == IMAGE_PIECE for token in added):
        added.append(
            {
                "id": image_token,
                "content": IMAGE_PIECE,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        )
    return json.dumps(content, ensure_ascii=False).encode()


def export_tokenizer(tokenizer: Tokenizer) -> Vocabulary:
    """The files that transformers loads a tokenizer from, and what generation needs of it."""
    ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    path = tokenizer_path(tokenizer.config)
    if isinstance(tokenizer, HFTokenizer):
        library = load_tokenizer(path)
        tokens = {f"{name}_token": library.id_to_token(i) for name, i in ids.items()}
        if tokens["pad_token"] is None:
            tokens["pad_token"] = IMAGE_PIECE
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "additional_special_tokens": [IMAGE_PIECE],
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            **tokens,
        }
        files = {
            JSON: with_image_token(path, tokenizer.image_token),
            CONFIG_FILE: _json(config),
        }
    else:
        model: Any = tokenizer.sentencepiece
        config = {
            "tokenizer_class": "MM1Tokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_mm1.MM1Tokenizer", None]},
            **{f"{name}_token": model.id_to_piece(i) for name, i in ids.items()},
            "unk_token": model.id_to_piece(model.unk_id()) if model.unk_id() >= 0 else None,
            "image_token": IMAGE_PIECE,
        }
        files = {
            SENTENCEPIECE: path.read_bytes(),
            CONFIG_FILE: _json({k: v for k, v in config.items() if v is not None}),
            TOKENIZER_CODE: (HF_MODEL / TOKENIZER_CODE).read_bytes(),
        }
    return Vocabulary(files, **ids, suppressed=tokenizer.not_text)


def stored_tokenizer(stored: StoredParams, folder: Path) -> Tokenizer | None:
    """The tokenizer in a folder of weights; None without one."""
    described = (stored.description or {}).get("tokenizer")
    if described is None:
        return None
    if described["class"] == Tokenizer.__name__:
        cfg = Tokenizer.default_config()
    else:
        cfg = HFTokenizer.default_config().set(min_vocab_size=described["vocab_size"])
    return cfg.set(model_path=str(folder / described["file"])).instantiate()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()

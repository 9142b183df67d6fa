"""Imports tokenizers of foreign checkpoints, with an image token added, and exports ours."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.config import InstantiableConfig
from mm1_jax.data.chat_formats.base import ChatFormat
from mm1_jax.data.chat_formats.hf import CHAT_TEMPLATE, template_in
from mm1_jax.data.tokenizers.clip import CLIPTokenizer
from mm1_jax.data.tokenizers.hf import (
    CONFIG_FILE,
    TOKEN_FILES,
    HFTokenizer,
    load_tokenizer,
    load_tokenizer_text,
    special_tokens,
)
from mm1_jax.data.tokenizers.sentencepiece import IMAGE_PIECE, Tokenizer, tokenizer_path
from mm1_jax.interop.exporter import HF_MODEL, TOKENIZER_CODE, ExportedTokenizer, without_code
from mm1_jax.storage import read_json_object

SENTENCEPIECE, JSON = "tokenizer.model", "tokenizer.json"


class ImportedTokenizer(NamedTuple):
    """A tokenizer of a foreign checkpoint.

    Attributes:
        files: Name -> content of the files to write beside the weights.
        cfg: Config of the tokenizer, with the path of the source.
        notes: Remarks for users on the choice.
    """

    files: dict[str, bytes]
    cfg: InstantiableConfig
    notes: tuple[str, ...] = ()


class Claim(NamedTuple):
    """A token and its id in a file of a checkpoint; `token` is None if the file has the id only."""

    file: str
    token: str | None
    id: int


def import_tokenizer(
    source: Path, num_rows: int, image_token: int | None = None
) -> ImportedTokenizer | None:
    """Returns the tokenizer in a folder; None without one.

    If a folder has both, tokenizer.model is used unless tokenizer.json, which transformers reads,
    has other tokens.

    Args:
        source: A folder, or one of the files.
        num_rows: Rows of the decoder's embedding.
        image_token: The model's image token id; None if it has none.

    Raises:
        ValueError: The tokenizer cannot be read, has no end-of-text token, lacks tokens that other
            files have, or its image token would take the row of another token.
    """
    folder = source if source.is_dir() else source.parent
    files = (SENTENCEPIECE, JSON) if source.is_dir() else (source.name,)
    paths = [folder / name for name in files if (folder / name).is_file()]
    if not paths:
        return _clip_tokenizer(folder)
    claims, notes = _claims(folder), []
    path = paths[0]
    if len(paths) == 2 and (reason := _why_json_file(path, claims)) is not None:
        notes.append(f"{JSON} is used: {reason}")
        path = paths[1]
    tokenizer: Any
    if path.suffix == ".model":
        cfg = Tokenizer.default_config().set(model_path=str(path))
        tokenizer = cfg.instantiate()
        piece = tokenizer.sentencepiece.piece_to_id
        read = ImportedTokenizer({SENTENCEPIECE: path.read_bytes()}, cfg)
        lost = _missing_tokens(tokenizer, claims)
    else:
        cfg = HFTokenizer.default_config().set(model_path=str(path), min_vocab_size=num_rows)
        tokenizer, library = cfg.instantiate(), load_tokenizer(path)
        piece = library.token_to_id
        special = special_tokens(path, library)._asdict()
        beside = {f"{k}_token": v for k, v in special.items() if k != "file" and v is not None}
        json_file = with_image_token(path, tokenizer.image_token)
        read = ImportedTokenizer({JSON: json_file, CONFIG_FILE: _json(beside)}, cfg)
        lost = [c for c in claims if c.token is not None and piece(c.token) != c.id]
        lost = [c for c in lost if (c.token, c.id) != (IMAGE_PIECE, tokenizer.image_token)]
    if lost and source.is_dir():
        raise ValueError(
            f"{folder / lost[0].file}: has {lost[0].token!r} by id {lost[0].id}, but {path.name} "
            f"lacks it. Write one {JSON} with all tokens (load with transformers' AutoTokenizer, "
            "then save_pretrained), or choose a file by --tokenizer"
        )
    if lost:
        notes.append(f"{path.name} lacks {len(lost)} tokens, such as {lost[0].token!r}")
    _raise_if_id_is_taken(tokenizer.image_token, path, claims, image_token)
    if tokenizer.image_token < num_rows and image_token is None:
        notes.append(
            f"the image token takes row {tokenizer.image_token} of {num_rows} of the embedding, "
            "which no token of the source uses"
        )
    if (template := template_in(folder)) is not None:
        read.files[CHAT_TEMPLATE] = template.encode()
    return read._replace(notes=(*notes, *_other_eos_notes(folder, tokenizer.eos, piece)))


def _clip_tokenizer(folder: Path) -> ImportedTokenizer | None:
    """Returns the tokenizer of a CLIP's vocab.json and merges.txt; None without both."""
    names = ("vocab.json", "merges.txt")
    if not all((folder / name).is_file() for name in names):
        return None
    path = str(folder / names[0])
    cfg = CLIPTokenizer.default_config().set(model_path=path, num_pieces=None)
    return ImportedTokenizer({name: (folder / name).read_bytes() for name in names}, cfg)


def _why_json_file(path: Path, claims: Sequence[Claim]) -> str | None:
    """Returns why tokenizer.json is used instead of this tokenizer.model; None if it is not."""
    try:
        tokenizer = Tokenizer.default_config().set(model_path=str(path)).instantiate()
    except ValueError as error:
        return str(error)
    if lost := _missing_tokens(tokenizer, claims):
        return f"{path.name} lacks {len(lost)} of its tokens, such as {lost[0].token!r}"
    piece = tokenizer.sentencepiece.piece_to_id
    return next(iter(_other_eos_notes(path.parent, tokenizer.eos, piece, TOKEN_FILES[:2])), None)


def _missing_tokens(tokenizer: Tokenizer, claims: Sequence[Claim]) -> list[Claim]:
    """Returns tokens of other files that a sentencepiece model lacks or has under another id."""
    model = tokenizer.sentencepiece
    return [
        claim
        for claim in claims
        if claim.token is not None
        and not (claim.id < model.get_piece_size() and model.id_to_piece(claim.id) == claim.token)
        and (claim.token, claim.id) != (IMAGE_PIECE, tokenizer.image_token)
    ]


def _claims(folder: Path) -> list[Claim]:
    """Returns the tokens and ids that a checkpoint's files state besides the vocabulary."""
    claims = []
    content = {
        name: read_json_object(folder / name) if (folder / name).is_file() else {}
        for name in (JSON, "added_tokens.json", *TOKEN_FILES)
    }
    for token, i in content["added_tokens.json"].items():
        claims.append(_claim(folder / "added_tokens.json", token, i))
    path = folder / CONFIG_FILE
    decoder = content[CONFIG_FILE].get("added_tokens_decoder") or {}
    for i, token in _mapping(path, "added_tokens_decoder", decoder).items():
        text = token.get("content") if isinstance(token, dict) else token
        claims.append(_claim(path, text, int(i) if i.isdecimal() else i))
    for token in _list(folder / JSON, "added_tokens", content[JSON].get("added_tokens") or []):
        token = _mapping(folder / JSON, "added_tokens", token)
        claims.append(_claim(folder / JSON, token.get("content"), token.get("id")))
    # One claim per token and id, from the first file that makes it.
    claims = list({(claim.token, claim.id): claim for claim in reversed(claims)}.values())[::-1]
    for name in ("generation_config.json", "config.json"):
        given = content[name]
        inner = given.get("text_config")
        for each in (given, inner if isinstance(inner, dict) else {}):
            for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
                ids = each.get(field)
                for i in ids if isinstance(ids, list) else [ids]:
                    if isinstance(i, int) and not isinstance(i, bool) and i >= 0:
                        claims.append(Claim(name, None, i))
    return claims


def _claim(path: Path, token: Any, i: Any) -> Claim:
    if not isinstance(token, str) or isinstance(i, bool) or not isinstance(i, int) or i < 0:
        raise ValueError(
            f"{path}: an added token {token!r} by id {i!r}; expected text and a number"
        )
    return Claim(path.name, token, i)


def _mapping(path: Path, field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {field} holds {str(value)[:80]!r}; expected an object")
    return value


def _list(path: Path, field: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{path}: {field} is {str(value)[:80]!r}; expected a list")
    return value


def _raise_if_id_is_taken(
    ours: int, path: Path, claims: Sequence[Claim], image_token: int | None
) -> None:
    """Raises ValueError if the id of the image token belongs to another token."""
    if image_token is not None and image_token != ours:
        raise ValueError(
            f"config.json: image_token_index={image_token}, and the image token of {path} is "
            f"{ours}; give the tokenizer of this model, or --tokenizer=none"
        )
    for claim in claims:
        if image_token is None and claim.id == ours and claim.token != IMAGE_PIECE:
            what = f"the token {claim.token!r}" if claim.token else "a special token"
            raise ValueError(
                f"{path}: its image token would take id {ours}, which {claim.file} has for {what}; "
                f"give a {JSON} that has this token by --tokenizer"
            )


def _other_eos_notes(
    folder: Path,
    eos: int,
    token_to_id: Callable[[str], int | None],
    names: Sequence[str] = TOKEN_FILES,
) -> list[str]:
    """Returns notes on files that state other end-of-text tokens."""
    notes = []
    for name in names:
        given = read_json_object(folder / name) if (folder / name).is_file() else {}
        if name in (CONFIG_FILE, "special_tokens_map.json"):
            field, value = "eos_token", given.get("eos_token")
            value = value.get("content") if isinstance(value, dict) else value
            ids = [token_to_id(value)] if isinstance(value, str) else []
        else:
            field, value = "eos_token_id", given.get("eos_token_id")
            ids = value if isinstance(value, list) else [] if value is None else [value]
        if ids and eos not in ids:
            notes.append(f"{name} has {field}={value!r}, but texts end with the token {eos}")
    return notes


def with_image_token(path: Path, image_token: int) -> bytes:
    """Returns the tokenizer.json with the token "<image>" under this id.

    Raises:
        ValueError: It has the token under another id.
    """
    content = read_json_object(path)
    added = content["added_tokens"] = content.get("added_tokens") or []
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
    result = json.dumps(content, ensure_ascii=False)
    found = load_tokenizer_text(result, path).token_to_id(IMAGE_PIECE)
    if found != image_token:
        raise ValueError(
            f"{path}: {IMAGE_PIECE!r} is its token {found}, but the image token must be "
            f"{image_token}; make it a special token, or rename it"
        )
    return result.encode()


def export_tokenizer(
    tokenizer: Tokenizer, chat_format: ChatFormat | None = None
) -> ExportedTokenizer:
    """Returns the files that transformers loads a tokenizer from, and ids for generation.

    Args:
        chat_format: The format of the conversations that a model is trained on, if there are any.
    """
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
    stops = ()
    if chat_format is not None:
        files[CHAT_TEMPLATE] = chat_format.jinja().encode()
        stops = (tokenizer.stop_token(chat_format.stop),)
    return ExportedTokenizer(files, **ids, suppressed=tokenizer.not_text, stops=stops)


def export_text_tokenizer(
    tokenizer: Tokenizer, *, max_length: int, padding_token: int | None = None
) -> ExportedTokenizer:
    """Returns a tokenizer for the text tower of a CLIP: bos, text, eos, then padding.

    Args:
        max_length: Number of positions of the text tower.
        padding_token: Id that fills rows; None is eos, as in CLIP.
    """
    pad = tokenizer.eos if padding_token is None else padding_token
    length = {"model_max_length": max_length, "padding_side": "right"}
    if isinstance(tokenizer, CLIPTokenizer):
        config = {"tokenizer_class": CLIPTokenizer.__name__, **length}
        files = {**tokenizer.hugging_face_files(), CONFIG_FILE: _json(config)}
        return ExportedTokenizer(files, tokenizer.bos, tokenizer.eos, pad, suppressed=())
    exported = export_tokenizer(tokenizer)
    path = tokenizer_path(tokenizer.config)
    if isinstance(tokenizer, HFTokenizer):
        library = load_tokenizer(path)
        ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": pad}
        tokens = {name: library.id_to_token(i) for name, i in ids.items()}
        if missing := [ids[name] for name, token in tokens.items() if token is None]:
            raise ValueError(f"{path}: has no token with the id {missing[0]}, which fills rows")
        content = read_json_object(path)
        content["post_processor"] = _begin_and_end(*((tokens[k], ids[k]) for k in ("bos", "eos")))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{f"{name}_token": token for name, token in tokens.items()},
            **length,
        }
        files = {JSON: json.dumps(content, ensure_ascii=False).encode(), CONFIG_FILE: _json(config)}
    else:
        model: Any = tokenizer.sentencepiece
        files = dict(without_code(exported, has_images=False).files)
        config = json.loads(files[CONFIG_FILE])
        config |= {"add_eos_token": True, "pad_token": model.id_to_piece(pad), **length}
        files[CONFIG_FILE] = _json(config)
    return exported._replace(files=files, pad=pad)


def _begin_and_end(bos: tuple[str, int], eos: tuple[str, int]) -> dict[str, Any]:
    """Returns the part of a tokenizer.json that puts a text between bos and eos."""

    def special(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    def text(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    begin, end = special(bos[0]), special(eos[0])
    return {
        "type": "TemplateProcessing",
        "single": [begin, text("A"), end],
        "pair": [begin, text("A"), end, begin, text("B"), end],
        "special_tokens": {
            token: {"id": token, "ids": [i], "tokens": [token]} for token, i in (bos, eos)
        },
    }


def stored_tokenizer(stored: StoredParams, folder: Path) -> Tokenizer | None:
    """Returns the tokenizer in a folder of weights; None without one."""
    described = (stored.description or {}).get("tokenizer")
    if described is None:
        return None
    if described["class"] == Tokenizer.__name__:
        cfg = Tokenizer.default_config()
    elif described["class"] == CLIPTokenizer.__name__:
        cfg = CLIPTokenizer.default_config().set(num_pieces=None)
    else:
        cfg = HFTokenizer.default_config().set(min_vocab_size=described["vocab_size"])
    return cfg.set(model_path=str(folder / described["file"])).instantiate()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()

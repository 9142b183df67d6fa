"""Exemplars that are similar to the query (RICES: Alayrac et al. 2022, appendix; Yang et al. 2022).

The exemplars are the support records whose pictures are most similar to the query's. The most
similar one comes last, next to the query, as in OpenFlamingo (`eval/rices.py`). Similarity is the
cosine of features: the output of the model's own vision encoder, averaged over patches, or vectors
that a file holds for each record.

n records   U different pictures   E features of a text   Dv features of a picture
"""

import functools
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from mm1_jax.batch import Document, Image, Text
from mm1_jax.config import Configurable, config_class
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.field_types import PositiveInt, Share
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.sharding import Placement, constrain, current_placement

# Decimals of similarities that count, so that rounding errors do not decide between equal records.
_DECIMALS = 5
_TEXT_LENGTH = 32
_FILE_ARRAYS = ("support_ids", "support", "query_ids", "query")


@dataclass(frozen=True)
class Features:
    """Features of the queries, or of the support, the records that exemplars come from.

    Attributes:
        vectors: Unit vectors of the different pictures.
        rows: Row of `vectors` for each record; -1 without a picture that can be decoded.
        texts: Unit vectors, or zeros, of the texts of the records; None if texts do not count.
    """

    vectors: Float32[np.ndarray, "U Dv"]
    rows: Int[np.ndarray, "n"]
    texts: Float32[np.ndarray, "n E"] | None = None

    def similarity(self, query: "Features", place: int, text_weight: float) -> np.ndarray:
        """Returns the similarity of each record to the query at `place`; 0 without features."""
        total = np.zeros(len(self.rows), np.float32)
        if query.rows[place] >= 0 and len(self.vectors):
            cosines = self.vectors @ query.vectors[query.rows[place]]
            total += (1 - text_weight) * np.where(self.rows >= 0, cosines[self.rows], 0.0)
        if self.texts is not None and query.texts is not None:
            total += text_weight * (self.texts @ query.texts[place])
        return total


class ComparedRecords(NamedTuple):
    """The queries, or the support, by index.

    Attributes:
        keys: The ids of the records, as in a features file.
        document: Returns the pictures and the text of a record, without its answer.
    """

    keys: Sequence[str]
    document: Callable[[int], Document]


class SimilarExemplars(Configurable):
    """Chooses the exemplars most similar to the query; the first of equals."""

    @config_class
    class Config(Configurable.Config):
        # Weight of the similarity of texts, 0 to 1, against that of pictures. The features of a
        # text are the mean of its token embeddings in the decoder.
        text_weight: Share = 0.0
        # An .npz file with a vector per record in `support` and `query`, and the ids of the records
        # in `support_ids` and `query_ids`; None uses the model's own vision encoder.
        features_file: str | None = None
        # Pictures or texts per batch of features, independent of the benchmark's `batch_size`.
        batch_size: PositiveInt = 32

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.features_file is not None and cfg.text_weight:
            raise ValueError(
                f"exemplars.features_file={cfg.features_file!r} and text_weight={cfg.text_weight}: "
                "set only one of them; the vectors of the file may include features of texts"
            )

    def features(
        self,
        model: MM1,
        queries: ComparedRecords,
        support: ComparedRecords,
        *,
        pixels: Callable[[Image], UInt8[np.ndarray, "s s 3"] | None],
        tokenizer: Tokenizer | None = None,
    ) -> tuple[Features, Features]:
        """Computes the features of queries and support.

        Args:
            pixels: Returns a picture as the model sees it, or None if it cannot be decoded.
            tokenizer: Tokenizer of the texts; used if `text_weight` is not 0.

        Raises:
            ValueError: The model has no vision encoder, or the file lacks a record.
        """
        cfg = self._config
        if cfg.features_file is not None:
            return features_in_file(Path(cfg.features_file), queries.keys, support.keys)
        if model.vision_encoder is None:
            raise ValueError(
                "exemplars: the model has no vision encoder to compare pictures with; set "
                "exemplars.features_file, or exemplars=None for random ones"
            )
        found = [
            _features(model, side, pixels, tokenizer if cfg.text_weight else None, cfg.batch_size)
            for side in (queries, support)
        ]
        return found[0], found[1]

    def choose(
        self,
        queries: Features,
        support: Features,
        place: int,
        count: int,
        exclude: int | None = None,
    ) -> list[int]:
        """Returns the `count` support records most similar to the query at `place`, in order.

        The most similar one is last.

        Args:
            exclude: A record that is never chosen, such as the query itself.
        """
        similarity = support.similarity(queries, place, self._config.text_weight)
        # A stable sort keeps equal records in order.
        order = np.argsort(-np.round(similarity, _DECIMALS), kind="stable")
        nearest = [int(i) for i in order[: count + (exclude is not None)] if i != exclude]
        return nearest[:count][::-1]


def features_in_file(
    path: Path, query_keys: Sequence[str], support_keys: Sequence[str]
) -> tuple[Features, Features]:
    """Reads the features of records by id. Raises ValueError if the file lacks one."""
    try:
        # Given a path, numpy leaves a file open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in _FILE_ARRAYS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"exemplars.features_file={str(path)!r}: expected an .npz with the arrays "
            f"{', '.join(_FILE_ARRAYS)} ({error})"
        ) from error
    sides = []
    for side, keys in (("query", query_keys), ("support", support_keys)):
        ids, vectors = arrays[f"{side}_ids"], arrays[side]
        if vectors.ndim != 2 or len(ids) != len(vectors) or not np.all(np.isfinite(vectors)):
            raise ValueError(
                f"{path}: {side} must have a finite vector for each of {side}_ids; got the shapes "
                f"{vectors.shape} and {ids.shape}"
            )
        rows = {str(key): row for row, key in enumerate(ids.tolist())}
        if lacking := [key for key in keys if key not in rows]:
            raise ValueError(
                f"{path}: {side}_ids lack {len(lacking)} of {len(keys)} records, the first "
                f"{lacking[0]!r}"
            )
        sides.append(
            Features(_numpy_unit_vectors(vectors), np.array([rows[key] for key in keys], np.int64))
        )
    if sides[0].vectors.shape[1] != sides[1].vectors.shape[1]:
        raise ValueError(f"{path}: vectors of query and support differ in length")
    return sides[0], sides[1]


def write_features(
    path: Path, queries: Features, support: Features, about: Mapping[str, Any]
) -> None:
    """Writes features to a cache, with `about`, which identifies them."""
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about, sort_keys=True))}
    for side, features in (("queries", queries), ("support", support)):
        arrays |= {f"{side}_vectors": features.vectors, f"{side}_rows": features.rows}
        if features.texts is not None:
            arrays[f"{side}_texts"] = features.texts
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file gets its name once it is complete.
    half = path.with_suffix(".half.npz")
    with half.open("wb") as file:
        np.savez(file, **arrays)
    half.replace(path)


def read_features(path: Path, about: Mapping[str, Any]) -> tuple[Features, Features] | None:
    """Reads features from a cache; None if `about` differs or the file is unreadable."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        if str(arrays["about"]) != json.dumps(about, sort_keys=True):
            return None
        sides = [
            Features(arrays[f"{side}_vectors"], arrays[f"{side}_rows"], arrays.get(f"{side}_texts"))
            for side in ("queries", "support")
        ]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return sides[0], sides[1]


def _features(
    model: MM1,
    side: ComparedRecords,
    pixels: Callable[[Image], UInt8[np.ndarray, "s s 3"] | None],
    tokenizer: Tokenizer | None,
    batch_size: int,
) -> Features:
    """Computes the features of all records; a picture of several records is encoded once."""
    numbers: dict[Any, int] = {}
    rows = np.full(len(side.keys), -1, np.int64)
    vectors: list[np.ndarray] = []
    texts: list[np.ndarray] = []
    waiting_pixels: list[np.ndarray] = []
    waiting_tokens: list[list[int]] = []

    def flush_pixels() -> None:
        if waiting_pixels:
            vectors.append(_batched(functools.partial(_pooled, model), waiting_pixels, batch_size))
            waiting_pixels.clear()

    def flush_tokens() -> None:
        if waiting_tokens:
            texts.append(_text_features(model, waiting_tokens, batch_size))
            waiting_tokens.clear()

    for place in range(len(side.keys)):
        document = side.document(place)
        if document.images:
            # Only the first picture counts.
            image = document.images[0]
            name = getattr(image.data, "path", None) or (place,)
            if name not in numbers:
                shown = pixels(image)
                numbers[name] = -1 if shown is None else len(vectors) * batch_size
                if shown is not None:
                    numbers[name] += len(waiting_pixels)
                    waiting_pixels.append(shown)
            rows[place] = numbers[name]
            if len(waiting_pixels) == batch_size:
                flush_pixels()
        if tokenizer is not None:
            asked = " ".join(part.text for part in document.segments if isinstance(part, Text))
            waiting_tokens.append(tokenizer.encode(asked)[:_TEXT_LENGTH])
            if len(waiting_tokens) == batch_size:
                flush_tokens()
    flush_pixels()
    flush_tokens()
    return Features(
        np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32),
        rows,
        np.concatenate(texts) if tokenizer is not None else None,
    )


def _batched(
    function: Callable[..., Array], examples: Sequence[np.ndarray], batch_size: int
) -> np.ndarray:
    """Applies `function` to a batch filled up with zeros, so that it compiles once."""
    filled = np.zeros((batch_size, *examples[0].shape), examples[0].dtype)
    filled[: len(examples)] = examples
    return np.asarray(function(filled, placement=current_placement()))[: len(examples)]


def _text_features(model: MM1, tokens: Sequence[list[int]], batch_size: int) -> np.ndarray:
    rows = np.full((len(tokens), _TEXT_LENGTH), -1, np.int32)
    for row, ids in zip(rows, tokens, strict=True):
        row[: len(ids)] = ids
    return _batched(functools.partial(_embedded, model), [*rows], batch_size)


# `placement` only belongs to the cache key of jit: activations are placed while tracing.
@functools.partial(jax.jit, static_argnames=("placement",))
def _pooled(
    model: MM1, images: UInt8[Array, "J h w 3"], *, placement: Placement | None
) -> Float[Array, "J Dv"]:
    """Returns the mean of each picture's patch features, as unit vectors that are replicated."""
    encoder = model.cast().vision_encoder
    assert encoder is not None
    features = encoder(constrain(images, "images", None, None, None)).astype(jnp.float32)
    return constrain(_unit_vectors(jnp.mean(features, axis=1)), None, None)


@functools.partial(jax.jit, static_argnames=("placement",))
def _embedded(
    model: MM1, tokens: Int[Array, "B T"], *, placement: Placement | None
) -> Float[Array, "B D"]:
    """Returns the mean token embedding of each row, as unit vectors or zeros.

    Args:
        tokens: Token ids, padded with -1.
    """
    is_token: Bool[Array, "B T"] = tokens >= 0
    embeddings = model.cast().decoder.embed(jnp.maximum(tokens, 0)).astype(jnp.float32)
    total = jnp.sum(jnp.where(is_token[..., None], embeddings, 0.0), axis=1)
    return constrain(_unit_vectors(total), None, None)


def _unit_vectors(vectors: Float[Array, "B D"]) -> Float[Array, "B D"]:
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(length, 1e-12)


def _numpy_unit_vectors(vectors: np.ndarray) -> Float32[np.ndarray, "n D"]:
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

"""Features of pictures and texts, in batches that are shared between processes and devices.

Each process decodes the pictures of its own devices, and every process gets all features. Pictures
of the next batch are decoded while the devices compute.

J images   E features   B texts   T tokens
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from mm1_jax.batch import Image
from mm1_jax.data.images import BadImage
from mm1_jax.data.pairs import text_tokens
from mm1_jax.evals.encoders.pictures import Preprocessing
from mm1_jax.multihost import distributed
from mm1_jax.parallel.sharding import Placement, constrain, current_placement, dividing_spec

_THREADS = 8
_MOST_SHOWN = 3


class ImageTextModel(Protocol):
    """A model of zero-shot classification and retrieval, such as CLIP."""

    def encode_image(self, images: UInt8[Array, "J h w 3"]) -> Float[Array, "J E"]: ...

    def encode_text(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
    ) -> Float[Array, "B E"]: ...


# (model, images, placement=...) -> features of each image, replicated
ImageFeatures = Callable[..., Array]


class PictureFeatures:
    """Applies a function to pictures, a batch at a time.

    Attributes:
        bad: Indices of pictures that could not be decoded, once all features are computed.
    """

    def __init__(
        self,
        pictures: Sequence[Image],
        preprocessing: Preprocessing,
        *,
        image_size: int,
        batch_size: int,
        allow_bad: bool = False,
    ):
        """Initializes the features; nothing is read yet.

        Args:
            allow_bad: Shows black pixels for a picture that cannot be decoded; otherwise it is an
                error.
        """
        self._pictures, self._preprocessing = pictures, preprocessing
        self._size, self._batch_size, self._allow_bad = image_size, batch_size, allow_bad
        self._bad: dict[int, str] = {}

    def all(self, function: ImageFeatures, model: Any) -> Float32[np.ndarray, "n ..."]:
        """Returns the features of all pictures."""
        found, waiting = [], None
        everything = np.arange(len(self._pictures))
        for images, own in self.image_batches(everything, self._batch_size):
            features = function(model, images, placement=current_placement())
            if waiting is not None:
                found.append(_read(*waiting))
            waiting = (features, len(own))
        if waiting is not None:
            found.append(_read(*waiting))
        return np.concatenate(found)

    def image_batches(
        self, indices: Int[np.ndarray, "n"], size: int
    ) -> Iterator[tuple[Any, Int[np.ndarray, "rows"]]]:
        """Yields batches of `size` pictures in the given order, with their indices.

        The last batch is filled up with black pictures.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(indices), size):
                own = indices[start : start + size]
                yield self._images(own, size, pool), own

    def bad(self) -> dict[int, str]:
        """Returns the reasons of pictures shown so far that could not be decoded, by index."""
        parts = distributed.exchange([[index, reason] for index, reason in self._bad.items()])
        return {index: reason for part in parts for index, reason in part}

    def _images(self, own: Int[np.ndarray, "rows"], size: int, pool: ThreadPoolExecutor) -> Any:
        """Returns a whole batch, whose rows after `own` are black."""
        placement = current_placement()
        shape = (size, self._size, self._size, 3)
        if placement is None:
            return self._decoded(own, range(size), pool)
        spec = dividing_spec(shape, ("images", None, None, None), placement)
        sharding = NamedSharding(placement.mesh, spec)
        places = sharding.addressable_devices_indices_map(shape).values()
        rows = [range(*place[0].indices(size)) for place in places if place is not None]
        first, last = min(each.start for each in rows), max(each.stop for each in rows)
        with distributed.together():
            pixels = self._decoded(own, range(first, last), pool)

        def shard(place: Any) -> np.ndarray:
            start, stop, _ = place[0].indices(size)
            return pixels[start - first : stop - first]

        return jax.make_array_from_callback(shape, sharding, shard)

    def _decoded(
        self, own: Int[np.ndarray, "present"], rows: range, pool: ThreadPoolExecutor
    ) -> UInt8[np.ndarray, "rows s s 3"]:
        pixels = np.zeros((len(rows), self._size, self._size, 3), np.uint8)
        present = [row for row in rows if row < len(own)]
        decoded = pool.map(lambda row: self._pixels(int(own[row])), present)
        for row, picture in zip(present, decoded, strict=True):
            if picture is not None:
                pixels[row - rows.start] = picture
        return pixels

    def _pixels(self, index: int) -> np.ndarray | None:
        picture = self._pictures[index]
        try:
            return self._preprocessing(picture, self._size)
        except BadImage as error:
            where = str(picture.data) if callable(picture.data) else f"picture {index}"
            if not self._allow_bad:
                raise ValueError(
                    f"{where}: cannot be decoded ({error}); replace the file, or set "
                    "allow_bad_pictures=True (--allow_bad_pictures) to leave such pictures out"
                ) from error
            self._bad[index] = f"{where}: {error}"
            return None


def without_bad(name: str, features: PictureFeatures, number: int) -> Bool[np.ndarray, "n"]:
    """Returns which of the pictures were decoded, and warns of the others."""
    bad = features.bad()
    if bad:
        shown = "; ".join([*bad.values()][:_MOST_SHOWN])
        logging.warning("%s: %d pictures cannot be decoded, such as %s", name, len(bad), shown)
    return np.array([index not in bad for index in range(number)])


def _read(features: Array, number: int) -> np.ndarray:
    """Waits for the features of a batch, without those of the rows that fill it up."""
    return np.asarray(features, np.float32)[:number]


# `placement` only belongs to the cache key of jit: activations are placed while tracing.
@functools.partial(jax.jit, static_argnames=("placement",))
def image_vectors(
    model: Any, images: UInt8[Array, "J h w 3"], *, placement: Placement | None
) -> Float[Array, "J E"]:
    """Returns the vectors of images that are compared with texts."""
    vectors = model.encode_image(constrain(images, "images", None, None, None))
    return constrain(vectors.astype(jnp.float32), None, None)


@functools.partial(jax.jit, static_argnames=("placement",))
def _text_vectors(
    model: Any, tokens: Int[Array, "B T"], lengths: Int[Array, "B"], *, placement: Placement | None
) -> Float[Array, "B E"]:
    vectors = model.encode_text(constrain(tokens, "batch", None), constrain(lengths, "batch"))
    return constrain(vectors.astype(jnp.float32), None, None)


@dataclass(frozen=True)
class TextEncoder:
    """Tokenizes texts as training does, and encodes them.

    Attributes:
        length: Tokens per text, with bos and eos; longer texts are cut.
    """

    tokenizer: Any
    length: int
    batch_size: int

    def __call__(self, model: Any, texts: Sequence[str]) -> Float32[np.ndarray, "n E"]:
        found = []
        for start in range(0, len(texts), self.batch_size):
            tokens, lengths = self._tokens(texts[start : start + self.batch_size])
            found.append(_text_vectors(model, tokens, lengths, placement=current_placement()))
        return np.concatenate([np.asarray(each) for each in found])[: len(texts)]

    def _tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.zeros((self.batch_size, self.length), np.int32)
        lengths = np.ones(self.batch_size, np.int32)
        for row, text in enumerate(texts):
            ids = text_tokens(self.tokenizer, text, self.length)
            tokens[row, : len(ids)] = ids
            lengths[row] = len(ids)
        return tokens, lengths

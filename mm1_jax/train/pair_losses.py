"""Losses over all pairs of a batch of pictures and captions, whose logits are never all held.

The softmax loss (CLIP, arXiv 2103.00020) is the mean cross entropy of finding the caption of a
picture among all captions, and the picture of a caption among all pictures. The sigmoid loss
(SigLIP, arXiv 2303.15343) is the sum of the binary cross entropies of a picture with all captions.

On a mesh, each device compares its own pictures with the captions of all devices, which it gathers
or which travel around a ring. The pictures stay where they are, so that each logit is computed
once; the softmax over the pictures of a caption adds up the parts of all devices. The backward pass
computes the logits again, chunk by chunk. Besides b x c logits, a device holds

    Exchange.ALL_GATHER    the B captions, with their gradients in the backward pass
    Exchange.RING          the captions of two devices, likewise

Negatives are those of the whole batch, for any mesh, exchange and chunk.

Legend: B rows of the batch, b rows of a device, c captions of a chunk, Dc dim of the features.
"""

import abc
import contextlib
import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from mm1_jax.parallel.sharding import (
    Placement,
    current_placement,
    per_shard,
    shard_axes,
    use_mesh,
)

# Below any logit, and finite, so that the difference of two is no NaN.
_LOWEST = -1e30

# Products in bfloat16, the default on TPUs, would round logits of 100 to multiples of 0.5. Those of
# features are less than a hundredth of the work of the towers.
_PRECISION = jax.lax.Precision.HIGHEST


class Exchange(enum.Enum):
    """Way of captions to the pictures of other devices.

    ALL_GATHER is one collective, and each device then holds the captions of the batch. RING passes
    captions on from device to device, in as many turns as there are devices.
    """

    ALL_GATHER = "all_gather"
    RING = "ring"


class PairLosses(NamedTuple):
    """Loss of each row, and whether its pair has a larger logit than all candidates.

    Attributes:
        losses: Their mean over the rows is the loss of the batch.
        finds_text: Whether the picture finds its caption among all captions.
        finds_image: Whether the caption finds its picture among all pictures.
    """

    losses: Float[Array, "B"]
    finds_text: Bool[Array, "B"]
    finds_image: Bool[Array, "B"]


class Negatives(NamedTuple):
    """Largest logit of a row's negatives, and the sum of their terms (see `PairRule.terms`)."""

    largest: Float[Array, "b"]
    total: Float[Array, "b"]


class Side(NamedTuple):
    """Pictures or captions, with what tells which pairs are negatives.

    Attributes:
        index: Place in the batch.
        is_real: False for empty rows, which belong to no pair.
        text_ids: Hash of the caption; pairs with equal ones are no negatives.
    """

    features: Float[Array, "b Dc"]
    index: Int[Array, "b"]
    is_real: Bool[Array, "b"]
    text_ids: UInt32[Array, "b 2"]


class PairRule(abc.ABC):
    """Loss of a row as a function of its positive logit and its negatives, and its derivatives."""

    @staticmethod
    @abc.abstractmethod
    def terms(logits: Array, largest: Array) -> Array:
        """Returns the summand of each negative, relative to the largest logit."""

    @staticmethod
    @abc.abstractmethod
    def rescaled(total: Array, old: Array, new: Array) -> Array:
        """Converts a sum of terms relative to `old` into one relative to `new`."""

    @staticmethod
    @abc.abstractmethod
    def losses(positive: Array, of_image: Negatives, of_text: Negatives) -> Array:
        """Returns the loss of each row."""

    @staticmethod
    @abc.abstractmethod
    def normalizer(positive: Array, negatives: Negatives) -> Array:
        """Returns what the backward pass needs of the sum over candidates."""

    @staticmethod
    @abc.abstractmethod
    def negative_slopes(
        logits: Array, image: tuple[Array, Array], text: tuple[Array, Array]
    ) -> Array:
        """Returns the derivatives by the logits, if they are those of negatives.

        Args:
            image: Normalizers of the pictures, and the derivatives by their rows' losses.
            text: Likewise of the captions.
        """

    @staticmethod
    @abc.abstractmethod
    def positive_slopes(positive: Array, image: Array, text: Array) -> Array:
        """Returns the derivatives of the rows' losses by their positive logits.

        Args:
            image: Normalizers of the pictures.
            text: Normalizers of the captions.
        """


class Softmax(PairRule):
    """Half of the cross entropy among all captions, and half of that among all pictures."""

    @staticmethod
    def terms(logits: Array, largest: Array) -> Array:
        return jnp.exp(logits - largest)

    @staticmethod
    def rescaled(total: Array, old: Array, new: Array) -> Array:
        return total * jnp.exp(old - new)

    @staticmethod
    def losses(positive: Array, of_image: Negatives, of_text: Negatives) -> Array:
        image, text = Softmax.normalizer(positive, of_image), Softmax.normalizer(positive, of_text)
        return (image + text) / 2 - positive

    @staticmethod
    def normalizer(positive: Array, negatives: Negatives) -> Array:
        return jnp.logaddexp(positive, negatives.largest + jnp.log(negatives.total))

    @staticmethod
    def negative_slopes(
        logits: Array, image: tuple[Array, Array], text: tuple[Array, Array]
    ) -> Array:
        of_image = jnp.exp(logits - image[0][:, None]) * image[1][:, None]
        of_text = jnp.exp(logits - text[0][None]) * text[1][None]
        return (of_image + of_text) / 2

    @staticmethod
    def positive_slopes(positive: Array, image: Array, text: Array) -> Array:
        return (jnp.exp(positive - image) + jnp.exp(positive - text)) / 2 - 1


class Sigmoid(PairRule):
    """Sum over all captions of the binary cross entropy that they belong to the picture."""

    @staticmethod
    def terms(logits: Array, largest: Array) -> Array:
        return jax.nn.softplus(logits)

    @staticmethod
    def rescaled(total: Array, old: Array, new: Array) -> Array:
        return total

    @staticmethod
    def losses(positive: Array, of_image: Negatives, of_text: Negatives) -> Array:
        return jax.nn.softplus(-positive) + of_image.total

    @staticmethod
    def normalizer(positive: Array, negatives: Negatives) -> Array:
        return jnp.zeros_like(positive)

    @staticmethod
    def negative_slopes(
        logits: Array, image: tuple[Array, Array], text: tuple[Array, Array]
    ) -> Array:
        return jax.nn.sigmoid(logits) * image[1][:, None]

    @staticmethod
    def positive_slopes(positive: Array, image: Array, text: Array) -> Array:
        return -jax.nn.sigmoid(-positive)


@dataclass(frozen=True)
class Comparison:
    """Static options of `pair_losses`.

    Attributes:
        chunk_size: Number of captions with which a device compares its pictures at a time; None
            is all that it holds.
        masks_equal_texts: Whether a picture has no negatives among captions equal to its own.
    """

    rule: type[PairRule]
    exchange: Exchange = Exchange.ALL_GATHER
    chunk_size: int | None = None
    masks_equal_texts: bool = False


def pair_losses(
    comparison: Comparison,
    images: Float[Array, "B Dc"],
    texts: Float[Array, "B Dc"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    is_real: Bool[Array, "B"],
    text_ids: UInt32[Array, "B 2"],
) -> PairLosses:
    """Compares every picture with every caption.

    The logit of a pair is scale x dot product + bias. Row i of `images` belongs to row i of
    `texts`; empty rows have a loss of 0 and are no negatives.

    Raises:
        ValueError: `chunk_size` does not divide the captions that a device holds.
    """
    args = (images, texts, scale, bias, is_real, text_ids)
    return _pair_losses((comparison, current_placement()), *args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pair_losses(options: tuple[Comparison, Placement | None], *args: Array) -> PairLosses:
    return _run_forward(options, *args)[0]


def _run_forward(
    options: tuple[Comparison, Placement | None], *args: Array
) -> tuple[PairLosses, Any]:
    row = ("batch",)
    names = ((*row, None), (*row, None), (), (), row, (*row, None))
    losses, finds_text, finds_image, *normalizers = _run(_forward, options, names, (row,) * 5, args)
    return PairLosses(losses, finds_text, finds_image), (*args, *normalizers)


def _run_backward(
    options: tuple[Comparison, Placement | None], residuals: Any, slopes: PairLosses
) -> tuple:
    row = ("batch",)
    names = ((*row, None), (*row, None), (), (), row, (*row, None), row, row, row)
    out_names = ((*row, None), (*row, None), (), ())
    args = (*residuals, slopes.losses)
    return (*_run(_backward, options, names, out_names, args), None, None)


_pair_losses.defvjp(_run_forward, _run_backward)


def _run(function: Any, options: Any, names: Any, out_names: Any, args: Any) -> Any:
    comparison, placement = options
    # JAX may trace the backward pass outside of the caller's `use_mesh`.
    with (
        contextlib.nullcontext() if placement is None else use_mesh(placement.mesh, placement.rules)
    ):
        run = functools.partial(function, comparison)
        return per_shard(run, names, out_names, along=("batch",))(*args)


def _forward(
    comparison: Comparison,
    images: Float[Array, "b Dc"],
    texts: Float[Array, "b Dc"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    is_real: Bool[Array, "b"],
    text_ids: UInt32[Array, "b 2"],
) -> tuple[Array, ...]:
    """Computes a device's rows of `PairLosses`, and normalizers for the backward pass."""
    rule = comparison.rule
    rows, columns = _sides(images, texts, is_real, text_ids)
    positive = scale * _dots(images, texts) + bias

    def merge(first: Negatives, second: Negatives) -> Negatives:
        largest = jnp.maximum(first.largest, second.largest)
        parts = (rule.rescaled(each.total, each.largest, largest) for each in (first, second))
        return Negatives(largest, sum(parts, start=jnp.zeros_like(largest)))

    def negatives(logits: Array, is_negative: Array, axis: int) -> Negatives:
        largest = jnp.max(jnp.where(is_negative, logits, _LOWEST), axis=axis)
        terms = rule.terms(logits, jnp.expand_dims(largest, axis))
        return Negatives(largest, jnp.sum(jnp.where(is_negative, terms, 0.0), axis=axis))

    def visit(of_image: Negatives, chunk: Side) -> tuple[Negatives, Negatives]:
        logits = scale * _products(rows.features, chunk.features) + bias
        is_negative = _is_negative(comparison, rows, chunk)
        of_image = merge(of_image, negatives(logits, is_negative, 1))
        return of_image, negatives(logits, is_negative, 0)

    def reduce(of_text: Negatives, axes: tuple[str, ...]) -> Negatives:
        largest = jax.lax.pmax(of_text.largest, axes)
        total = rule.rescaled(of_text.total, of_text.largest, largest)
        total = jax.lax.psum_scatter(total, axes, tiled=True)
        start = jax.lax.axis_index(axes) * len(positive)
        return Negatives(jax.lax.dynamic_slice_in_dim(largest, start, len(positive)), total)

    none = Negatives(jnp.full_like(positive, _LOWEST), jnp.zeros_like(positive))
    of_image, of_text = _visit_texts(comparison, visit, none, columns, none, merge, reduce)
    losses = jnp.where(is_real, rule.losses(positive, of_image, of_text), 0.0)
    finds_text, finds_image = (is_real & (positive > x.largest) for x in (of_image, of_text))
    normalizers = (rule.normalizer(positive, x) for x in (of_image, of_text))
    return losses, finds_text, finds_image, *normalizers


def _backward(
    comparison: Comparison,
    images: Float[Array, "b Dc"],
    texts: Float[Array, "b Dc"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    is_real: Bool[Array, "b"],
    text_ids: UInt32[Array, "b 2"],
    of_image: Float[Array, "b"],
    of_text: Float[Array, "b"],
    slopes: Float[Array, "b"],
) -> tuple[Array, ...]:
    """Computes the gradients of a device's features, and of scale and bias.

    Args:
        of_image, of_text: Normalizers of pictures and captions.
        slopes: Derivatives by the losses of the rows.
    """
    rule = comparison.rule
    slopes = jnp.where(is_real, slopes, 0.0)
    rows, columns = _sides(images, texts, is_real, text_ids)
    dots = _dots(images, texts)
    slope = slopes * rule.positive_slopes(scale * dots + bias, of_image, of_text)
    own = (scale * slope)[:, None]
    gradient = (own * texts, jnp.sum(slope * dots), jnp.sum(slope))

    def visit(gradient: Any, chunk: Any) -> tuple[Any, Array]:
        texts, of_text, text_slopes = chunk
        dots = _products(rows.features, texts.features)
        slope = rule.negative_slopes(
            scale * dots + bias, (of_image, slopes), (of_text, text_slopes)
        )
        slope = jnp.where(_is_negative(comparison, rows, texts), slope, 0.0)
        of_rows = jnp.einsum("bc,cd->bd", scale * slope, texts.features, precision=_PRECISION)
        of_texts = jnp.einsum("bc,bd->cd", scale * slope, rows.features, precision=_PRECISION)
        of_scale_and_bias = (jnp.sum(slope * dots), jnp.sum(slope))
        return jax.tree.map(jnp.add, gradient, (of_rows, *of_scale_and_bias)), of_texts

    def reduce(of_texts: Array, axes: tuple[str, ...]) -> Array:
        return jax.lax.psum_scatter(of_texts, axes, tiled=True)

    (of_images, *sums), of_texts = _visit_texts(
        comparison,
        visit,
        gradient,
        (columns, of_text, slopes),
        jnp.zeros_like(texts),
        jnp.add,
        reduce,
    )
    axes = shard_axes("batch")
    of_scale, of_bias = jax.lax.psum(sums, axes) if axes else sums
    return of_images, of_texts + own * images, of_scale, of_bias


def _visit_texts(
    comparison: Comparison,
    visit: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    texts: Any,
    none: Any,
    merge: Callable[[Any, Any], Any],
    reduce: Callable[[Any, tuple[str, ...]], Any],
) -> tuple[Any, Any]:
    """Shows the captions of all devices to this device's pictures, a chunk at a time.

    Args:
        visit: Function (carry, captions) -> (carry, result per caption).
        texts: This device's captions, a tree of arrays with a leading dim.
        none: Result of no pictures for these captions.
        merge: Combines the results of two groups of pictures for the same captions.
        reduce: Function (results for all captions, mesh axes) -> the results of all devices
            combined, for the captions of this device.

    Returns:
        The last carry, and the results of the pictures of all devices for `texts`.
    """
    axes = shard_axes("batch")
    if not axes:
        return _visit_chunks(comparison, visit, carry, texts)
    if comparison.exchange is Exchange.ALL_GATHER:
        texts = jax.lax.all_gather(texts, axes, tiled=True)
        carry, results = _visit_chunks(comparison, visit, carry, texts)
        return carry, reduce(results, axes)
    size = jax.lax.axis_size(axes)
    to_next = [(i, (i + 1) % size) for i in range(size)]

    def turn(_: Any, state: Any) -> Any:
        carry, texts, results = state
        carry, found = _visit_chunks(comparison, visit, carry, texts)
        return carry, *jax.lax.ppermute((texts, merge(results, found)), axes, to_next)

    # After the last turn, captions and results are back on the device that they belong to.
    carry, _, results = jax.lax.fori_loop(0, size, turn, (carry, texts, none))
    return carry, results


def _visit_chunks(comparison: Comparison, visit: Any, carry: Any, texts: Any) -> tuple[Any, Any]:
    number, size = len(jax.tree.leaves(texts)[0]), comparison.chunk_size
    if size is None or size >= number:
        return visit(carry, texts)
    if number % size:
        raise ValueError(
            f"loss.chunk_size={size}: must divide the {number} captions that a device holds at a "
            f"time (exchange {comparison.exchange.value!r})"
        )
    chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), texts)
    carry, results = jax.lax.scan(visit, carry, chunks)
    return carry, jax.tree.map(lambda x: x.reshape(number, *x.shape[2:]), results)


def _sides(
    images: Float[Array, "b Dc"],
    texts: Float[Array, "b Dc"],
    is_real: Bool[Array, "b"],
    text_ids: UInt32[Array, "b 2"],
) -> tuple[Side, Side]:
    axes = shard_axes("batch")
    start = jax.lax.axis_index(axes) * len(images) if axes else 0
    index = start + jnp.arange(len(images))
    return Side(images, index, is_real, text_ids), Side(texts, index, is_real, text_ids)


def _is_negative(comparison: Comparison, images: Side, texts: Side) -> Bool[Array, "b c"]:
    is_negative = images.index[:, None] != texts.index[None]
    is_negative &= images.is_real[:, None] & texts.is_real[None]
    if comparison.masks_equal_texts:
        is_negative &= jnp.any(images.text_ids[:, None] != texts.text_ids[None], axis=-1)
    return is_negative


def _dots(images: Float[Array, "b Dc"], texts: Float[Array, "b Dc"]) -> Float[Array, "b"]:
    return jnp.sum(images * texts, axis=-1)


def _products(images: Float[Array, "b Dc"], texts: Float[Array, "c Dc"]) -> Float[Array, "b c"]:
    return jnp.einsum("bd,cd->bc", images, texts, precision=_PRECISION)

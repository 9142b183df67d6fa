"""Tensors of transformer blocks that the layouts of vision and text towers share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mm1_jax.config import InstantiableConfig
from mm1_jax.interop.mapping import Entry, Piece, Slice, joined
from mm1_jax.layers.attention import head_sizes
from mm1_jax.layers.feed_forward import GatedFeedForward
from mm1_jax.layers.norm import LayerNorm


class Sizes(NamedTuple):
    """Sizes and biases of the attention and feed-forward layers of a tower."""

    model_dim: int
    hidden_dim: int
    num_heads: int
    head_dim: int
    has_bias: bool
    feed_forward_has_bias: bool
    is_gated: bool

    @classmethod
    def of(cls, cfg: Any, layer: Any = None) -> "Sizes":
        """Returns those of a `VisionEncoder` or a `TextEncoder`.

        Args:
            layer: Config that holds attention and feed-forward layer; None is a block of the stack.
        """
        layer = cfg.stack.layer if layer is None else layer
        attention = layer.attention.clone(input_dim=cfg.model_dim, num_heads=cfg.num_heads)
        num_heads, _, head_dim = head_sizes(attention)
        return cls(
            cfg.model_dim,
            cfg.hidden_dim,
            num_heads,
            head_dim,
            attention.bias,
            layer.feed_forward.up.bias,
            isinstance(layer.feed_forward, GatedFeedForward.Config),
        )


def vector(place: Slice, theirs: str, ours: str, dim: int) -> Entry:
    return place.entry(theirs, ours, "d -> d", d=dim)


def norm(
    place: Slice, theirs: str, ours: str, cfg: InstantiableConfig | None, dim: int
) -> list[Entry]:
    """Returns the tensors of a LayerNorm or an RMSNorm; none without a norm."""
    if cfg is None:
        return []
    entries = [vector(place, f"{theirs}.weight", f"{ours}/scale", dim)]
    if isinstance(cfg, LayerNorm.Config):
        entries.append(vector(place, f"{theirs}.bias", f"{ours}/bias", dim))
    return entries


def attention(layer: Slice, theirs: str, output: str, sizes: Sizes) -> list[Entry]:
    """Returns the tensors of an attention layer with a matrix each for queries, keys and values.

    Args:
        output: Name of the output projection within it.
    """
    kernel, bias, lengths = _head_layouts(sizes)
    entries = []
    for name, ours in (("q", "query"), ("k", "key"), ("v", "value")):
        place = f"{theirs}.{name}_proj"
        path = f"attention/{ours}"
        entries.append(
            layer.entry(f"{place}.weight", f"{path}/kernel", kernel, d=sizes.model_dim, **lengths)
        )
        if sizes.has_bias:
            entries.append(layer.entry(f"{place}.bias", f"{path}/bias", bias, **lengths))
    return [*entries, *_output_projection(layer, f"{theirs}.{output}", sizes)]


def joined_attention(
    layer: Slice,
    theirs: str,
    output: str,
    sizes: Sizes,
    parts: Sequence[str] = ("query", "key", "value"),
) -> list[Entry]:
    """Returns the tensors of an attention layer with joined queries, keys and values.

    Args:
        theirs: Beginning of the names of the joined matrix and bias.
        output: Name of the output projection.
    """
    kernel, bias, lengths = _head_layouts(sizes)

    def pieces(name: str, layout: str, **more: int) -> list[Piece]:
        return [layer.piece(f"attention/{p}/{name}", layout, **lengths, **more) for p in parts]

    entries = [joined(f"{theirs}weight", pieces("kernel", kernel, d=sizes.model_dim))]
    if sizes.has_bias:
        entries.append(joined(f"{theirs}bias", pieces("bias", bias)))
    return [*entries, *_output_projection(layer, output, sizes)]


def _head_layouts(sizes: Sizes) -> tuple[str, str, dict[str, int]]:
    lengths = {"n": sizes.num_heads, "h": sizes.head_dim}
    return "(n h) d -> d n h", "(n h) -> n h", lengths


def _output_projection(layer: Slice, theirs: str, sizes: Sizes) -> list[Entry]:
    _, _, lengths = _head_layouts(sizes)
    dim, ours = sizes.model_dim, "attention/output"
    entries = [
        layer.entry(f"{theirs}.weight", f"{ours}/kernel", "d (n h) -> d n h", d=dim, **lengths)
    ]
    if sizes.has_bias:
        entries.append(vector(layer, f"{theirs}.bias", f"{ours}/bias", dim))
    return entries


def feed_forward(
    layer: Slice, up: str, down: str, sizes: Sizes, gate: str | None = None
) -> list[Entry]:
    """Returns the tensors of a feed-forward layer; `gate` names the gate of a gated one."""
    F, D, ours = sizes.hidden_dim, sizes.model_dim, "feed_forward"
    entries = []
    names = [("up", up)]
    if sizes.is_gated:
        assert gate is not None, up
        names = [("gate", gate), *names]
    for name, theirs in names:
        kernel = f"{ours}/{name}/kernel"
        entries.append(layer.entry(f"{theirs}.weight", kernel, "f d -> d f", f=F, d=D))
        if sizes.feed_forward_has_bias:
            entries.append(vector(layer, f"{theirs}.bias", f"{ours}/{name}/bias", F))
    entries.append(layer.entry(f"{down}.weight", f"{ours}/down/kernel", "d f -> d f", f=F, d=D))
    if sizes.feed_forward_has_bias:
        entries.append(vector(layer, f"{down}.bias", f"{ours}/down/bias", D))
    return entries


def literal(text: str) -> str:
    """Returns a pattern that matches exactly this text."""
    return text.replace(".", r"\.")

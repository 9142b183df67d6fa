"""Tensors of transformer blocks, in the names of Hugging Face's towers and of open_clip's."""

from typing import Any

from mm1_jax.interop.mapping import Entry, Slice, joined, stack_layers
from mm1_jax.layers.attention import head_sizes

_PARTS = ("query", "key", "value")


def norm(place: Slice, theirs: str, ours: str, dim: int) -> list[Entry]:
    return [
        place.entry(f"{theirs}.weight", f"{ours}/scale", "d -> d", d=dim),
        place.entry(f"{theirs}.bias", f"{ours}/bias", "d -> d", d=dim),
    ]


def hf_blocks(root: str, ours: str, cfg: Any) -> list[Entry]:
    """Returns the blocks of a tower's config, whose stack is at the path `ours`."""
    entries, dim = [], cfg.model_dim
    for i, layer in enumerate(stack_layers(ours, cfg.num_layers)):
        name = f"{root}encoder.layers.{i}"
        entries += norm(layer, f"{name}.layer_norm1", "attention_norm", dim)
        for theirs, part in zip("qkv", _PARTS, strict=True):
            entries += _heads(layer, f"{name}.self_attn.{theirs}_proj", f"attention/{part}", cfg)
        entries += output_projection(layer, f"{name}.self_attn.out_proj", cfg)
        entries += norm(layer, f"{name}.layer_norm2", "feed_forward_norm", dim)
        entries += feed_forward(layer, f"{name}.mlp.fc1", f"{name}.mlp.fc2", cfg)
    return entries


def open_clip_blocks(root: str, ours: str, cfg: Any) -> list[Entry]:
    """Returns the blocks of a tower of open_clip, with joined queries, keys and values."""
    entries, dim = [], cfg.model_dim
    for i, layer in enumerate(stack_layers(ours, cfg.num_layers)):
        name = f"{root}transformer.resblocks.{i}"
        entries += norm(layer, f"{name}.ln_1", "attention_norm", dim)
        entries += joined_heads(layer, f"{name}.attn.in_proj_", cfg)
        entries += output_projection(layer, f"{name}.attn.out_proj", cfg)
        entries += norm(layer, f"{name}.ln_2", "feed_forward_norm", dim)
        entries += feed_forward(layer, f"{name}.mlp.c_fc", f"{name}.mlp.c_proj", cfg)
    return entries


def _heads(layer: Slice, theirs: str, ours: str, cfg: Any) -> list[Entry]:
    kernel, bias, sizes = _head_layouts(cfg)
    entries = [layer.entry(f"{theirs}.weight", f"{ours}/kernel", kernel, d=cfg.model_dim, **sizes)]
    if cfg.stack.layer.attention.bias:
        entries.append(layer.entry(f"{theirs}.bias", f"{ours}/bias", bias, **sizes))
    return entries


def joined_heads(layer: Slice, theirs: str, cfg: Any) -> list[Entry]:
    """Returns queries, keys and values in one tensor, as in torch's MultiheadAttention."""
    kernel, bias, sizes = _head_layouts(cfg)
    kernels = [
        layer.piece(f"attention/{part}/kernel", kernel, d=cfg.model_dim, **sizes) for part in _PARTS
    ]
    entries = [joined(f"{theirs}weight", kernels)]
    if cfg.stack.layer.attention.bias:
        pieces = [layer.piece(f"attention/{part}/bias", bias, **sizes) for part in _PARTS]
        entries.append(joined(f"{theirs}bias", pieces))
    return entries


def _head_layouts(cfg: Any) -> tuple[str, str, dict[str, int]]:
    attention = cfg.stack.layer.attention.clone(input_dim=cfg.model_dim, num_heads=cfg.num_heads)
    num_heads, _, head_dim = head_sizes(attention)
    return "(n h) d -> d n h", "(n h) -> n h", {"n": num_heads, "h": head_dim}


def output_projection(layer: Slice, theirs: str, cfg: Any) -> list[Entry]:
    _, _, sizes = _head_layouts(cfg)
    dim, ours = cfg.model_dim, "attention/output"
    entries = [
        layer.entry(f"{theirs}.weight", f"{ours}/kernel", "d (n h) -> d n h", d=dim, **sizes)
    ]
    if cfg.stack.layer.attention.bias:
        entries.append(layer.entry(f"{theirs}.bias", f"{ours}/bias", "d -> d", d=dim))
    return entries


def feed_forward(layer: Slice, up: str, down: str, cfg: Any) -> list[Entry]:
    hidden, dim, ours = cfg.hidden_dim, cfg.model_dim, "feed_forward"
    entries = [
        layer.entry(f"{up}.weight", f"{ours}/up/kernel", "f d -> d f", f=hidden, d=dim),
        layer.entry(f"{down}.weight", f"{ours}/down/kernel", "d f -> d f", f=hidden, d=dim),
    ]
    if cfg.stack.layer.feed_forward.up.bias:
        entries.append(layer.entry(f"{up}.bias", f"{ours}/up/bias", "f -> f", f=hidden))
        entries.append(layer.entry(f"{down}.bias", f"{ours}/down/bias", "d -> d", d=dim))
    return entries

"""Tensors of the Llama family: our config -> names, shapes and layouts of foreign tensors.

Rotary pairs are (i, i + H/2) on both sides.
"""

from collections.abc import Iterable
from typing import Any

from mm1_jax.interop.fields import Fields
from mm1_jax.interop.llama import attention_window
from mm1_jax.interop.mapping import Entry, Slice, Table, prefix_of, stack_layers
from mm1_jax.layers.attention import head_sizes
from mm1_jax.models.decoder import Decoder, decoder_stack

# Buffers that old checkpoints store.
IGNORED = (r".*rotary_emb\.inv_freq",)


def decoder_table(cfg: Decoder.Config, names: Iterable[str], hf: Fields) -> Table:
    """Returns the table of a decoder for the tensors of a checkpoint.

    Args:
        names: Tensor names, which tell the decoder's prefix in a larger model.
    """
    names = list(names)
    body = prefix_of(names, "embed_tokens.weight")
    head = prefix_of(names, "lm_head.weight")
    if body is None:
        raise ValueError(
            "no tensor named *embed_tokens.weight: this is not a decoder of the Llama family"
        )
    raise_if_other_depth(hf, names, f"{body}layers.", cfg.num_layers)
    rows = hf.integer("vocab_size")
    ignored: list[str] = list(IGNORED)
    copies = {}
    if cfg.tied_embeddings and head is not None:
        # Some checkpoints store the tied table twice.
        ignored.append(r".*lm_head\.weight")
        copies[f"{head}lm_head.weight"] = f"{body}embed_tokens.weight"
    entries = decoder_entries(
        cfg,
        body=body,
        head=head or "",
        rows=rows,
        dense_source="num_local_experts" not in hf.klass.defaults,
    )
    window, notes = attention_window(hf), []
    if window:
        notes.append(
            f"the source attends to the last {window} positions only (sliding_window); here every "
            f"position attends to all before it, which is the same in rows of up to {window}"
        )
    prefix = body.removesuffix("model.")
    return Table({"decoder": cfg}, entries, ignored, notes, prefix, copies)


def raise_if_other_depth(
    hf: Fields, names: Iterable[str], prefix: str, num_layers: int, field: str = "num_hidden_layers"
) -> None:
    """Raises ValueError if the tensors have more or fewer layers than the config says."""
    found = {
        int(number)
        for name in names
        if name.startswith(prefix) and (number := name[len(prefix) :].split(".")[0]).isdecimal()
    }
    if found and max(found) + 1 != num_layers:
        hf.refuse(field, f"the checkpoint has tensors of {max(found) + 1} layers")


def decoder_entries(
    cfg: Decoder.Config,
    *,
    body: str = "model.",
    head: str = "",
    rows: int | None = None,
    dense_source: bool = True,
) -> list[Entry]:
    """Returns the tensors of a decoder.

    Args:
        body: Prefix of the names of all tensors but the output layer's.
        head: Prefix of the name of the output layer.
        rows: Rows of the source's embedding and output layer; ours may have more, for tokens that
            the source lacks. Defaults to as many as ours.
        dense_source: Whether the source's feed-forward layers are dense, so that each is copied to
            all experts of a sparse layer.
    """
    stack = decoder_stack(cfg)
    layers = stack_layers("decoder/stack", cfg.num_layers, stack.group_size)
    D, F = cfg.model_dim, cfg.hidden_dim
    rows = rows or cfg.vocab_size
    table = {"layout": "v d -> v d", "v": rows, "d": D}
    entries = [Slice("decoder").entry(f"{body}embed_tokens.weight", "embedding/weight", **table)]
    for i, layer in enumerate(layers):
        name = f"{body}layers.{i}"
        is_sparse = cfg.moe is not None and (i + 1) % cfg.moe_every == 0
        entries += _attention(layer, name, stack.layer.attention)
        if not is_sparse:
            entries += [
                layer.entry(
                    f"{name}.mlp.gate_proj.weight",
                    "feed_forward/gate/kernel",
                    "f d -> d f",
                    f=F,
                    d=D,
                ),
                layer.entry(
                    f"{name}.mlp.up_proj.weight", "feed_forward/up/kernel", "f d -> d f", f=F, d=D
                ),
                layer.entry(
                    f"{name}.mlp.down_proj.weight",
                    "feed_forward/down/kernel",
                    "d f -> d f",
                    f=F,
                    d=D,
                ),
            ]
        elif dense_source:
            entries += _copied_experts(layer, f"{name}.mlp", cfg)
        else:
            entries += _experts(layer, name, cfg)
        for theirs, ours in (
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "feed_forward_norm"),
        ):
            entries.append(layer.entry(f"{name}.{theirs}.weight", f"{ours}/scale", "d -> d", d=D))
    entries.append(Slice("decoder").entry(f"{body}norm.weight", "norm/scale", "d -> d", d=D))
    if not cfg.tied_embeddings:
        entries.append(Slice("decoder").entry(f"{head}lm_head.weight", "head/weight", **table))
    return entries


def _attention(layer: Slice, name: str, cfg: Any) -> list[Entry]:
    num_heads, num_kv_heads, head_dim = head_sizes(cfg)
    entries = []
    for theirs, ours, n in (
        ("q_proj", "query", num_heads),
        ("k_proj", "key", num_kv_heads),
        ("v_proj", "value", num_kv_heads),
    ):
        sizes = {"n": n, "h": head_dim}
        kernel, bias = f"attention/{ours}/kernel", f"attention/{ours}/bias"
        prefix = f"{name}.self_attn.{theirs}"
        entries.append(
            layer.entry(f"{prefix}.weight", kernel, "(n h) d -> d n h", d=cfg.input_dim, **sizes)
        )
        if cfg.bias:
            entries.append(layer.entry(f"{prefix}.bias", bias, "(n h) -> n h", **sizes))
    prefix = f"{name}.self_attn.o_proj"
    sizes = {"n": num_heads, "h": head_dim, "d": cfg.input_dim}
    entries.append(
        layer.entry(f"{prefix}.weight", "attention/output/kernel", "d (n h) -> d n h", **sizes)
    )
    if cfg.bias if cfg.output_bias is None else cfg.output_bias:
        entries.append(
            layer.entry(f"{prefix}.bias", "attention/output/bias", "d -> d", d=cfg.input_dim)
        )
    if cfg.qk_norm is not None:
        for theirs, ours in (("q_norm", "query_norm"), ("k_norm", "key_norm")):
            scale = f"attention/{ours}/scale"
            entries.append(
                layer.entry(f"{name}.self_attn.{theirs}.weight", scale, "h -> h", h=head_dim)
            )
    return entries


def _copied_experts(layer: Slice, name: str, cfg: Any) -> list[Entry]:
    """Returns the tensors of a dense feed-forward layer, each copied to every expert."""
    entries = []
    for kernel, layout in (("gate", "f d -> d f"), ("up", "f d -> d f"), ("down", "d f -> d f")):
        pieces = tuple(
            _expert(layer, expert).piece(kernel, layout, f=cfg.hidden_dim, d=cfg.model_dim)
            for expert in range(cfg.moe.num_experts)
        )
        entries.append(Entry(f"{name}.{kernel}_proj.weight", pieces[0].layout.their_shape, pieces))
    return entries


def _experts(layer: Slice, name: str, cfg: Any) -> list[Entry]:
    E, D, F = cfg.moe.num_experts, cfg.model_dim, cfg.hidden_dim
    parent = f"{name}.block_sparse_moe"
    entries = [layer.entry(f"{parent}.gate.weight", "feed_forward/router", "e d -> d e", e=E, d=D)]
    sizes = {"f": F, "d": D}
    for e in range(E):
        for theirs, ours, layout in (
            ("w1", "gate", "f d -> d f"),
            ("w3", "up", "f d -> d f"),
            ("w2", "down", "d f -> d f"),
        ):
            entry_name = f"{parent}.experts.{e}.{theirs}.weight"
            entries.append(_expert(layer, e).entry(entry_name, ours, layout, **sizes))
    return entries


def _expert(layer: Slice, expert: int) -> Slice:
    return Slice(f"{layer.path}/feed_forward/experts", (*layer.index, expert))

"""Tensors of whole CLIPs and SigLIPs: our parts -> names, shapes and layouts of foreign tensors."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from mm1_jax.interop import vision, vision_tensors
from mm1_jax.interop.block_tensors import (
    feed_forward,
    hf_blocks,
    joined_heads,
    norm,
    open_clip_blocks,
    output_projection,
)
from mm1_jax.interop.clip import BIAS, POOLING, PROJECTION, SCALE, TEXT
from mm1_jax.interop.layout import Layout
from mm1_jax.interop.mapping import Entry, Piece, Slice, Table, prefix_of


class _Pooling(NamedTuple):
    """The dims of a MAP pooling under the names that a tower's config has."""

    model_dim: int
    num_heads: int
    hidden_dim: int
    stack: Any


class _Stack(NamedTuple):
    layer: Any


def hf_entries(parts: Mapping[str, Any], root: str = "") -> list[Entry]:
    """Returns the tensors of a `CLIPModel` or a `SiglipModel` whose names begin with `root`."""
    encoder, text = parts[vision.ENCODER], parts[TEXT]
    is_clip = PROJECTION in parts
    entries = vision_tensors.tower_entries(encoder, f"{root}vision_model.")
    if is_clip:
        pooled = f"{root}vision_model.post_layernorm"
        entries += norm(Slice(POOLING), pooled, "norm", encoder.model_dim)
        entries += _linear(PROJECTION, f"{root}visual_projection", parts[PROJECTION])
    else:
        entries += _head(parts[POOLING], f"{root}vision_model.head.")
    name, place, dim = f"{root}text_model.", Slice(TEXT), text.model_dim
    entries += [
        place.entry(
            f"{name}embeddings.token_embedding.weight",
            "embedding/weight",
            "v d -> v d",
            v=text.vocab_size,
            d=dim,
        ),
        place.entry(
            f"{name}embeddings.position_embedding.weight",
            "positions",
            "t d -> t d",
            t=text.max_length,
            d=dim,
        ),
        *hf_blocks(name, f"{TEXT}/stack", text),
        *norm(place, f"{name}final_layer_norm", "final_norm", dim),
    ]
    projection = f"{root}text_projection" if is_clip else f"{name}head"
    entries += _linear(f"{TEXT}/projection", projection, _projection(text))
    entries.append(_scalar(f"{root}{SCALE}", SCALE, () if is_clip else (1,)))
    if not is_clip:
        entries.append(_scalar(f"{root}{BIAS}", BIAS, (1,)))
    return entries


def hf_pair_table(parts: Mapping[str, Any], names: Iterable[str]) -> Table:
    """Returns the table of a whole CLIP or SigLIP of Hugging Face."""
    names = list(names)
    found = prefix_of(names, "vision_model.embeddings.patch_embedding.weight")
    if found is None or f"{found}text_model.embeddings.token_embedding.weight" not in names:
        raise ValueError("no tensors vision_model.* and text_model.*: it has no text tower")
    scalars = (SCALE,) if PROJECTION in parts else (SCALE, BIAS)
    entries = hf_entries(parts, found)
    return Table(parts, entries, (r"(.*\.)?position_ids",), prefix=found, scalars=scalars)


def open_clip_entries(
    parts: Mapping[str, Any], scalars: Iterable[str], *, text_root: str = "", rank: int = 0
) -> list[Entry]:
    """Returns the tensors of open_clip's CLIP.

    Args:
        text_root: "text." for its `CustomTextCLIP`.
        rank: Rank of logit_scale and logit_bias, 0 or 1.
    """
    encoder, text, root = parts[vision.ENCODER], parts[TEXT], text_root
    table = vision_tensors.open_clip_table(encoder, ["visual.conv1.weight"])
    place, dim = Slice(TEXT), text.model_dim
    projection = parts[PROJECTION]
    sizes = {"i": projection.input_dim, "o": projection.output_dim}
    entries = [
        *table.entries,
        *norm(Slice(POOLING), "visual.ln_post", "norm", encoder.model_dim),
        Slice(PROJECTION).entry("visual.proj", "kernel", "i o -> i o", **sizes),
        place.entry(
            f"{root}token_embedding.weight",
            "embedding/weight",
            "v d -> v d",
            v=text.vocab_size,
            d=dim,
        ),
        place.entry(
            f"{root}positional_embedding", "positions", "t d -> t d", t=text.max_length, d=dim
        ),
        *open_clip_blocks(root, f"{TEXT}/stack", text),
        *norm(place, f"{root}ln_final", "final_norm", dim),
    ]
    if text.projection.bias:
        entries += _linear(f"{TEXT}/projection", f"{root}text_projection", _projection(text))
    else:
        sizes = {"i": dim, "o": text.output_dim}
        entries.append(
            Slice(f"{TEXT}/projection").entry(
                f"{root}text_projection", "kernel", "i o -> i o", **sizes
            )
        )
    shape = (1,) * rank
    return [*entries, *(_scalar(name, name, shape) for name in scalars)]


def open_clip_pair_table(parts: Mapping[str, Any], names: Collection[str], rank: int = 0) -> Table:
    """Returns the table of a whole CLIP of open_clip; see `open_clip_entries`."""
    if "visual.conv1.weight" not in names or SCALE not in names:
        raise ValueError("no tensors visual.* and logit_scale: this is not a whole CLIP")
    scalars = tuple(name for name in (SCALE, BIAS) if name in names)
    root = "text." if "text.token_embedding.weight" in names else ""
    entries = open_clip_entries(parts, scalars, text_root=root, rank=rank)
    return Table(parts, entries, (r"(.*\.)?attn_mask",), scalars=scalars)


def _head(pooling: Any, root: str) -> list[Entry]:
    """Returns the pooling head of a SigLIP."""
    place, dim = Slice(POOLING), pooling.input_dim
    # A layer of a stack has the same parts.
    cfg = _Pooling(dim, pooling.num_heads, pooling.hidden_dim, _Stack(pooling))
    return [
        place.entry(f"{root}probe", "query", "one i d -> (one i d)", one=1, i=1, d=dim),
        *joined_heads(place, f"{root}attention.in_proj_", cfg),
        *output_projection(place, f"{root}attention.out_proj", cfg),
        *norm(place, f"{root}layernorm", "norm", dim),
        *feed_forward(place, f"{root}mlp.fc1", f"{root}mlp.fc2", cfg),
    ]


def _projection(text: Any) -> Any:
    return text.projection.clone(input_dim=text.model_dim, output_dim=text.output_dim)


def _linear(path: str, theirs: str, cfg: Any) -> list[Entry]:
    sizes = {"i": cfg.input_dim, "o": cfg.output_dim}
    entries = [Slice(path).entry(f"{theirs}.weight", "kernel", "o i -> i o", **sizes)]
    if cfg.bias:
        entries.append(Slice(path).entry(f"{theirs}.bias", "bias", "o -> o", o=cfg.output_dim))
    return entries


def _scalar(name: str, path: str, shape: tuple[int, ...]) -> Entry:
    """Returns the entry of one of our scalars, which is read and written as one row."""
    return Entry(name, shape, (Piece(path, (), Layout("one -> one", one=1)),))

"""Tensors of CLIPs and SigLIPs: pooling, projections and text tower beside the vision tower."""

from collections.abc import Collection, Mapping
from typing import Any

from mm1_jax.interop.block_tensors import (
    Sizes,
    feed_forward,
    joined_attention,
    literal,
    norm,
    vector,
)
from mm1_jax.interop.mapping import Entry, Slice, Table, prefix_of, single_number
from mm1_jax.interop.vision import ENCODER
from mm1_jax.interop.vision_tensors import hf_layers, hf_table, open_clip_layers, open_clip_table
from mm1_jax.models.image_pooling import MAPPooling
from mm1_jax.models.text_encoder import TextEncoder

POOLING, PROJECTION, TEXT = "image_pooling", "image_projection", "text_encoder"
SCALE, BIAS = "logit_scale", "logit_bias"


def hf_pair_table(
    parts: Mapping[str, Any], names: Collection[str], *, num_rows: int, has_bias: bool
) -> Table:
    """Returns the table of a `CLIPModel` or a `SiglipModel`.

    Args:
        num_rows: Rows of their embedding of tokens.
        has_bias: Whether there is a logit bias, as in SigLIP.
    """
    tower = hf_table(parts[ENCODER], names)
    parent = tower.prefix
    vision, text = f"{parent}vision_model", f"{parent}text_model"
    encoder, dim = parts[ENCODER], parts[ENCODER].model_dim
    is_siglip = isinstance(parts[POOLING], MAPPooling.Config)
    cfg = parts[TEXT]
    embeddings = f"{text}.embeddings"
    projection = f"{text}.head" if is_siglip else f"{parent}text_projection"
    entries = list(tower.entries)
    if is_siglip:
        entries += _map_pooling(parts[POOLING], encoder, f"{vision}.head")
    else:
        pooling = Slice(POOLING)
        entries += norm(pooling, f"{vision}.post_layernorm", "norm", parts[POOLING].norm, dim)
        entries.append(
            _matrix(PROJECTION, f"{parent}visual_projection.weight", dim, cfg.output_dim)
        )
    entries += [
        *_text_embeddings(
            cfg,
            num_rows,
            f"{embeddings}.token_embedding.weight",
            f"{embeddings}.position_embedding.weight",
        ),
        *hf_layers(cfg, TEXT, f"{text}."),
        *norm(Slice(TEXT), f"{text}.final_layer_norm", "final_norm", cfg.final_norm, cfg.model_dim),
        _matrix(f"{TEXT}/projection", f"{projection}.weight", cfg.model_dim, cfg.output_dim),
    ]
    if cfg.projection.bias:
        entries.append(vector(Slice(TEXT), f"{projection}.bias", "projection/bias", cfg.output_dim))
    shape = (1,) if has_bias else ()
    scalars = (SCALE, BIAS) if has_bias else (SCALE,)
    entries += [single_number(f"{parent}{name}", name, shape) for name in scalars]
    return Table(dict(parts), entries, [r"(.*\.)?position_ids"], prefix=parent, scalars=scalars)


def open_clip_pair_table(
    parts: Mapping[str, Any],
    names: Collection[str],
    *,
    num_rows: int,
    has_bias: bool,
    scalar_shape: tuple[int, ...] = (),
) -> Table:
    """Returns the table of an open_clip model.

    Args:
        num_rows: Rows of its embedding of tokens.
        scalar_shape: Shape of scale and bias, (1,) with `nonscalar_logit_scale`.
    """
    tower = open_clip_table(parts[ENCODER], names)
    visual = prefix_of(names, "conv1.weight") or ""
    parent = visual.removesuffix("visual.")
    # A CustomTextCLIP has the text tower below a name of its own.
    place = prefix_of(names, "token_embedding.weight")
    root = parent if place is None else place
    cfg, dim = parts[TEXT], parts[ENCODER].model_dim
    text = Slice(TEXT)
    entries = [
        *tower.entries,
        *norm(Slice(POOLING), f"{visual}ln_post", "norm", parts[POOLING].norm, dim),
        # A parameter that multiplies features from the right, not the weight of a layer.
        Slice(PROJECTION).entry(f"{visual}proj", "kernel", "d f -> d f", d=dim, f=cfg.output_dim),
        *_text_embeddings(
            cfg, num_rows, f"{root}token_embedding.weight", f"{root}positional_embedding"
        ),
        *open_clip_layers(cfg, TEXT, root),
        *norm(text, f"{root}ln_final", "final_norm", cfg.final_norm, cfg.model_dim),
    ]
    projection = f"{root}text_projection"
    if cfg.projection.bias:
        entries += [
            _matrix(f"{TEXT}/projection", f"{projection}.weight", cfg.model_dim, cfg.output_dim),
            vector(text, f"{projection}.bias", "projection/bias", cfg.output_dim),
        ]
    else:
        sizes = {"d": cfg.model_dim, "f": cfg.output_dim}
        entries.append(text.entry(projection, "projection/kernel", "d f -> d f", **sizes))
    scalars = (SCALE, BIAS) if has_bias else (SCALE,)
    entries += [single_number(f"{parent}{name}", name, scalar_shape) for name in scalars]
    ignored = [r"(.*\.)?attn_mask"]
    if parent:
        ignored.append(f"(?!{literal(parent)}).*")
    return Table(dict(parts), entries, ignored, scalars=scalars)


def _matrix(part: str, theirs: str, input_dim: int, output_dim: int) -> Entry:
    """Returns the weight of a torch.nn.Linear."""
    return Slice(part).entry(theirs, "kernel", "f d -> d f", f=output_dim, d=input_dim)


def _text_embeddings(
    cfg: TextEncoder.Config, num_rows: int, tokens: str, positions: str
) -> list[Entry]:
    place, dim = Slice(TEXT), cfg.model_dim
    lengths = {"t": cfg.max_length, "d": dim}
    return [
        place.entry(tokens, "embedding/weight", "v d -> v d", v=num_rows, d=dim),
        place.entry(positions, "positions", "t d -> t d", **lengths),
    ]


def _map_pooling(cfg: MAPPooling.Config, encoder: Any, root: str) -> list[Entry]:
    place, dim = Slice(POOLING), encoder.model_dim
    sizes = Sizes.of(encoder, cfg)
    return [
        place.entry(f"{root}.probe", "query", "one two d -> (one two d)", one=1, two=1, d=dim),
        *joined_attention(place, f"{root}.attention.in_proj_", f"{root}.attention.out_proj", sizes),
        *norm(place, f"{root}.layernorm", "norm", cfg.norm, dim),
        *feed_forward(place, f"{root}.mlp.fc1", f"{root}.mlp.fc2", sizes),
    ]


def has_text_tower(names: Collection[str]) -> bool:
    """Returns whether a checkpoint has a table of tokens beside a vision tower."""
    return any(name.endswith("token_embedding.weight") for name in names)

"""Tensors of vision encoders: our config -> names, shapes and layouts of foreign tensors.

Only tensors that patch features depend on are read. CLIP's norm after the last block, which only
the class token passes through, is ignored, as are projections, pooling heads and text towers.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mm1_jax.interop.block_tensors import (
    Sizes,
    attention,
    feed_forward,
    joined_attention,
    literal,
    norm,
    vector,
)
from mm1_jax.interop.mapping import Entry, Slice, Table, joined, prefix_of, stack_layers
from mm1_jax.interop.tensor_files import TensorSpec
from mm1_jax.interop.vision import ENCODER, tower_config
from mm1_jax.models.vision_encoder import VisionEncoder


def hf_table(cfg: VisionEncoder.Config, names: Iterable[str]) -> Table:
    """Returns the table of a Hugging Face CLIP or SigLIP tower, alone or in a larger model."""
    root = prefix_of(names, "embeddings.patch_embedding.weight")
    if root is None:
        raise ValueError("no tensor named *embeddings.patch_embedding.weight: no tower is in it")
    encoder, D = Slice(ENCODER), cfg.model_dim
    entries = _embeddings(
        cfg,
        patches=f"{root}embeddings.patch_embedding",
        class_token=f"{root}embeddings.class_embedding",
        positions=f"{root}embeddings.position_embedding.weight",
    )
    entries += norm(encoder, f"{root}pre_layrnorm", "pre_norm", cfg.pre_norm, D)
    entries += hf_layers(cfg, ENCODER, root)
    entries += norm(encoder, f"{root}post_layernorm", "final_norm", cfg.final_norm, D)
    parent = root.removesuffix("vision_model.")
    ignored = [
        r"(.*\.)?position_ids",
        literal(f"{root}head.") + ".*",
        *(literal(f"{parent}{name}.") + ".*" for name in ("text_model", "visual_projection")),
        *(literal(f"{parent}{name}") + ".*" for name in ("text_projection", "logit_")),
    ]
    if cfg.class_token is not None:
        ignored.append(literal(f"{root}post_layernorm.") + ".*")
    return Table({ENCODER: cfg}, entries, ignored, prefix=parent)


def hf_export(
    cfg: VisionEncoder.Config, passthrough: Mapping[str, TensorSpec]
) -> tuple[dict[str, Any], list[Entry]]:
    """Returns the `config.json` and the tensors of a CLIPVisionModel or a SiglipVisionModel.

    The last norm of CLIP's class token and the pooling head of SigLIP come from the tensors kept
    beside the weights. Without those, the norm is an identity, which does not affect patch
    features, and there is no head.

    Args:
        passthrough: Name -> spec of the tensors kept beside the weights.

    Raises:
        ValueError: The encoder is neither.
    """
    is_clip = cfg.class_token is not None
    if (cfg.final_norm is None) is not is_clip:
        raise ValueError("vision_encoder.final_norm: CLIP's tower has none, and SigLIP's has one")
    config, root = tower_config(cfg), "vision_model."
    entries = tower_entries(cfg, root)
    if is_clip:
        entries += _identity(f"{root}post_layernorm", cfg.model_dim, _kept_norm(passthrough))
        return config, entries
    kept = prefix_of(passthrough, "head.probe")
    config["vision_use_head"] = kept is not None
    if kept is not None:
        entries += [
            Entry(root + name.removeprefix(kept), spec.shape, (), passthrough=name)
            for name, spec in passthrough.items()
            if name.startswith(f"{kept}head.")
        ]
    return config, entries


def tower_entries(cfg: VisionEncoder.Config, root: str) -> list[Entry]:
    """Returns the tensors of a CLIP or SigLIP tower whose names begin with `root`."""
    return list(hf_table(cfg, [f"{root}embeddings.patch_embedding.weight"]).entries)


def unread_norm(cfg: VisionEncoder.Config, root: str) -> list[Entry]:
    """Returns an identity as the final norm of a tower whose features are read before it."""
    return _identity(f"{root}post_layernorm", cfg.model_dim, {})


def _identity(name: str, dim: int, kept: Mapping[str, str]) -> list[Entry]:
    return [
        Entry(f"{name}.{each}", (dim,), (), fill, kept.get(each))
        for each, fill in (("weight", 1.0), ("bias", 0.0))
    ]


def _kept_norm(passthrough: Collection[str]) -> dict[str, str]:
    """Returns the names of CLIP's last norm (weight and bias) among the kept tensors."""
    for name in ("post_layernorm", "ln_post"):
        if (root := prefix_of(passthrough, f"{name}.weight")) is not None:
            return {each: f"{root}{name}.{each}" for each in ("weight", "bias")}
    return {}


def open_clip_table(cfg: VisionEncoder.Config, names: Iterable[str]) -> Table:
    """Returns the table of an open_clip tower, with joined queries, keys and values as in torch."""
    root = prefix_of(names, "conv1.weight")
    if root is None:
        raise ValueError("no tensor named *conv1.weight: no tower of open_clip is in it")
    encoder, D = Slice(ENCODER), cfg.model_dim
    entries = _embeddings(
        cfg,
        patches=f"{root}conv1",
        class_token=f"{root}class_embedding",
        positions=f"{root}positional_embedding",
    )
    entries += norm(encoder, f"{root}ln_pre", "pre_norm", cfg.pre_norm, D)
    entries += open_clip_layers(cfg, ENCODER, root)
    # The text tower uses the same names, but not below `visual.`.
    ignored = [literal(f"{root}ln_post.") + ".*", literal(f"{root}proj")]
    if root:
        ignored.append(f"(?!{literal(root)}).*")
    return Table({ENCODER: cfg}, entries, ignored)


def hf_layers(cfg: Any, part: str, root: str) -> list[Entry]:
    """Returns the blocks of a Hugging Face tower, of images or of texts."""
    entries, sizes, norm_cfg = [], Sizes.of(cfg), cfg.stack.layer.norm
    for i, layer in enumerate(stack_layers(f"{part}/stack", cfg.num_layers)):
        name = f"{root}encoder.layers.{i}"
        entries += norm(layer, f"{name}.layer_norm1", "attention_norm", norm_cfg, cfg.model_dim)
        entries += attention(layer, f"{name}.self_attn", "out_proj", sizes)
        entries += norm(layer, f"{name}.layer_norm2", "feed_forward_norm", norm_cfg, cfg.model_dim)
        entries += feed_forward(layer, f"{name}.mlp.fc1", f"{name}.mlp.fc2", sizes)
    return entries


def open_clip_layers(cfg: Any, part: str, root: str) -> list[Entry]:
    """Returns the blocks of an open_clip tower, of images or of texts."""
    entries, sizes, norm_cfg = [], Sizes.of(cfg), cfg.stack.layer.norm
    for i, layer in enumerate(stack_layers(f"{part}/stack", cfg.num_layers)):
        name = f"{root}transformer.resblocks.{i}"
        entries += norm(layer, f"{name}.ln_1", "attention_norm", norm_cfg, cfg.model_dim)
        entries += joined_attention(layer, f"{name}.attn.in_proj_", f"{name}.attn.out_proj", sizes)
        entries += norm(layer, f"{name}.ln_2", "feed_forward_norm", norm_cfg, cfg.model_dim)
        entries += feed_forward(layer, f"{name}.mlp.c_fc", f"{name}.mlp.c_proj", sizes)
    return entries


def _embeddings(
    cfg: VisionEncoder.Config, *, patches: str, class_token: str, positions: str
) -> list[Entry]:
    encoder, D = Slice(ENCODER), cfg.model_dim
    entries = [patch_kernel(cfg, f"{patches}.weight")]
    if cfg.patch_embedding.bias:
        entries.append(vector(encoder, f"{patches}.bias", "patch_embedding/bias", D))
    num_patches = (cfg.image_size // cfg.patch_size) ** 2
    grid = encoder.piece("positions/positions", "p d -> p d", p=num_patches, d=D)
    if cfg.class_token is None:
        return [*entries, joined(positions, [grid])]
    entries.append(vector(encoder, class_token, "class_token/token", D))
    # A single row of the tensor is a vector of ours.
    own = encoder.piece("class_token/position", "one d -> (one d)", one=1, d=D)
    return [*entries, joined(positions, [own, grid])]


def patch_kernel(cfg: VisionEncoder.Config, name: str) -> Entry:
    """Returns a strided convolution as a matrix over the pixels of a patch, color innermost."""
    sizes = {"d": cfg.model_dim, "c": 3, "y": cfg.patch_size, "x": cfg.patch_size}
    return Slice(ENCODER).entry(name, "patch_embedding/kernel", "d c y x -> (y x c) d", **sizes)

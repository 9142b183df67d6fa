"""Trunks of AIM and AIMv2: configs and tensors of apple/ml-aim and of transformers, both ways.

Heads are not read: they classify or pool features, and no model of ours has them.
"""

from collections.abc import Collection, Mapping
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
from mm1_jax.interop.fields import MOST_LAYERS, Fields, ForeignClass
from mm1_jax.interop.mapping import Entry, Slice, Table, prefix_of, stack_layers
from mm1_jax.interop.tensor_files import TensorSpec
from mm1_jax.interop.vision import ENCODER, hf_sizes, raise_if_no_multiple
from mm1_jax.interop.vision_tensors import patch_kernel
from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.feed_forward import GatedFeedForward
from mm1_jax.layers.norm import LayerNorm, RMSNorm
from mm1_jax.layers.position_embedding import PositionEmbedding, SinCosPositions
from mm1_jax.models.vision_encoder import VisionEncoder

# Tensor that only checkpoints of apple/ml-aim have.
PATCH_KERNEL = "preprocessor.patchifier.proj.weight"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Arguments of AIM's constructor; the tensors tell those without default.
AIM = ForeignClass(
    "AIM",
    {
        "img_size": 224,
        "patch_size": 14,
        "embed_dim": None,
        "num_blocks": None,
        "num_heads": None,
        "num_channels": 3,
        "mlp_ratio": 4,
        "use_bias": False,
        "post_trunk_norm": True,
    },
    ("probe_layers", "num_classes", "ffn_dropout_rate"),
)
_AIMV2 = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 14,
    "rms_norm_eps": 1e-5,
    "qkv_bias": False,
}
AIMV2_VISION = ForeignClass(
    "Aimv2VisionConfig",
    {**_AIMV2, "hidden_act": "silu", "mlp_bias": False, "is_native": False},
    ("attention_dropout", "use_head"),
)
# The pair with a text tower, whose tensors are not read.
AIMV2 = ForeignClass(
    "Aimv2Config",
    {"vision_config": None},
    ("text_config", "projection_dim", "logit_scale_init_value", "max_logit_scale"),
)
# The class beside the checkpoints of apple/ml-aim, whose fields are in the config itself.
AIMV2_ORIGINAL = ForeignClass(
    "AIMv2Config", {**_AIMV2, "use_bias": False}, ("attention_dropout", "projection_dropout")
)


def aim_config(hf: Fields) -> VisionEncoder.Config:
    """Returns the encoder of an AIM from its constructor arguments (apple/ml-aim)."""
    embed_dim, num_heads = hf.integer("embed_dim"), hf.integer("num_heads")
    if embed_dim % num_heads:
        hf.refuse("num_heads", f"expected a divisor of the embed_dim {embed_dim}")
    cfg = VisionEncoder.default_config().set(
        image_size=hf.side("img_size"),
        patch_size=hf.side("patch_size"),
        model_dim=embed_dim,
        num_layers=hf.integer("num_blocks", most=MOST_LAYERS),
        num_heads=num_heads,
        hidden_dim=4 * embed_dim,
        pixel_mean=_IMAGENET_MEAN,
        pixel_std=_IMAGENET_STD,
        patch_norm=LayerNorm.default_config(),
        positions=SinCosPositions.default_config(),
    )
    raise_if_no_multiple(hf, "img_size")
    cfg.patch_embedding.bias = True
    cfg.stack.layer.attention.bias = False
    cfg.stack.layer.feed_forward.up.bias = False
    cfg.stack.layer.feed_forward.down.bias = False
    return cfg


def aimv2_config(hf: Fields) -> VisionEncoder.Config:
    """Returns the encoder of a vision config of AIMv2, of transformers or of apple/ml-aim."""
    is_original = hf.klass is AIMV2_ORIGINAL
    sizes = hf_sizes(hf)
    cfg = VisionEncoder.default_config().set(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        model_dim=sizes["width"],
        num_layers=hf.integer("num_hidden_layers", most=MOST_LAYERS),
        num_heads=sizes["num_heads"],
        hidden_dim=hf.integer("intermediate_size"),
        pixel_mean=_IMAGENET_MEAN,
        pixel_std=_IMAGENET_STD,
    )
    raise_if_no_multiple(hf)
    if not is_original:
        hf.one_of("hidden_act", {"silu": None})
        if hf.flag("is_native"):
            cfg.positions = SinCosPositions.default_config()
    rms_norm = RMSNorm.default_config().set(eps=hf.number("rms_norm_eps"))
    cfg.set(patch_norm=rms_norm.clone(), final_norm=rms_norm.clone())
    cfg.patch_embedding.bias = True
    layer = cfg.stack.layer.set(norm=rms_norm, feed_forward=GatedFeedForward.default_config())
    layer.attention.bias = hf.flag("qkv_bias")
    has_bias = hf.flag("use_bias" if is_original else "mlp_bias")
    for each in (layer.feed_forward.gate, layer.feed_forward.up, layer.feed_forward.down):
        each.bias = has_bias
    return cfg


def aim_table(cfg: VisionEncoder.Config) -> Table:
    """Returns the table of an AIM or AIMv2 by the names of apple/ml-aim."""
    encoder, D, sizes, block = Slice(ENCODER), cfg.model_dim, Sizes.of(cfg), cfg.stack.layer.norm
    patchifier = "preprocessor.patchifier"
    entries = [
        patch_kernel(cfg, PATCH_KERNEL),
        vector(encoder, f"{patchifier}.proj.bias", "patch_embedding/bias", D),
        *norm(encoder, f"{patchifier}.norm", "patch_norm", cfg.patch_norm, D),
    ]
    if isinstance(cfg.positions, PositionEmbedding.Config):
        lengths = {"one": 1, "p": _num_patches(cfg), "d": D}
        positions = "positions/positions"
        layout = "one p d -> (one p) d"
        entries.append(encoder.entry("preprocessor.pos_embed", positions, layout, **lengths))
    for i, layer in enumerate(stack_layers(f"{ENCODER}/stack", cfg.num_layers)):
        name = f"trunk.blocks.{i}"
        entries += norm(layer, f"{name}.norm_1", "attention_norm", block, D)
        entries += joined_attention(layer, f"{name}.attn.qkv.", f"{name}.attn.proj", sizes)
        entries += norm(layer, f"{name}.norm_2", "feed_forward_norm", block, D)
        up, gate = f"{name}.mlp.fc1", None
        if sizes.is_gated:
            gate, up = up, f"{name}.mlp.fc3"
        entries += feed_forward(layer, up, f"{name}.mlp.fc2", sizes, gate)
    entries += norm(encoder, "trunk.post_trunk_norm", "final_norm", cfg.final_norm, D)
    ignored = [r"head\..*"]
    if isinstance(cfg.positions, SinCosPositions.Config):
        # A buffer of these positions.
        ignored.append(r"preprocessor\.pos_embed")
    return Table({ENCODER: cfg}, entries, ignored)


def aimv2_table(cfg: VisionEncoder.Config, names: Collection[str]) -> Table:
    """Returns the table of an AIMv2 by the names of transformers, alone or with its text tower."""
    root = prefix_of(names, "embeddings.patch_embed.weight")
    if root is None:
        raise ValueError("no tensor named *embeddings.patch_embed.weight: no trunk of AIMv2")
    encoder, D, sizes, block = Slice(ENCODER), cfg.model_dim, Sizes.of(cfg), cfg.stack.layer.norm
    embeddings = f"{root}embeddings"
    entries = [
        patch_kernel(cfg, f"{embeddings}.patch_embed.weight"),
        vector(encoder, f"{embeddings}.patch_embed.bias", "patch_embedding/bias", D),
        *norm(encoder, f"{embeddings}.rms_norm", "patch_norm", cfg.patch_norm, D),
    ]
    if isinstance(cfg.positions, PositionEmbedding.Config):
        name = f"{embeddings}.position_embedding.weight"
        lengths = {"p": _num_patches(cfg), "d": D}
        entries.append(encoder.entry(name, "positions/positions", "p d -> p d", **lengths))
    for i, layer in enumerate(stack_layers(f"{ENCODER}/stack", cfg.num_layers)):
        name = f"{root}encoder.layers.{i}"
        entries += norm(layer, f"{name}.rms_norm1", "attention_norm", block, D)
        entries += attention(layer, f"{name}.attention", "out_proj", sizes)
        entries += norm(layer, f"{name}.rms_norm2", "feed_forward_norm", block, D)
        up, down, gate = (f"{name}.ffn.{each}_proj" for each in ("up", "down", "gate"))
        entries += feed_forward(layer, up, down, sizes, gate)
    entries += norm(encoder, f"{root}rms_norm", "final_norm", cfg.final_norm, D)
    parent = root.removesuffix("vision_model.")
    ignored = [
        r"(.*\.)?position_ids",
        literal(f"{root}head.") + ".*",
        *(literal(f"{parent}{name}") + ".*" for name in ("text_model.", "visual_projection.")),
        *(literal(f"{parent}{name}") + ".*" for name in ("text_projection.", "logit_scale")),
    ]
    return Table({ENCODER: cfg}, entries, ignored, prefix=root)


def _num_patches(cfg: VisionEncoder.Config) -> int:
    return (cfg.image_size // cfg.patch_size) ** 2


def after_training(cfg: VisionEncoder.Config) -> VisionEncoder.Config:
    """Returns the encoder as it is used after training, when every patch sees all others."""
    cfg = cfg.clone()
    if cfg.stack.layer.attention.pattern is Pattern.PREFIX:
        cfg.stack.layer.attention.pattern = Pattern.BIDIRECTIONAL
    return cfg


def aim_export(cfg: VisionEncoder.Config) -> tuple[dict[str, Any], list[Entry]]:
    """Returns the `config.json` and the tensors of an AIM trunk in the layout of apple/ml-aim."""
    config = {
        "img_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "embed_dim": cfg.model_dim,
        "num_blocks": cfg.num_layers,
        "num_heads": cfg.num_heads,
    }
    return config, list(aim_table(cfg).entries)


def is_aimv2(cfg: VisionEncoder.Config) -> bool:
    """Returns whether a trunk is AIMv2's rather than AIM's: its feed-forward layers are gated."""
    return isinstance(cfg.stack.layer.feed_forward, GatedFeedForward.Config)


def aimv2_export(
    cfg: VisionEncoder.Config, passthrough: Mapping[str, TensorSpec]
) -> tuple[dict[str, Any], list[Entry]]:
    """Returns the `config.json` and the tensors of an Aimv2VisionModel.

    Args:
        passthrough: Specs of the tensors kept beside the weights, which may have its head.
    """
    layer = cfg.stack.layer
    kept = prefix_of(passthrough, "head.cls_token")
    config = {
        "architectures": ["Aimv2VisionModel"],
        "model_type": "aimv2_vision_model",
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "hidden_size": cfg.model_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.hidden_dim,
        "rms_norm_eps": layer.norm.eps,
        "qkv_bias": layer.attention.bias,
        "mlp_bias": layer.feed_forward.up.bias,
        "is_native": isinstance(cfg.positions, SinCosPositions.Config),
        "use_head": kept is not None,
    }
    entries = list(aimv2_table(cfg, ["embeddings.patch_embed.weight"]).entries)
    if kept is not None:
        entries += [
            Entry(name.removeprefix(kept), spec.shape, (), passthrough=name)
            for name, spec in passthrough.items()
            if name.startswith(f"{kept}head.")
        ]
    return config, entries

"""Tensors of vision encoders: our config -> names, shapes and layouts of foreign tensors.

Only tensors that patch features depend on are read. CLIP's norm after the last block, which only
the class token passes through, is ignored, as are projections, pooling heads and text towers.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mm1_jax.interop.mapping import Entry, Slice, Table, joined, prefix_of, stack_layers
from mm1_jax.interop.tensor_files import TensorSpec
from mm1_jax.interop.vision import ENCODER, tower_config
from mm1_jax.layers.attention import head_sizes
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
    if cfg.pre_norm is not None:
        entries += _norm(encoder, f"{root}pre_layrnorm", "pre_norm", D)
    for i, layer in enumerate(stack_layers(f"{ENCODER}/stack", cfg.num_layers)):
        name = f"{root}encoder.layers.{i}"
        entries += _norm(layer, f"{name}.layer_norm1", "attention_norm", D)
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            entries += _heads(layer, f"{name}.self_attn.{theirs}_proj", f"attention/{ours}", cfg)
        entries += _output_projection(layer, f"{name}.self_attn.out_proj", cfg)
        entries += _norm(layer, f"{name}.layer_norm2", "feed_forward_norm", D)
        entries += _feed_forward(layer, f"{name}.mlp.fc1", f"{name}.mlp.fc2", cfg)
    if cfg.final_norm is not None:
        entries += _norm(encoder, f"{root}post_layernorm", "final_norm", D)
    parent = root.removesuffix("vision_model.")
    ignored = [
        r"(.*\.)?position_ids",
        _literal(f"{root}head.") + ".*",
        *(_literal(f"{parent}{name}.") + ".*" for name in ("text_model", "visual_projection")),
        *(_literal(f"{parent}{name}") + ".*" for name in ("text_projection", "logit_")),
    ]
    if cfg.class_token is not None:
        ignored.append(_literal(f"{root}post_layernorm.") + ".*")
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
    for norm in ("post_layernorm", "ln_post"):
        if (root := prefix_of(passthrough, f"{norm}.weight")) is not None:
            return {each: f"{root}{norm}.{each}" for each in ("weight", "bias")}
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
    if cfg.pre_norm is not None:
        entries += _norm(encoder, f"{root}ln_pre", "pre_norm", D)
    for i, layer in enumerate(stack_layers(f"{ENCODER}/stack", cfg.num_layers)):
        name = f"{root}transformer.resblocks.{i}"
        entries += _norm(layer, f"{name}.ln_1", "attention_norm", D)
        entries += _joined_heads(layer, f"{name}.attn.in_proj_", cfg)
        entries += _output_projection(layer, f"{name}.attn.out_proj", cfg)
        entries += _norm(layer, f"{name}.ln_2", "feed_forward_norm", D)
        entries += _feed_forward(layer, f"{name}.mlp.c_fc", f"{name}.mlp.c_proj", cfg)
    # The text tower uses the same names, but not below `visual.`.
    ignored = [_literal(f"{root}ln_post.") + ".*", _literal(f"{root}proj")]
    if root:
        ignored.append(f"(?!{_literal(root)}).*")
    return Table({ENCODER: cfg}, entries, ignored)


def aim_table(cfg: VisionEncoder.Config) -> Table:
    """Returns the table of an AIM: preprocessor and trunk; its classification head is ignored."""
    encoder, D = Slice(ENCODER), cfg.model_dim
    entries = [
        _patch_kernel(cfg, "preprocessor.patchifier.proj.weight"),
        encoder.entry("preprocessor.patchifier.proj.bias", "patch_embedding/bias", "d -> d", d=D),
        *_norm(encoder, "preprocessor.patchifier.norm", "patch_norm", D),
    ]
    for i, layer in enumerate(stack_layers(f"{ENCODER}/stack", cfg.num_layers)):
        name = f"trunk.blocks.{i}"
        entries += _norm(layer, f"{name}.norm_1", "attention_norm", D)
        entries += _joined_heads(layer, f"{name}.attn.qkv.", cfg)
        entries += _output_projection(layer, f"{name}.attn.proj", cfg)
        entries += _norm(layer, f"{name}.norm_2", "feed_forward_norm", D)
        entries += _feed_forward(layer, f"{name}.mlp.fc1", f"{name}.mlp.fc2", cfg)
    entries += _norm(encoder, "trunk.post_trunk_norm", "final_norm", D)
    return Table({ENCODER: cfg}, entries, (r"head\..*",))


def _embeddings(
    cfg: VisionEncoder.Config, *, patches: str, class_token: str, positions: str
) -> list[Entry]:
    encoder, D = Slice(ENCODER), cfg.model_dim
    entries = [_patch_kernel(cfg, f"{patches}.weight")]
    if cfg.patch_embedding.bias:
        entries.append(encoder.entry(f"{patches}.bias", "patch_embedding/bias", "d -> d", d=D))
    num_patches = (cfg.image_size // cfg.patch_size) ** 2
    grid = encoder.piece("positions/positions", "p d -> p d", p=num_patches, d=D)
    if cfg.class_token is None:
        return [*entries, joined(positions, [grid])]
    entries.append(encoder.entry(class_token, "class_token/token", "d -> d", d=D))
    # A single row of the tensor is a vector of ours.
    own = encoder.piece("class_token/position", "one d -> (one d)", one=1, d=D)
    return [*entries, joined(positions, [own, grid])]


def _patch_kernel(cfg: VisionEncoder.Config, name: str) -> Entry:
    """Returns a strided convolution as a matrix over the pixels of a patch, color innermost."""
    sizes = {"d": cfg.model_dim, "c": 3, "y": cfg.patch_size, "x": cfg.patch_size}
    return Slice(ENCODER).entry(name, "patch_embedding/kernel", "d c y x -> (y x c) d", **sizes)


def _norm(place: Slice, theirs: str, ours: str, dim: int) -> list[Entry]:
    return [
        place.entry(f"{theirs}.weight", f"{ours}/scale", "d -> d", d=dim),
        place.entry(f"{theirs}.bias", f"{ours}/bias", "d -> d", d=dim),
    ]


def _heads(layer: Slice, theirs: str, ours: str, cfg: VisionEncoder.Config) -> list[Entry]:
    kernel, bias, sizes = _head_layouts(cfg)
    entries = [layer.entry(f"{theirs}.weight", f"{ours}/kernel", kernel, d=cfg.model_dim, **sizes)]
    if cfg.stack.layer.attention.bias:
        entries.append(layer.entry(f"{theirs}.bias", f"{ours}/bias", bias, **sizes))
    return entries


def _joined_heads(layer: Slice, theirs: str, cfg: VisionEncoder.Config) -> list[Entry]:
    kernel, bias, sizes = _head_layouts(cfg)
    parts = ("query", "key", "value")
    entries = [
        joined(
            f"{theirs}weight",
            [
                layer.piece(f"attention/{part}/kernel", kernel, d=cfg.model_dim, **sizes)
                for part in parts
            ],
        )
    ]
    if cfg.stack.layer.attention.bias:
        pieces = [layer.piece(f"attention/{part}/bias", bias, **sizes) for part in parts]
        entries.append(joined(f"{theirs}bias", pieces))
    return entries


def _head_layouts(cfg: VisionEncoder.Config) -> tuple[str, str, dict[str, int]]:
    attention = cfg.stack.layer.attention.clone(input_dim=cfg.model_dim, num_heads=cfg.num_heads)
    num_heads, _, head_dim = head_sizes(attention)
    return "(n h) d -> d n h", "(n h) -> n h", {"n": num_heads, "h": head_dim}


def _output_projection(layer: Slice, theirs: str, cfg: VisionEncoder.Config) -> list[Entry]:
    _, _, sizes = _head_layouts(cfg)
    D, ours = cfg.model_dim, "attention/output"
    entries = [layer.entry(f"{theirs}.weight", f"{ours}/kernel", "d (n h) -> d n h", d=D, **sizes)]
    if cfg.stack.layer.attention.bias:
        entries.append(layer.entry(f"{theirs}.bias", f"{ours}/bias", "d -> d", d=D))
    return entries


def _feed_forward(layer: Slice, up: str, down: str, cfg: VisionEncoder.Config) -> list[Entry]:
    F, D, ours = cfg.hidden_dim, cfg.model_dim, "feed_forward"
    entries = [
        layer.entry(f"{up}.weight", f"{ours}/up/kernel", "f d -> d f", f=F, d=D),
        layer.entry(f"{down}.weight", f"{ours}/down/kernel", "d f -> d f", f=F, d=D),
    ]
    if cfg.stack.layer.feed_forward.up.bias:
        entries.append(layer.entry(f"{up}.bias", f"{ours}/up/bias", "f -> f", f=F))
        entries.append(layer.entry(f"{down}.bias", f"{ours}/down/bias", "d -> d", d=D))
    return entries


def _literal(text: str) -> str:
    """Returns a pattern that matches exactly this text."""
    return text.replace(".", r"\.")

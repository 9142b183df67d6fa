"""Whole CLIPs and SigLIPs: configs of both towers, of Hugging Face and of open_clip.

A model has the parts vision_encoder, image_pooling, image_projection (CLIP alone) and text_encoder,
and the scalars logit_scale and logit_bias (SigLIP, or open_clip's sigmoid loss).
"""

import math
from collections.abc import Mapping
from typing import Any

from mm1_jax.interop import vision
from mm1_jax.interop.fields import MOST_LAYERS, Fields, ForeignClass
from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.layers.linear import Linear
from mm1_jax.models.clip import CLIP
from mm1_jax.models.image_pooling import ClassPooling, MAPPooling
from mm1_jax.models.text_encoder import TextEncoder, TextPooling

POOLING, PROJECTION, TEXT = "image_pooling", "image_projection", "text_encoder"
SCALE, BIAS = "logit_scale", "logit_bias"

_TEXT = {"intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
CLIP_TEXT = ForeignClass(
    "CLIPTextConfig",
    {
        **_TEXT,
        "hidden_size": 512,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    ("attention_dropout", "dropout", "projection_dim", "tie_word_embeddings"),
)
SIGLIP_TEXT = ForeignClass(
    "SiglipTextConfig",
    {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 32000,
        "max_position_embeddings": 64,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "projection_size": None,
        "pad_token_id": 1,
    },
    ("attention_dropout", "dropout", "tie_word_embeddings"),
)
OPEN_CLIP_TEXT = ForeignClass(
    "CLIPTextCfg",
    {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 12,
        "mlp_ratio": 4.0,
        "ls_init_value": None,
        "embed_cls": False,
        "no_causal_mask": False,
        "final_ln_after_pool": False,
        "pool_type": "argmax",
        "pad_id": 0,
        "proj_bias": False,
        "proj_type": "linear",
        "act_kwargs": None,
        "norm_kwargs": None,
        "block_type": None,
        "qk_norm": False,
        "scaled_cosine_attn": False,
        "scale_heads": False,
        "scale_attn_inner": False,
        "scale_attn": False,
        "scale_fc": False,
        "hf_model_name": None,
    },
    (
        *("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "eos_id", "output_tokens"),
        *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
    ),
)
_OPEN_CLIP_MODEL = ForeignClass(
    "CLIP",
    {"text_cfg": None, "embed_dim": None, "quick_gelu": False},
    (*vision.OPEN_CLIP_MODEL.neutral, "vision_cfg"),
)
# The ids of bos and eos in CLIP's byte-pair encoding, which open_clip has built in.
_CLIP_TOKENS = (49406, 49407)
_POOLINGS = {
    "argmax": TextPooling.EOS,
    "eos": TextPooling.EOS,
    "last": TextPooling.LAST,
}


def hf_clip_parts(hf: Fields, encoder: Any) -> dict[str, Any]:
    """Returns the parts of a `CLIPModel`, given its vision encoder."""
    name = "text_config_dict" if hf.value("text_config_dict") is not None else "text_config"
    hf.value("text_config")
    text = hf.section(name, CLIP_TEXT)
    pooling = ClassPooling.default_config()
    pooling.norm.eps = encoder.stack.layer.norm.eps
    return _parts(
        encoder,
        pooling,
        hf.integer("projection_dim"),
        _hf_text(text, TextEncoder.default_config()),
        has_projection=True,
    )


def siglip_parts(hf: Fields, encoder: Any) -> dict[str, Any]:
    """Returns the parts of a `SiglipModel`, given its vision encoder."""
    text = hf.section("text_config", SIGLIP_TEXT)
    cfg = _hf_text(text, TextEncoder.default_config())
    # Padding is embedded, and the last position is read.
    padding = text.value("pad_token_id")
    cfg.set(pooling=TextPooling.LAST, padding_token=1 if padding is None else padding)
    cfg.projection.bias = True
    cfg.stack.layer.attention.pattern = Pattern.BIDIRECTIONAL
    size = text.value("projection_size")
    if (text.integer("hidden_size") if size is None else size) != encoder.model_dim:
        text.refuse("projection_size", f"expected that of the vision tower, {encoder.model_dim}")
    pooling = MAPPooling.default_config()
    pooling.feed_forward.activation = encoder.stack.layer.feed_forward.activation
    pooling.norm.eps = encoder.stack.layer.norm.eps
    return _parts(encoder, pooling, encoder.model_dim, cfg, has_projection=False)


def open_clip_parts(hf: Fields, encoder: Any) -> dict[str, Any]:
    """Returns the parts of open_clip's CLIP, given its vision encoder."""
    # The fields of the vision tower are read with its config.
    model = hf.section("model_cfg", _OPEN_CLIP_MODEL)
    if (encoder.final_norm is None) is (encoder.class_token is None):
        model.refuse("vision_cfg", "only a pool_type of tok is supported with a text tower")
    text = model.section("text_cfg", OPEN_CLIP_TEXT)
    if text.has("hf_model_name"):
        text.refuse("hf_model_name", "only open_clip's own text tower is supported")
    width, hidden = text.integer("width"), text.integer("width") * text.number("mlp_ratio")
    cfg = TextEncoder.default_config().set(
        vocab_size=text.integer("vocab_size"),
        max_length=text.integer("context_length"),
        model_dim=width,
        num_layers=text.integer("layers", most=MOST_LAYERS),
        num_heads=text.integer("heads"),
        hidden_dim=int(hidden),
        pooling=text.one_of("pool_type", _POOLINGS),
        padding_token=text.value("pad_id"),
    )
    cfg.projection.bias = text.flag("proj_bias")
    if text.flag("no_causal_mask"):
        cfg.stack.layer.attention.pattern = Pattern.BIDIRECTIONAL
    activation, eps = vision.open_clip_block(model, text)
    cfg.stack.layer.feed_forward.activation = activation
    cfg.stack.layer.norm.eps = cfg.final_norm.eps = eps
    pooling = ClassPooling.default_config()
    pooling.norm.eps = encoder.stack.layer.norm.eps
    return _parts(encoder, pooling, model.integer("embed_dim"), cfg, has_projection=True)


def parts_of_model(cfg: Any) -> dict[str, Any]:
    """Returns the parts of a resolved `CLIP.Config`, with the dims that its constructor sets."""
    return _parts(
        cfg.vision_encoder.clone(),
        cfg.image_pooling.clone(),
        cfg.features_dim,
        cfg.text_encoder.clone(),
        has_projection=cfg.image_projection is not None,
        projection=cfg.image_projection,
    )


def scalars_of_model(cfg: Any) -> tuple[str, ...]:
    """Returns the paths of the scalars of a resolved `CLIP.Config`."""
    return (SCALE,) if cfg.initial_bias is None else (SCALE, BIAS)


def model_of_parts(parts: Mapping[str, Any], scalars: tuple[str, ...]) -> CLIP.Config:
    """Returns the config of the model with these parts."""
    return CLIP.default_config().set(
        **{name: parts[name].clone() for name in (vision.ENCODER, POOLING, TEXT)},
        image_projection=parts[PROJECTION].clone() if PROJECTION in parts else None,
        features_dim=parts[TEXT].output_dim,
        initial_bias=0.0 if BIAS in scalars else None,
    )


def hf_config(
    parts: Mapping[str, Any], scalars: tuple[str, ...], tokens: Mapping[str, int]
) -> dict[str, Any]:
    """Returns the `config.json` of a `CLIPModel` or a `SiglipModel`.

    Args:
        tokens: The ids of bos, eos and pad.

    Raises:
        ValueError: transformers has no such model; the message says why.
    """
    encoder, text = parts[vision.ENCODER], parts[TEXT]
    is_clip = PROJECTION in parts
    tower = vision.tower_config(encoder)
    del tower["architectures"]
    eps = {encoder.stack.layer.norm.eps, parts[POOLING].norm.eps}
    pattern, pooling = Pattern.CAUSAL, TextPooling.EOS
    if not is_clip:
        pattern, pooling = Pattern.BIDIRECTIONAL, TextPooling.LAST
    faults = [
        (isinstance(parts[POOLING], ClassPooling.Config) is not is_clip, "its pooling"),
        (not isinstance(parts[POOLING], ClassPooling.Config | MAPPooling.Config), "its pooling"),
        ((encoder.class_token is not None) is not is_clip, "its class token"),
        ((encoder.final_norm is None) is not is_clip, "its final_norm"),
        (len(eps) > 1 or text.final_norm.eps != text.stack.layer.norm.eps, "an eps of its own"),
        (_pattern(text) is not pattern, "its mask"),
        (text.pooling is not pooling, "its text pooling"),
        (text.projection.bias is is_clip, "the bias of its text projection"),
        ((BIAS in scalars) is is_clip, "its logit bias"),
    ]
    kind = "CLIP" if is_clip else "SigLIP"
    if found := [name for is_wrong, name in faults if is_wrong]:
        raise ValueError(
            f"transformers has no {kind} with {found[0]}; --format=open_clip has more choices"
        )
    if is_clip and tokens["eos"] == 2:
        # transformers then reads the largest id of a text in place of eos, as old configs need.
        raise ValueError(
            "transformers' CLIP cannot use a tokenizer whose eos is 2, because old configs have "
            "that id by mistake; export with --format=open_clip"
        )
    names = {activation: name for name, activation in vision.ACTIVATIONS.items()}
    section = {
        "model_type": "clip_text_model" if is_clip else "siglip_text_model",
        "hidden_size": text.model_dim,
        "intermediate_size": text.hidden_dim,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "max_position_embeddings": text.max_length,
        "vocab_size": text.vocab_size,
        "hidden_act": names[text.stack.layer.feed_forward.activation],
        "layer_norm_eps": text.final_norm.eps,
        "bos_token_id": tokens["bos"],
        "eos_token_id": tokens["eos"],
        "pad_token_id": tokens["pad"] if is_clip else text.padding_token,
    }
    if is_clip:
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": text.output_dim,
            "vision_config": {**tower, "projection_dim": text.output_dim},
            "text_config": {**section, "projection_dim": text.output_dim},
        }
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": tower,
        "text_config": {**section, "projection_size": text.output_dim},
    }


def open_clip_config(
    parts: Mapping[str, Any], scalars: tuple[str, ...], tokens: Mapping[str, int]
) -> dict[str, Any]:
    """Returns the `open_clip_config.json` of open_clip's CLIP.

    Args:
        tokens: The ids of bos and eos.

    Raises:
        ValueError: open_clip has no such model; the message says why.
    """
    encoder, text = parts[vision.ENCODER], parts[TEXT]
    activations = [each.stack.layer.feed_forward.activation for each in (encoder, text)]
    is_quick = Activation.QUICK_GELU in activations
    encoder_eps = {encoder.stack.layer.norm.eps, parts[POOLING].norm.eps}
    if encoder.pre_norm is not None:
        encoder_eps.add(encoder.pre_norm.eps)
    pools = {TextPooling.EOS: "eos", TextPooling.LAST: "last"}
    faults = [
        (not isinstance(parts[POOLING], ClassPooling.Config), "another pooling than ClassPooling"),
        (encoder.class_token is None or encoder.final_norm is not None, "no class token"),
        (encoder.patch_embedding.bias, "a bias of the patch embedding"),
        (PROJECTION not in parts, "no image projection"),
        (len(set(activations)) > 1 and is_quick, "QUICK_GELU in one tower alone"),
        (len(encoder_eps) > 1, "norms of different eps in a tower"),
        (text.final_norm.eps != text.stack.layer.norm.eps, "norms of different eps in a tower"),
        (text.pooling not in pools, f"text pooling {text.pooling.value}"),
        # There, the positions before eos would attend to the padding behind it.
        (
            text.pooling is TextPooling.EOS and _pattern(text) is not Pattern.CAUSAL,
            "a bidirectional text tower that is read at eos",
        ),
        (encoder.patch_norm is not None, "a norm of patches"),
    ]
    if found := [name for is_wrong, name in faults if is_wrong]:
        raise ValueError(f"open_clip has no CLIP with {found[0]}; choose another --format")

    def tower(cfg: Any) -> dict[str, Any]:
        ratio = cfg.hidden_dim / cfg.model_dim
        # open_clip rounds the product down.
        ratio = ratio if int(cfg.model_dim * ratio) == cfg.hidden_dim else math.nextafter(ratio, 99)
        options: dict[str, Any] = {
            "width": cfg.model_dim,
            "layers": cfg.num_layers,
            "mlp_ratio": ratio,
        }
        if cfg.stack.layer.feed_forward.activation is Activation.GELU_TANH:
            options["act_kwargs"] = {"approximate": "tanh"}
        if (eps := cfg.stack.layer.norm.eps) != 1e-5:
            options["norm_kwargs"] = {"eps": eps}
        return options

    vision_cfg = {
        **tower(encoder),
        "head_width": encoder.model_dim // encoder.num_heads,
        "patch_size": encoder.patch_size,
        "image_size": encoder.image_size,
    }
    if encoder.pre_norm is None:
        vision_cfg["no_ln_pre"] = True
    text_cfg = {
        **tower(text),
        "heads": text.num_heads,
        "context_length": text.max_length,
        "vocab_size": text.vocab_size,
        "pool_type": pools[text.pooling],
        "eos_id": tokens["eos"],
        "pad_id": text.padding_token,
    }
    if (tokens["bos"], tokens["eos"]) != _CLIP_TOKENS:
        # Any name makes open_clip read the tokenizer in the folder of the model.
        text_cfg["hf_tokenizer_name"] = "tokenizer of this folder"
    if _pattern(text) is Pattern.BIDIRECTIONAL:
        text_cfg["no_causal_mask"] = True
    if text.projection.bias:
        text_cfg["proj_bias"] = True
    model: dict[str, Any] = {
        "embed_dim": text.output_dim,
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
    }
    if is_quick:
        model["quick_gelu"] = True
    if BIAS in scalars:
        model["init_logit_bias"] = 0.0
    preprocess = {
        "size": [encoder.image_size, encoder.image_size],
        "mode": "RGB",
        "mean": list(encoder.pixel_mean),
        "std": list(encoder.pixel_std),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def _hf_text(hf: Fields, cfg: Any) -> Any:
    cfg.set(
        vocab_size=hf.integer("vocab_size"),
        max_length=hf.integer("max_position_embeddings"),
        model_dim=hf.integer("hidden_size"),
        num_layers=hf.integer("num_hidden_layers", most=MOST_LAYERS),
        num_heads=hf.integer("num_attention_heads"),
        hidden_dim=hf.integer("intermediate_size"),
    )
    if cfg.model_dim % cfg.num_heads:
        hf.refuse("hidden_size", f"expected a multiple of num_attention_heads={cfg.num_heads}")
    cfg.stack.layer.feed_forward.activation = hf.one_of("hidden_act", vision.ACTIVATIONS)
    cfg.stack.layer.norm.eps = cfg.final_norm.eps = hf.number("layer_norm_eps")
    return cfg


def _parts(
    encoder: Any,
    pooling: Any,
    features_dim: int,
    text: Any,
    *,
    has_projection: bool,
    projection: Any = None,
) -> dict[str, Any]:
    """Returns the parts by name, with the dims that the constructor of a `CLIP` sets."""
    pooling.input_dim = encoder.model_dim
    if isinstance(pooling, MAPPooling.Config):
        pooling.set(num_heads=encoder.num_heads, hidden_dim=encoder.hidden_dim)
    parts = {vision.ENCODER: encoder, POOLING: pooling}
    if has_projection:
        cfg = Linear.default_config() if projection is None else projection.clone()
        parts[PROJECTION] = cfg.set(input_dim=encoder.model_dim, output_dim=features_dim)
    parts[TEXT] = text.set(output_dim=features_dim)
    return parts


def _pattern(text: Any) -> Pattern:
    return Pattern(text.stack.layer.attention.pattern)

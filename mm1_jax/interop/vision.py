"""Configs of the vision towers of CLIP (of Hugging Face and of open_clip) and SigLIP."""

from typing import Any

from mm1_jax.interop.fields import MOST_LAYERS, Fields, ForeignClass
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.layers.norm import LayerNorm
from mm1_jax.layers.position_embedding import PositionEmbedding
from mm1_jax.models.vision_encoder import ClassToken, VisionEncoder

ENCODER = "vision_encoder"
ACTIVATIONS = {
    "quick_gelu": Activation.QUICK_GELU,
    "gelu": Activation.GELU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}
# torch's names for the two ways to compute a GELU, which open_clip passes on.
_APPROXIMATE = {"none": Activation.GELU, "tanh": Activation.GELU_TANH}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)

_TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
}
# Old vision configs contain fields of text towers.
_NEUTRAL = ("attention_dropout", "dropout", "projection_dim", "tie_word_embeddings", "vocab_size")
CLIP_VISION = ForeignClass(
    "CLIPVisionConfig",
    {**_TOWER, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    _NEUTRAL,
)
SIGLIP_VISION = ForeignClass(
    "SiglipVisionConfig",
    {**_TOWER, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    (*_NEUTRAL, "vision_use_head"),
)
# Models with a text tower. The fields of the text tower are in `clip.py`.
_PAIR = ("logit_scale_init_value", "tie_word_embeddings")
_SECTIONS = ("vision_config", "vision_config_dict", "text_config", "text_config_dict")
CLIP = ForeignClass("CLIPConfig", {**dict.fromkeys(_SECTIONS), "projection_dim": 512}, _PAIR)
SIGLIP = ForeignClass(
    "SiglipConfig", {"vision_config": None, "text_config": None}, (*_PAIR, "projection_dim")
)
# Pixel fields of the processor beside a tower, with the defaults of its class.
_PROCESSOR = {"rescale_factor": 1 / 255, "do_rescale": True, "do_normalize": True}
CLIP_PROCESSOR = ForeignClass(
    "CLIPImageProcessor", {**_PROCESSOR, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
)
SIGLIP_PROCESSOR = ForeignClass(
    "SiglipImageProcessor", {**_PROCESSOR, "image_mean": _HALF, "image_std": _HALF}
)

OPEN_CLIP_VISION = ForeignClass(
    "CLIPVisionCfg",
    {
        "layers": 12,
        "width": 768,
        "head_width": 64,
        "mlp_ratio": 4.0,
        "patch_size": 16,
        "image_size": 224,
        "ls_init_value": None,
        "attentional_pool": False,
        "no_ln_pre": False,
        "pos_embed_type": "learnable",
        "final_ln_after_pool": False,
        "pool_type": "tok",
        "act_kwargs": None,
        "norm_kwargs": None,
        "block_type": None,
        "qk_norm": False,
        "scaled_cosine_attn": False,
        "scale_heads": False,
        "scale_attn_inner": False,
        "scale_attn": False,
        "scale_fc": False,
        "timm_model_name": None,
    },
    # Patches are dropped in training only; the others belong to poolers and to timm's towers.
    (
        *("patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "output_tokens"),
        *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop"),
        "timm_drop_path",
    ),
)
OPEN_CLIP_MODEL = ForeignClass(
    "CLIP",
    {
        **dict.fromkeys(("vision_cfg", "text_cfg", "multimodal_cfg", "embed_dim")),
        "quick_gelu": False,
        "init_logit_bias": None,
        "nonscalar_logit_scale": False,
    },
    # The names of tensors tell `custom_text`.
    ("custom_text", "init_logit_scale", "cast_dtype", "output_dict", "pad_id"),
)
OPEN_CLIP_PREPROCESS = ForeignClass(
    "PreprocessCfg",
    {"mean": CLIP_MEAN, "std": CLIP_STD, "mode": "RGB"},
    ("size", "interpolation", "resize_mode", "fill_color"),
)
OPEN_CLIP = ForeignClass("open_clip", {"model_cfg": None, "preprocess_cfg": None})
_OPEN_CLIP_NORM = ForeignClass("LayerNorm", {"eps": 1e-5, "elementwise_affine": True, "bias": True})
_OPEN_CLIP_GELU = ForeignClass("GELU", {"approximate": "none"})
_QUICK_GELU = ForeignClass("QuickGELU", {})


def hf_clip_config(hf: Fields) -> VisionEncoder.Config:
    """Returns the encoder of a CLIP's `vision_config` or a CLIPVisionModel's `config.json`."""
    cfg = _clip(
        **hf_sizes(hf),
        num_layers=hf.integer("num_hidden_layers", most=MOST_LAYERS),
        hidden_dim=hf.integer("intermediate_size"),
        activation=hf.one_of("hidden_act", ACTIVATIONS),
        eps=hf.number("layer_norm_eps"),
    )
    raise_if_no_multiple(hf)
    return cfg


def hf_sizes(hf: Fields) -> dict[str, int]:
    """Returns sizes that have the same names in both Hugging Face towers."""
    sizes = {
        "image_size": hf.side("image_size"),
        "patch_size": hf.side("patch_size"),
        "width": hf.integer("hidden_size"),
        "num_heads": hf.integer("num_attention_heads"),
    }
    if sizes["width"] % sizes["num_heads"]:
        hf.refuse("hidden_size", f"expected a multiple of num_attention_heads={sizes['num_heads']}")
    if sizes["image_size"] < sizes["patch_size"]:
        hf.refuse("image_size", f"expected at least patch_size={sizes['patch_size']}")
    return sizes


def raise_if_no_multiple(fields: Fields, name: str = "image_size") -> None:
    patch_size = fields.side("patch_size")
    if fields.side(name) % patch_size:
        fields.refuse(name, f"expected a multiple of patch_size={patch_size}")


def clip_pair_section(hf: Fields) -> Fields:
    """Returns the fields of the vision tower in the `config.json` of a CLIP."""
    # In transformers, this old field replaces all of vision_config if present.
    name = "vision_config_dict" if hf.value("vision_config_dict") is not None else "vision_config"
    hf.value("vision_config")
    return hf.section(name, CLIP_VISION)


def set_pixels(cfg: VisionEncoder.Config, processor: Fields) -> None:
    """Sets mean and standard deviation of colors from a `preprocessor_config.json`."""
    for name in ("do_rescale", "do_normalize"):
        if not processor.flag(name):
            processor.refuse(name, "only true is supported")
    if abs(255 * processor.number("rescale_factor") - 1) > 1e-6:
        processor.refuse("rescale_factor", "only 1/255 is supported")
    cfg.pixel_mean = _colours(processor, "image_mean")
    cfg.pixel_std = _colours(processor, "image_std", above=0.0)


def _colours(fields: Fields, name: str, above: float = -1e38) -> tuple[float, float, float]:
    values = fields.value(name)
    if not isinstance(values, list | tuple) or len(values) != 3:
        fields.refuse(name, "expected a number for each of three colors")
    red, green, blue = (fields.item(name, i).number(name, above=above) for i in range(3))
    return red, green, blue


def open_clip_sections(hf: Fields) -> tuple[Fields, Fields]:
    """Returns the fields of the model and of its vision tower in an `open_clip_config.json`."""
    model = hf.section("model_cfg", OPEN_CLIP_MODEL)
    return model, model.section("vision_cfg", OPEN_CLIP_VISION)


def open_clip_config(hf: Fields) -> VisionEncoder.Config:
    """Returns the vision encoder of an `open_clip_config.json`."""
    model, vision = open_clip_sections(hf)
    if vision.has("timm_model_name"):
        vision.refuse(
            "timm_model_name",
            "the tower is timm's; only open_clip's own VisionTransformer is supported",
        )
    if isinstance(vision.value("layers"), list):
        vision.refuse(
            "layers", "a list is a ResNet; only open_clip's VisionTransformer is supported"
        )
    # The checkpoint stores positions of both kinds as a tensor.
    vision.one_of("pos_embed_type", {"learnable": None, "sin_cos_2d": None})
    pool = vision.one_of("pool_type", {"tok": "tok", "avg": "avg"})
    if pool == "avg" and not vision.flag("final_ln_after_pool"):
        vision.refuse(
            "pool_type", "patches pass through the last norm here, unless final_ln_after_pool"
        )
    vision.flag("final_ln_after_pool")
    width, head_width = vision.integer("width"), vision.integer("head_width")
    if width % head_width:
        vision.refuse("head_width", f"expected a divisor of width={width}")
    eps, activation = open_clip_norm_and_activation(model, vision)
    cfg = _clip(
        image_size=vision.side("image_size"),
        patch_size=vision.side("patch_size"),
        width=width,
        num_layers=vision.integer("layers", most=MOST_LAYERS),
        num_heads=width // head_width,
        hidden_dim=open_clip_hidden_dim(vision, width),
        activation=activation,
        eps=eps,
    )
    raise_if_no_multiple(vision)
    if vision.flag("no_ln_pre"):
        cfg.pre_norm = None
    preprocess = hf.section("preprocess_cfg", OPEN_CLIP_PREPROCESS)
    cfg.pixel_mean = _colours(preprocess, "mean")
    cfg.pixel_std = _colours(preprocess, "std", above=0.0)
    return cfg


def open_clip_norm_and_activation(model: Fields, tower: Fields) -> tuple[float, Activation]:
    """Returns the eps of norms and the activation of one of open_clip's towers."""
    quick_gelu = model.flag("quick_gelu")
    kind = tower.section("act_kwargs", _QUICK_GELU if quick_gelu else _OPEN_CLIP_GELU)
    activation = Activation.QUICK_GELU
    if not quick_gelu:
        activation = kind.one_of("approximate", _APPROXIMATE)
    return tower.section("norm_kwargs", _OPEN_CLIP_NORM).number("eps"), activation


def open_clip_hidden_dim(tower: Fields, width: int) -> int:
    """Returns the size of the MLPs of one of open_clip's towers."""
    hidden_dim = int(width * tower.number("mlp_ratio"))
    if not 1 <= hidden_dim < 2**31:
        tower.refuse("mlp_ratio", f"a feed-forward layer of size {hidden_dim} is not supported")
    return hidden_dim


def siglip_config(hf: Fields) -> VisionEncoder.Config:
    """Returns the encoder of a SigLIP: no class token, a final norm, pixel mean and std of 0.5."""
    sizes = hf_sizes(hf)
    patch_size = sizes["patch_size"]
    cfg = VisionEncoder.default_config().set(
        # SigLIP's patches ignore pixels beyond a multiple of their size.
        image_size=sizes["image_size"] // patch_size * patch_size,
        patch_size=patch_size,
        model_dim=sizes["width"],
        num_layers=hf.integer("num_hidden_layers", most=MOST_LAYERS),
        num_heads=sizes["num_heads"],
        hidden_dim=hf.integer("intermediate_size"),
        pixel_mean=_HALF,
        pixel_std=_HALF,
        final_norm=LayerNorm.default_config(),
    )
    cfg.patch_embedding.bias = True
    cfg.stack.layer.feed_forward.activation = hf.one_of("hidden_act", ACTIVATIONS)
    _set_eps(cfg, hf.number("layer_norm_eps"))
    return cfg


def tower_config(cfg: VisionEncoder.Config) -> dict[str, Any]:
    """Returns the `config.json` of a CLIP or SigLIP tower, with or without its final norm.

    Raises:
        ValueError: The encoder is neither.
    """
    norms = [n for n in (cfg.pre_norm, cfg.final_norm, cfg.stack.layer.norm) if n is not None]
    eps = cfg.stack.layer.norm.eps
    is_clip = cfg.class_token is not None
    is_learned = isinstance(cfg.positions, PositionEmbedding.Config)
    if (cfg.pre_norm is None) is is_clip or not is_learned or cfg.patch_norm is not None:
        raise ValueError("vision_encoder: matches neither CLIP's tower nor SigLIP's")
    if cfg.patch_embedding.bias is is_clip or any(norm.eps != eps for norm in norms):
        raise ValueError("vision_encoder: its biases or the eps of its norms match neither tower")
    names = {activation: name for name, activation in ACTIVATIONS.items()}
    return {
        "architectures": ["CLIPVisionModel" if is_clip else "SiglipVisionModel"],
        "model_type": "clip_vision_model" if is_clip else "siglip_vision_model",
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "hidden_size": cfg.model_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.hidden_dim,
        "hidden_act": names[cfg.stack.layer.feed_forward.activation],
        "layer_norm_eps": eps,
    }


def _clip(
    *,
    image_size: int,
    patch_size: int,
    width: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    activation: Activation,
    eps: float,
) -> VisionEncoder.Config:
    cfg = VisionEncoder.default_config().set(
        image_size=image_size,
        patch_size=patch_size,
        model_dim=width,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        class_token=ClassToken.default_config(),
        pre_norm=LayerNorm.default_config(),
        final_norm=None,
    )
    cfg.stack.layer.feed_forward.activation = activation
    _set_eps(cfg, eps)
    return cfg


def _set_eps(cfg: VisionEncoder.Config, eps: float) -> None:
    for norm in (cfg.pre_norm, cfg.final_norm, cfg.stack.layer.norm):
        if norm is not None:
            norm.eps = eps

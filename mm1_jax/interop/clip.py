"""Configs of whole CLIPs: of `CLIPModel` and `SiglipModel` in transformers, and of open_clip.

A CLIP is read as the parts of a `CLIP` and written back from them. An export is allowed if its
config, read again, gives the same parts, so that reading is the only place that knows the rules.
"""

from collections.abc import Mapping
from typing import Any

from mm1_jax.config import InstantiableConfig, maybe_set_config
from mm1_jax.interop import vision
from mm1_jax.interop.clip_tensors import POOLING, PROJECTION, TEXT
from mm1_jax.interop.fields import MOST_LAYERS, Fields, ForeignClass
from mm1_jax.interop.vision import ACTIVATIONS, ENCODER
from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.models.clip import CLIP
from mm1_jax.models.image_pooling import ClassPooling, MAPPooling, MeanPooling
from mm1_jax.models.text_encoder import TextEncoder, TextPooling

_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
}
CLIP_TEXT = ForeignClass(
    "CLIPTextConfig",
    {**_TEXT, "vocab_size": 49_408, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    ("attention_dropout", "dropout", "projection_dim", "tie_word_embeddings"),
)
SIGLIP_TEXT = ForeignClass(
    "SiglipTextConfig",
    {
        **_TEXT,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "max_position_embeddings": 64,
        "vocab_size": 32_000,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "projection_size": None,
        # Fills rows, and every position attends to it.
        "pad_token_id": 1,
    },
    ("attention_dropout", "dropout", "tie_word_embeddings"),
)
OPEN_CLIP_TEXT = ForeignClass(
    "CLIPTextCfg",
    {
        "context_length": 77,
        "vocab_size": 49_408,
        "width": 512,
        "heads": 8,
        "layers": 12,
        "mlp_ratio": 4.0,
        "ls_init_value": None,
        "embed_cls": False,
        "pad_id": 0,
        "no_causal_mask": False,
        "pool_type": "argmax",
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
    # The end of a text is where its tokens end here. open_clip has two fields that it never reads.
    (
        *("eos_id", "final_ln_after_pool", "output_tokens", "hf_tokenizer_name", "tokenizer_mode"),
        *("tokenizer_kwargs", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
    ),
)
# open_clip's text pooling. The token that ends a text has the highest id in CLIP's vocabulary.
_POOLING = {"argmax": TextPooling.EOS, "eos": TextPooling.EOS, "last": TextPooling.LAST}
# Names of the poolings in open_clip, and of activations in its `act_kwargs`.
_APPROXIMATE = {Activation.GELU: None, Activation.GELU_TANH: "tanh"}


def text_section(hf: Fields, model_type: str) -> Fields:
    """Returns the fields of the text tower in the `config.json` of a CLIP or a SigLIP."""
    if model_type == "siglip":
        return hf.section("text_config", SIGLIP_TEXT)
    # In transformers, this old field replaces all of text_config if present.
    name = "text_config_dict" if hf.value("text_config_dict") is not None else "text_config"
    hf.value("text_config")
    return hf.section(name, CLIP_TEXT)


def skip_text(hf: Fields) -> None:
    """Accepts any fields of the text tower and of what compares both towers."""
    model = hf.section("model_cfg", vision.OPEN_CLIP_MODEL) if "model_cfg" in hf.given else hf
    for name in ("text_config", "text_config_dict", "projection_dim"):
        hf.value(name)
    for name in ("text_cfg", "multimodal_cfg", "embed_dim", "init_logit_bias"):
        model.value(name)
    model.value("nonscalar_logit_scale")


def hf_clip(hf: Fields) -> CLIP.Config:
    """Returns the model of a CLIP's `config.json`."""
    tower = vision.clip_pair_section(hf)
    encoder = vision.hf_clip_config(tower)
    text = _hf_text(text_section(hf, "clip"))
    model = CLIP.default_config().set(
        vision_encoder=encoder, text_encoder=text, features_dim=hf.integer("projection_dim")
    )
    model.image_pooling.norm.eps = tower.number("layer_norm_eps")
    return model


def hf_siglip(hf: Fields) -> CLIP.Config:
    """Returns the model of a SigLIP's `config.json`."""
    tower = hf.section("vision_config", vision.SIGLIP_VISION)
    encoder = vision.siglip_config(tower)
    if tower.value("vision_use_head") is False:
        tower.refuse("vision_use_head", "features of images come from the head; only true")
    fields = text_section(hf, "siglip")
    text = _hf_text(fields)
    text.set(pooling=TextPooling.LAST, padding_token=fields.integer("pad_token_id", least=0))
    text.projection.bias = True
    text.stack.layer.attention.pattern = Pattern.BIDIRECTIONAL
    output_dim = fields.integer_or_none("projection_size") or text.model_dim
    if output_dim != encoder.model_dim:
        name = "hidden_size" if fields.value("projection_size") is None else "projection_size"
        fields.refuse(name, f"expected the hidden_size {encoder.model_dim} of vision_config")
    pooling = MAPPooling.default_config()
    pooling.feed_forward.activation = encoder.stack.layer.feed_forward.activation
    pooling.norm.eps = tower.number("layer_norm_eps")
    return CLIP.default_config().set(
        vision_encoder=encoder,
        image_pooling=pooling,
        image_projection=None,
        text_encoder=text,
        features_dim=encoder.model_dim,
        initial_scale=10.0,
        initial_bias=-10.0,
    )


def _hf_text(hf: Fields) -> TextEncoder.Config:
    dim, num_heads = hf.integer("hidden_size"), hf.integer("num_attention_heads")
    if dim % num_heads:
        hf.refuse("hidden_size", f"expected a multiple of num_attention_heads={num_heads}")
    return _text(
        vocab_size=hf.integer("vocab_size"),
        max_length=hf.integer("max_position_embeddings"),
        model_dim=dim,
        num_layers=hf.integer("num_hidden_layers", most=MOST_LAYERS),
        num_heads=num_heads,
        hidden_dim=hf.integer("intermediate_size"),
        activation=hf.one_of("hidden_act", ACTIVATIONS),
        eps=hf.number("layer_norm_eps"),
    )


def open_clip(hf: Fields) -> CLIP.Config:
    """Returns the model of an `open_clip_config.json`."""
    encoder = vision.open_clip_config(hf)
    model, tower = vision.open_clip_sections(hf)
    model.flag("nonscalar_logit_scale")
    if model.value("multimodal_cfg") is not None:
        model.refuse("multimodal_cfg", "a CoCa has a decoder; only CLIPs are supported")
    fields = model.section("text_cfg", OPEN_CLIP_TEXT)
    if fields.has("hf_model_name"):
        fields.refuse(
            "hf_model_name",
            "the text tower is of transformers; only open_clip's own TextTransformer is supported",
        )
    width, num_heads = fields.integer("width"), fields.integer("heads")
    if width % num_heads:
        fields.refuse("width", f"expected a multiple of heads={num_heads}")
    eps, activation = vision.open_clip_norm_and_activation(model, fields)
    text = _text(
        vocab_size=fields.integer("vocab_size"),
        max_length=fields.integer("context_length"),
        model_dim=width,
        num_layers=fields.integer("layers", most=MOST_LAYERS),
        num_heads=num_heads,
        hidden_dim=vision.open_clip_hidden_dim(fields, width),
        activation=activation,
        eps=eps,
    )
    fields.one_of("proj_type", {"linear": None})
    text.projection.bias = fields.flag("proj_bias")
    text.pooling = fields.one_of("pool_type", _POOLING)
    padding = fields.integer("pad_id", least=0)
    if text.pooling is TextPooling.LAST:
        text.padding_token = padding
    if fields.flag("no_causal_mask"):
        text.stack.layer.attention.pattern = Pattern.BIDIRECTIONAL
        if text.pooling is not TextPooling.LAST:
            fields.refuse(
                "no_causal_mask",
                f"with pool_type={fields.value('pool_type')!r}, texts attend to padding, which "
                "they do not here; only with pool_type 'last'",
            )
    pooling = ClassPooling.default_config()
    if tower.value("pool_type") == "avg":
        pooling = MeanPooling.default_config()
    pooling.norm.eps = encoder.stack.layer.norm.eps
    return CLIP.default_config().set(
        vision_encoder=encoder,
        image_pooling=pooling,
        text_encoder=text,
        features_dim=model.integer("embed_dim"),
        initial_bias=None if model.value("init_logit_bias") is None else 0.0,
    )


def _text(*, activation: Activation, eps: float, **sizes: int) -> TextEncoder.Config:
    cfg = TextEncoder.default_config().set(**sizes)
    cfg.final_norm.eps = cfg.stack.layer.norm.eps = eps
    cfg.stack.layer.feed_forward.activation = activation
    return cfg


def eos_and_resize(config: Mapping[str, Any]) -> tuple[int | None, str]:
    """Returns facts from the complete config of a CLIP.

    These are the id that ends a text (None if it is the highest of every text), and how pictures
    become square (see `EncoderFacts`).
    """
    if "model_cfg" in config:
        text = config["model_cfg"].get("text_cfg") or {}
        eos = text.get("eos_id", 2) if text.get("pool_type") == "eos" else None
        return eos, (config.get("preprocess_cfg") or {}).get("resize_mode", "shortest")
    text = config.get("text_config_dict") or config.get("text_config") or {}
    eos = text.get("eos_token_id", 49_407)
    return (None if eos == 2 else eos), "shortest"


def raise_if_texts_end_otherwise(config: Mapping[str, Any], eos: int, num_rows: int) -> None:
    """Raises ValueError if a tokenizer ends texts by another id than the config of a CLIP says.

    Here the feature of a text is the one at its last token; there it is the one at this id.

    Args:
        eos: Id by which the tokenizer ends texts.
        num_rows: Rows of the embedding of tokens.
    """
    name = "text_config.eos_token_id"
    if "model_cfg" in config:
        text, name = config["model_cfg"].get("text_cfg") or {}, "model_cfg.text_cfg.pool_type"
        if _POOLING.get(text.get("pool_type", "argmax")) is not TextPooling.EOS:
            return
    elif config.get("model_type") != "clip":
        return
    theirs, _ = eos_and_resize(config)
    if theirs == eos or (theirs is None and eos == num_rows - 1):
        return
    place = f"the id {theirs}" if theirs is not None else f"its highest id, of up to {num_rows - 1}"
    raise ValueError(
        f"{name}: the feature of a text is the one at {place}, and the tokenizer ends texts by "
        f"{eos}; give the tokenizer of this model by --tokenizer, or --tokenizer=none"
    )


def parts_of_clip(model: CLIP.Config) -> dict[str, InstantiableConfig]:
    """Returns the parts of a CLIP, with the dims that the model passes down filled in."""
    encoder: Any = model.vision_encoder.clone()
    pooling = maybe_set_config(
        model.image_pooling.clone(),
        input_dim=encoder.model_dim,
        num_heads=encoder.num_heads,
        hidden_dim=encoder.hidden_dim,
    )
    parts: dict[str, Any] = {ENCODER: encoder, POOLING: pooling}
    if model.image_projection is not None:
        sizes = {"input_dim": encoder.model_dim, "output_dim": model.features_dim}
        parts[PROJECTION] = model.image_projection.clone(**sizes)
    return parts | {
        TEXT: maybe_set_config(model.text_encoder.clone(), output_dim=model.features_dim)
    }


def clip_of_parts(parts: Mapping[str, Any], *, has_bias: bool) -> CLIP.Config:
    """Returns the model with the parts that `parts_of_clip` returned."""
    return CLIP.default_config().set(
        **{PROJECTION: None, **parts},
        features_dim=parts[TEXT].output_dim,
        initial_bias=0.0 if has_bias else None,
    )


def is_siglip(parts: Mapping[str, Any]) -> bool:
    """Returns whether the parts are a SigLIP rather than a CLIP: attention pools the patches."""
    return isinstance(parts[POOLING], MAPPooling.Config)


def hf_config(parts: Mapping[str, Any], *, eos: int | None = None) -> dict[str, Any]:
    """Returns the `config.json` of a CLIPModel, or of a SiglipModel if pooling is attention.

    Args:
        eos: Id of the token that ends a text; None leaves the default.
    """
    encoder, cfg, has_head = parts[ENCODER], parts[TEXT], is_siglip(parts)
    name = "siglip" if has_head else "clip"
    text = {
        "model_type": f"{name}_text_model",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.model_dim,
        "intermediate_size": cfg.hidden_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "max_position_embeddings": cfg.max_length,
        "hidden_act": _activation_name(cfg, "text_encoder"),
        "layer_norm_eps": cfg.final_norm.eps,
    }
    if has_head:
        text |= {"projection_size": cfg.output_dim, "pad_token_id": cfg.padding_token}
    if eos is not None:
        text["eos_token_id"] = eos
    config = {
        "architectures": ["SiglipModel" if has_head else "CLIPModel"],
        "model_type": name,
        "vision_config": {
            "model_type": f"{name}_vision_model",
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "hidden_size": encoder.model_dim,
            "num_hidden_layers": encoder.num_layers,
            "num_attention_heads": encoder.num_heads,
            "intermediate_size": encoder.hidden_dim,
            "hidden_act": _activation_name(encoder, "vision_encoder"),
            "layer_norm_eps": encoder.stack.layer.norm.eps,
        },
        "text_config": text,
    }
    if not has_head:
        config["projection_dim"] = cfg.output_dim
    return config


def _activation_name(cfg: Any, part: str) -> str:
    activation = cfg.stack.layer.feed_forward.activation
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    if activation not in names:
        raise ValueError(
            f"{part}.stack.layer.feed_forward.activation is {activation.value!r}, expected one of "
            f"{', '.join(each.value for each in names)}"
        )
    return names[activation]


def open_clip_export(
    parts: Mapping[str, Any],
    *,
    has_bias: bool,
    eos: int | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the `open_clip_config.json` of these parts.

    Args:
        eos: Id of the token that ends a text; None is the highest of the vocabulary.
        preprocess: Fields of `preprocess_cfg` besides mean and standard deviation.
    """
    encoder, cfg = parts[ENCODER], parts[TEXT]
    activations = [each.stack.layer.feed_forward.activation for each in (encoder, cfg)]
    is_quick = Activation.QUICK_GELU in activations
    if is_quick and activations[0] is not activations[1]:
        raise ValueError(
            "quick_gelu of open_clip is that of both towers, and text_encoder has another "
            "activation than vision_encoder"
        )

    def kinds(part: Any, name: str) -> dict[str, Any]:
        activation, eps = part.stack.layer.feed_forward.activation, part.stack.layer.norm.eps
        result: dict[str, Any] = {}
        if not is_quick:
            _activation_name(part, name)
            if (approximate := _APPROXIMATE[activation]) is not None:
                result["act_kwargs"] = {"approximate": approximate}
        if eps != 1e-5:
            result["norm_kwargs"] = {"eps": eps}
        return result

    tower = {
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "layers": encoder.num_layers,
        "width": encoder.model_dim,
        "head_width": encoder.model_dim // encoder.num_heads,
        "mlp_ratio": _ratio(encoder),
        **kinds(encoder, ENCODER),
    }
    if encoder.pre_norm is None:
        tower["no_ln_pre"] = True
    if isinstance(parts[POOLING], MeanPooling.Config):
        tower |= {"pool_type": "avg", "final_ln_after_pool": True}
    text = {
        "context_length": cfg.max_length,
        "vocab_size": cfg.vocab_size,
        "width": cfg.model_dim,
        "heads": cfg.num_heads,
        "layers": cfg.num_layers,
        "mlp_ratio": _ratio(cfg),
        **kinds(cfg, TEXT),
    }
    if cfg.pooling is TextPooling.LAST:
        text |= {"pool_type": "last", "pad_id": cfg.padding_token}
    elif eos is not None:
        text |= {"pool_type": "eos", "eos_id": eos}
    if cfg.stack.layer.attention.pattern is Pattern.BIDIRECTIONAL:
        text["no_causal_mask"] = True
    if cfg.projection.bias:
        text["proj_bias"] = True
    model: dict[str, Any] = {"embed_dim": cfg.output_dim, "vision_cfg": tower, "text_cfg": text}
    if is_quick:
        model["quick_gelu"] = True
    if has_bias:
        model["init_logit_bias"] = 0.0
    colors = {"mean": list(encoder.pixel_mean), "std": list(encoder.pixel_std)}
    return {"model_cfg": model, "preprocess_cfg": {**colors, **(preprocess or {})}}


def _ratio(cfg: Any) -> float:
    """Returns the factor that open_clip multiplies a width with to get that of the MLP."""
    ratio = cfg.hidden_dim / cfg.model_dim
    # The product may round to just below a whole number, which open_clip rounds down.
    return ratio if int(cfg.model_dim * ratio) == cfg.hidden_dim else ratio * (1 + 2**-50)

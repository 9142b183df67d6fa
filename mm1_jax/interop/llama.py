"""Configs of the Llama family on Hugging Face: Llama, Mistral, Qwen 2 and 3, and Mixtral.

They differ in biases, in norms of queries and keys, and in their feed-forward layers, all of which
are fields of our `Decoder`.
"""

from typing import Any

from mm1_jax.config import InstantiableConfig
from mm1_jax.interop.fields import MOST_EXPERTS, MOST_LAYERS, Fields, ForeignClass
from mm1_jax.layers.attention import head_sizes
from mm1_jax.layers.feed_forward import Activation, GatedFeedForward
from mm1_jax.layers.moe import MoE
from mm1_jax.layers.norm import RMSNorm
from mm1_jax.layers.rotary import Rotary, StretchedRotary
from mm1_jax.models.decoder import Decoder, decoder_stack

_SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
}
_COMMON = {
    **_SIZES,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "rope_parameters": None,
    "rope_scaling": None,
    "partial_rotary_factor": None,
}
_QWEN = {
    **_COMMON,
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_MISTRAL = {
    **_COMMON,
    "intermediate_size": 14_336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}
_NEUTRAL = ("attention_dropout",)
CLASSES = {
    "llama": ForeignClass(
        "LlamaConfig",
        {**_COMMON, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
        (*_NEUTRAL, "pretraining_tp"),
    ),
    "mistral": ForeignClass("MistralConfig", _MISTRAL, _NEUTRAL),
    # Queries, keys and values always have biases; there is no field for them.
    "qwen2": ForeignClass("Qwen2Config", _QWEN, _NEUTRAL),
    "qwen3": ForeignClass(
        "Qwen3Config", {**_QWEN, "head_dim": 128, "attention_bias": False}, _NEUTRAL
    ),
    "mixtral": ForeignClass(
        "MixtralConfig",
        {
            **_MISTRAL,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "sliding_window": None,
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
        },
        (*_NEUTRAL, "output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
    ),
}
MODEL_TYPES = tuple(CLASSES)
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
}
_STRETCHED = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def decoder_config(hf: Fields) -> Decoder.Config:
    """Returns the decoder that a `config.json` describes.

    Raises:
        ValueError: Our decoder has no counterpart of a field; the message names it.
    """
    defaults = hf.klass.defaults
    num_heads = hf.integer("num_attention_heads")
    num_kv_heads = hf.integer_or_none("num_key_value_heads") or num_heads
    if num_heads % num_kv_heads:
        hf.refuse("num_key_value_heads", f"expected a divisor of num_attention_heads={num_heads}")
    model_dim = hf.integer("hidden_size")
    # Only LlamaConfig requires this even if head_dim is given.
    head_dim = hf.integer_or_none("head_dim")
    if model_dim % num_heads and (head_dim is None or hf.klass is CLASSES["llama"]):
        hf.refuse("hidden_size", f"expected a multiple of num_attention_heads={num_heads}")
    head_dim = head_dim or model_dim // num_heads
    if head_dim % 2:
        hf.refuse(
            "head_dim",
            f"expected heads of an even size, as rotary positions rotate pairs; it is {head_dim}",
        )
    cfg = Decoder.default_config().set(
        vocab_size=hf.integer("vocab_size"),
        model_dim=model_dim,
        num_layers=hf.integer("num_hidden_layers", most=MOST_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        hidden_dim=hf.integer("intermediate_size"),
        tied_embeddings=hf.flag("tie_word_embeddings"),
    )
    # Only validated here: rotary positions have no limit. `_rotary_of` reads it for Llama 3.1.
    hf.integer("max_position_embeddings")
    eps = hf.number("rms_norm_eps")
    cfg.norm.eps = cfg.stack.layer.norm.eps = eps
    attention = cfg.stack.layer.attention.set(rotary=_rotary(hf))
    if hf.klass is CLASSES["qwen2"]:
        attention.set(bias=True, output_bias=False)
    elif "attention_bias" in defaults:
        attention.bias = hf.flag("attention_bias")
    if hf.klass is CLASSES["qwen3"]:
        attention.qk_norm = RMSNorm.default_config().set(eps=eps)
    hf.one_of("hidden_act", {"silu": None, "swish": None})
    if "num_local_experts" in defaults:
        num_experts = hf.integer("num_local_experts", most=MOST_EXPERTS)
        cfg.moe = MoE.default_config().set(
            num_experts=num_experts,
            experts_per_token=hf.integer("num_experts_per_tok", most=num_experts),
        )
    attention_window(hf)
    return cfg


def attention_window(hf: Fields) -> int | None:
    """Returns how many positions the source's layers attend to; None for all before them."""
    defaults = hf.klass.defaults
    if "sliding_window" not in defaults:
        return None
    window = hf.integer_or_none("sliding_window")
    if "use_sliding_window" not in defaults:
        return window
    is_used, first = hf.flag("use_sliding_window"), hf.integer("max_window_layers", least=0)
    num_layers, kinds = hf.integer("num_hidden_layers", most=MOST_LAYERS), hf.value("layer_types")
    if kinds is None:
        return window if is_used and first < num_layers else None
    full, sliding = "full_attention", "sliding_attention"
    if not isinstance(kinds, list) or any(kind not in (full, sliding) for kind in kinds):
        hf.refuse("layer_types", f"expected a list of {full!r} and {sliding!r}")
    if len(kinds) != num_layers:
        hf.refuse("layer_types", f"expected one for each of num_hidden_layers={num_layers}")
    if sliding in kinds and not (is_used and window):
        hf.refuse("layer_types", f"{sliding!r} needs use_sliding_window=true and a sliding_window")
    return window if sliding in kinds else None


def hf_config(cfg: Decoder.Config) -> dict[str, Any]:
    """Returns the `config.json` of the transformers decoder that computes the same.

    Raises:
        ValueError: There is none; the message names the field without counterpart.
    """
    layer = decoder_stack(cfg).layer
    attention, eps = layer.attention, cfg.norm.eps
    num_heads, num_kv_heads, head_dim = head_sizes(attention)
    output_bias = attention.bias if attention.output_bias is None else attention.output_bias
    norms = [layer.norm, *([attention.qk_norm] if attention.qk_norm else [])]
    if any(not isinstance(norm, RMSNorm.Config) or norm.eps != eps for norm in (cfg.norm, *norms)):
        raise ValueError("decoder: transformers supports RMSNorm only, with one eps for all norms")
    feed_forward = layer.feed_forward
    if isinstance(feed_forward, GatedFeedForward.Config):
        activation = feed_forward.activation
    else:
        activation = feed_forward.experts.activation
    if activation is not Activation.SILU:
        raise ValueError(
            f"decoder.stack.layer.feed_forward.activation={activation.value}: expected silu"
        )
    if cfg.moe is not None and (cfg.moe_every != 1 or attention.qk_norm or attention.bias):
        raise ValueError(
            f"decoder.moe_every={cfg.moe_every}, attention.bias={attention.bias}: a Mixtral has "
            "experts in every layer, no biases and no norms of queries and keys"
        )
    if cfg.moe is not None:
        model_type = "mixtral"
    elif attention.qk_norm is not None:
        model_type = "qwen3"
    elif attention.bias and not output_bias:
        model_type = "qwen2"
    else:
        model_type = "llama"
    if model_type != "qwen2" and output_bias != attention.bias:
        raise ValueError(
            "decoder: transformers does not support this combination of attention biases"
        )
    result = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.model_dim,
        "intermediate_size": cfg.hidden_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": eps,
        "tie_word_embeddings": cfg.tied_embeddings,
        **rope_fields(attention.rotary),
    }
    if model_type in ("llama", "qwen3"):
        result["attention_bias"] = attention.bias
    if model_type == "mixtral":
        moe: Any = cfg.moe
        result |= {
            "num_local_experts": moe.num_experts,
            "num_experts_per_tok": moe.experts_per_token,
            "sliding_window": None,
        }
    if model_type == "qwen2":
        result["use_sliding_window"] = False
    return result


def rope_fields(rotary: InstantiableConfig | None) -> dict[str, Any]:
    """Returns rotary fields of a `config.json`, for transformers 5 and for older releases."""
    if isinstance(rotary, Rotary.Config):
        parameters: dict[str, Any] = {"rope_type": "default"}
    elif isinstance(rotary, StretchedRotary.Config):
        parameters = {"rope_type": "llama3", **{name: getattr(rotary, name) for name in _STRETCHED}}
    else:
        raise ValueError(f"decoder: transformers has no counterpart of attention.rotary={rotary}")
    result = {
        "rope_theta": rotary.theta,
        "rope_parameters": {**parameters, "rope_theta": rotary.theta},
    }
    if parameters["rope_type"] != "default":
        result["rope_scaling"] = parameters
    return result


def upcycled(cfg: Decoder.Config, *, num_experts: int, moe_every: int) -> Decoder.Config:
    """Returns the decoder with each dense layer copied to all experts (arXiv 2212.05055).

    The weights of a token's experts sum to one, so the result computes the same as the dense
    decoder, whichever experts the router selects.
    """
    if cfg.moe is not None:
        raise ValueError("this decoder has experts already; only dense ones can be upcycled")
    return cfg.clone(moe=MoE.default_config().set(num_experts=num_experts), moe_every=moe_every)


_ROPE = ForeignClass(
    "rope_parameters",
    {
        **dict.fromkeys(("type", "rope_theta", "partial_rotary_factor", *_STRETCHED)),
        "rope_type": "default",
    },
)


def _rotary(hf: Fields) -> InstantiableConfig:
    # transformers 5 uses `rope_parameters`, older releases `rope_scaling` beside `rope_theta`.
    names = ("rope_scaling", "rope_parameters")
    rotaries = [_rotary_of(hf, hf.section(name, _ROPE)) for name in names if hf.value(name)]
    if len(rotaries) == 2 and rotaries[0].to_dict() != rotaries[1].to_dict():
        hf.refuse("rope_scaling", "rope_parameters differs from it; remove one of them")
    return rotaries[0] if rotaries else _rotary_of(hf, hf.section("rope_parameters", _ROPE))


def _rotary_of(hf: Fields, rope: Fields) -> InstantiableConfig:
    """Returns the rotary config given by one of the two objects and the fields beside it."""
    theta = outer = hf.number("rope_theta")
    if rope.gives("rope_theta"):
        theta = rope.number("rope_theta")
    if hf.gives("rope_theta") and theta != outer:
        hf.refuse("rope_theta", f"{rope.path}rope_theta={theta:g}; remove one of them")
    for fields in (hf, rope):
        if fields.value("partial_rotary_factor") not in (None, 1):
            fields.refuse("partial_rotary_factor", "only 1, whole heads, is supported")
    kind = rope.value("rope_type")
    if rope.has("type"):
        if rope.has("rope_type") and rope.value("type") != kind:
            rope.refuse("type", f"rope_type={kind!r} beside it; remove one of them")
        kind = rope.value("type")
    if kind == "default":
        return Rotary.default_config().set(theta=theta)
    if kind != "llama3":
        rope.refuse("type" if rope.has("type") else "rope_type", "expected default or llama3")
    if not rope.has("original_max_position_embeddings"):
        length = hf.integer("max_position_embeddings")
    else:
        length = rope.integer("original_max_position_embeddings")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        rope.refuse("high_freq_factor", f"expected more than low_freq_factor={low:g}")
    return StretchedRotary.default_config().set(
        theta=theta,
        factor=rope.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=length,
    )

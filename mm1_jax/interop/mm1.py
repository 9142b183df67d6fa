"""Config and tensor names of a whole MM1 in transformers, as the code in `hf_model/` reads them.

Each parameter becomes a tensor of the same name with the layer index in it; kernels become
`weight`s of a `torch.nn.Linear`. So a new module needs a counterpart in `hf_model/modeling_mm1.py`
and its settings here, but no table.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mm1_jax.config import InstantiableConfig, maybe_set_config
from mm1_jax.interop.layout import Layout
from mm1_jax.interop.llama import rope_fields
from mm1_jax.interop.mapping import Entry, Piece, parameter_shapes
from mm1_jax.layers.attention import Pattern, head_sizes
from mm1_jax.layers.feed_forward import FeedForward, GatedFeedForward
from mm1_jax.layers.moe import MoE
from mm1_jax.layers.norm import LayerNorm, RMSNorm
from mm1_jax.layers.position_embedding import PositionEmbedding, SinCosPositions
from mm1_jax.models.connectors.attention_pooling import AttentionPooling, CrossAttentionBlock
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.connectors.c_abstractor import BottleneckBlock, CAbstractor
from mm1_jax.models.connectors.mlp import MLP
from mm1_jax.models.decoder import Decoder, decoder_stack
from mm1_jax.models.vision_encoder import VisionEncoder

# (pattern of our path, exported name, layout); the first pattern that matches applies.
_NAMES = (
    (r"(.*attention/(?:query|key|value))/kernel", r"\1/weight", "(n h) d -> d n h"),
    (r"(.*attention/(?:query|key|value))/bias", r"\1/bias", "(n h) -> n h"),
    (r"(.*attention/output)/kernel", r"\1/weight", "d (n h) -> d n h"),
    (r"(.*/down)/kernel", r"\1/weight", "d f -> d f"),
    (r"(.*)/kernel", r"\1/weight", "f d -> d f"),
    (r"(.*norm)/scale", r"\1/weight", "d -> d"),
    (r"(.*/router)", r"\1/weight", "e d -> d e"),
    (r"(decoder/(?:embedding|head)/weight)", r"\1", "v d -> v d"),
)


def model_parts(model: InstantiableConfig) -> dict[str, InstantiableConfig]:
    """Returns the parts of an `MM1.Config`, with the dims that the model passes down filled in."""
    parts: dict[str, Any] = {}
    if model.vision_encoder is not None:
        encoder = model.vision_encoder.clone()
        connector = maybe_set_config(
            model.connector.clone(),
            input_dim=encoder.model_dim,
            output_dim=model.decoder.model_dim,
            grid_size=encoder.image_size // encoder.patch_size,
        )
        parts |= {"vision_encoder": encoder, "connector": connector}
    return parts | {"decoder": model.decoder.clone()}


def mm1_entries(parts: Mapping[str, InstantiableConfig]) -> list[Entry]:
    """Returns the tensors of an exported MM1, part by part."""
    entries = []
    for part, cfg in parts.items():
        stack = None
        if isinstance(cfg, Decoder.Config):
            stack = decoder_stack(cfg)
        elif isinstance(cfg, VisionEncoder.Config):
            stack = cfg.stack
        for path, shape in parameter_shapes(cfg).items():
            for index, layer in _slices(path, shape, 1 if stack is None else stack.group_size):
                entries.append(_entry(f"{part}/{path}", shape[len(index) :], index, layer))
    return entries


def mm1_config(parts: Mapping[str, Any], *, image_token: int, dtype: str) -> dict[str, Any]:
    """Returns the `config.json` of an exported MM1.

    Raises:
        ValueError: A part needs something that the modeling file lacks.
    """
    has_images = "connector" in parts
    return {
        "architectures": ["MM1ForConditionalGeneration"],
        "model_type": "mm1",
        "auto_map": {
            "AutoConfig": "configuration_mm1.MM1Config",
            "AutoModelForCausalLM": "modeling_mm1.MM1ForConditionalGeneration",
            "AutoModelForImageTextToText": "modeling_mm1.MM1ForConditionalGeneration",
        },
        "vision_settings": _vision(parts["vision_encoder"]) if has_images else None,
        "connector_settings": _connector(parts["connector"]) if has_images else None,
        "decoder_settings": _decoder(parts["decoder"]),
        "image_token_id": image_token,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _slices(
    path: str, shape: tuple[int, ...], group_size: int
) -> Iterator[tuple[tuple[int, ...], int | None]]:
    """Yields the index of each layer's slice of a parameter, and the layer (None if unstacked)."""
    if path.startswith("stack/last_layer/"):
        for group in range(shape[0]):
            yield (group,), (group + 1) * group_size - 1
    elif path.startswith("stack/layer/") and group_size > 1:
        for group, place in itertools.product(range(shape[0]), range(shape[1])):
            yield (group, place), group * group_size + place
    elif path.startswith("stack/layer/"):
        for layer in range(shape[0]):
            yield (layer,), layer
    else:
        yield (), None


def _entry(path: str, shape: tuple[int, ...], index: tuple[int, ...], layer: int | None) -> Entry:
    name = re.sub(r"stack/(?:last_)?layer/", f"layers/{layer}/", path)
    letters = "abcd"[: len(shape)]
    text = f"{' '.join(letters)} -> {' '.join(letters)}"
    for pattern, renamed, layout in _NAMES:
        if re.fullmatch(pattern, path):
            # The pattern also matches `name`, which differs from `path` in the layer only.
            name, text = re.sub(f"^{pattern}$", renamed, name), layout
            break
    ours = text.partition("->")[2].split()
    sizes = dict(zip(ours, shape, strict=True))
    piece = Piece(path, index, Layout(text, **sizes))
    return Entry(name.replace("/", "."), piece.layout.their_shape, (piece,))


def _norm(cfg: InstantiableConfig | None) -> dict[str, Any] | None:
    if cfg is None:
        return None
    kinds = {RMSNorm.Config: "rms_norm", LayerNorm.Config: "layer_norm"}
    return {"kind": _kind(cfg, kinds), "eps": cfg.eps}


def _kind(cfg: Any, kinds: Mapping[Any, str]) -> str:
    for kind, name in kinds.items():
        if type(cfg) is kind:
            return name
    raise ValueError(f"{cfg.klass.__name__}: hf_model/modeling_mm1.py has no such module")


def _attention(cfg: Any, pattern: Pattern) -> dict[str, Any]:
    num_heads, num_kv_heads, head_dim = head_sizes(cfg)
    if Pattern(cfg.pattern) is not pattern:
        raise ValueError(f"attention.pattern={cfg.pattern}: an export supports only {pattern} here")
    return {
        "input_dim": cfg.input_dim,
        "source_dim": cfg.source_dim or cfg.input_dim,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "bias": cfg.bias,
        "output_bias": cfg.bias if cfg.output_bias is None else cfg.output_bias,
        "qk_norm": _norm(cfg.qk_norm),
        "rotary": None if cfg.rotary is None else _rotary(cfg.rotary),
    }


def _rotary(cfg: InstantiableConfig) -> dict[str, Any]:
    parameters = rope_fields(cfg)["rope_parameters"]
    return {"theta": parameters.pop("rope_theta"), **parameters}


def _feed_forward(cfg: InstantiableConfig) -> dict[str, Any]:
    if isinstance(cfg, MoE.Config):
        return {
            "num_experts": cfg.num_experts,
            "experts_per_token": cfg.experts_per_token,
            "hidden_dim": cfg.hidden_dim,
            "activation": cfg.experts.activation.value,
        }
    kinds = {GatedFeedForward.Config: "gated", FeedForward.Config: "plain"}
    return {
        "is_gated": _kind(cfg, kinds) == "gated",
        "hidden_dim": cfg.hidden_dim,
        "bias": cfg.up.bias,
        "activation": cfg.activation.value,
    }


def _block(cfg: InstantiableConfig, pattern: Pattern) -> dict[str, Any]:
    return {
        "attention": _attention(cfg.attention, pattern),
        "feed_forward": _feed_forward(cfg.feed_forward),
        "norm": _norm(cfg.norm),
    }


def _decoder(cfg: Decoder.Config) -> dict[str, Any]:
    stack = decoder_stack(cfg)
    blocks = [_block(stack.layer, Pattern.CAUSAL)]
    if stack.last_layer is not None:
        blocks = blocks * (stack.group_size - 1) + [_block(stack.last_layer, Pattern.CAUSAL)]
    layers = blocks * (cfg.num_layers // len(blocks))
    attention = layers[0]["attention"]
    return {
        "vocab_size": cfg.vocab_size,
        "model_dim": cfg.model_dim,
        "num_layers": cfg.num_layers,
        **{name: attention[name] for name in ("num_heads", "num_kv_heads", "head_dim")},
        "tied_embeddings": cfg.tied_embeddings,
        "norm": _norm(cfg.norm),
        "layers": layers,
    }


def _vision(cfg: VisionEncoder.Config) -> dict[str, Any]:
    layer = cfg.stack.layer.clone(input_dim=cfg.model_dim)
    layer.attention.set(input_dim=cfg.model_dim, num_heads=cfg.num_heads)
    layer.feed_forward.hidden_dim = cfg.hidden_dim
    kinds = {PositionEmbedding.Config: "learned", SinCosPositions.Config: "sin_cos"}
    is_learned = _kind(cfg.positions, kinds) == "learned"
    return {
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "model_dim": cfg.model_dim,
        "patch_embedding_bias": cfg.patch_embedding.bias,
        "patch_norm": _norm(cfg.patch_norm),
        "sin_cos_theta": None if is_learned else cfg.positions.theta,
        "has_class_token": cfg.class_token is not None,
        "pre_norm": _norm(cfg.pre_norm),
        "final_norm": _norm(cfg.final_norm),
        "layers": [_block(layer, Pattern.BIDIRECTIONAL)] * cfg.num_layers,
    }


def _connector(cfg: InstantiableConfig) -> dict[str, Any]:
    makers = {
        AveragePooling.Config: _average_pooling,
        AttentionPooling.Config: _attention_pooling,
        CAbstractor.Config: _c_abstractor,
        MLP.Config: _mlp,
    }
    names = {kind: kind.__qualname__ for kind in makers}
    _kind(cfg, names)
    common = {name: getattr(cfg, name) for name in ("num_image_tokens", "input_dim", "output_dim")}
    return common | makers[type(cfg)](cfg)


def _average_pooling(cfg: AveragePooling.Config) -> dict[str, Any]:
    return {"kind": "average_pooling", "bias": cfg.projection.bias}


def _mlp(cfg: MLP.Config) -> dict[str, Any]:
    return {"kind": "mlp", "bias": cfg.up.bias, "activation": cfg.activation.value}


def _attention_pooling(cfg: AttentionPooling.Config) -> dict[str, Any]:
    block = CrossAttentionBlock.default_config().set(norm=cfg.norm)
    block.attention.set(input_dim=cfg.model_dim, source_dim=cfg.input_dim, num_heads=cfg.num_heads)
    block.feed_forward.hidden_dim = cfg.hidden_dim
    return {
        "kind": "attention_pooling",
        "model_dim": cfg.model_dim,
        "norm": _norm(cfg.norm),
        "blocks": [_block(block, Pattern.BIDIRECTIONAL)] * cfg.num_layers,
    }


def _c_abstractor(cfg: CAbstractor.Config) -> dict[str, Any]:
    ratio = BottleneckBlock.default_config().squeeze_ratio

    def stage(inputs: int) -> list[list[int]]:
        dims = [inputs] + [cfg.hidden_dim] * cfg.depth
        return [[i, o, round(i * ratio)] for i, o in itertools.pairwise(dims)]

    dims = [cfg.hidden_dim if cfg.depth else cfg.input_dim] + [cfg.output_dim] * cfg.mlp_depth
    return {
        "kind": "c_abstractor",
        "grid_size": cfg.grid_size,
        "norm": _norm(cfg.norm),
        "stage_1": stage(cfg.input_dim),
        "stage_2": stage(cfg.hidden_dim),
        "read_out": [list(pair) for pair in itertools.pairwise(dims)],
    }

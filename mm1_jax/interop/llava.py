"""LLaVA as a whole model: a CLIP or SigLIP tower, an MLP, and a decoder of the Llama family.

It reads the features of an earlier layer than the last, so the tower here has fewer layers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mm1_jax.interop import llama, vision
from mm1_jax.interop.mapping import Entry, Slice, Table, prefix_of
from mm1_jax.models.connectors.mlp import MLP
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.vision_encoder import VisionEncoder

MODEL_TYPE = "llava"
_TOWERS = {
    "clip_vision_model": vision.hf_clip_config,
    "siglip_vision_model": vision.siglip_config,
}


def llava_parts(hf: Mapping[str, Any]) -> tuple[VisionEncoder.Config, MLP.Config, Decoder.Config]:
    """Encoder, connector and decoder of a `config.json`."""
    tower, text = hf["vision_config"], hf["text_config"]
    if tower["model_type"] not in _TOWERS or text.get("model_type") not in llama.MODEL_TYPES:
        raise ValueError(
            f"config.json: a LLaVA of {tower['model_type']!r} and {text.get('model_type')!r}; "
            f"known are {', '.join(_TOWERS)} with {', '.join(llama.MODEL_TYPES)}"
        )
    encoder = _TOWERS[tower["model_type"]](tower)
    strategy = hf.get("vision_feature_select_strategy", "default")
    if (encoder.class_token is None) != (strategy == "full"):
        raise ValueError(
            f"config.json: vision_feature_select_strategy={strategy!r}; here all patches are "
            "features, and a class token is none"
        )
    layer = hf.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise ValueError(f"config.json: vision_feature_layer={layer}; one layer is expected")
    # The states before the first layer and after each count as layers.
    encoder.num_layers += 1 + layer if layer < 0 else layer - encoder.num_layers
    if encoder.final_norm is not None:
        # Only what leaves the last layer passes it.
        encoder.final_norm = None
    activation = vision.ACTIVATIONS[hf.get("projector_hidden_act", "gelu")]
    connector = MLP.default_config().set(
        num_image_tokens=(encoder.image_size // encoder.patch_size) ** 2, activation=activation
    )
    if not hf.get("multimodal_projector_bias", True):
        connector.up.bias = connector.down.bias = False
    decoder = llama.decoder_config(_text_config(text, hf))
    connector.set(input_dim=encoder.model_dim, output_dim=decoder.model_dim)
    return encoder, connector, decoder


def llava_table(
    encoder: VisionEncoder.Config,
    connector: MLP.Config,
    decoder: Decoder.Config,
    names: Iterable[str],
    hf: Mapping[str, Any],
) -> Table:
    """The table of a LLaVA for the tensors of a checkpoint."""
    names = list(names)
    tower = vision.hf_table(encoder, names)
    text = llama.decoder_table(decoder, names, _text_config(hf["text_config"], hf))
    root = prefix_of(names, "multi_modal_projector.linear_1.weight")
    if root is None:
        raise ValueError("no tensor named *multi_modal_projector.linear_1.weight")
    tower_root = prefix_of(names, "embeddings.patch_embedding.weight") or ""
    # Layers of the tower that nothing is read from, and the norm after them.
    unread = hf["vision_config"]["num_hidden_layers"]
    ignored = [
        rf".*{tower_root}encoder\.layers\.{i}\..*" for i in range(encoder.num_layers, unread)
    ]
    ignored.append(rf".*{tower_root}post_layernorm\..*")
    return Table(
        {**tower.parts, "connector": connector, **text.parts},
        [*tower.entries, *_connector(connector, f"{root}multi_modal_projector"), *text.entries],
        [*tower.ignored, *ignored, *text.ignored],
        [*tower.notes, *text.notes],
    )


def hf_export(parts: Mapping[str, Any], image_token: int) -> tuple[dict[str, Any], list[Entry]]:
    """The `config.json` and the tensors of a LLaVA with these parts.

    It reads the last layer of its tower, and all of its patches.

    Raises:
        ValueError: LLaVA has something else there; the part is named.
    """
    encoder, connector, decoder = (parts[n] for n in (vision.ENCODER, "connector", "decoder"))
    num_patches = (encoder.image_size // encoder.patch_size) ** 2
    if encoder.final_norm is not None:
        raise ValueError("vision_encoder.final_norm: LLaVA reads features that have passed none")
    if not isinstance(connector, MLP.Config) or connector.up.bias is not connector.down.bias:
        raise ValueError("connector: LLaVA has an MLP, with biases in both layers or in none")
    if connector.num_image_tokens != num_patches:
        raise ValueError(
            f"connector.num_image_tokens={connector.num_image_tokens}: LLaVA has a token for each "
            f"of the {num_patches} patches"
        )
    activations = {activation: name for name, activation in vision.ACTIVATIONS.items()}
    if connector.activation not in activations:
        raise ValueError(f"connector.activation={connector.activation.value}: none of LLaVA's")
    tower, text = vision.tower_config(encoder), llama.hf_config(decoder)
    if encoder.class_token is None:
        tower["vision_use_head"] = False
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "vision_config": tower,
        "text_config": text,
        "image_token_index": image_token,
        "image_seq_length": num_patches,
        "projector_hidden_act": activations[connector.activation],
        "multimodal_projector_bias": connector.up.bias,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full" if encoder.class_token is None else "default",
        "tie_word_embeddings": decoder.tied_embeddings,
    }
    root = "vision_tower.vision_model."
    connector = connector.clone(input_dim=encoder.model_dim, output_dim=decoder.model_dim)
    entries = [
        *vision.tower_entries(encoder, root),
        *vision.unread_norm(encoder, root),
        *_connector(connector, "multi_modal_projector"),
        *llama.decoder_entries(
            decoder, body="language_model.model.", head="language_model.", dense_source=False
        ),
    ]
    return config, entries


def _connector(cfg: MLP.Config, root: str) -> list[Entry]:
    place, entries = Slice("connector"), []
    sizes = {"d": cfg.output_dim}
    for name, theirs, layout, more in (
        ("up", "linear_1", "d v -> v d", {"v": cfg.input_dim}),
        ("down", "linear_2", "d f -> d f", {"f": cfg.output_dim}),
    ):
        kernel = f"{name}/kernel"
        entries.append(place.entry(f"{root}.{theirs}.weight", kernel, layout, **sizes, **more))
        if cfg.up.bias:
            entries.append(place.entry(f"{root}.{theirs}.bias", f"{name}/bias", "d -> d", **sizes))
    return entries


def _text_config(text: Mapping[str, Any], hf: Mapping[str, Any]) -> dict[str, Any]:
    tied = text.get("tie_word_embeddings", hf.get("tie_word_embeddings", False))
    return {**_LLAMA_DEFAULTS, **text, "tie_word_embeddings": tied}


# What the class of transformers has where a text_config says nothing: LLaVA 1.5's is nearly empty.
_LLAMA_DEFAULTS = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
}

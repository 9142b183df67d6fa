"""LLaVA models: a CLIP or SigLIP tower, an MLP connector, and a decoder of the Llama family.

LLaVA reads features of an earlier layer than the last, so our tower omits the layers after it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mm1_jax.interop import llama, llama_tensors, vision, vision_tensors
from mm1_jax.interop.fields import Fields, ForeignClass
from mm1_jax.interop.mapping import Entry, Slice, Table, prefix_of
from mm1_jax.models.connectors.mlp import MLP
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.vision_encoder import VisionEncoder

MODEL_TYPE = "llava"
_TOWERS = {
    "clip_vision_model": (vision.CLIP_VISION, vision.hf_clip_config),
    "siglip_vision_model": (vision.SIGLIP_VISION, vision.siglip_config),
}
LLAVA = ForeignClass(
    "LlavaConfig",
    {
        "vision_config": None,
        "text_config": None,
        "image_token_index": 32_000,
        "image_token_id": None,
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -2,
        "multimodal_projector_bias": True,
        "tie_word_embeddings": False,
    },
    ("image_seq_length", "ignore_index", "vocab_size"),
)
# Defaults of the tower for a config without vision_config.
_OWN_TOWER = vision.CLIP_VISION._replace(
    defaults={
        **vision.CLIP_VISION.defaults,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    }
)


def llava_parts(hf: Fields) -> tuple[VisionEncoder.Config, MLP.Config, Decoder.Config]:
    """Returns encoder, connector and decoder of a `config.json`."""
    tower, encoder = _tower(hf)
    strategy = hf.one_of("vision_feature_select_strategy", {"default": "default", "full": "full"})
    if (encoder.class_token is None) != (strategy == "full"):
        hf.refuse(
            "vision_feature_select_strategy",
            "here all patches are features, and a class token is not",
        )
    # The index counts hidden states: 0 is before the first layer, -1 after the last.
    num_layers = encoder.num_layers
    layer = hf.integer("vision_feature_layer", least=-num_layers, most=num_layers)
    encoder.num_layers = layer if layer >= 0 else num_layers + 1 + layer
    if not encoder.num_layers:
        hf.refuse(
            "vision_feature_layer",
            "hidden states before the first layer are not supported as features",
        )
    if encoder.final_norm is not None:
        # The final norm applies to the model's output only, not to the hidden states of layers.
        encoder.final_norm = None
    activation = hf.one_of("projector_hidden_act", vision.ACTIVATIONS)
    connector = MLP.default_config().set(
        num_image_tokens=(encoder.image_size // encoder.patch_size) ** 2, activation=activation
    )
    if not hf.flag("multimodal_projector_bias"):
        connector.up.bias = connector.down.bias = False
    image_token(hf)
    decoder = llama.decoder_config(text_fields(hf))
    # Either of the two fields ties the embeddings, as in transformers 5.
    decoder.tied_embeddings |= hf.flag("tie_word_embeddings")
    connector.set(input_dim=encoder.model_dim, output_dim=decoder.model_dim)
    return encoder, connector, decoder


def image_token(hf: Fields) -> int:
    """Returns the image token id of a LLaVA."""
    index = hf.integer("image_token_index", least=0)
    if not hf.has("image_token_id"):
        return index
    other = hf.integer("image_token_id", least=0)
    if hf.gives("image_token_index") and other != index:
        hf.refuse("image_token_id", f"image_token_index={index} beside it; remove one of them")
    return other


def text_fields(hf: Fields) -> Fields:
    """Returns the fields of the decoder of a LLaVA."""
    return hf.section("text_config", llama.CLASSES[_type(hf, "text_config", llama.CLASSES)])


def sections(hf: Fields) -> dict[str, Fields]:
    """Returns the fields of decoder and tower by section name."""
    return {"text_config": text_fields(hf), "vision_config": _tower(hf)[0]}


def _tower(hf: Fields) -> tuple[Fields, VisionEncoder.Config]:
    """Returns the fields of the tower of a LLaVA, and the tower with all of its layers."""
    klass, read = _TOWERS[_type(hf, "vision_config", _TOWERS)]
    tower = hf.section("vision_config", klass if hf.has("vision_config") else _OWN_TOWER)
    return tower, read(tower)


def _type(hf: Fields, section: str, known: Mapping[str, Any]) -> str:
    """Returns the `model_type` of a section; defaults to the first of `known`."""
    given = hf.value(section) or {}
    model_type = given.get("model_type", next(iter(known))) if isinstance(given, Mapping) else None
    if not isinstance(model_type, str) or model_type not in known:
        raise ValueError(
            f"{hf.file}: {hf.path}{section}.model_type={model_type!r}: expected one of "
            f"{', '.join(known)}"
        )
    return model_type


def llava_table(
    encoder: VisionEncoder.Config,
    connector: MLP.Config,
    decoder: Decoder.Config,
    names: Iterable[str],
    hf: Fields,
) -> Table:
    """Returns the table of a LLaVA for the tensors of a checkpoint."""
    names = list(names)
    tower = vision_tensors.hf_table(encoder, names)
    text = llama_tensors.decoder_table(decoder, names, text_fields(hf))
    root = prefix_of(names, "multi_modal_projector.linear_1.weight")
    if root is None:
        raise ValueError("no tensor named *multi_modal_projector.linear_1.weight")
    tower_root = prefix_of(names, "embeddings.patch_embedding.weight") or ""
    # Layers of the tower after the features that are read, and the norm after them.
    unread = _tower(hf)[1].num_layers
    ignored = [
        rf".*{tower_root}encoder\.layers\.{i}\..*" for i in range(encoder.num_layers, unread)
    ]
    ignored.append(rf".*{tower_root}post_layernorm\..*")
    return Table(
        {**tower.parts, "connector": connector, **text.parts},
        [*tower.entries, *_connector(connector, f"{root}multi_modal_projector"), *text.entries],
        [*tower.ignored, *ignored, *text.ignored],
        [*tower.notes, *text.notes],
        root.removesuffix("model."),
        text.copies,
    )


def torch_name(name: str) -> str:
    """Returns the name in torch, since transformers 5, of a tensor that `hf_export` names."""
    for theirs, ours in (
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("language_model.model.", "model.language_model."),
        ("language_model.", ""),
    ):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def hf_export(parts: Mapping[str, Any], image_token: int) -> tuple[dict[str, Any], list[Entry]]:
    """Returns the `config.json` and the tensors of a LLaVA with these parts.

    The LLaVA reads the last layer of its tower, and all patches.

    Raises:
        ValueError: A part differs from LLaVA's; the message names it.
    """
    encoder, connector, decoder = (parts[n] for n in (vision.ENCODER, "connector", "decoder"))
    num_patches = (encoder.image_size // encoder.patch_size) ** 2
    if encoder.final_norm is not None:
        raise ValueError("vision_encoder.final_norm: LLaVA reads features without a final norm")
    if not isinstance(connector, MLP.Config) or connector.up.bias is not connector.down.bias:
        raise ValueError("connector: LLaVA has an MLP, with biases in both layers or in none")
    if connector.num_image_tokens != num_patches:
        raise ValueError(
            f"connector.num_image_tokens={connector.num_image_tokens}: LLaVA has a token for each "
            f"of the {num_patches} patches"
        )
    activations = {activation: name for name, activation in vision.ACTIVATIONS.items()}
    if connector.activation not in activations:
        raise ValueError(
            f"connector.activation={connector.activation.value}: not supported by LLaVA"
        )
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
        *vision_tensors.tower_entries(encoder, root),
        *vision_tensors.unread_norm(encoder, root),
        *_connector(connector, "multi_modal_projector"),
        *llama_tensors.decoder_entries(
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

"""Models that other libraries implement: their configs and tensors, made from parts of ours.

A model that no library implements is described by the reason why.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mm1_jax.config import InstantiableConfig
from mm1_jax.interop import (
    aim,
    clip,
    clip_tensors,
    llama,
    llama_tensors,
    llava,
    vision,
    vision_tensors,
)
from mm1_jax.interop.families import Changes, make_parts
from mm1_jax.interop.mapping import Entry, Table, raise_if_read_otherwise
from mm1_jax.interop.mm1 import model_parts
from mm1_jax.interop.tensor_files import TensorSpec
from mm1_jax.models.aim import AIM, AIMv2
from mm1_jax.models.clip import CLIP

OPEN_CLIP, AIM_FORMAT = "open_clip", "aim"
# How pictures become square, by `image_transform.fit`.
_RESIZE = {"crop": "shortest", "stretch": "squash", "pad": "longest"}
# Share of the resized shortest side that AIM's evaluation crops.
_AIM_CROP = 0.875


class NativeModel(NamedTuple):
    """A model that another library implements: its config and its tensors.

    Attributes:
        library: "transformers", "open_clip" or "aim"; the last is apple/ml-aim.
        files: Name -> content of further files, such as the settings of a processor.
    """

    config: dict[str, Any]
    entries: list[Entry]
    library: str = "transformers"
    files: Mapping[str, bytes] = {}

    @property
    def config_file(self) -> str:
        return "open_clip_config.json" if self.library == OPEN_CLIP else "config.json"

    @property
    def tensor_file(self) -> str:
        return "open_clip_model.safetensors" if self.library == OPEN_CLIP else "model.safetensors"

    @property
    def model_type(self) -> str:
        return self.config.get("model_type", self.library)


class EncoderFacts(NamedTuple):
    """Facts about an encoder that its parts do not tell.

    Attributes:
        has_bias: Whether logits have a bias.
        eos: Id of the token that ends a text; None if it is the highest id of every text.
        resize: How pictures become square: "shortest" crops the center, "squash" distorts, and
            "longest" adds borders.
        tokenizer: Name of the tokenizer that is written beside the model; None without one.
    """

    has_bias: bool = False
    eos: int | None = None
    resize: str = "shortest"
    tokenizer: str | None = None


def parts_of_model(model: InstantiableConfig) -> dict[str, InstantiableConfig]:
    """Returns the parts of the model of a run; those of AIM and AIMv2 are the encoder alone."""
    if isinstance(model, CLIP.Config):
        return clip.parts_of_clip(model)
    if isinstance(model, AIM.Config | AIMv2.Config):
        encoder: Any = model.vision_encoder
        return {vision.ENCODER: aim.after_training(encoder)}
    return model_parts(model)


def facts_of_run(cfg: Any, tokenizer: Any, name: str) -> EncoderFacts:
    """Returns facts about the CLIP of a run with this root config.

    Args:
        tokenizer: The tokenizer of the run.
        name: Name of the export.
    """
    return EncoderFacts(
        has_bias=cfg.model.initial_bias is not None,
        eos=tokenizer.eos,
        resize=_RESIZE[cfg.input.image_transform.fit.value],
        tokenizer=name,
    )


def native_model(
    parts: Mapping[str, Any],
    passthrough: Mapping[str, TensorSpec] | None = None,
    facts: EncoderFacts | None = None,
) -> NativeModel | str:
    """Returns the model of another library that equals these parts, or why there is none.

    A CLIP is one of transformers if possible, or else one of open_clip.

    Args:
        passthrough: Specs of the tensors kept beside the weights.
    """
    facts = facts or EncoderFacts()
    try:
        if set(parts) == {"decoder"}:
            decoder: Any = parts["decoder"]
            return NativeModel(
                llama.hf_config(decoder), llama_tensors.decoder_entries(decoder, dense_source=False)
            )
        if set(parts) == {vision.ENCODER}:
            return _native_encoder(parts[vision.ENCODER], passthrough or {})
        if clip_tensors.TEXT in parts:
            return _native_clip(parts, facts)
    except ValueError as error:
        return str(error)
    return f"transformers has no model with {' and '.join(parts)} of these configs"


def native_llava(parts: Mapping[str, Any], image_token: int) -> NativeModel:
    """Returns these parts as a LLaVA.

    Raises:
        ValueError: The parts differ from LLaVA's; the message names the difference.
    """
    if "connector" not in parts:
        raise ValueError("a LLaVA has an encoder, a connector and a decoder; this is a single part")
    return NativeModel(*llava.hf_export(parts, image_token))


def _native_encoder(cfg: Any, passthrough: Mapping[str, TensorSpec]) -> NativeModel:
    if cfg.patch_norm is None:
        return NativeModel(*vision_tensors.hf_export(cfg, passthrough))
    if aim.is_aimv2(cfg):
        config, entries = aim.aimv2_export(cfg, passthrough)
        what, library, crop, read = "an Aimv2VisionModel", "transformers", 1.0, config
    else:
        config, entries = aim.aim_export(cfg)
        what, library, crop = "an AIM", AIM_FORMAT, _AIM_CROP
        read = {**config, "model_type": "aim"}
    theirs = make_parts(read, Changes())
    raise_if_read_otherwise({vision.ENCODER: cfg}, theirs, what, has_pixels=False)
    files = _processor(cfg, "shortest", crop=crop)
    return NativeModel(config, entries, library, files)


def _native_clip(parts: Mapping[str, Any], facts: EncoderFacts) -> NativeModel:
    try:
        return hf_clip(parts, facts)
    except ValueError as error:
        try:
            return open_clip(parts, facts)
        except ValueError as other:
            raise ValueError(
                f"neither transformers nor open_clip has this model. transformers: {error}. "
                f"open_clip: {other}"
            ) from None


def hf_clip(parts: Mapping[str, Any], facts: EncoderFacts) -> NativeModel:
    """Returns a CLIP as a `CLIPModel` or a `SiglipModel`.

    Raises:
        ValueError: The parts differ from theirs; the message names the difference.
    """
    is_siglip = clip.is_siglip(parts)
    name = "SiglipModel" if is_siglip else "CLIPModel"
    if facts.eos == 2 and not is_siglip:
        raise ValueError(
            "the tokenizer ends texts by the id 2, which a CLIPModel takes for the highest id of "
            "every text"
        )
    # The id 2 stands for the highest id of every text.
    eos = 2 if facts.eos is None and not is_siglip else facts.eos
    config = clip.hf_config(parts, eos=eos)
    theirs = make_parts(config, Changes())
    raise_if_read_otherwise(parts, theirs, f"a {name}", has_pixels=False)
    if is_siglip is not facts.has_bias:
        verb = "needs" if is_siglip else "has no"
        raise ValueError(f"a {name} {verb} logit_bias (model.initial_bias)")
    if facts.resize == "longest":
        raise ValueError("processors of transformers cannot add borders (image_transform.fit=PAD)")
    table = clip_tensors.hf_pair_table(
        parts, ["vision_model.embeddings.patch_embedding.weight"], **_sizes(parts, facts)
    )
    processor = "SiglipProcessor" if is_siglip else "CLIPProcessor"
    files = _processor(parts[vision.ENCODER], facts.resize, processor_class=processor)
    return NativeModel(config, list(table.entries), files=files)


def open_clip(parts: Mapping[str, Any], facts: EncoderFacts) -> NativeModel:
    """Returns a CLIP of open_clip.

    Raises:
        ValueError: The parts differ from its own; the message names the difference.
    """
    preprocess = {
        "size": parts[vision.ENCODER].image_size,
        "mode": "RGB",
        "interpolation": "bicubic",
        "resize_mode": facts.resize,
        "fill_color": 0,
    }
    config = clip.open_clip_export(
        parts, has_bias=facts.has_bias, eos=facts.eos, preprocess=preprocess
    )
    if facts.tokenizer is not None:
        config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = facts.tokenizer
    theirs = make_parts({**config, "model_type": OPEN_CLIP}, Changes())
    raise_if_read_otherwise(parts, theirs, "a CLIP of open_clip")
    table: Table = clip_tensors.open_clip_pair_table(
        parts, ["visual.conv1.weight", "token_embedding.weight"], **_sizes(parts, facts)
    )
    return NativeModel(config, list(table.entries), OPEN_CLIP)


def _sizes(parts: Mapping[str, Any], facts: EncoderFacts) -> dict[str, Any]:
    return {"num_rows": parts[clip_tensors.TEXT].vocab_size, "has_bias": facts.has_bias}


def _processor(
    encoder: Any, resize: str, *, crop: float = 1.0, processor_class: str | None = None
) -> dict[str, bytes]:
    """Returns the settings of a processor of pictures in transformers."""
    side = encoder.image_size
    square = {"height": side, "width": side}
    content = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": square if resize == "squash" else {"shortest_edge": round(side / crop)},
        "resample": 3,  # Pillow's bicubic
        "do_center_crop": resize != "squash",
        "crop_size": square,
        "do_convert_rgb": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(encoder.pixel_mean),
        "image_std": list(encoder.pixel_std),
    }
    if processor_class is not None:
        content["processor_class"] = processor_class
    return {"preprocessor_config.json": (json.dumps(content, indent=2) + "\n").encode()}

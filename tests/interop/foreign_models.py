"""Small models of every family that is converted, randomly drawn, as transformers makes them."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from parity import randomise
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 4,
    "image_size": 16,
}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _clip() -> CLIPModel:
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text["num_attention_heads"] = 2
    return CLIPModel(CLIPConfig(text_config=text, vision_config=TOWER))


def _siglip() -> SiglipModel:
    text = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
    text["num_attention_heads"] = 2
    # One pixel more than the patches cover.
    return SiglipModel(SiglipConfig(text_config=text, vision_config={**TOWER, "image_size": 17}))


def _llava(**fields) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**TOWER),
            text_config=LlamaConfig(**TEXT),
            image_token_index=99,
            **fields,
        )
    )


DECODERS: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TEXT, rms_norm_eps=1e-5)),
    "llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**TEXT, attention_bias=True)),
    "llama 3.1": lambda: LlamaForCausalLM(LlamaConfig(**TEXT, rope_parameters=STRETCHED)),
    "llama 3.2": lambda: LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**TEXT, sliding_window=4096)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**TEXT)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**TEXT, head_dim=24)),
    "qwen3 tied": lambda: Qwen3ForCausalLM(
        Qwen3Config(**TEXT, head_dim=16, tie_word_embeddings=True)
    ),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=4)),
}
TOWERS: dict[str, Callable[[], torch.nn.Module]] = {
    "clip vision": lambda: CLIPVisionModel(CLIPVisionConfig(**TOWER)),
    "clip with gelu": lambda: CLIPVisionModel(CLIPVisionConfig(**TOWER, hidden_act="gelu")),
    "clip": _clip,
    "siglip vision": lambda: SiglipVisionModel(SiglipVisionConfig(**TOWER)),
    "siglip": _siglip,
}
MODELS = {**DECODERS, **TOWERS, "llava": _llava}


def save(name: str, folder: Path, **options) -> torch.nn.Module:
    """Draws a model and saves it, as its owner would."""
    model = randomise(MODELS[name]())
    if "dtype" in options:
        model = model.to(options.pop("dtype"))
    model.save_pretrained(folder, **options)
    return model

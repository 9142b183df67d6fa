"""Small transformers models, with random parameters, of every family that can be converted."""

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
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.interop.exporter import Exported, export_source
from mm1_jax.interop.families import complete_config, read_config
from mm1_jax.interop.tensor_files import TensorFolder

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

IMAGE_TOKEN = 99
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
    # The image is one pixel larger than the patches.
    return SiglipModel(SiglipConfig(text_config=text, vision_config={**TOWER, "image_size": 17}))


def _llava(
    tower: PreTrainedConfig | None = None, text: PreTrainedConfig | None = None, **fields
) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower or CLIPVisionConfig(**TOWER),
            text_config=text or LlamaConfig(**TEXT),
            image_token_index=IMAGE_TOKEN,
            **fields,
        )
    )


def _llava_of_siglip() -> LlavaForConditionalGeneration:
    return _llava(
        SiglipVisionConfig(**TOWER),
        Qwen2Config(**TEXT),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        multimodal_projector_bias=False,
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
LLAVAS: dict[str, Callable[[], torch.nn.Module]] = {
    "llava": _llava,
    "llava of siglip": _llava_of_siglip,
}
MODELS = {**DECODERS, **TOWERS, **LLAVAS}


def assert_goes_back(source: Path, ours: Path, output: Path, **options) -> Exported:
    """Exports an import to its source's format: tensors are bit-equal, the config is the same."""
    exported = export_source(StoredParams(ours), ours, output, **options)
    before, after = TensorFolder(source), TensorFolder(output)
    assert before.specs == after.specs
    for name in before.specs:
        assert before.read(name).tobytes() == after.read(name).tobytes(), name
    assert complete_config(read_config(output), after.specs) == complete_config(
        read_config(source), before.specs
    )
    return exported


def save(name: str, folder: Path, **options) -> torch.nn.Module:
    """Draws a model and saves it with `save_pretrained`."""
    model = randomise(MODELS[name]())
    if "dtype" in options:
        model = model.to(options.pop("dtype"))
    model.save_pretrained(folder, **options)
    return model

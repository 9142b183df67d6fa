"""Round trips: transformers loads from an export what it saved before the import."""

import shutil

import pytest
import torch
import transformers
from foreign_models import DECODERS, MODELS, TOWERS, assert_goes_back, save
from parity import randomise
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file
from transformers import (
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
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.interop.exporter import export_native, export_source, parts_of_weights
from mm1_jax.interop.families import Changes
from mm1_jax.interop.importer import import_checkpoint
from mm1_jax.interop.native import native_model
from mm1_jax.interop.passthrough import Passthrough


def there_and_back(folder, **options):
    import_checkpoint(folder / "hf", folder / "ours", skip_comparison=True)
    stored = StoredParams(folder / "ours")
    parts, passthrough = parts_of_weights(stored), Passthrough(folder / "ours")
    model = native_model(parts, passthrough.specs)
    return export_native(stored, model, parts, folder / "back", passthrough=passthrough, **options)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_round_trips_bit_for_bit(name, tmp_path):
    model = save(name, tmp_path / "hf")
    exported = there_and_back(tmp_path)
    assert exported.comparison.is_good
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert_same_state(model.state_dict(), back.state_dict())


def test_a_decoder_in_bfloat16_round_trips_bit_for_bit_in_shards(tmp_path):
    model = save("mixtral", tmp_path / "hf", dtype=torch.bfloat16)
    there_and_back(tmp_path, dtype="bfloat16", max_shard_bytes=20_000)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 3
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert back.dtype == torch.bfloat16
    assert_same_state(model.state_dict(), back.state_dict())


@pytest.mark.parametrize("name", [name for name in TOWERS if name.endswith(("vision", "gelu"))])
def test_an_encoder_round_trips_bit_for_bit_with_its_final_norm_or_head(name, tmp_path):
    model = save(name, tmp_path / "hf")
    assert there_and_back(tmp_path).comparison.is_good
    back = type(model).from_pretrained(tmp_path / "back")
    assert_same_state(model.state_dict(), back.state_dict())


def again(folder, **options):
    """Imports a checkpoint and exports it to its source's format."""
    import_checkpoint(folder / "hf", folder / "ours", skip_comparison=True)
    return assert_goes_back(folder / "hf", folder / "ours", folder / "again", **options)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_round_trips_with_tensors_that_we_do_not_use(name, tmp_path):
    model = save(name, tmp_path / "hf")
    # The outputs of decoders after a round trip are compared above.
    exported = again(tmp_path, skip_comparison=name in DECODERS)
    assert name in DECODERS or exported.comparison.is_good
    back = type(model).from_pretrained(tmp_path / "again")
    assert_same_state(model.state_dict(), back.state_dict())


@pytest.mark.parametrize("name", ["llama 3.2", "llava"])
def test_exports_drop_added_rows_and_keep_dtypes_and_files(name, tmp_path):
    save(name, tmp_path / "hf", dtype=torch.bfloat16)
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_torch_file(path)
    # Some checkpoints have float32 norms and everything else in another dtype.
    for key in [key for key in tensors if key.endswith("input_layernorm.weight")][:2]:
        tensors[key] = tensors[key].float()
    save_torch_file(tensors, path, metadata={"format": "pt"})
    (tmp_path / "hf" / "chat_template.jinja").write_text("{{ messages }}")
    changes = Changes(vocab_size=128)
    import_checkpoint(tmp_path / "hf", tmp_path / "ours", changes=changes, skip_comparison=True)
    stored = StoredParams(tmp_path / "ours")
    assert stored.shapes["decoder/embedding/weight"][0] == 128
    assert_goes_back(tmp_path / "hf", tmp_path / "ours", tmp_path / "again", max_shard_bytes=20_000)
    assert (tmp_path / "again" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_upcycled_weights_and_lost_kept_tensors_are_named(tmp_path):
    save("clip vision", tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ours", skip_comparison=True)
    shutil.rmtree(tmp_path / "ours" / "aside")
    with pytest.raises(ValueError, match=r"post_layernorm\.weight are missing from its"):
        export_source(StoredParams(tmp_path / "ours"), tmp_path / "ours", tmp_path / "again")
    save("llama", tmp_path / "dense")
    changes = Changes(num_experts=2)
    import_checkpoint(
        tmp_path / "dense", tmp_path / "sparse", changes=changes, skip_comparison=True
    )
    with pytest.raises(ValueError, match="was upcycled; its source has no experts"):
        export_source(StoredParams(tmp_path / "sparse"), tmp_path / "sparse", tmp_path / "again")
    assert not (tmp_path / "again").exists()


# Published layer shapes, with few layers and few vocabulary rows.
WIDE = {
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=512,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=2,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=1,
            num_attention_heads=32,
            num_key_value_heads=8,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=512,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=1,
            num_attention_heads=28,
            num_key_value_heads=4,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    ),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(vocab_size=512, num_hidden_layers=1, sliding_window=None)
    ),
    # Two of eight experts, to save memory.
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(vocab_size=512, num_hidden_layers=1, num_local_experts=2)
    ),
    "clip": lambda: CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=2,
            num_attention_heads=16,
            patch_size=14,
            image_size=378,
        )
    ),
    "siglip": lambda: SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=2,
            num_attention_heads=16,
            patch_size=14,
            image_size=384,
        )
    ),
    "llava": lambda: LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=3,
                num_attention_heads=16,
                patch_size=14,
                image_size=336,
            ),
            text_config=LlamaConfig(vocab_size=512, num_hidden_layers=1),
            image_token_index=500,
        )
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_published_shapes_have_the_same_outputs_after_a_round_trip(name, tmp_path):
    randomise(WIDE[name]()).save_pretrained(tmp_path / "hf")
    imported = import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    exported = assert_goes_back(tmp_path / "hf", tmp_path / "ours", tmp_path / "again")
    for comparison in (imported.comparison, exported.comparison):
        print(comparison)
        assert comparison.is_good


def assert_same_state(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        bits = (x.reshape(-1).contiguous().view(torch.uint8) for x in (value, after[name]))
        assert torch.equal(*bits), name

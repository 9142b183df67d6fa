"""There and back: what transformers loads from an export is what it saved before the import."""

import numpy as np
import pytest
import torch
import transformers
from foreign_models import DECODERS, TOWERS, save
from parity import randomise
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mm1_jax.interop.exporter import export_plain, parts_of_weights, plain
from mm1_jax.interop.importer import import_checkpoint
from mm1_jax.weights_folder import StoredParams


def there_and_back(folder, **options):
    import_checkpoint(folder / "hf", folder / "ours", skip_comparison=True)
    stored = StoredParams(folder / "ours")
    parts = parts_of_weights(stored)
    return export_plain(stored, plain(parts), parts, folder / "back", **options)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_comes_back_bit_for_bit(name, tmp_path):
    model = save(name, tmp_path / "hf")
    exported = there_and_back(tmp_path)
    assert exported.comparison.is_good
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert_same_state(model.state_dict(), back.state_dict())


def test_a_decoder_in_bfloat16_comes_back_bit_for_bit_in_shards(tmp_path):
    model = save("mixtral", tmp_path / "hf", dtype=torch.bfloat16)
    there_and_back(tmp_path, dtype="bfloat16", max_shard_bytes=20_000)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 3
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert back.dtype == torch.bfloat16
    assert_same_state(model.state_dict(), back.state_dict())


@pytest.mark.parametrize("name", [name for name in TOWERS if name.endswith(("vision", "gelu"))])
def test_a_tower_comes_back_bit_for_bit_but_for_what_is_added_up(name, tmp_path):
    model = save(name, tmp_path / "hf")
    assert there_and_back(tmp_path).comparison.is_good
    back = type(model).from_pretrained(tmp_path / "back")
    before, after = model.state_dict(), back.state_dict()
    added = "embeddings.class_embedding", "embeddings.position_embedding.weight"
    # Pooling heads, and what only the class token passes, are not kept.
    for key in list(before):
        is_lost = key.startswith("head.") or ("clip" in name and "post_layernorm" in key)
        if is_lost or ("clip" in name and key in added):
            before.pop(key), after.pop(key, None)
    assert_same_state(before, after)
    if "clip" in name:
        first = [
            state[added[0]] + state[added[1]][0]
            for state in (model.state_dict(), back.state_dict())
        ]
        assert torch.equal(*first)
        rest = [state[added[1]][1:] for state in (model.state_dict(), back.state_dict())]
        assert torch.equal(*rest)


# The shapes of layers as they are published, with few of them and few rows.
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
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_published_shapes_have_the_same_outputs_there_and_back(name, tmp_path):
    randomise(WIDE[name]()).save_pretrained(tmp_path / "hf")
    imported = import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    stored = StoredParams(tmp_path / "ours")
    parts = parts_of_weights(stored)
    exported = export_plain(stored, plain(parts), parts, tmp_path / "back")
    for comparison in (imported.comparison, exported.comparison):
        print(comparison)
        assert comparison.is_good


def assert_same_state(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(
            value.contiguous().view(torch.uint8), after[name].contiguous().view(torch.uint8), name
        )

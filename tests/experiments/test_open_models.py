"""The configs of open decoders equal the configs of their converted checkpoints."""

import pytest

from experiments import open_models
from mm1_jax.experiment import Experiment
from mm1_jax.interop.families import Changes, make_parts

# Fields of each model's config.json.
PUBLISHED = {
    "qwen3_1p7b": {
        "model_type": "qwen3",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "tie_word_embeddings": True,
        "vocab_size": 151_936,
        "attention_bias": False,
        "sliding_window": None,
    },
    "llama3_8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128_256,
        "attention_bias": False,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_decoder_config_equals_that_of_the_converted_checkpoint(name):
    cfg = Experiment.resolve(open_models.named_configs()[f"mm1_{name}"]())
    rows = cfg.model.decoder.vocab_size
    assert rows >= PUBLISHED[name]["vocab_size"]
    converted = make_parts(PUBLISHED[name], Changes(vocab_size=rows))["decoder"]
    ours = cfg.model.decoder.clone(head_dim=converted.head_dim)
    assert ours.debug_string() == converted.debug_string()

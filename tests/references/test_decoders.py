"""The decoder, compared with transformers' Llama and Mixtral for each document of packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_weights import imported_weights
from parity import assert_equal, randomise, with_weights
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from mm1_jax.interop.families import Changes, make_parts

SIZES = {
    "vocab_size": 200,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "attn_implementation": "eager",
}
# Lengths of the documents of each row; the rest of its 16 positions is padding.
ROWS = [[7, 5, 4], [16], [6, 3], [11]]


def llama(**fields):
    return LlamaForCausalLM(LlamaConfig(**SIZES, **fields))


def mixtral(**fields):
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_experts_per_tok=2, **fields))


@jax.jit
def logits(decoder, tokens, positions, segment_ids):
    hidden = decoder(
        decoder.embed(tokens), positions=positions, segment_ids=segment_ids, dropless=True
    ).hidden
    return decoder.logits(hidden)


@pytest.mark.parametrize(
    ("build", "fields"),
    [
        (llama, {}),
        (llama, {"head_dim": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (mixtral, {"num_local_experts": 4}),
        (mixtral, {"num_local_experts": 8}),
    ],
    ids=["llama", "llama with wider heads", "mixtral of 4", "mixtral of 8"],
)
def test_logits_of_packed_documents_equal_transformers_on_single_documents(build, fields, tmp_path):
    model = randomise(build(**fields))
    ours = with_weights(
        make_parts(model.config.to_dict(), Changes())["decoder"], imported_weights(model, tmp_path)
    )
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (len(ROWS), 16))
    segment_ids, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, lengths in enumerate(ROWS):
        start = 0
        for number, length in enumerate(lengths, 1):
            segment_ids[row, start : start + length] = number
            positions[row, start : start + length] = np.arange(length)
            start += length
    packed = logits(ours, *(jnp.asarray(x, jnp.int32) for x in (tokens, positions, segment_ids)))
    for row, lengths in enumerate(ROWS):
        for number in range(1, len(lengths) + 1):
            inside = segment_ids[row] == number
            with torch.no_grad():
                alone = model(torch.from_numpy(tokens[row, inside])[None]).logits[0]
            assert_equal(packed[row, inside], alone)

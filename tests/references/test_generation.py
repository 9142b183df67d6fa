"""Greedy search, beam search and sampling, compared with transformers on a tiny Llama."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_weights import imported_weights
from near_ties import assert_same_answers
from parity import randomise, with_weights
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mm1_jax.decoding.beam_search import beam_search
from mm1_jax.decoding.generate import generate
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.decoding.sampling import Sampling, truncated
from mm1_jax.interop.compare import one_document_rows
from mm1_jax.interop.families import Changes, make_parts
from mm1_jax.models.mm1 import MM1

PAD, EOS, VOCAB = 0, 2, 24
PROMPTS = [[5, 6, 7, 8], [9, 3, 11, 1], [12, 13, 4, 4]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A Llama of transformers, and ours with its weights."""
    theirs = randomise(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                eos_token_id=EOS,
                pad_token_id=PAD,
            )
        )
    )
    # Makes eos likely enough for some answers to end.
    with torch.no_grad():
        theirs.lm_head.weight[EOS] *= 3
    weights = imported_weights(theirs, tmp_path_factory.mktemp("llama"))
    cfg = MM1.default_config().set(
        vision_encoder=None,
        connector=None,
        decoder=make_parts(theirs.config.to_dict(), Changes())["decoder"],
        image_token=VOCAB - 1,
    )
    return theirs, with_weights(cfg, {f"decoder/{name}": x for name, x in weights.items()})


def rows(prompts):
    return one_document_rows(np.array(prompts), np.zeros((len(prompts), 1, 1, 3), np.uint8))


def their_answers(theirs, **options):
    prompts = torch.tensor(PROMPTS)
    with torch.no_grad():
        return theirs.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            suppress_tokens=[PAD],
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )


def padded(sequences: torch.Tensor, length: int) -> np.ndarray:
    answers = sequences[:, len(PROMPTS[0]) :].numpy().copy()
    # transformers treats a pad of 0 as unset, and fills with eos after an end.
    is_behind = np.cumsum(answers == EOS, axis=1) - (answers == EOS) > 0
    answers[is_behind] = PAD
    return np.pad(answers, ((0, 0), (0, length - answers.shape[1])), constant_values=PAD)


def test_greedy_answers_equal_those_of_transformers(models):
    theirs, ours = models
    expected = their_answers(theirs, max_new_tokens=12)
    answers = generate(ours, rows(PROMPTS), DecodingOptions(12, eos=EOS, pad=PAD))
    assert_same_answers(
        answers, padded(expected.sequences, 12), lambda row, step: expected.scores[step][row]
    )


@pytest.mark.parametrize(("num_beams", "length_penalty"), [(2, 1.0), (4, 0.0), (4, 2.0)])
def test_beams_and_scores_equal_those_of_transformers(models, num_beams, length_penalty):
    theirs, ours = models
    expected = their_answers(
        theirs,
        max_new_tokens=10,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        length_penalty=length_penalty,
    )
    beams = beam_search(
        ours,
        rows(PROMPTS),
        DecodingOptions(10, eos=EOS, pad=PAD),
        num_beams=num_beams,
        length_penalty=length_penalty,
    )
    tokens = padded(expected.sequences, 10)
    # Only a high length penalty keeps all answers from ending early.
    assert length_penalty > 1 or EOS in tokens[:, :-1]
    scores = expected.sequences_scores.numpy().reshape(len(PROMPTS), num_beams)
    np.testing.assert_allclose(beams.scores, scores, rtol=2e-5)
    # Beams with nearly equal scores may swap.
    gaps = -np.diff(scores, axis=1)
    is_tied = np.pad(gaps < 1e-4, ((0, 0), (0, 1))) | np.pad(gaps < 1e-4, ((0, 0), (1, 0)))
    differs = np.any(beams.tokens != tokens.reshape(len(PROMPTS), num_beams, 10), axis=2)
    assert not np.any(differs & ~is_tied) and differs.sum() <= 2


@pytest.mark.parametrize(
    "sampling",
    [Sampling(0.7), Sampling(1.0, top_k=5), Sampling(1.5, top_p=0.8), Sampling(0.9, 9, 0.6)],
)
def test_sampling_truncates_like_transformers(sampling):
    logits = np.random.default_rng(0).normal(0, 2, (6, 40)).astype(np.float32)
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    expected = torch.from_numpy(logits)
    for warper in warpers:
        expected = warper(None, expected)
    np.testing.assert_allclose(truncated(jnp.asarray(logits), sampling), expected, rtol=1e-6)

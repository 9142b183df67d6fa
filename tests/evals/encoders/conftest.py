"""Models that see little more than the mean color of a picture."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from picture_sets import COLORS

from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.evals.encoders.encoder_evaluator import EncoderInput
from mm1_jax.models.vision_encoder import VisionEncoder


class ColorModel(nnx.Module):
    """Compares the mean color of a picture with the colors whose tokens a text has.

    `tokens` has the own tokens of each color, padded with -1.
    """

    def __init__(self, tokens: Any):
        self.tokens = nnx.Param(jnp.array(tokens))

    def encode_image(self, images, row_seeds=None):
        return jnp.mean(images.astype(jnp.float32), axis=(1, 2))

    def encode_text(self, tokens, lengths):
        is_one = tokens[:, :, None, None] == self.tokens[...][None, None]
        return jnp.any(is_one, axis=(1, 3)).astype(jnp.float32) + 0.1


class FrozenModel(nnx.Module):
    """A vision encoder with random parameters."""

    def __init__(self, cfg: VisionEncoder.Config):
        self.vision_encoder = cfg.instantiate(rngs=nnx.Rngs(params=jax.random.key(0)))

    def cast(self):
        return self


def encoder() -> VisionEncoder.Config:
    return VisionEncoder.default_config().set(
        image_size=8, patch_size=4, model_dim=8, num_layers=3, num_heads=2, hidden_dim=16
    )


@pytest.fixture(scope="session")
def frozen_model() -> FrozenModel:
    return FrozenModel(encoder())


@pytest.fixture(scope="session")
def color_model(encoder_input) -> ColorModel:
    tokens = {name: set(encoder_input.tokenizer.encode(f"a {name}")) for name in COLORS}
    own = [
        sorted(ids - set().union(*(tokens[other] for other in COLORS if other != name)))
        for name, ids in tokens.items()
    ]
    longest = max(map(len, own))
    return ColorModel([[*ids, *[-1] * (longest - len(ids))] for ids in own])


@pytest.fixture(scope="session")
def encoder_input() -> EncoderInput:
    return EncoderInput.of(
        SimpleNamespace(tokenizer=Tokenizer.default_config(), image_size=8, max_sequence_length=24)
    )

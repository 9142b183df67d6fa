"""AIM's trunk, compared with torch modules after its paper, at full width and two layers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import assert_equal, randomise, with_weights
from torch_modules import AimTrunk, aim_weights

from experiments.vision_encoders import aim_600m
from mm1_jax.layers.attention import Pattern


@pytest.mark.parametrize(
    ("shape", "prefixes"),
    [((1, 224, 224, 3), None), ((3, 112, 140, 3), [1, 30, 79])],
    ids=["all to all", "prefix-causal at another size"],
)
def test_aim_features_equal_those_of_the_reference(shape, prefixes, call):
    cfg = aim_600m(Pattern.BIDIRECTIONAL if prefixes is None else Pattern.PREFIX).set(num_layers=2)
    trunk = randomise(AimTrunk(cfg.model_dim, 2, cfg.num_heads, patch_size=14))
    norms = (cfg.patch_norm, cfg.stack.layer.norm, cfg.final_norm)
    assert {norm.eps for norm in norms} == {trunk.norm.eps}
    ours = with_weights(cfg, aim_weights(trunk))
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    pixels = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = trunk(pixels, prefixes)
    args = [] if prefixes is None else [jnp.asarray(prefixes, jnp.int32)]
    assert_equal(call(ours, images, *args), expected)

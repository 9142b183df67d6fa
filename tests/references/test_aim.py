"""Trunks of AIM, compared with torch modules after its paper, and of AIMv2, with transformers.

Both are at full width and two layers.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import assert_equal, randomise, with_weights
from torch_modules import AimTrunk, aim_weights, aimv2_weights, prefix_causal
from transformers import Aimv2VisionConfig, Aimv2VisionModel

from experiments.vision_encoders import aim_600m, aimv2_l14
from mm1_jax.layers.attention import Pattern


def draw_images(shape):
    """Draws images, and the same as a torch encoder reads them, normalized as ImageNet."""
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return images, ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)


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
    images, pixels = draw_images(shape)
    with torch.no_grad():
        expected = trunk(pixels, prefixes)
    args = [] if prefixes is None else [jnp.asarray(prefixes, jnp.int32)]
    assert_equal(call(ours, images, *args), expected)


@pytest.mark.parametrize("prefixes", [None, [1, 200]], ids=["all to all", "prefix-causal"])
def test_aimv2_features_equal_those_of_transformers(prefixes, call):
    cfg = aimv2_l14(Pattern.BIDIRECTIONAL if prefixes is None else Pattern.PREFIX)
    cfg.num_layers = 2
    config = Aimv2VisionConfig(num_hidden_layers=2, use_head=False, attn_implementation="eager")
    norms = (cfg.patch_norm, cfg.stack.layer.norm, cfg.final_norm)
    assert {norm.eps for norm in norms} == {config.rms_norm_eps}
    trunk = randomise(Aimv2VisionModel(config))
    ours = with_weights(cfg, aimv2_weights(trunk))
    images, pixels = draw_images((2, 224, 224, 3))
    mask = None
    if prefixes is not None:
        # Their attention adds the mask to the logits.
        mask = torch.where(prefix_causal(prefixes, 256), 0.0, -torch.inf)
    with torch.no_grad():
        x = trunk.encoder(trunk.embeddings(pixels), attention_mask=mask).last_hidden_state
        expected = trunk.rms_norm(x)
    args = [] if prefixes is None else [jnp.asarray(prefixes, jnp.int32)]
    assert_equal(call(ours, images, *args), expected)

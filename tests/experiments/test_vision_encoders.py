"""Parameter counts of the full-size encoders, compared with reference implementations."""

import jax
import pytest
import torch
from flax import nnx
from torch_modules import AimTrunk
from transformers import Aimv2VisionConfig, Aimv2VisionModel, CLIPVisionConfig, CLIPVisionModel

from experiments.vision_encoders import aim_1b, aim_3b, aim_600m, aimv2_l14, vit_h14, vit_l14
from mm1_jax.layers.attention import Pattern
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import AxisRules, parameter_shardings


def params(cfg):
    return nnx.state(nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0))))


def count(module_or_state):
    if isinstance(module_or_state, torch.nn.Module):
        return sum(x.numel() for x in module_or_state.parameters())
    return sum(x.size for x in jax.tree.leaves(module_or_state))


@pytest.mark.parametrize("image_size", [224, 336, 378])
@pytest.mark.parametrize(
    ("encoder", "sizes", "projection", "millions"),
    [(vit_l14, (1024, 24, 16, 4096), 768, 304), (vit_h14, (1280, 32, 16, 5120), 1024, 632)],
)
def test_clip_encoders_have_as_many_parameters_as_in_transformers(
    encoder, sizes, projection, millions, image_size
):
    dim, num_layers, num_heads, hidden_dim = sizes
    config = CLIPVisionConfig(
        hidden_size=dim,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=hidden_dim,
        image_size=image_size,
        patch_size=14,
    )
    with torch.device("meta"):
        tower = CLIPVisionModel(config)
    # Ours lacks the norm that only the class token passes through.
    assert count(params(encoder(image_size))) == count(tower) - 2 * dim
    # Published sizes of CLIP's towers include the projection to the shared space.
    assert count(tower) + dim * projection == pytest.approx(millions * 1e6, rel=0.002)


@pytest.mark.parametrize(
    ("encoder", "dim", "num_heads", "billions"),
    [(aim_600m, 1536, 12, 0.68), (aim_1b, 2048, 16, 1.21), (aim_3b, 3072, 24, 2.72)],
)
def test_aim_trunks_have_as_many_parameters_as_the_reference_12_d_squared_per_block(
    encoder, dim, num_heads, billions
):
    with torch.device("meta"):
        trunk = AimTrunk(dim, depth=24, num_heads=num_heads, patch_size=14)
    for pattern in (Pattern.BIDIRECTIONAL, Pattern.PREFIX):
        assert count(params(encoder(pattern))) == count(trunk)
    assert count(trunk) == pytest.approx(24 * 12 * dim**2, rel=0.002)
    assert count(trunk) == pytest.approx(billions * 1e9, rel=0.002)


def test_the_trunk_of_aimv2_has_as_many_parameters_as_in_transformers():
    with torch.device("meta"):
        trunk = Aimv2VisionModel(Aimv2VisionConfig(use_head=False))
    for pattern in (Pattern.BIDIRECTIONAL, Pattern.PREFIX):
        assert count(params(aimv2_l14(pattern))) == count(trunk)
    assert count(trunk) == pytest.approx(309e6, rel=0.002)


@pytest.mark.parametrize("encoder", [vit_l14, vit_h14, aim_600m, aim_1b, aim_3b, aimv2_l14])
def test_the_mesh_divides_every_parameter(encoder):
    mesh = Parallelism.default_config().set(data=1, fsdp=4, model=2).instantiate().mesh()
    # Raises where a parameter has no logical names or the mesh does not divide it.
    parameter_shardings(params(encoder()), mesh, AxisRules())

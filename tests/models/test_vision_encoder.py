import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from mm1_jax.layers.attention_kernels import Kernel
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.layers.norm import LayerNorm
from mm1_jax.layers.position_embedding import SinCosPositions, resize_grid
from mm1_jax.models import vision_encoder
from mm1_jax.models.vision_encoder import ClassToken, VisionEncoder, normalise, to_patches

PATCH, GRID, DIM, HEADS, HIDDEN, LAYERS = 4, 3, 8, 2, 12, 2


@pytest.fixture
def cfg():
    return VisionEncoder.default_config().set(
        image_size=PATCH * GRID,
        patch_size=PATCH,
        model_dim=DIM,
        num_layers=LAYERS,
        num_heads=HEADS,
        hidden_dim=HIDDEN,
    )


@pytest.fixture
def images():
    shape = (2, PATCH * GRID, PATCH * GRID, 3)
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))


def draw(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


def to_torch(x):
    return torch.from_numpy(np.array(x))


def torch_vit(encoder, images, activation):
    """The same encoder from torch layers: a strided convolution and TransformerEncoderLayer."""
    mean, std = torch.tensor(encoder.pixel_mean), torch.tensor(encoder.pixel_std)
    pixels = ((to_torch(images).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    kernel = to_torch(encoder.patch_embedding.kernel).T.unflatten(1, (PATCH, PATCH, 3))
    x = F.conv2d(pixels, kernel.permute(0, 3, 1, 2), stride=PATCH).flatten(2).transpose(1, 2)
    x = x + to_torch(encoder.positions.positions)[None]
    if encoder.class_token is not None:
        token = to_torch(encoder.class_token.token) + to_torch(encoder.class_token.position)
        token = token.expand(len(x), 1, DIM)
        x = torch.cat([token, x], 1)
    if encoder.pre_norm is not None:
        x = norm(x, encoder.pre_norm)
    for i in range(LAYERS):
        layer = torch.nn.TransformerEncoderLayer(
            DIM, HEADS, HIDDEN, dropout=0, activation=activation, batch_first=True, norm_first=True
        )
        weights = jax.tree.map(
            lambda a, i=i: to_torch(a[i]), nnx.to_pure_dict(nnx.state(encoder.stack.layer))
        )
        layer.load_state_dict(torch_weights(weights))
        layer.norm1.eps = layer.norm2.eps = 1e-6
        x = layer(x)
    if encoder.class_token is not None:
        x = x[:, 1:]
    return (x if encoder.final_norm is None else norm(x, encoder.final_norm)).detach()


def norm(x, module):
    return F.layer_norm(x, (DIM,), to_torch(module.scale), to_torch(module.bias), eps=1e-6)


def torch_weights(weights):
    attention, feed_forward = weights["attention"], weights["feed_forward"]
    heads = [attention[name] for name in ("query", "key", "value")]
    return {
        "self_attn.in_proj_weight": torch.cat([head["kernel"].flatten(1).T for head in heads]),
        "self_attn.in_proj_bias": torch.cat([head["bias"].flatten() for head in heads]),
        "self_attn.out_proj.weight": attention["output"]["kernel"].flatten(1),
        "self_attn.out_proj.bias": attention["output"]["bias"],
        "linear1.weight": feed_forward["up"]["kernel"].T,
        "linear1.bias": feed_forward["up"]["bias"],
        "linear2.weight": feed_forward["down"]["kernel"],
        "linear2.bias": feed_forward["down"]["bias"],
        "norm1.weight": weights["attention_norm"]["scale"],
        "norm1.bias": weights["attention_norm"]["bias"],
        "norm2.weight": weights["feed_forward_norm"]["scale"],
        "norm2.bias": weights["feed_forward_norm"]["bias"],
    }


def test_the_encoder_equals_torch(cfg, build, call, images):
    encoder = build(cfg)
    expected = torch_vit(encoder, images, "gelu")
    np.testing.assert_allclose(call(encoder, images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_padding", [0, 100])
@pytest.mark.parametrize("kernel", [Kernel.XLA, Kernel.SPLASH, Kernel.TRITON])
def test_a_clip_style_encoder_equals_torch(cfg, build, images, kernel, max_padding, monkeypatch):
    # The fused kernels need whole blocks, so rows are padded, which must not change the result.
    monkeypatch.setattr(vision_encoder, "MAX_PADDING", max_padding)
    cfg.stack.layer.attention.kernel = kernel
    cfg.set(
        class_token=ClassToken.default_config(),
        pre_norm=LayerNorm.default_config(),
        final_norm=None,
    )
    cfg.stack.layer.feed_forward.activation = Activation.QUICK_GELU
    encoder = build(cfg)
    expected = torch_vit(encoder, images, lambda x: x * torch.sigmoid(1.702 * x))
    assert expected.shape == (2, GRID**2, DIM)
    # MAX_PADDING is not part of jit's cache key, so each case compiles a program of its own.
    features = jax.jit(lambda encoder, images: encoder(images))(encoder, images)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


def test_patches_are_squares_in_row_major_order():
    pixels = jnp.arange(1.0 * 4 * 6 * 3).reshape(1, 4, 6, 3)
    patches = to_patches(pixels, 2)
    assert patches.shape == (1, 2, 3, 12)
    np.testing.assert_array_equal(patches[0, 1, 2].reshape(2, 2, 3), pixels[0, 2:4, 4:6])


def test_images_of_a_batch_do_not_affect_each_other(cfg, build, call, images):
    encoder = build(cfg)
    np.testing.assert_allclose(
        call(encoder, images)[1:], call(encoder, images[1:]), rtol=1e-5, atol=1e-5
    )


def test_equal_bytes_and_floats_give_equal_features(cfg, build, call, images):
    encoder = build(cfg)
    np.testing.assert_array_equal(call(encoder, images), call(encoder, images.astype(jnp.float32)))


def test_normalized_pixels_have_the_expected_statistics():
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    colours = 255 * (jnp.asarray(mean) + jnp.asarray(std))[None, None, None]
    np.testing.assert_allclose(normalise(colours, mean, std), 1, rtol=1e-5)


def test_positions_at_the_trained_size_are_unchanged():
    grid = draw(5, 5, 3)
    np.testing.assert_array_equal(resize_grid(grid, 5, 5), grid)


@pytest.mark.parametrize("size", [(27, 27), (9, 9), (16, 24)])
def test_positions_are_resized_like_antialiased_bicubic_in_torch(size):
    grid = draw(16, 16, 3)
    expected = F.interpolate(
        to_torch(grid).permute(2, 0, 1)[None], size, mode="bicubic", antialias=True
    )[0].permute(1, 2, 0)
    np.testing.assert_allclose(resize_grid(grid, *size), expected, rtol=1e-4, atol=1e-5)


def test_positions_are_resized_in_float32_for_any_compute_dtype():
    grid = draw(4, 4, 3).astype(jnp.bfloat16)
    resized = resize_grid(grid, 7, 7)
    np.testing.assert_array_equal(resized, resize_grid(grid.astype(jnp.float32), 7, 7))


def test_sines_and_cosines_need_a_dim_that_four_divides(cfg, build, images):
    cfg.set(positions=SinCosPositions.default_config(), model_dim=6)
    with pytest.raises(ValueError, match="model_dim=6 must be divisible by 4"):
        build(cfg)(images)


def test_larger_and_non_square_images_have_a_feature_per_patch(cfg, build, call):
    encoder = build(cfg)
    images = jnp.zeros((1, 6 * PATCH, 2 * PATCH, 3), jnp.uint8)
    assert call(encoder, images).shape == (1, 12, DIM)


def test_images_that_do_not_divide_into_patches_are_refused(cfg, build):
    with pytest.raises(ValueError, match=r"images of 13 x 12 pixels.*patch_size=4"):
        build(cfg)(jnp.zeros((1, 13, 12, 3), jnp.uint8))
    with pytest.raises(ValueError, match=r"image_size=13.*patch_size=4"):
        build(cfg.set(image_size=13))

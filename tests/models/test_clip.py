import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm1_jax.layers.attention import Pattern
from mm1_jax.models.clip import CLIP, ScaleCap
from mm1_jax.models.text_encoder import TextEncoder, TextPooling
from mm1_jax.models.vision_encoder import ClassToken, kept_patches

TOWER = {"model_dim": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 12}


@pytest.fixture
def cfg():
    cfg = CLIP.default_config().set(features_dim=6)
    cfg.vision_encoder.set(
        image_size=16, patch_size=4, class_token=ClassToken.default_config(), **TOWER
    )
    cfg.text_encoder.set(vocab_size=20, max_length=5, **TOWER)
    return cfg


def images(number):
    shape = (number, 16, 16, 3)
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_patch_dropout_keeps_the_patches_that_the_seed_of_the_row_draws():
    seeds = jnp.arange(64, dtype=jnp.uint32)
    kept = np.asarray(kept_patches(seeds, 16, 0.5))
    assert kept.shape == (64, 8)
    assert (np.diff(kept, axis=1) > 0).all() and kept.min() == 0 and kept.max() == 15
    np.testing.assert_array_equal(kept[5:6], kept_patches(seeds[5:6], 16, 0.5))
    share = np.bincount(kept.ravel(), minlength=16) / 64
    assert abs(share - 0.5).max() < 0.25


def test_dropped_patches_do_not_affect_the_features_of_an_image(cfg, build):
    model = build(cfg.set(patch_dropout=0.5))
    seeds = jnp.arange(2, dtype=jnp.uint32)

    @jax.jit
    def gradient(model, images):
        return jax.grad(lambda x: jnp.sum(model.encode_image(x, seeds)[:, 0]))(images)

    g = np.abs(gradient(model, images(2).astype(jnp.float32))).sum(-1)
    is_used = g.reshape(2, 4, 4, 4, 4).sum((2, 4)).reshape(2, 16) > 0
    expected = np.zeros((2, 16), bool)
    np.put_along_axis(expected, np.asarray(kept_patches(seeds, 16, 0.5)), True, axis=1)
    np.testing.assert_array_equal(is_used, expected)


@pytest.mark.parametrize("pooling", TextPooling)
@pytest.mark.parametrize("pattern", [Pattern.CAUSAL, Pattern.BIDIRECTIONAL])
def test_padding_does_not_affect_the_features_of_a_text(cfg, build, call, pattern, pooling):
    text = TextEncoder.default_config().set(
        vocab_size=20, max_length=5, output_dim=6, pooling=pooling, **TOWER
    )
    text.stack.layer.attention.pattern = pattern
    encoder = build(text)
    tokens = jnp.array([[3, 4, 9, 0, 0], [3, 4, 9, 7, 11]])
    found = call(encoder, tokens, jnp.array([3, 3]))
    np.testing.assert_array_equal(found[0], found[1])
    if pooling is not TextPooling.LAST:
        short = call(encoder, tokens[:1, :3], jnp.array([3]))
        np.testing.assert_allclose(found[:1], short, rtol=1e-5, atol=1e-6)


def test_a_scale_beyond_the_cap_is_clipped_or_marked_for_the_optimizer(cfg, build):
    forward = build(cfg.clone(scale_cap=ScaleCap.FORWARD))
    forward.logit_scale[...] = jnp.asarray(10.0)
    np.testing.assert_allclose(forward.scale(), 100, rtol=1e-5)
    assert forward.logit_scale.get_metadata("limits", None) is None
    limits = build(cfg).logit_scale.get_metadata("limits")
    np.testing.assert_allclose(limits, (0, np.log(100)))


def test_a_class_token_that_the_encoder_lacks_is_an_error(cfg, build):
    cfg.vision_encoder.class_token = None
    with pytest.raises(ValueError, match="class_token is None; set it, or image_pooling"):
        build(cfg).encode_image(images(1))


def test_a_text_longer_than_the_positions_is_an_error(cfg, build):
    with pytest.raises(ValueError, match=r"captions of 6 positions: .* max_length=5"):
        build(cfg).encode_text(jnp.zeros((1, 6), jnp.int32), jnp.array([6]))

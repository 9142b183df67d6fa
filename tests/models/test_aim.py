import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from patch_models import LENGTH, NUM_PATCHES, NUM_PIXELS, PATCH, ROWS, aim, aimv2, draw_batch

from mm1_jax.layers.attention import Pattern
from mm1_jax.models.aim import draw_prefix_lengths, patch_targets
from mm1_jax.models.flops import patch_prediction_flops, product_flops
from mm1_jax.models.vision_encoder import ClassToken

MODELS = {"aim": aim, "aimv2": aimv2}


@pytest.fixture
def batch():
    return jax.tree.map(jnp.asarray, draw_batch())


def patches_of(output):
    return getattr(output, "patches", output)


def test_targets_equal_a_reference_that_standardizes_patch_by_patch(build, batch):
    """L3M's rule: pixels normalized as ImageNet, (p q c), mean and unbiased variance per patch."""
    mean, std = np.asarray((0.485, 0.456, 0.406)), np.asarray((0.229, 0.224, 0.225))
    pixels = (np.asarray(batch.images, np.float64) / 255 - mean) / std
    expected = np.zeros((ROWS, NUM_PATCHES, NUM_PIXELS))
    side = pixels.shape[1] // PATCH
    for row in range(ROWS):
        for h in range(side):
            for w in range(side):
                values = [
                    pixels[row, h * PATCH + p, w * PATCH + q, c]
                    for p in range(PATCH)
                    for q in range(PATCH)
                    for c in range(3)
                ]
                deviation = np.sqrt(np.var(values, ddof=1) + 1e-6)
                expected[row, h * side + w] = (values - np.mean(values)) / deviation
    found = patch_targets(batch.images, build(aim()).vision_encoder)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_patch_of_one_color_has_finite_targets(build, batch):
    targets = patch_targets(jnp.zeros_like(batch.images), build(aim()).vision_encoder)
    assert np.isfinite(targets).all()


def test_prefix_lengths_are_uniform_and_depend_on_the_row_seed_alone():
    number, num_patches = 40_000, 5
    seeds = np.random.default_rng(0).integers(0, 2**32, number, dtype=np.uint32)
    lengths = np.asarray(draw_prefix_lengths(jnp.asarray(seeds), num_patches))
    counts = np.bincount(lengths, minlength=num_patches + 1)
    assert counts[0] == counts[num_patches] == 0
    share = 1 / (num_patches - 1)
    deviation = np.sqrt(number * share * (1 - share))
    assert np.abs(counts[1:num_patches] - number * share).max() < 4 * deviation
    alone = draw_prefix_lengths(jnp.asarray(seeds[7:9]), num_patches)
    np.testing.assert_array_equal(alone, lengths[7:9])


@pytest.mark.parametrize("name", MODELS)
def test_a_prediction_sees_the_prefix_and_the_patches_up_to_its_own(name, build, batch):
    """The gradient of each prediction is nonzero in just the patches that it may depend on."""
    model = build(MODELS[name]())

    def predictions(images, row):
        one = jax.tree.map(lambda x: x[row : row + 1], batch)
        object.__setattr__(one, "images", images)
        # A random direction, as predictions for all pixels might cancel.
        direction = np.random.default_rng(0).standard_normal(NUM_PIXELS).astype(np.float32)
        return patches_of(model(one)).predictions[0] @ direction

    jacobian = jax.jit(jax.jacrev(predictions), static_argnums=1)
    prefixes = np.asarray(draw_prefix_lengths(batch.row_seeds, NUM_PATCHES))
    rows = [int(np.argmin(prefixes)), int(np.argmax(prefixes))]
    assert 1 <= prefixes[rows[0]] < prefixes[rows[1]] < NUM_PATCHES
    for row in rows:
        images = batch.images[row : row + 1].astype(jnp.float32)
        gradient = np.abs(jacobian(images, row))[:, 0]
        side = images.shape[1] // PATCH
        gradient = gradient.reshape(NUM_PATCHES, side, PATCH, side, PATCH, 3).max((2, 4, 5))
        sees = gradient.reshape(NUM_PATCHES, NUM_PATCHES) > 0
        expected = np.tril(np.ones_like(sees))
        expected[:, : prefixes[row]] = True
        np.testing.assert_array_equal(sees, expected)


def test_the_text_follows_all_patches_and_does_not_change_them(build, batch):
    model = build(aimv2())

    def run(images, embedding):
        model.decoder.embedding.weight.set_value(embedding)
        one = jax.tree.map(lambda x: x, batch)
        object.__setattr__(one, "images", images)
        output = model(one)
        return output.patches.predictions, output.text_hidden

    images = batch.images.astype(jnp.float32)
    embedding = model.decoder.embedding.weight[...]
    before = run(images, embedding)
    # Another vector for the last token of the first text, which has no padding.
    changed = run(images, embedding.at[batch.tokens[0, -1]].add(1.0))
    np.testing.assert_array_equal(before[0], changed[0])
    is_first = batch.tokens[0] == batch.tokens[0, -1]
    first = int(np.argmax(is_first))
    np.testing.assert_array_equal(before[1][0, :first], changed[1][0, :first])
    assert np.abs(before[1][0, first:] - changed[1][0, first:]).max(-1).all()
    # Every text position sees the last patch.
    moved = run(images.at[0, -1, -1].set(255.0 - images[0, -1, -1]), embedding)
    assert np.abs(before[1][0] - moved[1][0]).max(-1).all()
    assert before[1].shape[1] == LENGTH


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_rounds_predictions_but_not_targets(name, build, call, batch):
    exact, rounded = (
        patches_of(call(build(MODELS[name]().set(dtype=dtype)), batch))
        for dtype in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(exact.targets, rounded.targets, rtol=1e-5, atol=1e-6)
    scale = np.abs(exact.predictions).max()
    assert 0 < np.abs(exact.predictions - rounded.predictions).max() < 0.1 * scale


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_the_products_with_half_of_causal_attention(name, batch):
    cfg = MODELS[name]()
    model = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))

    def forward(model, batch):
        output = model(batch)
        if name == "aim":
            return output.predictions
        return output.patches.predictions, model.output_layer().attend(output.text_hidden)

    executed = product_flops(jax.make_jaxpr(forward)(model, batch).jaxpr)
    hidden_half = 0
    if name == "aimv2":
        length = NUM_PATCHES + LENGTH
        hidden_half = ROWS * cfg.decoder.num_layers * 2 * length**2 * cfg.decoder.model_dim
    flops = patch_prediction_flops(cfg, LENGTH)
    assert ROWS * (flops.row + flops.image) == executed - hidden_half


@pytest.mark.parametrize("name", MODELS)
def test_an_encoder_in_which_patches_see_their_targets_is_refused(name):
    cfg = MODELS[name]()
    cfg.vision_encoder.class_token = ClassToken.default_config()
    with pytest.raises(ValueError, match="class_token: it would take the first place"):
        cfg.instantiate(rngs=nnx.Rngs(params=0))
    cfg = MODELS[name]()
    cfg.vision_encoder.stack.layer.attention.pattern = Pattern.BIDIRECTIONAL
    with pytest.raises(ValueError, match="pattern='bidirectional'.*needs 'prefix'"):
        cfg.instantiate(rngs=nnx.Rngs(params=0))

"""Fits and probes equal scikit-learn, PyTorch, and a direct computation of AIM's features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import LogisticRegression

from mm1_jax.evals.encoders.attentive_probe import (
    Head,
    first_state,
    head_logits,
    normalize,
    statistics_of,
    train_step,
)
from mm1_jax.evals.encoders.logistic import Scaling, fit
from mm1_jax.layers.attention import Pattern
from mm1_jax.models.frozen_features import patch_features
from mm1_jax.models.vision_encoder import ClassToken, VisionEncoder


class Identity(nnx.Module):
    def __call__(self, x):
        return x


def test_the_classifier_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(90, 5)).astype(np.float32) * np.float32(3) + 1
    labels = rng.integers(0, 4, 90)
    features[np.arange(90), labels] += 2
    scaling = Scaling.of(features)
    scaled = scaling(features)
    assert np.allclose(scaled.mean(0), 0, atol=1e-5) and np.allclose(scaled.std(0), 1, atol=1e-5)
    for l2 in (1e-3, 1e-1):
        ours = fit(scaled, labels, 4, l2)
        theirs = LogisticRegression(C=1 / (l2 * 90), tol=1e-8, max_iter=1000).fit(scaled, labels)
        ours_log = ours.logits(scaled)
        ours_log = ours_log - np.logaddexp.reduce(ours_log, axis=1, keepdims=True)
        assert np.allclose(ours_log, theirs.predict_log_proba(scaled), atol=5e-3)
        assert np.allclose(ours.kernel.T, theirs.coef_, atol=5e-3)


def test_a_fit_is_the_same_in_chunks_and_from_another_start(monkeypatch):
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, 2, 50)
    whole = fit(features, labels, 2, 1e-2)
    monkeypatch.setattr("mm1_jax.evals.encoders.logistic._CHUNK", 16)
    chunked = fit(features, labels, 2, 1e-2, start=fit(features, labels, 2, 1.0))
    assert np.allclose(whole.kernel, chunked.kernel, atol=2e-3)


def test_a_head_pools_as_torch_attention_does_after_its_batch_norm():
    torch = pytest.importorskip("torch")
    dim, num_heads, classes = 12, 3, 5
    rng = np.random.default_rng(0)
    features = rng.normal(2, 3, (4, 7, dim)).astype(np.float32)
    head = Head(*(x[0] for x in first_state(dim, classes, 1, seed=3).heads))
    own = statistics_of(jnp.array(features))
    ours = head_logits(head, normalize(jnp.array(features), own), num_heads)

    x = torch.tensor(features)
    norm = torch.nn.BatchNorm1d(dim, affine=False, eps=1e-6)
    x = norm(x.transpose(1, 2)).transpose(1, 2)

    def split(values):
        return values.reshape(*values.shape[:-1], num_heads, -1).transpose(-2, -3)

    query = split(torch.tensor(head.query)[None, None].expand(4, 1, dim))
    key, value = (split(x @ torch.tensor(each)) for each in (head.key, head.value))
    pooled = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    theirs = pooled.transpose(1, 2).reshape(4, dim) @ torch.tensor(head.linear)
    assert np.allclose(ours, theirs.numpy(), atol=1e-5)

    # A step updates the running statistics as torch's batch norm did.
    labels, rates = np.zeros(4, np.int32), np.zeros(1, np.float32)
    state = train_step(
        first_state(dim, classes, 1, seed=3),
        None,
        features,
        labels,
        rates,
        0.1,
        num_heads=num_heads,
    )
    assert np.allclose(state.running.mean, norm.running_mean.numpy(), atol=1e-6)
    assert np.allclose(state.running.variance, norm.running_var.numpy(), atol=1e-5)


def test_heads_of_a_sweep_are_trained_as_if_alone():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 4, 8)).astype(np.float32)
    labels, rates = np.arange(6, dtype=np.int32) % 3, np.array([1e-2, 1e-3], np.float32)
    together = train_step(
        first_state(8, 3, 2, seed=0), None, features, labels, rates, 0.1, num_heads=2
    )
    for i in range(2):
        alone = train_step(
            first_state(8, 3, 1, seed=0), None, features, labels, rates[i : i + 1], 0.1, num_heads=2
        )
        for a, b in zip(together.heads, alone.heads, strict=True):
            assert np.allclose(a[i], b[0], atol=1e-6)


@pytest.mark.parametrize("pattern", [Pattern.BIDIRECTIONAL, Pattern.PREFIX])
def test_features_are_the_mean_of_the_last_blocks_with_all_patches_visible(pattern):
    cfg = VisionEncoder.default_config().set(
        image_size=8, patch_size=4, model_dim=8, num_layers=3, num_heads=2, hidden_dim=16
    )
    if pattern is Pattern.BIDIRECTIONAL:
        cfg.class_token = ClassToken.default_config()
    cfg.stack.layer.attention.pattern = pattern
    encoder = cfg.instantiate(rngs=nnx.Rngs(params=jax.random.key(0)))
    images = jax.random.randint(jax.random.key(1), (2, 8, 8, 3), 0, 256).astype(jnp.uint8)
    outputs = []
    for depth in (2, 3):
        # The first `depth` blocks alone, without the final norm.
        part = nnx.merge(*nnx.split(encoder))
        part.stack.layer = jax.tree.map(lambda x, depth=depth: x[:depth], part.stack.layer)
        part.final_norm = Identity()
        lengths = jnp.full(2, 4) if pattern is Pattern.PREFIX else None
        outputs.append(jax.jit(lambda part, *args: part(*args))(part, images, lengths))
    features = jax.jit(patch_features, static_argnums=2)
    mean = features(encoder, images, 2)
    assert np.allclose(mean, (outputs[0] + outputs[1]) / 2, atol=1e-5)
    whole = features(encoder, images, None)
    assert np.allclose(whole, encoder.final_norm(outputs[1]), atol=1e-5)
    # The last patch is seen by the first one.
    changed = images.at[:, 4:, 4:].add(100)
    assert not np.allclose(features(encoder, changed, 2)[:, 0], mean[:, 0])
    with pytest.raises(ValueError, match="num_layers=4: expected 1 to 3"):
        patch_features(encoder, images, 4)

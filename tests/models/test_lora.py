"""Adapted models: equal to the base at first, then to the base with merged kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm1_jax.batch import Batch
from mm1_jax.layers.lora import Adapter, LoRA, adapters_of
from mm1_jax.layers.moe import MoE
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.rematerialisation import Remat

IMAGE, IMAGE_SIZE = 3, 8


@pytest.fixture
def cfg():
    cfg = MM1.default_config().set(image_token=IMAGE)
    cfg.vision_encoder.set(
        image_size=IMAGE_SIZE, patch_size=2, model_dim=8, num_layers=2, num_heads=2, hidden_dim=8
    )
    cfg.connector.set(num_image_tokens=4, depth=1, hidden_dim=8)
    cfg.decoder.set(
        vocab_size=16, model_dim=8, num_layers=2, num_heads=2, num_kv_heads=1, hidden_dim=16
    )
    return cfg


def lora(*rules, **fields):
    adapter = Adapter.default_config().set(rank=2, alpha=6.0)
    return LoRA.default_config().set(adapters={rule: adapter.clone() for rule in rules}, **fields)


@pytest.fixture
def batch():
    tokens = np.array([[1, 3, 3, 3, 3, 5, 6, 7], [1, 8, 9, 3, 3, 3, 3, 4]], np.int32)
    fields = {name: np.zeros_like(tokens) for name in ("targets", "corpus_ids")}
    pixels = np.random.default_rng(0).integers(0, 256, (2, IMAGE_SIZE, IMAGE_SIZE, 3))
    batch = Batch(
        tokens=tokens,
        loss_mask=tokens > 3,
        positions=np.broadcast_to(np.arange(8, dtype=np.int32), (2, 8)),
        segment_ids=np.ones_like(tokens),
        images=pixels.astype(np.uint8),
        image_index=np.array([[0], [1]], np.int32),
        **fields,
    )
    return jax.tree.map(jnp.asarray, batch)


@jax.jit
def logits(model, batch):
    return model.logits(model(batch, dropless=True).hidden)


def test_an_adapted_model_starts_bit_equal_to_its_base(cfg, batch):
    base = cfg.clone().instantiate(rngs=nnx.Rngs(params=0))
    adapted = cfg.set(lora=lora("decoder", "vision_encoder", "connector")).instantiate(
        rngs=nnx.Rngs(params=0)
    )
    adapters = adapters_of(adapted)
    # Seven in a decoder layer, six in a layer of the encoder, and its patch embedding.
    assert sum(path.startswith("decoder") for path in adapters) == 7
    assert sum(path.startswith("vision_encoder") for path in adapters) == 7
    assert all(np.any(x.a[...]) and not np.any(x.b[...]) for x in adapters.values())
    np.testing.assert_array_equal(logits(base, batch), logits(adapted, batch))


def merged(model):
    """Adds the updates to the kernels, with every sum written out by NumPy."""
    sums = {(0,): "...dr,...rf->...df", (1,): "...dr,...rf->...fd"}
    for path, adapter in adapters_of(model).items():
        layer = model
        for name in path.split("/"):
            layer = layer[int(name)] if name.isdecimal() else getattr(layer, name)
        a, b, kernel = (
            np.asarray(x[...], np.float64) for x in (adapter.a, adapter.b, layer.kernel)
        )
        kind = type(layer).__name__
        if kind == "Linear":
            update = np.einsum(sums[layer.input_dims], a, b)
        elif kind == "SplitHeads":
            update = np.einsum("ldr,lrnh->ldnh", a, b)
        else:
            update = np.einsum("lnhr,lrd->ldnh", a, b)
        layer.kernel[...] = jnp.asarray(kernel + 3.0 * update, jnp.float32)
        adapter.b[...] = jnp.zeros_like(adapter.b[...])
    return model


@pytest.mark.parametrize("remat", [Remat.NONE, Remat.FULL])
def test_adapters_compute_what_merged_kernels_compute(cfg, batch, build, remat):
    cfg.decoder.stack.remat = remat
    cfg.lora = lora("decoder", "vision_encoder", "connector")
    model = build(cfg)
    adapted = logits(model, batch)
    merge = logits(merged(build(cfg)), batch)
    np.testing.assert_allclose(adapted, merge, rtol=1e-4, atol=1e-4)
    for adapter in adapters_of(model).values():
        adapter.b[...] = jnp.zeros_like(adapter.b[...])
    assert np.abs(logits(model, batch) - adapted).max() > 0.1


def test_decoding_with_adapters_equals_the_full_forward_pass(cfg, batch, build):
    cfg.lora = lora("decoder/stack")
    model = build(cfg)
    decoding = model.for_decoding()
    hidden, _ = jax.jit(lambda m, b: m.prefill(b, m.init_caches(2, 8)))(decoding, batch)
    np.testing.assert_allclose(model.logits(hidden), logits(model, batch), rtol=1e-4, atol=1e-4)


def test_adapters_are_stored_in_float32_and_computed_in_bfloat16(cfg, batch, build):
    cfg.lora = lora("decoder/stack")
    full = logits(build(cfg), batch)
    model = build(cfg.set(dtype="bfloat16"))
    for adapter in adapters_of(model.cast()).values():
        assert adapter.a[...].dtype == jnp.float32
    assert model.cast()(batch).hidden.dtype == jnp.bfloat16
    assert np.abs(logits(model, batch) - full).max() < 0.1 * np.abs(full).max()


def test_the_first_rule_sets_rank_and_scale(cfg):
    cfg.lora = LoRA.default_config().set(
        adapters={
            ".*/(query|value)": Adapter.default_config().set(rank=4, alpha=8.0),
            "decoder/stack": Adapter.default_config().set(rank=2, alpha=8.0),
        },
        rank_stabilized=True,
    )
    model = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))
    found = {path: (x.a.shape[-1], x.scale) for path, x in adapters_of(model).items()}
    assert found["vision_encoder/stack/layer/attention/query"] == (4, 4.0)
    assert found["decoder/stack/layer/attention/value"] == (4, 4.0)
    assert found["decoder/stack/layer/attention/key"] == (2, 8.0 / np.sqrt(2))
    assert "vision_encoder/stack/layer/attention/key" not in found


@pytest.mark.parametrize(
    ("rules", "fields", "message"),
    [
        (["decoder/embedding"], {}, "'decoder/embedding' picks no linear layer; did you mean"),
        (["query"], {}, r"picks no linear layer, because a rule must match from the start"),
        ([], {}, "model.lora.adapters is empty: expected a rule, such as 'decoder/stack'"),
        (["decoder"], {"trained": ("projector",)}, "model.lora.trained: 'projector' picks no"),
        (["connector"], {"trained": ("connector",)}, "trained picks connector/.* has an adapter"),
    ],
)
def test_rules_that_pick_nothing_or_too_much_are_refused(cfg, rules, fields, message):
    cfg.lora = lora(*rules, **fields)
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))


def test_experts_are_refused_and_the_attention_of_a_sparse_decoder_is_adapted(cfg):
    cfg.decoder.set(moe=MoE.default_config().set(num_experts=4), moe_every=2)
    with pytest.raises(ValueError, match="experts decoder/stack/last_layer/.*cannot be adapted"):
        nnx.eval_shape(lambda: cfg.set(lora=lora("decoder")).instantiate(rngs=nnx.Rngs(params=0)))
    cfg.lora = lora("decoder/.*/attention")
    model = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))
    assert len(adapters_of(model)) == 8

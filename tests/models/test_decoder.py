"""The decoder: packing, caching, sharding and parameter counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm1_jax.layers.moe import Capacity, Dropless, MoE
from mm1_jax.layers.norm import RMSNorm
from mm1_jax.models.decoder import Decoder, num_non_embedding_parameters
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import AxisRules, constrain, parameter_shardings, use_mesh

V, T = 24, 10
# One row has documents of 4, 3 and 2 tokens and a padded position, the other one of 10 tokens.
SEGMENT_IDS = jnp.array([[1, 1, 1, 1, 2, 2, 2, 3, 3, 0], [1] * T])
POSITIONS = jnp.array([[0, 1, 2, 3, 0, 1, 2, 0, 1, 0], list(range(T))])
TOKENS = jax.random.randint(jax.random.key(5), (2, T), 0, V)


def _config(moe: bool, **fields) -> Decoder.Config:
    cfg = Decoder.default_config().set(
        vocab_size=V, model_dim=16, num_layers=4, num_heads=4, num_kv_heads=2, hidden_dim=12
    )
    if moe:
        cfg.set(moe=MoE.default_config().set(num_experts=4), moe_every=2)
    return cfg.set(**fields)


def _decoder(cfg: Decoder.Config) -> Decoder:
    return cfg.instantiate(rngs=nnx.Rngs(params=jax.random.key(0)))


@jax.jit
def _logits(decoder, tokens, positions, segment_ids):
    output = decoder(decoder.embed(tokens), positions=positions, segment_ids=segment_ids)
    return decoder.logits(output.hidden)


@jax.jit
def _extend(decoder, tokens, positions, segment_ids, caches, start=None):
    output = decoder(
        decoder.embed(tokens),
        positions=positions,
        segment_ids=segment_ids,
        caches=caches,
        cache_start=start,
        dropless=True,
    )
    return decoder.logits(output.hidden), output.caches


@pytest.mark.parametrize("moe", [False, True])
def test_packed_logits_equal_unpacked_logits(moe):
    decoder = _decoder(_config(moe))
    packed = _logits(decoder, TOKENS, POSITIONS, SEGMENT_IDS)
    # Each document gets a row of its own.
    unpacked_tokens = np.zeros((3, T), np.int32)
    segment_ids = np.zeros((3, T), np.int32)
    spans = [(0, 4), (4, 7), (7, 9)]
    for row, (start, end) in enumerate(spans):
        unpacked_tokens[row, : end - start] = TOKENS[0, start:end]
        segment_ids[row, : end - start] = 1
    positions = np.tile(np.arange(T), (3, 1))
    unpacked = _logits(decoder, unpacked_tokens, positions, segment_ids)
    for row, (start, end) in enumerate(spans):
        np.testing.assert_allclose(
            packed[0, start:end], unpacked[row, : end - start], rtol=1e-4, atol=1e-5
        )


def test_without_the_document_mask_a_row_is_one_document():
    decoder = _decoder(_config(False).set(document_mask=False))
    documents = _logits(decoder, TOKENS, POSITIONS, SEGMENT_IDS)
    positions = np.tile(np.arange(T), (len(TOKENS), 1))
    segment_ids = np.minimum(SEGMENT_IDS, 1)
    one = _logits(_decoder(_config(False)), TOKENS, positions, segment_ids)
    used = np.asarray(SEGMENT_IDS[0]) > 0
    np.testing.assert_array_equal(documents[0, used], one[0, used])
    apart = _logits(_decoder(_config(False)), TOKENS, POSITIONS, SEGMENT_IDS)
    assert np.abs(documents - apart)[0, used].max() > 0.01


@pytest.mark.parametrize("moe", [False, True])
def test_no_gradient_reaches_another_document_or_a_later_position(moe):
    decoder = _decoder(_config(moe))

    @jax.jit
    def jacobian(embeddings):
        def hidden(embeddings):
            output = decoder(embeddings, positions=POSITIONS, segment_ids=SEGMENT_IDS)
            return jnp.sum(output.hidden**2 + output.hidden, axis=2)

        return jax.jacobian(hidden)(embeddings)

    depends_BTBT = jnp.any(jacobian(decoder.embed(TOKENS)) != 0, axis=4)
    same_row = jnp.eye(2, dtype=bool)[:, None, :, None]
    assert not bool(jnp.any(depends_BTBT & ~same_row))
    for b in range(2):
        same = np.equal.outer(SEGMENT_IDS[b], SEGMENT_IDS[b]) & (SEGMENT_IDS[b] > 0)[None]
        # A padded position sees no key, so its result is an unused average over the row.
        real = np.asarray(SEGMENT_IDS[b]) > 0
        np.testing.assert_array_equal(depends_BTBT[b, :, b][real], (np.tril(same))[real])


@pytest.mark.parametrize("moe", [False, True])
def test_cached_decoding_equals_the_full_forward_pass(moe):
    # Capacity is too small in training, so only the dropless override makes both equal.
    capacity = Capacity.default_config().set(capacity_factor=0.5, min_capacity=1)
    cfg = _config(moe)
    if moe:
        cfg.moe.set(dispatch=capacity)
    decoder = _decoder(cfg)
    if moe:
        cfg.moe.set(dispatch=Dropless.default_config())
    full = _logits(_decoder(cfg), TOKENS, *_one_document(2, T))

    lengths = np.array([5, 2])
    positions, segment_ids = _one_document(2, 5)
    is_prompt = positions < lengths[:, None]
    caches = decoder.init_caches(2, 5 + 5, jnp.float32)
    logits, caches = _extend(
        decoder,
        jnp.where(is_prompt, TOKENS[:, :5], 0),
        jnp.where(is_prompt, positions, 0),
        jnp.where(is_prompt, segment_ids, 0),
        caches,
    )
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], full[row, :length], rtol=1e-4, atol=1e-4)
    for step in range(5):
        position = lengths + step
        token = jnp.take_along_axis(TOKENS, position[:, None], axis=1)
        logits, caches = _extend(
            decoder,
            token,
            jnp.asarray(position)[:, None],
            jnp.ones((2, 1), jnp.int32),
            caches,
            jnp.asarray(position),
        )
        expected = full[np.arange(2), position]
        np.testing.assert_allclose(logits[:, 0], expected, rtol=1e-4, atol=1e-4)


def _one_document(num_rows: int, length: int) -> tuple[jax.Array, jax.Array]:
    positions = jnp.tile(jnp.arange(length)[None], (num_rows, 1))
    return positions, jnp.ones_like(positions)


def _loss(params, graphdef):
    decoder = nnx.merge(graphdef, params)
    positions, segment_ids = jnp.tile(POSITIONS, (4, 1)), jnp.tile(SEGMENT_IDS, (4, 1))
    tokens = (jnp.tile(TOKENS, (4, 1)) + jnp.arange(8)[:, None]) % V
    embeddings = constrain(decoder.embed(tokens), "batch", "sequence", None)
    output = decoder(embeddings, positions=positions, segment_ids=segment_ids)
    log_probabilities = jax.nn.log_softmax(decoder.logits(output.hidden))
    scored = jnp.take_along_axis(log_probabilities, jnp.roll(tokens, -1, 1)[:, :, None], axis=2)
    loss = -jnp.sum(scored * (segment_ids > 0)[:, :, None])
    return loss + (0 if output.router is None else jnp.sum(output.router.load_balance))


_step_on_one_device = jax.jit(jax.value_and_grad(_loss), static_argnums=1)


@pytest.mark.parametrize(
    "dispatch, axes",
    [
        (None, {"data": 2, "fsdp": 2, "model": 2}),
        (Dropless.default_config(), {"data": 2, "fsdp": 2, "model": 2}),
        (Dropless.default_config(), {"data": 2, "expert": 4}),
        (Capacity.default_config(), {"expert": 4, "model": 2}),
    ],
)
def test_eight_devices_equal_one(dispatch, axes):
    cfg = _config(dispatch is not None)
    if dispatch is not None:
        cfg.moe.set(dispatch=dispatch)
    graphdef, params = nnx.split(_decoder(cfg), nnx.Param)
    step = jax.value_and_grad(_loss)
    value, grads = _step_on_one_device(params, graphdef)

    mesh = Parallelism.default_config().set(**axes).instantiate().mesh()
    shardings = parameter_shardings(params, mesh, AxisRules())
    with use_mesh(mesh):
        sharded_step = jax.jit(
            lambda params: step(params, graphdef), out_shardings=(None, shardings)
        )
        sharded_value, sharded_grads = sharded_step(jax.device_put(params, shardings))
    np.testing.assert_allclose(sharded_value, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(sharded_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"head_dim": 6, "num_kv_heads": None},
        {"tied_embeddings": True, "num_kv_heads": 1},
        {"qk_norm": True, "bias": True},
    ],
)
def test_non_embedding_parameters_are_counted_by_formula(fields):
    cfg = _config(False)
    cfg.stack.layer.attention.set(bias=fields.pop("bias", False))
    if fields.pop("qk_norm", False):
        cfg.stack.layer.attention.set(qk_norm=RMSNorm.default_config())
    cfg.set(**fields)
    _, params = nnx.split(jax.eval_shape(lambda: _decoder(cfg)), nnx.Param)
    counts = {path: x.size for path, x in jax.tree_util.tree_leaves_with_path(params)}
    inside = sum(
        n for path, n in counts.items() if str(path[0]) not in ("['embedding']", "['head']")
    )
    assert num_non_embedding_parameters(cfg) == inside
    sparse = cfg.clone(moe=MoE.default_config().set(num_experts=8), moe_every=2)
    assert num_non_embedding_parameters(sparse) == inside


def test_seven_billion_parameters_are_counted_without_making_them():
    cfg = Decoder.default_config().set(
        vocab_size=32_000, model_dim=4096, num_layers=32, num_heads=32, hidden_dim=11_008
    )
    assert num_non_embedding_parameters(cfg) == 6_476_271_616
    params = nnx.state(jax.eval_shape(lambda: _decoder(cfg)), nnx.Param)
    total = sum(x.size for x in jax.tree.leaves(params))
    # This is the shape of Llama-2-7B, and its size.
    assert total == 6_738_415_616


def test_tied_embeddings_have_one_table():
    decoder = _decoder(_config(False, tied_embeddings=True))
    assert decoder.head is None
    hidden = jax.random.normal(jax.random.key(0), (1, 2, 16))
    expected = decoder.embedding.attend(hidden)
    np.testing.assert_array_equal(decoder.logits(hidden), expected)


def test_every_layer_is_sparse_if_moe_every_is_one():
    decoder = _decoder(_config(True, moe_every=1))
    output = jax.jit(lambda d: d(d.embed(TOKENS), positions=POSITIONS, segment_ids=SEGMENT_IDS))(
        decoder
    )
    np.testing.assert_array_equal(output.router.weight, [19] * 4)


def test_bfloat16_stays_bfloat16_and_close():
    cfg = _config(True)
    graphdef, params = nnx.split(_decoder(cfg), nnx.Param)
    expected = _logits(nnx.merge(graphdef, params), TOKENS, POSITIONS, SEGMENT_IDS)
    half = nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))

    @jax.jit
    def run(decoder):
        output = decoder(decoder.embed(TOKENS), positions=POSITIONS, segment_ids=SEGMENT_IDS)
        return output.hidden, decoder.logits(output.hidden), output.router

    hidden, logits, router = run(half)
    assert hidden.dtype == jnp.bfloat16
    assert logits.dtype == router.load_balance.dtype == jnp.float32
    error = jnp.abs(logits - expected)[SEGMENT_IDS > 0]
    assert float(jnp.mean(error)) < 0.05 * float(jnp.std(expected))


def test_inconsistent_settings_are_errors():
    with pytest.raises(ValueError, match="moe_every=3 must divide num_layers=4"):
        _decoder(_config(True, moe_every=3))
    with pytest.raises(ValueError, match="vocab_size is None"):
        _decoder(_config(False, vocab_size=None))

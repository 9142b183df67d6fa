"""One step of the whole model, images included, gives the same on any mesh as on one device.

Losses, metrics and gradients are compared; AdamW's first moments, unclipped, give the gradients.
"""

import functools

import jax
import numpy as np
import pytest
from bigram_trainer import host_batch

from mm1_jax.batch import Batch
from mm1_jax.image_buffer import ImageBuffer
from mm1_jax.layers.lora import Adapter, LoRA, is_adapter
from mm1_jax.layers.low_precision import LowPrecision
from mm1_jax.layers.moe import Capacity, MoE
from mm1_jax.layers.parameter_paths import parameter_path, parameter_paths
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.train.loss import Loss
from mm1_jax.train.metrics import divide
from mm1_jax.train.next_token import NextToken
from mm1_jax.train.optimizers.adamw import AdamW
from mm1_jax.train.program import Program, ProgramSpec

IMAGE, IMAGE_SIZE, NUM_IMAGE_TOKENS = 3, 8, 4
ROWS, LENGTH, SLOTS, VOCAB_SIZE = 8, 32, 2, 32


def model(sparse):
    cfg = MM1.default_config().set(image_token=IMAGE)
    cfg.vision_encoder.set(
        image_size=IMAGE_SIZE, patch_size=2, model_dim=8, num_layers=1, num_heads=2, hidden_dim=16
    )
    cfg.connector.set(num_image_tokens=NUM_IMAGE_TOKENS, depth=1, hidden_dim=8)
    cfg.decoder.set(
        vocab_size=VOCAB_SIZE,
        model_dim=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        hidden_dim=16,
    )
    if sparse:
        # Groups make tokens compete for places, and a mesh may cut a row between its groups.
        dispatch = Capacity.default_config().set(capacity_factor=1.0, group_size=LENGTH // 4)
        moe = MoE.default_config().set(num_experts=4, dispatch=dispatch)
        cfg.decoder.set(moe=moe, moe_every=2)
    return cfg


@pytest.fixture(scope="module")
def batch():
    """Rows of documents that cross every cut of a row, with images across such cuts."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, VOCAB_SIZE, (ROWS, LENGTH), dtype=np.int32)
    segment_ids, positions = (np.zeros((ROWS, LENGTH), np.int32) for _ in range(2))
    image_index = np.full((ROWS, SLOTS), -1, np.int32)
    for row in range(ROWS):
        cuts = [
            0,
            *sorted(rng.choice(np.arange(4, LENGTH - 3), 2, replace=False)),
            LENGTH - row % 3,
        ]
        for segment, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False), start=1):
            segment_ids[row, start:stop] = segment
            positions[row, start:stop] = np.arange(stop - start)
        # If 32 positions are cut into 4 or 8 parts, the first image is in two of them.
        for slot, start in zip(range(row % 3), (6, 18), strict=False):
            tokens[row, start : start + NUM_IMAGE_TOKENS] = IMAGE
            image_index[row, slot] = row * SLOTS + slot
    targets = np.roll(tokens, -1, axis=1)
    is_last = np.roll(segment_ids, -1, axis=1) != segment_ids
    is_last[:, -1] = True
    return Batch(
        tokens=tokens,
        targets=targets,
        loss_mask=(segment_ids > 0) & ~is_last & (targets != IMAGE),
        positions=positions,
        segment_ids=segment_ids,
        corpus_ids=np.where(segment_ids > 0, np.arange(ROWS)[:, None] % 2, -1).astype(np.int32),
        images=rng.integers(0, 256, (ROWS * SLOTS, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8),
        image_index=image_index,
    )


def make_program(batch, sparse, axes, frozen=(), lora=None, low_precision=None, **parallelism):
    cfg = model(sparse).set(lora=lora)
    cfg.decoder.low_precision = low_precision
    objective = NextToken(
        model=cfg,
        loss=Loss.default_config().set(chunk_length=4),
        batch=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch),
        image_buffer=ImageBuffer(1, SLOTS),
        num_corpora=2,
    )
    spec = ProgramSpec(
        objective,
        optimizer=AdamW.default_config().set(
            learning_rate=1e-3, warmup_steps=0, decay_steps=10, clip=None, frozen=frozen
        ),
        parallelism=Parallelism.default_config().set(**{"data": 1, **axes}, **parallelism),
    )
    return Program(spec, jax.devices()[: np.prod(list(axes.values()), dtype=int)])


def step(batch, sparse, axes, **parallelism):
    """Returns metrics and gradient of one step on the devices of the axes."""
    program = make_program(batch, sparse, axes, **parallelism)
    state, metrics = program.compile()(first_state(program), program.place(host_batch(batch)))
    adam = state.opt_state[1][0]
    gradient = jax.tree.map(lambda x: np.asarray(x) / (1 - 0.9), adam.mu)
    return divide(metrics), gradient


def first_state(program):
    """Draws parameters by NumPy, as compiling the initializers takes as long as the step."""
    rng = np.random.default_rng(1)
    host = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), program.abstract_state)
    host = host._replace(
        params=jax.tree.map(
            lambda x: (0.3 * rng.standard_normal(x.shape)).astype(x.dtype), host.params
        )
    )
    return jax.device_put(host, jax.tree.map(lambda x: x.sharding, program.abstract_state))


@pytest.fixture(scope="module")
def alone(batch):
    """The step of one device on the batch, for the dense and the sparse model."""
    return functools.cache(lambda sparse: step(batch, sparse, {}))


def assert_same(found, expected):
    metrics, gradient = found
    for name, value in expected[0].items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    paths = jax.tree_util.tree_leaves_with_path(expected[1])
    for (path, right), ours in zip(paths, jax.tree.leaves(gradient), strict=True):
        # A bias of all keys does not change the softmax, so its gradient is only rounding.
        size = max(np.abs(right).max(), 1e-4)
        np.testing.assert_allclose(ours, right, rtol=1e-3, atol=1e-4 * size, err_msg=str(path))


@pytest.mark.parametrize(
    ("sparse", "axes"),
    [
        (False, {"seq": 8}),
        (False, {"data": 2, "seq": 2, "model": 2}),
        (True, {"expert": 2, "seq": 4}),
        (True, {"fsdp": 2, "expert": 2, "model": 2}),
    ],
    ids=str,
)
def test_a_step_on_a_mesh_equals_that_of_one_device(batch, alone, sparse, axes):
    assert_same(step(batch, sparse, axes), alone(sparse))


def test_micro_batches_of_a_sparse_model_add_up_with_router_losses(batch, alone):
    """Each row, with its routing groups, is in one micro-batch and is weighted by its tokens."""
    expected = alone(True)
    assert expected[0]["load_balance_loss"] > 1 and expected[0]["dropped_share"] > 0
    assert_same(step(batch, True, {}, gradient_accumulation=4), expected)


def test_frozen_parts_have_no_backward_pass(batch):
    """A backward pass costs two products and, here, a recomputation per forward product."""

    def flops(*frozen):
        return make_program(batch, False, {}, frozen).lower().cost_analysis()["flops"]

    program = make_program(batch, False, {})
    encode = jax.jit(lambda params, images: program.model(params).vision_encoder(images))
    forward = encode.lower(program.abstract_state.params, batch.images).cost_analysis()["flops"]
    everything = flops()
    assert everything - flops("vision_encoder", "connector") > 2.5 * forward
    # The encoder needs the gradient of a frozen stack's inputs, but not that of its kernels.
    assert 0 < everything - flops("decoder/stack") < everything - flops("decoder", "connector")


LORA = LoRA.default_config().set(
    adapters={
        "decoder/.*/attention": Adapter.default_config().set(rank=2, alpha=6.0),
        "vision_encoder/stack": Adapter.default_config().set(rank=3),
    },
    trained=("connector",),
)


def test_a_step_of_adapters_on_a_mesh_equals_that_of_one_device(batch):
    axes = {"data": 2, "fsdp": 2, "model": 2}
    expected = step(batch, True, {}, lora=LORA)
    assert_same(step(batch, True, axes, lora=LORA, gradient_accumulation=2), expected)


def test_a_step_in_low_precision_on_a_mesh_is_that_of_one_device(batch, alone):
    """Rows and the summed dims of kernels are split, and scales are those of all devices."""
    low = LowPrecision.default_config()
    axes = {"data": 2, "fsdp": 2, "expert": 2}
    expected, on_mesh = (step(batch, True, each, low_precision=low) for each in ({}, axes))
    np.testing.assert_allclose(on_mesh[0]["loss"], expected[0]["loss"], rtol=1e-3)
    np.testing.assert_allclose(expected[0]["loss"], alone(True)[0]["loss"], rtol=2e-2)
    for ours, right in zip(*map(jax.tree.leaves, (on_mesh[1], expected[1])), strict=True):
        # Sums in another order may round a value to the next integer.
        assert np.linalg.norm(ours - right) <= 0.02 * np.linalg.norm(right) + 1e-5


def test_only_adapters_and_trained_parts_have_gradients_and_moments(batch):
    program = make_program(batch, False, {}, lora=LORA)
    trained, frozen = map(parameter_paths, program.update.split(program.abstract_state.params))
    assert all(path.startswith("connector/") or is_adapter(path) for path in trained)
    assert not any(path.startswith("connector/") or is_adapter(path) for path in frozen)
    before = first_state(program)
    kept = jax.tree.map(np.asarray, before.params)
    state, _ = program.compile()(before, program.place(host_batch(batch)))
    assert parameter_paths(state.opt_state[1][0].mu) == trained
    for (keys, old), new in zip(
        jax.tree_util.tree_leaves_with_path(kept), jax.tree.leaves(state.params), strict=True
    ):
        # A bias of all keys does not change the softmax, so only rounding moves it.
        assert np.array_equal(old, new) == (parameter_path(keys) in frozen), keys


def test_adapters_are_sharded_as_the_dims_of_their_kernels(batch):
    program = make_program(batch, False, {"fsdp": 2, "model": 2}, lora=LORA)
    attention = program.abstract_state.params["decoder"]["stack"]["layer"]["attention"]

    def spec(layer, name):
        x = layer[name] if name == "kernel" else layer["lora"][name]
        return (*x.sharding.spec, *[None] * (x.ndim - len(x.sharding.spec)))

    query, output = attention["query"], attention["output"]
    layers, embed, heads, _ = spec(query, "kernel")
    assert embed is not None and heads is not None
    assert (spec(query, "a"), spec(query, "b")) == (
        (layers, embed, None),
        (layers, None, heads, None),
    )
    assert (spec(output, "a"), spec(output, "b")) == (
        (layers, heads, None, None),
        (layers, None, embed),
    )

"""Work of small kernels, counted by hand from their blocks; lowered for a TPU, on any machine."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from mm1_jax.layers.row_attention import row_attention
from mm1_jax.rehearse.hlo import Instruction
from mm1_jax.rehearse.mosaic import causal_share, kernel_work
from mm1_jax.rehearse.predict import work_seconds
from mm1_jax.rehearse.program import Work, WorkKind
from mm1_jax.rehearse.topologies import parse_topology
from mm1_jax.rehearse.vector_ops import TRANSCENDENTAL


def works_of(function, *arguments, is_causal=False):
    """Returns the work of each kernel of a function."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",))
    found = re.findall(r'backend_config = "(.*?body.*?)"[,}]', lowered.as_text())
    texts = [attributes.replace("\\22", '"') for attributes in found]
    kernels = [Instruction("k", (), "custom-call", (), text, True) for text in texts]
    return [kernel_work(kernel, is_causal) for kernel in kernels]


def work_of(function, *arguments, is_causal=False):
    (work,) = works_of(function, *arguments, is_causal=is_causal)
    return work


def array(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def product(x_ref, y_ref, out_ref):
    out_ref[...] = jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32)


def blocked_product(x, y):
    """Multiplies by blocks of 128 x 256: rows of x outermost, columns of y within."""
    return pl.pallas_call(
        product,
        grid=(x.shape[0] // 128, y.shape[1] // 256),
        in_specs=[
            pl.BlockSpec((128, x.shape[1]), lambda i, j: (i, 0)),
            pl.BlockSpec((y.shape[0], 256), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((128, 256), lambda i, j: (i, j)),
        out_shape=array(x.shape[0], y.shape[1]),
    )(x, y)


def test_a_product_counts_its_blocks_and_what_moves_for_them():
    bf16 = jnp.bfloat16
    work = work_of(blocked_product, array(512, 384, dtype=bf16), array(384, 1024, dtype=bf16))
    assert work.flops == work.padded_flops == 2 * 512 * 384 * 1024
    assert work.vector_ops == 0
    # x once, y for each of four blocks of rows, the result once.
    assert work.moved == (512 * 384 * 2, 4 * 384 * 1024 * 2, 512 * 1024 * 4)


def test_products_fill_whole_tiles():
    bf16 = jnp.bfloat16
    work = work_of(blocked_product, array(128, 80, dtype=bf16), array(80, 256, dtype=bf16))
    assert work.flops == 2 * 128 * 80 * 256 and work.padded_flops == 2 * 128 * 128 * 256
    assert work.moved[0] == 128 * 128 * 2


def activated(x_ref, out_ref):
    x = x_ref[...]
    out_ref[...] = jnp.exp(x) * x + x


def activate(x):
    return pl.pallas_call(
        activated,
        grid=(x.shape[0] // 64,),
        in_specs=[pl.BlockSpec((64, x.shape[1]), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((64, x.shape[1]), lambda i: (i, 0)),
        out_shape=x,
    )(x)


def test_vector_operations_are_those_of_the_code():
    work = work_of(activate, array(256, 384))
    assert work.vector_ops == (TRANSCENDENTAL + 2) * 256 * 384 and work.flops == 0


def accumulated(x_ref, out_ref):
    @pl.when(pl.program_id(0) == 0)
    def _():
        out_ref[...] = jnp.exp(x_ref[...])

    @pl.when(pl.program_id(0) > 0)
    def _():
        out_ref[...] += x_ref[...]


def test_a_branch_on_the_first_step_runs_once():
    def accumulate(x):
        return pl.pallas_call(
            accumulated,
            grid=(8,),
            in_specs=[pl.BlockSpec((64, 128), lambda i: (i, 0))],
            out_specs=pl.BlockSpec((64, 128), lambda i: (0, 0)),
            out_shape=array(64, 128),
        )(x)

    work = work_of(accumulate, array(512, 128))
    # The other branch counts for every step.
    assert work.vector_ops == (TRANSCENDENTAL + 8) * 64 * 128
    assert work.moved == (512 * 128 * 4, 64 * 128 * 4)


def splash(is_causal, heads, length, **blocks):
    sizes = splash_attention_kernel.BlockSizes(**blocks)
    kind = splash_attention_mask.CausalMask if is_causal else splash_attention_mask.FullMask
    mask = splash_attention_mask.MultiHeadMask([kind((length, length))] * heads)
    return splash_attention_kernel.make_splash_mha_single_device(mask, block_sizes=sizes)


@pytest.mark.parametrize(("is_causal", "share"), [(False, 1.0), (True, 10 / 16)])
def test_splash_attention_runs_the_blocks_of_its_mask(is_causal, share):
    heads, length, dim, block = 2, 1024, 80, 256
    kernel = splash(is_causal, heads, length, block_q=block, block_kv=block, block_kv_compute=block)
    qkv = [array(heads, length, dim, dtype=jnp.bfloat16)] * 3
    work = work_of(kernel, *qkv, is_causal=is_causal)
    pairs = share * heads * length * length
    assert work.flops == 2 * 2 * pairs * dim and work.padded_flops == 2 * 2 * pairs * 128
    # At least mask, maximum, difference, exponential and sum of each pair.
    assert (TRANSCENDENTAL + 3) * pairs < work.vector_ops < (TRANSCENDENTAL + 16) * pairs


@pytest.mark.parametrize("topology", ["v5e:8x8", "v5p:4x4x4"])
def test_good_attention_runs_at_six_tenths_of_the_peak(topology):
    """The efficiency of kernels was chosen for this: causal, heads of 128, forward and backward."""
    blocks = {"block_q": 1024, "block_kv": 1024, "block_kv_compute": 512}
    backward = {"block_q_dkv": 1024, "block_kv_dkv": 1024, "block_kv_dkv_compute": 512}
    kernel = splash(True, 1, 4096, **blocks, **backward, use_fused_bwd_kernel=True)
    qkv = [array(1, 4096, 128, dtype=jnp.bfloat16)] * 3
    gradient = jax.grad(lambda q, k, v: kernel(q, k, v).astype(jnp.float32).sum(), (0, 1, 2))
    works = works_of(gradient, *qkv, is_causal=True)
    assert len(works) == 2
    slice_ = parse_topology(topology)
    seconds = sum(
        work_seconds(
            Work(
                "k",
                WorkKind.KERNEL,
                work.flops,
                None,
                0.0,
                vector_ops=work.vector_ops,
                padded_flops=work.padded_flops,
            ),
            slice_,
        )
        for work in works
    )
    products = sum(work.flops for work in works)
    assert products / slice_.device_peak_flops / seconds == pytest.approx(0.6, abs=0.02)


def test_a_loop_runs_as_often_as_the_distance_of_its_bounds():
    def looped(x_ref, out_ref):
        out_ref[...] = jax.lax.fori_loop(2, 7, lambda n, sums: sums + x_ref[n], x_ref[0])

    def add(x):
        return pl.pallas_call(looped, out_shape=array(64, 128))(x)

    assert work_of(add, array(8, 64, 128)).vector_ops == 5 * 64 * 128


@pytest.mark.parametrize(
    ("length", "heads", "dim", "blocks"),
    # Heads that share tiles; blocks of queries and keys of 384 and 768.
    [(256, 4, 64, 1), (2304, 8, 80, 6)],
)
def test_the_kernel_for_rows_does_the_work_of_its_blocks(length, heads, dim, blocks):
    def run(q, k, v):
        attend = functools.partial(row_attention, residual_name="out")
        y, gradients = jax.vjp(attend, q, k, v)
        return y, gradients(y)

    qkv = [array(2, length, heads, dim, dtype=jnp.bfloat16)] * 3
    forward, backward = works_of(run, *qkv)
    pairs = 2 * heads * length**2
    # Contracted dims fill 128 lanes; rows of transposed outputs and gradients do not.
    assert forward.padded_flops == 2 * pairs * (128 + dim)
    assert backward.padded_flops == 2 * pairs * (4 * 128 + dim)
    for work, least in ((forward, 4), (backward, 5)):
        assert (TRANSCENDENTAL + least - 1) * pairs < work.vector_ops
        assert work.vector_ops < (TRANSCENDENTAL + least + 4) * pairs
    size = 2 * length * heads * dim * 2
    assert forward.moved[:4] == (size,) * 4
    assert [x for x in backward.moved if x != backward.moved[4]] == [size] * 8
    assert backward.moved[4] == forward.moved[4] == 2 * 8 * -(-heads // 8) * length * 4


def test_the_share_of_a_causal_mask_is_the_count_of_its_blocks():
    for num_queries, num_keys in ((1, 1), (4, 4), (4, 8), (8, 2), (3, 5)):
        run = sum(
            key * num_queries < (query + 1) * num_keys
            for query in range(num_queries)
            for key in range(num_keys)
        )
        assert causal_share(num_queries, num_keys) == run / (num_queries * num_keys)


@pytest.mark.parametrize("attributes", ["", '"custom_call_config":{"body":"TUzvUg=="'])
def test_code_that_cannot_be_read_is_unknown(attributes):
    assert kernel_work(Instruction("k", (), "custom-call", (), attributes, True), False) is None

"""Script that compiles small programs for v5e:2x2 and writes their HLO texts into a folder."""

import os
import sys
from pathlib import Path

os.environ.pop("XLA_FLAGS", None)

from mm1_jax.rehearse.__main__ import ENVIRONMENT

os.environ.update(ENVIRONMENT)

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mm1_jax.layers.low_precision import LowPrecision
from mm1_jax.rehearse.compile import make_devices
from mm1_jax.rehearse.topologies import parse_topology

LAYERS, ROWS, DIM = 3, 512, 256


def looped_products(x, kernels):
    """Gathers a kernel, multiplies and applies a non-linearity in each layer."""

    def layer(x, kernel):
        return jax.nn.relu(x @ kernel), None

    return jax.lax.scan(layer, x, kernels)[0]


def batched_products(x, y):
    return jnp.einsum("bij,bjk->bik", x, y)


def gather_and_scatter(x):
    gathered = jax.lax.all_gather(x, "fsdp", tiled=True)
    return jax.lax.psum_scatter(jnp.sin(gathered), "fsdp", tiled=True)


def low_precision_products(x, kernel):
    """Multiplies by a kernel in int8, and computes both gradients, the kernel's in bfloat16."""
    rule = LowPrecision.default_config().instantiate()
    y, backward = jax.vjp(lambda x, kernel: rule.einsum("bd,df->bf", x, kernel), x, kernel)
    return backward(y)


def main(folder: Path) -> None:
    mesh = Mesh(make_devices(parse_topology("v5e:2x2")), ("fsdp",), axis_types=(AxisType.Auto,))

    def shape(*dims, spec=()):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=sharding)

    split = ("fsdp",)
    scattered = jax.shard_map(
        gather_and_scatter,
        mesh=mesh,
        in_specs=PartitionSpec(*split),
        out_specs=PartitionSpec(*split),
    )
    programs = {
        "looped": (looped_products, shape(ROWS, DIM), shape(LAYERS, DIM, DIM)),
        "batched": (batched_products, shape(4, 128, 256), shape(4, 256, 512)),
        "collectives": (scattered, shape(1024, 512, spec=split)),
        "low_precision": (
            low_precision_products,
            shape(2048, 1024, spec=split),
            shape(1024, 512, spec=split),
        ),
        "large": (jnp.matmul, shape(8192, 8192), shape(8192, 8192)),
    }
    for name, (function, *arguments) in programs.items():
        text = jax.jit(function).lower(*arguments).compile().as_text()
        (folder / f"{name}.hlo").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

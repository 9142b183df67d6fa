"""Measures the memory of contrastive losses per device, and the time that chunks take.

    python tools/benchmark_contrastive.py --rounds=5

First, the temporary bytes of a device, from programs compiled for 2 to 16 devices with equal rows
each: with all logits at once, and in chunks with either exchange. Then the seconds per step of a
CLIP on one device, in chunks and without, which take turns.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

    import os

    # Before jax, which reads the number of devices.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=16"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from mm1_jax.command import command
from mm1_jax.flags import local_path, whole

DEVICES = (2, 4, 8, 16)
_MIB = 2**20


def memory(rows: int, dim: int, chunk_size: int) -> Iterator[dict[str, Any]]:
    """Yields the temporary bytes of each loss and exchange, by number of devices."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from mm1_jax.parallel.parallelism import Parallelism
    from mm1_jax.parallel.sharding import use_mesh
    from mm1_jax.train.pair_losses import Comparison, Exchange, Sigmoid, Softmax, pair_losses

    def bytes_of(comparison: Comparison, devices: int, differentiates: bool) -> int:
        mesh = Parallelism.default_config().instantiate().mesh(jax.devices()[:devices])
        number = devices * rows

        def loss(images: Any, texts: Any, is_real: Any, ids: Any) -> Any:
            scale, bias = jnp.float32(14), jnp.float32(-5)
            pairs = pair_losses(comparison, images, texts, scale, bias, is_real, ids)
            return jnp.mean(pairs.losses)

        split = NamedSharding(mesh, PartitionSpec("data"))
        shapes = [((number, dim), "float32")] * 2 + [((number,), "bool"), ((number, 2), "uint32")]
        args = [jax.ShapeDtypeStruct(*each, sharding=split) for each in shapes]
        with use_mesh(mesh):
            function = jax.grad(loss, argnums=(0, 1)) if differentiates else loss
            compiled = jax.jit(function).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for rule in (Softmax, Sigmoid):
        for exchange, size in (
            (Exchange.ALL_GATHER, None),
            (Exchange.ALL_GATHER, chunk_size),
            (Exchange.RING, chunk_size),
        ):
            comparison = Comparison(rule, exchange, size)
            for differentiates in (False, True):
                yield {
                    "loss": rule.__name__.lower(),
                    "exchange": exchange.value,
                    "chunk_size": size,
                    "pass": "forward and backward" if differentiates else "forward",
                    "bytes": {n: bytes_of(comparison, n, differentiates) for n in DEVICES},
                }


def seconds(name: str, batch_size: int, chunk_size: int, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds per step in each round, without chunks and with them."""
    import jax
    import numpy as np

    from mm1_jax.experiment import Experiment
    from mm1_jax.launch.named_configs import named_configs

    arms = {}
    for arm, size in (("whole", None), ("chunks", chunk_size)):
        cfg: Any = named_configs()[name]()
        cfg.input.batch_size = batch_size
        cfg.trainer.loss.chunk_size = size
        program = Experiment.program(Experiment.resolve(cfg), jax.devices()[:1])
        generator = np.random.default_rng(0)
        length = cfg.input.max_sequence_length

        def draw(x: Any, generator: Any = generator, length: int = length) -> np.ndarray:
            most = 255 if x.dtype == np.uint8 else length if len(x.shape) == 1 else 100
            return generator.integers(1, most, x.shape).astype(x.dtype)

        batch = jax.tree.map(draw, program.objective.batch)
        batch.corpus_ids[...] = 0
        state = program.first_state(jax.random.key(0))
        arms[arm] = [program.compile(), state, jax.device_put(batch, program.batch_shardings)]
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds + 1):
        for arm, (step, state, batch) in arms.items():
            start = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            arms[arm][1] = state
            # The first step of a program is slower.
            if turn:
                found[arm].append(time.perf_counter() - start)
    return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/benchmark_contrastive.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=whole(), default=256, metavar="N", help="per device (256)")
    parser.add_argument("--dim", type=whole(), default=512, metavar="N", help="of features (512)")
    parser.add_argument("--chunk_size", type=whole(), default=64, metavar="N", help="texts (64)")
    parser.add_argument("--config", default="clip_tiny", help="trained on one device (clip_tiny)")
    parser.add_argument("--batch_size", type=whole(), default=256, metavar="N", help="rows (256)")
    parser.add_argument("--rounds", type=whole(), default=5, metavar="N", help="steps per arm (5)")
    parser.add_argument(
        "--json", type=local_path, metavar="FILE", help="also write the measurements to this file"
    )
    flags = parser.parse_args(argv)
    rows = list(memory(flags.rows, flags.dim, flags.chunk_size))
    print(
        f"| temporaries, MiB | {' | '.join(f'{n} devices' for n in DEVICES)} |\n"
        f"|---|{'---:|' * len(DEVICES)}"
    )
    for row in rows:
        size = f"chunks of {row['chunk_size']}" if row["chunk_size"] else "all logits"
        cells = " | ".join(f"{number / _MIB:.2f}" for number in row["bytes"].values())
        print(f"| {row['loss']}, {row['exchange']}, {size}, {row['pass']} | {cells} |")
    times = seconds(flags.config, flags.batch_size, flags.chunk_size, flags.rounds)
    ratio = median(b / a for a, b in zip(*times.values(), strict=True))
    print(
        f"step of {flags.config} with {flags.batch_size} rows: {median(times['whole']):.3f} s, in "
        f"chunks of {flags.chunk_size} {median(times['chunks']):.3f} s, {ratio:.3f} times as long"
    )
    if flags.json is not None:
        flags.json.write_text(json.dumps({"memory": rows, "seconds": times}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

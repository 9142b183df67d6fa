"""Measures memory and speed of LoRA beside those of full fine-tuning.

    python tools/benchmark_lora.py --steps=2 --rounds=5

Fine-tunes a decoder of 85M parameters with a small vision encoder on the embedded images: either
everything, or adapters of the decoder and the whole connector. Each arm runs in its own process,
which reports its peak memory, and the arms take turns, so that all see the same machine.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from mm1_jax.command import command
from mm1_jax.flags import local_path, whole

ARMS = {"full": 0, "LoRA r=8": 8, "LoRA r=16": 16}
ROOT = Path(__file__).parent.parent
_MIB = 2**20


def config(rank: int, batch_size: int) -> Any:
    """Returns the fine-tuning of everything (rank 0), or of adapters and the connector."""
    from experiments import sizes
    from experiments.pretrain import mm1_tiny
    from mm1_jax.layers.lora import Adapter, LoRA

    cfg: Any = mm1_tiny()
    cfg.model.vision_encoder.set(patch_size=4, model_dim=192, num_layers=6, hidden_dim=768)
    cfg.model.connector.set(num_image_tokens=16, hidden_dim=192)
    cfg.model.decoder = sizes.decoder("85m")
    cfg.input.set(batch_size=batch_size, num_workers=0)
    cfg.evals = {}
    if rank:
        adapter = Adapter.default_config().set(rank=rank, alpha=2.0 * rank)
        cfg.model.lora = LoRA.default_config().set(
            adapters={"decoder/stack": adapter}, trained=("connector",)
        )
    return cfg


def run_arm(rank: int, batch_size: int) -> None:
    """Compiles the arm, then trains as many steps as each line of stdin says."""
    import jax

    from mm1_jax.experiment import Experiment
    from mm1_jax.host_memory import peak_bytes
    from mm1_jax.parallel.device_memory import Memory
    from mm1_jax.train.host_batches import HostBatches

    cfg = Experiment.resolve(config(rank, batch_size))
    program = Experiment.program(cfg, jax.devices()[:1])
    state = _first_state(program)
    trained, _ = program.update.split(state.params)
    batches = HostBatches(cfg.input.instantiate(split="train"), program.rows)
    batch = program.place(next(batches))
    batches.close()
    step = program.compile()
    memory = Memory.of(step.memory_analysis())
    found = {
        "parameters": program.num_parameters,
        "trained": sum(x.size for x in jax.tree.leaves(trained)),
        "compiled_bytes": memory.total,
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(state)),
    }
    print(json.dumps(found), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "rss_bytes": peak_bytes()}), flush=True)


def _first_state(program: Any) -> Any:
    """Draws parameters by NumPy, as compiling the initializers takes longer than all steps."""
    import jax
    import numpy as np

    from mm1_jax.layers.parameter_paths import map_with_paths

    generator = np.random.default_rng(0)

    def draw(path: str, x: Any) -> np.ndarray:
        value = 0.02 * generator.standard_normal(x.shape, np.float32)
        return np.ones_like(value) if path.endswith("scale") else value

    shapes = program.abstract_state
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    state = state._replace(params=map_with_paths(draw, shapes.params))
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding, shapes))


def measure(steps: int, rounds: int, batch_size: int) -> dict[str, dict[str, Any]]:
    """Returns sizes, memory, and steps per second in each round, by arm."""
    arms = {}
    for name, rank in ARMS.items():
        command = [sys.executable, __file__, f"--arm={rank}", f"--batch_size={batch_size}"]
        arms[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def ask(name: str, steps: int | None = None) -> dict[str, Any]:
        process = arms[name]
        assert process.stdin is not None and process.stdout is not None
        if steps is not None:
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise ValueError(f"the arm {name} ended with exit code {process.wait()}")
        return json.loads(line)

    try:
        found = {name: ask(name) for name in arms}
        for name in arms:
            ask(name, 1)
            found[name]["steps_per_second"] = []
        for _ in range(rounds):
            for name in arms:
                turn = ask(name, steps)
                found[name]["steps_per_second"].append(steps / turn["seconds"])
                found[name]["rss_bytes"] = turn["rss_bytes"]
        return found
    finally:
        for process in arms.values():
            process.kill()
            process.wait()


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/benchmark_lora.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=whole(), default=2, metavar="N", help="per turn (2)")
    parser.add_argument("--rounds", type=whole(), default=5, metavar="N", help="turns per arm (5)")
    parser.add_argument("--batch_size", type=whole(), default=2, metavar="N", help="rows (2)")
    parser.add_argument(
        "--json", type=local_path, metavar="FILE", help="also write the measurements to this file"
    )
    parser.add_argument("--arm", type=whole(0), help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.arm is not None:
        run_arm(flags.arm, flags.batch_size)
        return 0
    found = measure(flags.steps, flags.rounds, flags.batch_size)
    full = found["full"]
    print(
        "| arm | trained | state, MiB | compiled step, MiB | peak RSS, MiB | steps/s | of full |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )
    for name, arm in found.items():
        speed = median(arm["steps_per_second"])
        pairs = zip(arm["steps_per_second"], full["steps_per_second"], strict=True)
        ratio = median(own / other for own, other in pairs)
        print(
            f"| {name} | {arm['trained']:,} | {arm['state_bytes'] / _MIB:,.0f} | "
            f"{arm['compiled_bytes'] / _MIB:,.0f} | {arm['rss_bytes'] / _MIB:,.0f} | "
            f"{speed:.3f} | {ratio:.2f} |"
        )
    if flags.json is not None:
        flags.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Faults: functions that inject one into a run, and return the process, step or file it hit."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fault_injection.bench import ROOT, Bench, Broken, Launch, ProcessOptions

STOPPED = 143


def kill_at_a_step(bench: Bench) -> str:
    """SIGKILL of one process after some step."""
    step, victim = bench.rng.randrange(1, 11), bench.some_process()
    launch = bench.launch(fault="slow:0")
    launch.until(lambda: bench.steps_logged() >= step, f"step {step}")
    launch.processes[victim].kill()
    _all_end(launch)
    bench.finish()
    return f"process {victim} after step {step}"


def kill_while_saving(bench: Bench) -> str:
    """SIGKILL of one process while a checkpoint is being written."""
    victim = bench.some_process()
    launch = bench.launch()
    launch.until(bench.is_saving, "a checkpoint being written")
    time.sleep(bench.rng.uniform(0, 0.1))
    launch.processes[victim].kill()
    _all_end(launch)
    bench.finish()
    return f"process {victim}"


def kill_at_start(bench: Bench) -> str:
    """SIGKILL of one process while it starts: imports, rendezvous, reading, compiling."""
    seconds, victim = bench.rng.uniform(0.2, 8), bench.some_process()
    launch = bench.launch(timeout=20)
    time.sleep(seconds)
    launch.processes[victim].kill()
    _all_end(launch)
    bench.finish()
    return f"process {victim} after {seconds:.1f} s"


def kill_while_restoring(bench: Bench) -> str:
    """SIGKILL of one process while it reads a checkpoint, or just after."""
    _interrupted(bench)
    seconds, victim = bench.rng.uniform(0, 0.5), bench.some_process()
    launch = bench.launch()
    launch.until(
        lambda: "restoring" in launch.outputs[victim].read_text(errors="replace"), "a restore"
    )
    time.sleep(seconds)
    launch.processes[victim].kill()
    _all_end(launch)
    bench.finish()
    return f"process {victim}, {seconds:.2f} s after it began"


def terminate(bench: Bench) -> str:
    """SIGTERM to one process: all save the same step and end with 143."""
    step, victim = bench.rng.randrange(1, 9), bench.some_process()
    launch = bench.launch(fault="slow:0")
    launch.until(lambda: bench.steps_logged() >= step, f"step {step}")
    launch.processes[victim].send_signal(signal.SIGTERM)
    codes = launch.wait()
    if set(codes) != {STOPPED}:
        raise Broken(f"exit codes {codes}: expected {STOPPED} of all\n{launch.text[-3000:]}")
    bench.finish()
    return f"process {victim} after step {step}, exit codes {codes}"


def cut_a_file(bench: Bench) -> str:
    """A truncated file in the newest checkpoint of a run that was killed."""
    return _damage(bench, lambda data, place: data[:place])


def flip_a_bit(bench: Bench) -> str:
    """A flipped bit in the newest checkpoint of a run that was killed."""
    mask = 1 << bench.rng.randrange(8)
    return _damage(
        bench, lambda data, place: data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]
    )


def fill_the_disk(bench: Bench) -> str:
    """Process 0 cannot write large files for some steps: saves fail, training continues."""
    first = bench.rng.randrange(3, 6)
    codes = bench.launch(
        fault=f"full_disk:0:{first}:{first + 3}",
    ).wait(240)
    _says(bench, "could not be saved|is not in .*metrics")
    if any(codes):
        raise Broken(f"exit codes {codes}:\n{bench.text[-3000:]}")
    return f"steps {first} to {first + 3}"


def kill_a_data_worker(bench: Bench) -> str:
    """SIGKILL of the data workers of one process."""
    victim, step = bench.some_process(), bench.rng.randrange(1, 6)
    launch = bench.launch("--config.input.num_workers=1", fault="slow:0")
    launch.until(lambda: bench.steps_logged() >= step, f"step {step}")
    workers = _children(launch.processes[victim].pid)
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    codes = launch.wait(180)
    if not workers or any(codes):
        raise Broken(f"workers {workers}, exit codes {codes}:\n{bench.text[-3000:]}")
    _says(bench, "data workers failed")
    return f"{len(workers)} of process {victim} after step {step}, exit codes {codes}"


def stall(bench: Bench) -> str:
    """A process stops in the middle of a step: the watchdog says where, and ends it."""
    victim, step = bench.some_process(), bench.rng.randrange(2, 11)
    launch = bench.launch(
        "--config.trainer.watchdog.hang_seconds=25",
        "--config.trainer.watchdog.abort=true",
        fault=f"stall:{victim}:{step}",
    )
    _all_end(launch)
    _says(bench, rf"process {victim} of .* hangs: no progress")
    bench.finish()
    return f"process {victim} at step {step}"


def not_a_number(bench: Bench) -> str:
    """A batch makes the loss NaN: all processes say so, and end."""
    victim, step = bench.some_process(), bench.rng.randrange(2, 11)
    codes = bench.launch(fault=f"nan:{victim}:{step}").wait(180)
    if set(codes) != {2}:
        raise Broken(f"exit codes {codes}: expected 2 of all\n{bench.text[-3000:]}")
    _says(bench, rf"step {step}: loss nan, gradient norm nan")
    bench.finish()
    return f"process {victim} at step {step}"


def bad_data(bench: Bench) -> str:
    """The input of one process fails: it says why, and all end."""
    victim, step = bench.some_process(), bench.rng.randrange(2, 11)
    launch = bench.launch(fault=f"raise:{victim}:{step}")
    _all_end(launch)
    _says(bench, rf"error.*: a record of step {step} is at fault")
    bench.finish()
    return f"process {victim} at step {step}"


def absent_process(bench: Bench) -> str:
    """One process is never started: the others say which, and end."""
    missing = bench.some_process()
    codes = bench.launch(absent=[missing], timeout=5).wait()
    expected = "cannot reach process 0" if missing == 0 else rf"process {missing} of .* not there"
    _says(bench, expected)
    if set(codes) - {2}:
        raise Broken(f"exit codes {codes}: expected 2")
    bench.finish()
    return f"process {missing}"


# Option of one process only -> name of the fact that all processes must report.
DIFFERENCES: dict[str, str] = {
    "--config.trainer.optimizer.learning_rate=0.07": "trainer.optimizer.learning_rate",
    "--config.trainer.seed=1": "trainer.seed",
    "--config.input.seed=1": "input.seed",
    "--config.trainer.checkpointer.every_n_steps=3": "trainer.checkpointer.every_n_steps",
    "--config.trainer.max_steps=13": "trainer.max_steps",
    "--config.digest.n=3": "digest.n",
    "--config.model.model_dim=48": "model.model_dim",
    "--config.input.streams.0.weight=2": "input.streams[0].weight",
    "--output_dir=elsewhere": "--output_dir",
    "XLA_FLAGS=--xla_cpu_enable_fast_math=true": "XLA_FLAGS --xla_cpu_enable_fast_math",
    "JAX_DEFAULT_MATMUL_PRECISION=highest": "option of JAX jax_default_matmul_precision",
    "a package": "version of optax",
    "data": "drawn.source",
}


def differing_process(bench: Bench, difference: str) -> float:
    """Launches with one differing process; returns seconds until all report it and exit with 2."""
    victim = bench.some_process()
    folders = [bench.workspace / f"data{number}" for number in range(2)]
    for number, folder in enumerate(folders):
        folder.mkdir(exist_ok=True)
        texts = (json.dumps({"text": f"text {i} of {number}"}) for i in range(64))
        (folder / "texts.jsonl").write_text("\n".join(texts) + "\n")
    # Metadata of a package version that is not installed.
    metadata = folders[1] / "optax-99.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text("Metadata-Version: 2.1\nName: optax\nVersion: 99\n")
    overrides, own = [], ProcessOptions()
    if difference == "data":
        bench.config = "small_run_of_texts"
        overrides = [f"--data_dir={folders[0]}"]
        own = ProcessOptions([f"--data_dir={folders[1]}"])
    elif difference == "a package":
        own = ProcessOptions(variables={"PYTHONPATH": f"{folders[1]}:{ROOT / 'tools'}"})
    elif difference.startswith("--"):
        own = ProcessOptions([difference])
    else:
        name, _, value = difference.partition("=")
        own = ProcessOptions(variables={name: f"{os.environ.get(name, '')} {value}".strip()})
    launch = bench.launch(*overrides, own={victim: own})
    codes = launch.wait(60)
    seconds = time.monotonic() - launch.start
    if set(codes) != {2}:
        raise Broken(f"exit codes {codes}: expected 2 of all\n{launch.text[-3000:]}")
    for output in launch.outputs:
        if f"  {DIFFERENCES[difference]}" not in (text := output.read_text()):
            raise Broken(f"{output}: nothing says {DIFFERENCES[difference]}:\n{text[-3000:]}")
    if (bench.folder / "metrics.jsonl").exists():
        raise Broken("they began to train")
    return seconds


def hosts_differ(bench: Bench) -> str:
    """A process has another config, data, package or flag: all name it, and end before training."""
    difference = bench.rng.choice(sorted(DIFFERENCES))
    seconds = differing_process(bench, difference)
    bench.finish()
    return f"{difference}, {seconds:.0f} s"


FAULTS: tuple[Callable[[Bench], str], ...] = (
    kill_at_a_step,
    kill_while_saving,
    terminate,
    cut_a_file,
    flip_a_bit,
    kill_at_start,
    kill_while_restoring,
    fill_the_disk,
    kill_a_data_worker,
    stall,
    not_a_number,
    bad_data,
    absent_process,
    hosts_differ,
)


def _interrupted(bench: Bench) -> None:
    """Kills a run once it has at least two checkpoints."""
    launch = bench.launch()
    launch.until(lambda: bench.steps_logged() >= 7, "step 7")
    for each in launch.processes:
        each.kill()
    launch.wait()


def _damage(bench: Bench, damaged: Callable[[bytes, int], bytes]) -> str:
    _interrupted(bench)
    folders = [p for p in (bench.folder / "checkpoints").iterdir() if p.name.isdecimal()]
    newest = max(folders, key=lambda path: int(path.name))
    files = sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size)
    # orbax writes these last, and they hold no state.
    late = ("_CHECKPOINT_METADATA", "commit_success.txt")
    chosen = bench.rng.choice([path for path in files if path.name not in late])
    data = chosen.read_bytes()
    place = bench.rng.randrange(len(data))
    chosen.write_bytes(damaged(data, place))
    bench.finish()
    _says(bench, rf"checkpoint of step {newest.name} is damaged")
    return f"{chosen.relative_to(bench.folder)}, at byte {place}"


def _all_end(launch: Launch) -> None:
    launch.wait()


def _says(bench: Bench, pattern: str) -> None:
    if re.search(pattern, bench.text) is None:
        raise Broken(f"nothing says {pattern!r}:\n{bench.text[-4000:]}")


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(number) for path in tasks for number in path.read_text().split()]

"""Breaks real runs of several processes in every way that it knows, and sees what becomes of them.

    python tools/inject_faults.py --faults=40 --log=faults.jsonl --output=docs/reliability.md

Each fault is put into a run of `tools/small_run.py` on this machine, in processes that find each
other as hosts do, with virtual CPU devices. The run is launched again as a supervisor would, and
must end with the losses and the parameters of an undisturbed run of as many processes, bit for bit,
or stop with a message that names the cause.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mm1_jax.command import command
from mm1_jax.flags import local_path, whole

ROOT = Path(__file__).parents[1]
HEARTBEAT_SECONDS = 15
# After a fault, within so many seconds all processes have to end: heartbeat, and a slow machine.
END_SECONDS = 90
MAX_LAUNCHES = 4
STOPPED = 143
_MARKERS = ("<!-- faults -->", "<!-- end of faults -->")


class Broken(AssertionError):
    """A run that did not come through a fault as it should."""


@dataclass
class Launch:
    """Processes of one launch; their output goes to files."""

    processes: list[subprocess.Popen]
    outputs: list[Path]
    start: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float = END_SECONDS) -> list[int]:
        """The exit codes, when all have ended; raises Broken where one has not in time."""
        deadline = time.monotonic() + seconds
        try:
            return [each.wait(max(0.1, deadline - time.monotonic())) for each in self.processes]
        except subprocess.TimeoutExpired:
            running = [i for i, each in enumerate(self.processes) if each.poll() is None]
            self.end()
            raise Broken(
                f"processes {running} did not end within {seconds} s:\n{self.text[-3000:]}"
            ) from None

    def end(self) -> None:
        for each in self.processes:
            each.kill()
            each.wait()

    @property
    def text(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.outputs)

    def until(self, is_so: Callable[[], bool], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline or all(p.poll() is not None for p in self.processes):
                self.end()
                raise Broken(f"waited for {what}, which did not come:\n{self.text[-3000:]}")
            time.sleep(0.005)


@dataclass(frozen=True)
class Own:
    """Arguments and variables of the environment of one process."""

    arguments: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Bench:
    """Where runs are made: their folders, and what they share."""

    workspace: Path
    num_processes: int
    rng: random.Random = field(default_factory=random.Random)
    folder: Path = Path()
    launches: list[Launch] = field(default_factory=list)

    def launch(
        self,
        *overrides: str,
        fault: str = "",
        absent: Sequence[int] = (),
        timeout: int = 60,
        config: str = "small_run",
        own: Mapping[int, "Own"] | None = None,
    ) -> Launch:
        """Starts all processes but the absent ones, in the folder of the run.

        Args:
            own: Arguments and variables of single processes, which the others do not have.
        """
        environment = os.environ | {
            "FAULT": fault,
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT / "tools"),
            "XLA_FLAGS": "--xla_backend_optimization_level=0 "
            "--xla_llvm_disable_expensive_passes=true "
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1",
        }
        # Lines that cannot be written for now are kept in the buffer.
        environment.pop("PYTHONUNBUFFERED", None)
        port, processes, outputs = free_port(), [], []
        for process in range(self.num_processes):
            if process in absent:
                continue
            output = self.workspace / f"{self.folder.name}.{len(self.launches)}.{process}.txt"
            cluster = (
                f"--coordinator_address=127.0.0.1:{port}",
                f"--num_processes={self.num_processes}",
                f"--process_id={process}",
                f"--heartbeat_timeout={HEARTBEAT_SECONDS}",
                f"--initialization_timeout={timeout}",
            )
            command = [
                *(sys.executable, "-m", "mm1_jax.launch"),
                *("--module=small_run", f"--config={config}", f"--output_dir={self.folder}"),
                f"--compilation_cache={self.workspace / f'programs_{self.num_processes}'}",
                *(cluster if self.num_processes > 1 else ("--num_processes=1",)),
                *overrides,
            ]
            more = (own or {}).get(process, Own())
            command += more.arguments
            variables = environment | more.variables
            with output.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT
                    )
                )
            outputs.append(output)
        self.launches.append(Launch(processes, outputs))
        return self.launches[-1]

    def finish(self, *overrides: str) -> None:
        """Launches until the run is done; a launch may fail no more."""
        codes = self.launch(*overrides).wait(180)
        if any(codes):
            raise Broken(f"exit codes {codes} of a launch without any fault:\n{self.text[-3000:]}")

    def steps_logged(self) -> int:
        path = self.folder / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def is_saving(self) -> bool:
        return any(self.folder.glob("checkpoints/*orbax-checkpoint-tmp*"))

    @property
    def text(self) -> str:
        return "\n".join(launch.text for launch in self.launches)

    def some_process(self) -> int:
        return self.rng.randrange(self.num_processes)

    def result(self) -> dict:
        """Losses of all steps, and digests of the final parameters."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        report = json.loads((self.folder / "report.json").read_text())
        return {
            "steps": [(each["step"], each["loss"], each["grad_norm"]) for each in records],
            "digests": {k: v for k, v in report.items() if k.startswith("digest")},
        }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


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
    """A lost end of a file of the newest checkpoint of a run that was killed."""
    return _damage(bench, lambda data, place: data[:place])


def flip_a_bit(bench: Bench) -> str:
    """A flipped bit in the newest checkpoint of a run that was killed."""
    mask = 1 << bench.rng.randrange(8)
    return _damage(
        bench, lambda data, place: data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]
    )


def fill_the_disk(bench: Bench) -> str:
    """Process 0 cannot write large files for some steps: saves fail, and training does not."""
    first = bench.rng.randrange(3, 6)
    codes = bench.launch(
        fault=f"full_disk:0:{first}:{first + 3}",
    ).wait(240)
    _says(bench, "could not be saved|is not in .*metrics")
    if any(codes):
        raise Broken(f"exit codes {codes}:\n{bench.text[-3000:]}")
    return f"steps {first} to {first + 3}"


def kill_a_data_worker(bench: Bench) -> str:
    """SIGKILL of a process that reads for one process of the run."""
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
    _says(bench, rf"process {victim} of .* hangs: nothing has gone on")
    bench.finish()
    return f"process {victim} at step {step}"


def not_a_number(bench: Bench) -> str:
    """A batch that makes the loss NaN ends the run of all, and says so."""
    victim, step = bench.some_process(), bench.rng.randrange(2, 11)
    codes = bench.launch(fault=f"nan:{victim}:{step}").wait(180)
    if set(codes) != {2}:
        raise Broken(f"exit codes {codes}: expected 2 of all\n{bench.text[-3000:]}")
    _says(bench, rf"step {step}: loss nan, gradient norm nan")
    bench.finish()
    return f"process {victim} at step {step}"


def bad_data(bench: Bench) -> str:
    """The input of one process fails: it says why, and the others end."""
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


# What one process is launched with, and the name of the fact that all have to state.
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
    """Launches one process with a difference; seconds until all have said so and ended with 2."""
    victim = bench.some_process()
    folders = [bench.workspace / f"data{number}" for number in range(2)]
    for number, folder in enumerate(folders):
        folder.mkdir(exist_ok=True)
        texts = (json.dumps({"text": f"text {i} of {number}"}) for i in range(64))
        (folder / "texts.jsonl").write_text("\n".join(texts) + "\n")
    # The metadata of a package that is not there.
    metadata = folders[1] / "optax-99.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text("Metadata-Version: 2.1\nName: optax\nVersion: 99\n")
    overrides, config, own = [], "small_run", Own()
    if difference == "data":
        config = "small_run_of_texts"
        overrides = [f"--data_dir={folders[0]}"]
        own = Own([f"--data_dir={folders[1]}"])
    elif difference == "a package":
        own = Own(variables={"PYTHONPATH": f"{folders[1]}:{ROOT / 'tools'}"})
    elif difference.startswith("--"):
        own = Own([difference])
    else:
        name, _, value = difference.partition("=")
        own = Own(variables={name: f"{os.environ.get(name, '')} {value}".strip()})
    launch = bench.launch(*overrides, config=config, own={victim: own})
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
    """A run that was killed when it had two checkpoints at least."""
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
    # orbax writes these when all is over, and no state is in them.
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


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    fault: str
    num_processes: int
    seed: int
    detail: str
    seconds: float
    problem: str = ""


def plan(
    faults: Sequence[Callable[[Bench], str]], counts: Sequence[int], seed: int
) -> Iterator[tuple[Callable[[Bench], str], int, int]]:
    """Fault, number of processes and seed of run after run: rounds of all faults, without end."""
    for turn in itertools.count():
        num_processes = counts[turn % len(counts)]
        for fault in faults:
            # Where there is but one process, none can wait for it.
            if num_processes > 1 or fault not in (absent_process, hosts_differ):
                yield fault, num_processes, seed + turn


def read_log(path: Path | None) -> list[Outcome]:
    """The outcomes of earlier calls."""
    if path is None or not path.exists():
        return []
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]


def undisturbed(workspace: Path, num_processes: int) -> dict:
    """The result of a run into which nothing was put."""
    bench = Bench(workspace, num_processes, folder=workspace / f"undisturbed_{num_processes}")
    if not (bench.folder / "report.json").exists():
        bench.finish()
    return bench.result()


def inject(
    fault: Callable[[Bench], str], workspace: Path, num_processes: int, seed: int
) -> Outcome:
    """Puts a fault into a run, and compares its end with that of an undisturbed one."""
    expected = undisturbed(workspace, num_processes)
    name = f"{fault.__name__}_{num_processes}_{seed}"
    bench = Bench(workspace, num_processes, random.Random(name), workspace / name)
    shutil.rmtree(bench.folder, ignore_errors=True)
    start, detail, problem = time.monotonic(), "", ""
    try:
        detail = fault(bench)
        result = bench.result()
        # A record that did not fit onto the disk is not in the log; its step was made.
        steps = set(map(tuple, result["steps"]))
        whole = steps == set(map(tuple, expected["steps"])) or fault is fill_the_disk
        if not whole or not steps <= set(map(tuple, expected["steps"])):
            raise Broken("the losses differ from those of an undisturbed run")
        if result["digests"] != expected["digests"]:
            raise Broken("the parameters differ from those of an undisturbed run")
    except Broken as error:
        problem = str(error)
    finally:
        for launch in bench.launches:
            launch.end()
    return Outcome(fault.__name__, num_processes, seed, detail, time.monotonic() - start, problem)


def render(outcomes: Sequence[Outcome]) -> str:
    """A table for people: a line for each kind of fault and number of processes."""
    lines = [
        "| fault | processes | runs | came through | seconds each | seeds |",
        "|---|---:|---:|---:|---:|---|",
    ]
    kinds = sorted({(o.fault, o.num_processes) for o in outcomes})
    for fault, num_processes in kinds:
        own = [o for o in outcomes if (o.fault, o.num_processes) == (fault, num_processes)]
        passed = sum(not each.problem for each in own)
        seconds = sum(each.seconds for each in own) / len(own)
        seeds = _ranges(sorted(each.seed for each in own))
        what = next(f for f in FAULTS if f.__name__ == fault).__doc__ or ""
        lines.append(
            f"| {what.strip().rstrip('.')} | {num_processes} | {len(own)} | {passed} | "
            f"{seconds:.0f} | {seeds} |"
        )
    together = sum(o.num_processes > 1 for o in outcomes)
    passed, hours = sum(not o.problem for o in outcomes), sum(o.seconds for o in outcomes) / 3600
    lines += [
        "",
        f"{len(outcomes)} faults, {together} of them in runs of several processes; {passed} came "
        f"through, in {hours:.1f} hours.",
    ]
    return "\n".join(lines)


def _ranges(numbers: Sequence[int]) -> str:
    """`_ranges([0, 1, 2, 5]) == "0-2, 5"`"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def write_table(path: Path, table: str) -> None:
    """Puts the table between the marks of a document, and leaves the rest of it."""
    begin, end = _MARKERS
    before, _, rest = path.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{path}: expected the lines {begin} and {end}, for the table to stand in")
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}")


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/inject_faults.py", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--faults", type=whole(), default=len(FAULTS), help="how many runs, by turns"
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="of the first round of all kinds")
    parser.add_argument("--processes", default="2,4", help="of a run, by turns (2,4)")
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help=f"of these alone, with commas between: {', '.join(f.__name__ for f in FAULTS)}",
    )
    parser.add_argument(
        "--log", type=local_path, help="outcomes, a line of JSON each; those that it has are kept"
    )
    parser.add_argument("--output", type=local_path, help="a document that holds the table")
    options = parser.parse_args(argv)
    names = [f.__name__ for f in FAULTS]
    wanted = names if options.only is None else options.only.split(",")
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"--only: there are no faults {unknown}")
    chosen = [f for f in FAULTS if f.__name__ in wanted]
    counts = [int(text) for text in options.processes.split(",")]
    planned = list(itertools.islice(plan(chosen, counts, options.seed), options.faults))
    outcomes = read_log(options.log)
    kept = {(each.fault, each.num_processes, each.seed) for each in outcomes}
    with tempfile.TemporaryDirectory() as folder:
        for number, (fault, num_processes, seed) in enumerate(planned, start=1):
            if (fault.__name__, num_processes, seed) in kept:
                continue
            outcome = inject(fault, Path(folder), num_processes, seed)
            outcomes.append(outcome)
            if options.log is not None:
                with options.log.open("a") as file:
                    file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
            verdict = f"FAILED: {outcome.problem}" if outcome.problem else "ok"
            print(
                f"[{number}/{options.faults}] {outcome.fault}, {num_processes} processes, seed "
                f"{outcome.seed}: {outcome.detail}, {outcome.seconds:.0f} s: {verdict}",
                flush=True,
            )
    table = render(outcomes)
    print(table)
    if options.output is not None:
        write_table(options.output, table)
    return 1 if any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

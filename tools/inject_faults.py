"""Injects faults into real runs of several processes, and checks that the runs recover.

    python tools/inject_faults.py --faults=40 --log=faults.jsonl --output=docs/reliability.md

Each fault hits a run of `tools/small_run.py` on this machine, whose processes connect as hosts do
and have virtual CPU devices. Faults that stop the run must leave a message that names the cause.
Launched again as by a supervisor, the run must end with the same losses and parameters, bit for
bit, as an undisturbed run of the same number of processes.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import dataclasses
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fault_injection.bench import Bench, Broken
from fault_injection.faults import FAULTS, absent_process, fill_the_disk, hosts_differ

from mm1_jax.command import command
from mm1_jax.flags import local_path, whole

_MARKERS = ("<!-- faults -->", "<!-- end of faults -->")


@dataclass(frozen=True)
class Outcome:
    """Outcome of one run with a fault."""

    fault: str
    num_processes: int
    seed: int
    detail: str
    seconds: float
    problem: str = ""


def plan(
    faults: Sequence[Callable[[Bench], str]], counts: Sequence[int], seed: int
) -> Iterator[tuple[Callable[[Bench], str], int, int]]:
    """Yields fault, number of processes and seed of each run, in endless rounds of all faults."""
    for turn in itertools.count():
        num_processes = counts[turn % len(counts)]
        for fault in faults:
            # These two faults need a second process.
            if num_processes > 1 or fault not in (absent_process, hosts_differ):
                yield fault, num_processes, seed + turn


def read_log(path: Path | None) -> list[Outcome]:
    """Returns the outcomes of earlier calls."""
    if path is None or not path.exists():
        return []
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]


def undisturbed(workspace: Path, num_processes: int, config: str = "small_run") -> dict:
    """Returns the result of a run without a fault."""
    folder = workspace / f"undisturbed_{config}_{num_processes}"
    bench = Bench(workspace, num_processes, folder=folder, config=config)
    if not (bench.folder / "report.json").exists():
        bench.finish()
    return bench.result()


def inject(
    fault: Callable[[Bench], str],
    workspace: Path,
    num_processes: int,
    seed: int,
    config: str = "small_run",
) -> Outcome:
    """Injects a fault into a run, and compares the result with that of an undisturbed run."""
    expected = undisturbed(workspace, num_processes, config)
    name = f"{fault.__name__}_{num_processes}_{seed}"
    folder = workspace / f"{name}_{config}"
    bench = Bench(workspace, num_processes, random.Random(name), folder, config=config)
    shutil.rmtree(bench.folder, ignore_errors=True)
    start, detail, problem = time.monotonic(), "", ""
    try:
        detail = fault(bench)
        result = bench.result()
        # The log lacks records that did not fit onto the disk, though their steps were made.
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
    """Formats a Markdown table, one line per fault and number of processes."""
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
    """Formats numbers as ranges, such as "0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def write_table(path: Path, table: str) -> None:
    """Replaces the text between the markers of a document by the table."""
    begin, end = _MARKERS
    before, _, rest = path.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{path}: expected the lines {begin} and {end} around the table")
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}")


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/inject_faults.py", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--faults",
        type=whole(),
        default=len(FAULTS),
        help="number of runs, by turns over the faults",
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, help="seed of the first round over all faults"
    )
    parser.add_argument(
        "--processes", default="2,4", help="numbers of processes per run, by turns (2,4)"
    )
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help=f"only these, separated by commas: {', '.join(f.__name__ for f in FAULTS)}",
    )
    parser.add_argument(
        "--log",
        type=local_path,
        help="file of outcomes, one line of JSON each; runs that it has are skipped",
    )
    parser.add_argument("--output", type=local_path, help="document in which to replace the table")
    options = parser.parse_args(argv)
    names = [f.__name__ for f in FAULTS]
    wanted = names if options.only is None else options.only.split(",")
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"--only: unknown faults {unknown}")
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

"""Runs a study: arms over seeds as local processes, results as CSV, and a report.

python -m mm1_jax run_study --study=sft_pretraining --plan
python -m mm1_jax run_study --study=sft_pretraining
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mm1_jax.command import command, started_as
from mm1_jax.flags import local_path, whole

EPILOG = """\
A study is experiments/studies/NAME.py: arms, metrics, seeds, and claims with the smallest
difference of interest. A cell is one arm with one seed. Each cell is a launch in a process of its
own; stages that arms share, such as pre-training, are made once per seed.

resuming:
  The same command continues a study that was stopped. A cell with a row in OUT/NAME.csv is done.
  Commit that file: a fresh clone runs only the other cells. Machines that share the folder of runs
  lock their cells, so none is run twice. A finished run at RUNS/stages/STAGE/SEED is used.

schedulers:
  --index=K runs one cell, K from 0; --plan lists them. In a Slurm array it is
  --index=$SLURM_ARRAY_TASK_ID, in an Indexed Job of Kubernetes --index=$JOB_COMPLETION_INDEX.

examples:
  %(prog)s --list
  %(prog)s --study=sft_pretraining --plan
  %(prog)s --study=sft_pretraining --jobs=2
  %(prog)s --study=sft_pretraining --seeds=3,4 --index=0

exit codes:
  0    done, or run elsewhere
  1    a launch failed; the same command tries again
  2    the command, the study or a file must be changed; the message says how
  130  stopped by Ctrl-C (143: by SIGTERM); the same command continues
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=started_as("run_study"),
        description="Runs a study and reports it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--study", metavar="NAME", help="a study that --list shows")
    which.add_argument("--list", action="store_true", help="show all studies and exit")
    parser.add_argument(
        "--seeds", type=_seeds, metavar="N[,N]", help="default: those of the study's design"
    )
    parser.add_argument(
        "--jobs",
        type=whole(1),
        default=1,
        metavar="N",
        help="launches at a time, each on an equal part of the cores; default: 1",
    )
    parser.add_argument("--index", type=whole(0), metavar="K", help="run only this cell")
    parser.add_argument(
        "--out",
        type=local_path,
        default=Path("docs", "studies"),
        metavar="DIR",
        help="folder of NAME.csv and of the report, NAME/report.md; default: %(default)s",
    )
    parser.add_argument(
        "--runs",
        type=local_path,
        default=Path("runs", "studies"),
        metavar="DIR",
        help="folder of the run folders; default: %(default)s",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--plan", action="store_true", help="print cells, durations and what is left, and exit"
    )
    what.add_argument(
        "--report", action="store_true", help="write the report of the results so far, and exit"
    )
    return parser.parse_args(arguments)


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError:
        seeds = [-1]
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: expected different whole numbers, as in 0,1,2")
    return seeds


@command
def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(sys.argv[1:] if argv is None else argv)
    # These modules import jax, for which --help need not wait.
    from mm1_jax.studies.plan import plan
    from mm1_jax.studies.report import write_report
    from mm1_jax.studies.results import Results
    from mm1_jax.studies.runner import Runner
    from mm1_jax.studies.study import load_study, studies

    if flags.list:
        for name in studies():
            print(f"{name:20}  {load_study(name).design.partition('. ')[0]}")
        return 0
    study = load_study(flags.study)
    cells = study.cells(flags.seeds)
    if flags.index is not None and flags.index >= len(cells):
        raise ValueError(
            f"--index={flags.index}: expected one of 0 to {len(cells) - 1}; see --plan"
        )
    results = Results(flags.out / f"{study.name}.csv", study)
    if flags.plan:
        print(plan(study, cells, results.read(), flags.jobs))
        return 0
    status = 0
    if not flags.report:
        runner = Runner(
            study,
            results,
            flags.runs,
            jobs=flags.jobs if flags.index is None else 1,
            say=lambda line: print(line, flush=True),
        )
        chosen = cells if flags.index is None else [cells[flags.index]]
        outcome = runner.run(chosen, waits=flags.index is not None)
        for line in outcome.elsewhere:
            print(f"runs elsewhere: {line}")
        for line in outcome.failed:
            print(f"failed: {line}", file=sys.stderr)
        status = int(bool(outcome.failed))
    for path in write_report(study, results.read(), flags.out / study.name):
        print(f"wrote {path}")
    return status

"""Compares the configs of two runs, or of a run and a launch, and says if one resumes the other.

python -m mm1_jax compare runs/a runs/b
python -m mm1_jax compare runs/a --config=mm1_tiny --config.trainer.seed=1
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mm1_jax.command import command, started_as
from mm1_jax.flags import local_path
from mm1_jax.launch.comparison import compare_runs, compare_with_launch
from mm1_jax.launch.config_options import add_config_options, chosen_launch, split_overrides
from mm1_jax.launch.run_folder import RunFolder
from mm1_jax.storage import write_whole

REFUSED = 3
EPILOG = f"""\
output:
  A line for each field that differs, with its value in A and in B, and whether a launch of B into
  the folder of A may change it. The last line says whether that launch would resume A.

exit codes:
  0    compared; a launch of B into the folder of A would resume A, or start at step 0
  2    the command line or a file must be changed; the message says how
  {REFUSED}    compared; a launch of B into the folder of A would be refused

examples:
  %(prog)s runs/a runs/b
  %(prog)s runs/a --config=mm1_tiny --config.trainer.max_steps=3000
  %(prog)s runs/a --config_file=b.json
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=started_as("compare"),
        description="Compares the configs of two runs, or of a run and a launch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="A", type=local_path, help="output folder of a run")
    parser.add_argument(
        "other", metavar="B", nargs="?", type=local_path, help="that of another run, or --config"
    )
    add_config_options(parser, required=False)
    parser.add_argument("--json", metavar="FILE", type=local_path, help="write the fields there")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the result is the exit status."""
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options = parser.parse_args(rest)
    names_a_config = options.config is not None
    if names_a_config == (options.other is not None):
        parser.error("give a second run, or a config by --config=NAME or --config_file=FILE")
    run = RunFolder(options.run)
    if names_a_config:
        comparison = compare_with_launch(run, chosen_launch(options, overrides))
    else:
        named = {"--module": options.module, "--small": options.small or None}
        named |= {"--evals": options.evals, "--data_dir": options.data_dir}
        given = [name for name, value in named.items() if value is not None]
        if overrides or given:
            what = given[0] if given else "--config.PATH=VALUE"
            parser.error(f"{what} changes a config of --config or --config_file; B is a run")
        comparison = compare_runs(run, RunFolder(options.other))
    if options.json is not None:
        _write(options.json, json.dumps(comparison.as_dict(), indent=2) + "\n")
    print(comparison)
    return REFUSED if comparison.is_refused else 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)

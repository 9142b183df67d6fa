"""Computes the tables of lengths that a launch of a config would otherwise compute at its start.

python -m mm1_jax compute_lengths --config=mm1_7b_moe --data_dir=data
"""

import argparse
import sys
from collections.abc import Sequence

from mm1_jax.command import command, started_as
from mm1_jax.launch.config_options import (
    add_config_options,
    chosen_launch,
    say_note,
    split_overrides,
)

EPILOG = """\
A table holds the number of positions and images of every record, which is all that packing needs.
It is stored next to the records, and recomputed when they, the tokenizer or a size of the rows
change.

examples:
  %(prog)s --config=mm1_7b_moe --data_dir=data
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog=started_as("compute_lengths"),
        description="Computes the tables of lengths for packing; describes each corpus.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_options(parser)
    parser.add_argument(
        "--num_workers", metavar="N", help="number of processes (default: input.num_workers)"
    )
    options = parser.parse_args(rest)
    if options.num_workers is not None:
        overrides["input.num_workers"] = options.num_workers
    cfg = chosen_launch(options, overrides).resolved_config(note=say_note)
    for split in ("train", "test"):
        print(cfg.input.instantiate(split=split).describe(), flush=True)
    return 0

"""Computes the tables of lengths that a launch of a config would compute when it starts.

    python tools/compute_lengths.py --config=mm1_7b_moe --data_dir=data

A table holds the number of positions and images of every record, which is all that packing needs.
It is stored beside the records, and recomputed when they, the tokenizer or a size of the rows
change. Prints the contents of each corpus.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import sys
from collections.abc import Sequence

from mm1_jax.command import command
from mm1_jax.launch.config_options import add_config_options, chosen_launch, split_overrides


@command
def main(argv: Sequence[str] | None = None) -> int:
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_options(parser)
    parser.add_argument("--num_workers", metavar="N", help="processes (input.num_workers)")
    options = parser.parse_args(rest)
    if options.num_workers is not None:
        overrides["input.num_workers"] = options.num_workers
    cfg = chosen_launch(options, overrides).resolved_config()
    for split in ("train", "test"):
        print(cfg.input.instantiate(split=split).describe(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

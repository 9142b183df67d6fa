"""Makes the tables of lengths that a launch of a config would make when it starts.

    python tools/compute_lengths.py --config=mm1_7b_moe --data_dir=data

A table holds how many positions and images every record takes, which is all that packing looks at.
It is kept beside the records, and made again when they, the tokenizer or a size of the rows change.
Prints what each corpus holds.
"""

import argparse
import sys
from collections.abc import Sequence

from mm1_jax.launch import USER_ERROR, split_overrides
from mm1_jax.run_folder import Launch


def main(argv: Sequence[str] | None = None) -> int:
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="NAME", help="a named config")
    parser.add_argument("--module", metavar="MODULE", help="the module that has it")
    parser.add_argument("--data_dir", metavar="DIR", help="where its records lie")
    parser.add_argument("--num_workers", metavar="N", help="processes (input.num_workers)")
    options = parser.parse_args(rest)
    for name in ("data_dir", "num_workers"):
        if (value := getattr(options, name)) is not None:
            overrides[f"input.{name}"] = value
    try:
        cfg = Launch(options.config, options.module, overrides).resolved_config()
        for split in ("train", "test"):
            print(cfg.input.instantiate(split=split).describe(), flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())

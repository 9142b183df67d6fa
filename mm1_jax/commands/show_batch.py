"""Writes an HTML page that shows the batch of a step: rows, tokens, targets, images.

    python -m mm1_jax show_batch --config=mm1_tiny --step=5 --rows=0:4 --output=batch.html

The page is one file without scripts, and loads nothing from the network.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm1_jax.batch_page.packed_page import PackedPage, make_rows
from mm1_jax.batch_page.pair_page import PairPage
from mm1_jax.command import command, started_as
from mm1_jax.data.input import packed
from mm1_jax.data.pairs import PairInput
from mm1_jax.flags import local_path, whole
from mm1_jax.launch.config_options import (
    add_config_options,
    chosen_launch,
    say_note,
    split_overrides,
)
from mm1_jax.storage import write_whole

# With more rows of a large config, the page is slow to load.
MOST_ROWS = 8
EPILOG = """\
Images keep their exact pixels (PNG). A picture that is shown in several views stands in its grid,
and the markup of a chat format is set apart from the texts of turns. The statistics include rows
that share an image buffer with the shown ones. A row of an encoder's batch is a picture, as it was
cropped and changed, beside the tokens of its text.

examples:
  %(prog)s --config=mm1_tiny --step=1000
  %(prog)s --config=mm1_3b --config.input.streams.2.weight=0 --rows=0:2
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=started_as("show_batch"),
        description="Writes an HTML page that shows the batch of a step.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_options(parser)
    parser.add_argument("--step", default=0, type=whole(0), help="step of the batch (default: 0)")
    parser.add_argument(
        "--rows",
        type=_rows,
        metavar="A:B",
        help=f"rows A to B - 1 (default: the first {MOST_ROWS})",
    )
    parser.add_argument(
        "--output", type=local_path, metavar="FILE", help="default: NAME_step_STEP.html"
    )
    return parser.parse_args(arguments)


def _rows(text: str) -> range:
    first, colon, last = text.partition(":")
    try:
        rows = range(int(first or 0), int(last if colon else first) + (not colon))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected A:B, such as 0:4") from None
    if rows.start < 0 or not rows:
        raise argparse.ArgumentTypeError(f"{text!r}: holds no row")
    return rows


@command
def main(argv: Sequence[str] | None = None) -> int:
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    args = parse(rest)
    output = args.output or Path(f"{args.config}_step_{args.step}.html")
    cfg = chosen_launch(args, overrides).resolved_config(note=say_note).input
    input = cfg.set(num_workers=0, prefetch=0).instantiate()
    shown = args.rows or range(min(MOST_ROWS, input.batch_size))
    if isinstance(input, PairInput):
        page: Any = PairPage(input, args.step, shown, title=args.config)
    else:
        made = make_rows(packed(input), args.step, shown)
        page = PackedPage(packed(input), made, shown, title=args.config, step=args.step)
    write_whole(output, page.text())
    print(output)
    return 0

"""Measures how full the image buffer gets, by the number of rows that share it.

    python tools/image_utilisation.py --images_per_row 10 13

Plans rows of captions, interleaved pages and text in MM1's proportions, with random lengths and the
packing of training, to find buffer sizes for an experiment. For each group size, prints the
smallest buffer in which no document overflowed in the planned steps and the smallest that can never
overflow, each with the share of slots that hold an image. A group of one row has its own slots.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import math
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from mm1_jax.command import command
from mm1_jax.data.lengths import Lengths
from mm1_jax.data.mixture import CorpusShare, MixedStream, most_in_a_run
from mm1_jax.data.packing import Packing
from mm1_jax.flags import number, whole

WEIGHTS = {"captions": 9, "interleaved": 9, "text": 2}
# Records per stream; more do not change the result.
NUM_RECORDS = 20_000
# Tokens of a caption, and of a document without images.
CAPTION_TOKENS, TEXT_TOKENS = 20, 1000


def lengths(args: argparse.Namespace, tokens_per_image: float) -> dict[int, np.ndarray]:
    """Returns positions and images of randomly drawn captions, pages and texts.

    A page has at least 1 image, 2.5 on average before those beyond a row are cut, and on average
    `tokens_per_image` tokens of text per image.
    """
    rng = np.random.default_rng(args.seed)

    def text(mean: float | np.ndarray) -> np.ndarray:
        return mean * np.exp(rng.normal(0, args.spread, NUM_RECORDS) - args.spread**2 / 2)

    most = min(args.max_images, (args.max_sequence_length - 1) // args.num_image_tokens)
    images = np.minimum(rng.geometric(1 / 2.5, NUM_RECORDS), most)
    columns = [
        (text(CAPTION_TOKENS), np.ones(NUM_RECORDS, int)),
        (text(images * tokens_per_image), images),
        (text(TEXT_TOKENS), np.zeros(NUM_RECORDS, int)),
    ]
    tables = {}
    for corpus, (words, images) in enumerate(columns):
        positions = 1 + words.astype(int) + images * args.num_image_tokens
        positions = np.minimum(positions, args.max_sequence_length)
        tables[corpus] = np.stack([positions, images], axis=1)
    return tables


def packing(args: argparse.Namespace, tables: dict[int, Int[np.ndarray, "_ 2"]]) -> Packing:
    streams = [
        MixedStream(name, weight, (CorpusShare(i, name, 1, NUM_RECORDS),))
        for i, (name, weight) in enumerate(WEIGHTS.items())
    ]
    return Packing.default_config().instantiate(
        streams=streams,
        lengths=[Lengths(table) for _, table in sorted(tables.items())],
        batch_size=args.batch_size,
        max_sequence_length=args.max_sequence_length,
        max_images=args.max_images,
        seed=args.seed,
    )


def with_images_per_row(args: argparse.Namespace, target: float) -> Packing:
    """Finds, by bisection over text lengths, a packing of `target` images per interleaved row."""
    low, high = 0.0, float(args.max_sequence_length)
    for _ in range(20):
        middle = (low + high) / 2
        plan = packing(args, lengths(args, middle))
        low, high = (middle, high) if plan.expected_images(1) > target else (low, middle)
    return plan


def images_of_rows(plan: Packing, num_steps: int) -> Int[np.ndarray, "steps rows"]:
    planner = plan.planner(range(plan.batch_size))
    return np.array(
        [
            [sum(record.num_images for record in row.records) for row in planner.next_rows()]
            for _ in range(num_steps)
        ]
    )


def table(args: argparse.Namespace, images: Int[np.ndarray, "steps rows"]) -> list[str]:
    """Returns a line per group size: slots per row, and the share of slots in use."""
    mean = images.mean()
    weights = tuple(WEIGHTS.values())
    most = (args.max_images, args.max_images, 0)
    own = args.max_images
    lines = [f"| 1 | {own} | {own} | {mean / own:.3f} | {own} | {own} | {mean / own:.3f} |"]
    for rows in args.group_rows:
        fullest = int(images.reshape(len(images), -1, rows).sum(axis=2).max())
        # The devices of a group, at most one per row, share its slots evenly.
        slots = math.ceil(fullest / args.multiple) * args.multiple
        safe = math.ceil(most_in_a_run(weights, most, rows) / args.multiple) * args.multiple
        cells = [
            cell
            for n in (slots, safe)
            for cell in (f"{n}", f"{n / rows:g}", f"{mean * rows / n:.3f}")
        ]
        lines.append(f"| {rows} | {' | '.join(cells)} |")
    return lines


@command
def main(argv: Sequence[str] | None = None) -> int:
    summary, _, text = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images_per_row",
        type=number(exclusive=True),
        nargs="+",
        default=[10, 13],
        help="average images of interleaved rows",
    )
    parser.add_argument("--group_rows", type=whole(), nargs="+", default=[8, 16, 32, 64])
    parser.add_argument(
        "--spread",
        type=number(),
        default=0.6,
        help="standard deviation of the logarithm of text lengths",
    )
    parser.add_argument("--num_steps", type=whole(), default=200)
    parser.add_argument("--batch_size", type=whole(), default=512)
    parser.add_argument("--max_sequence_length", type=whole(), default=4096)
    parser.add_argument("--max_images", type=whole(), default=16, help="images per row at most")
    parser.add_argument("--num_image_tokens", type=whole(), default=144)
    parser.add_argument(
        "--multiple",
        type=whole(),
        default=8,
        help="slots of a group are a multiple of this; set by its devices",
    )
    parser.add_argument("--seed", type=whole(0), default=0)
    args = parser.parse_args(argv)
    for rows in args.group_rows:
        if rows < 1 or args.batch_size % rows:
            parser.error(f"--group_rows={rows} must divide --batch_size={args.batch_size}")
    for target in args.images_per_row:
        images = images_of_rows(with_images_per_row(args, target), args.num_steps)
        print(
            f"{target:g} images per interleaved row, {images.mean():.2f} per row of "
            f"{args.num_steps} steps of {args.batch_size} rows\n\n"
            "| rows of a group | slots without overflow | per row | used "
            "| slots for the worst case | per row | used |\n|---|---|---|---|---|---|---|"
        )
        print("\n".join(table(args, images)) + "\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

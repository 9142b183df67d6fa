"""Measures how full rows and the image buffer get, by the number of rows that share it.

    python tools/image_utilisation.py --images_per_row 10 13
    python tools/image_utilisation.py --lengths=lengths.json --max_images=28 --num_bins=64

Plans rows of captions, interleaved pages and text in MM1's proportions, with random lengths and the
packing of training, to find buffer sizes for an experiment. For each group size, prints the
smallest buffer in which no document overflowed in the planned steps and the smallest that can never
overflow, each with the share of slots that hold an image. A group of one row has its own slots.

With --lengths, plans the rows of one corpus: a JSON object whose "lengths" are pairs of positions
and images. Also prints the fill of the rows, the fill that no packing exceeds, and how many more
images the fullest device holds than the mean device.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from mm1_jax.command import command
from mm1_jax.data.lengths import Lengths
from mm1_jax.data.mixture import CorpusShare, MixedStream, most_in_a_run
from mm1_jax.data.packing import Packing
from mm1_jax.flags import number, whole
from mm1_jax.image_buffer import ImageBuffer

WEIGHTS = {"captions": 9, "interleaved": 9, "text": 2}
# Records per stream; more do not change the result.
NUM_RECORDS = 20_000
# Tokens of a caption, and of a document without images.
CAPTION_TOKENS, TEXT_TOKENS = 20, 1000
HEADER = (
    "| rows of a group | slots without overflow | per row | used "
    "| slots for the worst case | per row | used |",
    "|---|---|---|---|---|---|---|",
)


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
    weights = WEIGHTS if len(tables) == len(WEIGHTS) else {"lengths": 1}
    streams = [
        MixedStream(name, weight, (CorpusShare(i, name, 1, len(tables[i])),))
        for i, (name, weight) in enumerate(weights.items())
    ]
    return (
        Packing.default_config()
        .set(num_bins=args.num_bins)
        .instantiate(
            streams=streams,
            lengths=[Lengths(table) for _, table in sorted(tables.items())],
            batch_size=args.batch_size,
            max_sequence_length=args.max_sequence_length,
            max_images=args.max_images,
            seed=args.seed,
        )
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


def table(
    args: argparse.Namespace,
    images: Int[np.ndarray, "steps rows"],
    weights: Sequence[int],
    most: Sequence[int],
) -> list[str]:
    """Returns a line per group size: slots per row, and the share of slots in use.

    Args:
        most: The most images in a row of each stream; `weights` are those of the streams.
    """
    mean = images.mean()
    own = args.max_images
    lines = [f"| 1 | {own} | {own} | {mean / own:.3f} | {own} | {own} | {mean / own:.3f} |"]
    for rows in args.group_rows:
        fullest = int(images.reshape(len(images), -1, rows).sum(axis=2).max())
        # The devices of a group, at most one per row, share its slots evenly.
        slots = math.ceil(fullest / args.multiple) * args.multiple
        safe = (
            math.ceil(most_in_a_run(tuple(weights), tuple(most), rows) / args.multiple)
            * args.multiple
        )
        cells = [
            cell
            for n in (slots, safe)
            for cell in (f"{n}", f"{n / rows:g}", f"{mean * rows / n:.3f}")
        ]
        lines.append(f"| {rows} | {' | '.join(cells)} |")
    return lines


def read_lengths(path: Path, longest: int) -> Int[np.ndarray, "n 2"]:
    """Reads pairs of positions and images; longer examples than a row are left out."""
    try:
        lengths = np.array(json.loads(path.read_text())["lengths"], np.int64).reshape(-1, 2)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'--lengths={path}: {error!r}; expected {{"lengths": [[positions, images], ...]}}'
        ) from None
    return lengths[lengths[:, 0] <= longest]


def most_filled(positions: Int[np.ndarray, "n"], longest: int) -> float:
    """Bounds the share of the positions of rows that any packing can fill.

    At most k examples longer than 1 / (k + 1) of a row share one. In the bound, an example takes
    floor((k + 1) length / row) / k rows, which is a dual feasible function for every k.
    """
    rows = [float(np.sum((k + 1) * positions // longest)) / k for k in range(1, 100)]
    return float(positions.sum()) / longest / max(*rows, positions.sum() / longest)


def fill_of_rows(plan: Packing, num_steps: int) -> float:
    planner = plan.planner(range(plan.batch_size))
    tokens = [
        sum(record.num_tokens for record in row.records)
        for _ in range(num_steps)
        for row in planner.next_rows()
    ]
    return float(np.mean(tokens)) / plan.max_sequence_length


def imbalance(
    images: Int[np.ndarray, "steps rows"], buffer: ImageBuffer, num_devices: int
) -> tuple[float, float]:
    """Returns by which share the fullest device exceeds the mean: of a mean step, and of the worst.

    Rows count as one document each.
    """
    shares = []
    for step in images.tolist():
        placed = buffer.place([[number] for number in step])
        slots = np.array([slot for row in placed for slots in row for slot in slots])
        total = buffer.group_slots * len(step) // buffer.group_rows
        held = np.bincount(slots[slots >= 0] * num_devices // total, minlength=num_devices)
        shares.append(held.max() / held.mean() - 1)
    return float(np.mean(shares)), float(np.max(shares))


def of_lengths(args: argparse.Namespace) -> list[str]:
    """Returns lines on the rows of a corpus of given lengths."""
    lengths = read_lengths(Path(args.lengths), args.max_sequence_length)
    plan = packing(args, {0: lengths})
    images = images_of_rows(plan, args.num_steps)
    fill, bound = fill_of_rows(plan, args.num_steps), args.max_sequence_length
    lines = [
        f"{len(lengths):,} examples of {lengths[:, 0].mean():.0f} positions and "
        f"{lengths[:, 1].mean():.2f} images; rows of {bound} positions, {args.num_bins} bins",
        f"positions filled: {fill:.4f}; no packing fills more than "
        f"{most_filled(lengths[:, 0], bound):.4f}",
        f"examples per row: {fill * bound / lengths[:, 0].mean():.2f}; images per row: "
        f"{images.mean():.2f}",
        "",
        *HEADER,
        *table(args, images, (1,), (args.max_images,)),
        "",
        "| rows of a group | devices | fullest device above the mean | in the worst step |",
        "|---|---|---|---|",
    ]
    for rows in args.group_rows:
        buffer = ImageBuffer(rows, args.max_images * rows)
        for devices in args.devices:
            if args.batch_size % devices == 0:
                mean, worst = imbalance(images, buffer, devices)
                lines.append(f"| {rows} | {devices} | {mean:.1%} | {worst:.1%} |")
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
    parser.add_argument("--num_bins", type=whole(), default=16, help="rows packed together (16)")
    parser.add_argument(
        "--lengths", metavar="FILE", help="JSON file of lengths, instead of random ones"
    )
    parser.add_argument(
        "--devices", type=whole(), nargs="+", default=[8, 64], help="with --lengths (8 64)"
    )
    parser.add_argument("--seed", type=whole(0), default=0)
    args = parser.parse_args(argv)
    for rows in args.group_rows:
        if rows < 1 or args.batch_size % rows:
            parser.error(f"--group_rows={rows} must divide --batch_size={args.batch_size}")
    if args.lengths is not None:
        print("\n".join(of_lengths(args)), flush=True)
        return 0
    for target in args.images_per_row:
        images = images_of_rows(with_images_per_row(args, target), args.num_steps)
        print(
            f"{target:g} images per interleaved row, {images.mean():.2f} per row of "
            f"{args.num_steps} steps of {args.batch_size} rows\n"
        )
        most = (args.max_images, args.max_images, 0)
        lines = [*HEADER, *table(args, images, tuple(WEIGHTS.values()), most)]
        print("\n".join(lines) + "\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

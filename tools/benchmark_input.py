"""Benchmarks the input pipeline of a config on one core.

    python tools/benchmark_input.py --config=mm1_3b --data_dir=data --step_seconds=8 --hosts=16
    python tools/benchmark_input.py --config=mm1_3b --synthetic
    python tools/benchmark_input.py --config=mm1_3b --photos=photos \\
        --config.input.tiling=Tiling --config.input.tiling.rule=FixedGrid

Compares the whole path (plan, read, tokenize, decode, resize, concatenate) with a loop that only
decodes, resizes and cuts the same images, which no input can beat, and with webdataset and torch's
DataLoader on a shard of the same images.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import copy
import functools
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from input_benchmark.contestants import NUM_RECORDED, Contestant, Counts, Measured
from input_benchmark.pipelines import (
    Recorded,
    bare,
    batches_of,
    missing_packages,
    record,
    webdataset_batches,
    write_shard,
)
from input_benchmark.synthetic import photographs, synthetic_streams

from mm1_jax.command import command
from mm1_jax.data.input import Input
from mm1_jax.flags import local_path, number, whole
from mm1_jax.launch.config_options import add_config_options, chosen_launch, split_overrides
from mm1_jax.storage import write_whole

# Number of batches to plan for the average contents of a row.
NUM_PLANNED = 100
LIMIT = "decode and resize alone"
IN_PROCESS, WORKER = "input", "input, one worker"
OTHER_IN_PROCESS, OTHER_WORKER = "webdataset", "webdataset, one worker"

EPILOG = """\
Rates are per second of CPU time of this process and its workers, and the contestants take turns:
under other load, the ratios within a run are reliable, absolute times are not. Linux only.

webdataset is skipped if it or torch is not installed (pip install webdataset torch). It reads image
files, each with the text after it, and yields resized RGB as normalized floats, and tokens. It gets
no text without an image, and does not shuffle.

examples:
  python tools/benchmark_input.py --config=mm1_tiny --rounds=3
  python tools/benchmark_input.py --config=mm1_3b --synthetic --json=input.json \\
      --config.input.image_transform.jpeg_decoder=PILLOW_DRAFT
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/benchmark_input.py",
        description="Benchmarks the input pipeline of a config on one core.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_options(parser)
    parser.add_argument(
        "--synthetic",
        nargs="?",
        const=1000,
        type=whole(),
        metavar="WIDTH",
        help="instead of data, draw JPEGs of this width in pixels (1000) and 2/3 of it in height, "
        "with captions, pages and texts",
    )
    parser.add_argument(
        "--photos",
        type=local_path,
        metavar="FOLDER",
        help="like --synthetic, with the image files of this folder",
    )
    parser.add_argument("--rows", default=4, type=whole(), help="rows per batch (4)")
    parser.add_argument("--rounds", default=4, type=whole(), help="rounds of turns (4)")
    parser.add_argument(
        "--step_seconds",
        type=number(exclusive=True),
        metavar="S",
        help="report how many cores feed steps of this time",
    )
    parser.add_argument("--hosts", default=1, type=whole(), help="hosts that share a step (1)")
    parser.add_argument("--json", type=local_path, metavar="FILE", help="file for the results")
    return parser.parse_args(arguments)


def input_config(cfg: Any, num_rows: int) -> Any:
    """Returns an experiment's input with batches of few rows, made in this process."""
    num_rows = min(num_rows, cfg.batch_size)
    group_rows = math.gcd(cfg.image_group_rows, num_rows)
    cfg = cfg.clone(batch_size=num_rows, image_group_rows=group_rows, num_workers=0, prefetch=0)
    cfg.packing.num_shards = None
    return cfg


def planned(input: Input) -> Counts:
    """Returns images and tokens per row, averaged over many rows."""
    planner = input.planner(range(input.batch_size))
    rows = [row for _ in range(NUM_PLANNED) for row in planner.next_rows()]
    records = [record for row in rows for record in row.records]
    return Counts(
        sum(record.num_images for record in records) / len(rows),
        sum(record.num_tokens for record in records) / len(rows),
    )


def contestants(input: Input, recorded: Recorded, folder: Path) -> dict[str, Contestant]:
    if not recorded.images:
        raise ValueError("the first batches hold no image; there is nothing to compare")
    with_worker = copy.copy(input)
    with_worker.num_workers, with_worker.prefetch = 1, 1
    makers = {
        LIMIT: functools.partial(bare, recorded.images, input.image_transform),
        IN_PROCESS: functools.partial(batches_of, input),
        WORKER: functools.partial(batches_of, with_worker),
    }
    missing = missing_packages()
    if missing:
        print(f"without webdataset: pip install {' '.join(missing)}", file=sys.stderr)
    elif any(image.view is not None for image in recorded.images):
        print("without webdataset: the input shows tiles", file=sys.stderr)
    elif not all(isinstance(image.data, bytes) for image in recorded.images):
        print(
            "without webdataset: images of this config are drawn, not read from files",
            file=sys.stderr,
        )
    else:
        write_shard(folder / "shard.tar", recorded)
        other = functools.partial(
            webdataset_batches,
            folder / "shard.tar",
            input.tokenizer,
            size=input.image_size,
            num_images=len(recorded.images) // NUM_RECORDED,
        )
        makers |= {
            OTHER_IN_PROCESS: functools.partial(other, num_workers=0),
            OTHER_WORKER: functools.partial(other, num_workers=1),
        }
    return {name: Contestant(make) for name, make in makers.items()}


def compare(contestants: Mapping[str, Contestant], num_rounds: int) -> dict[str, dict[str, float]]:
    """Returns images and tokens per second over rounds by turns, and shares of the limit."""
    turns: dict[str, list[Measured]] = {name: [] for name in contestants}
    for _ in range(num_rounds):
        for name, contestant in contestants.items():
            turns[name].append(contestant.turn())
    totals = {
        name: Measured(*map(sum, zip(*measured, strict=True))) for name, measured in turns.items()
    }
    limit = totals[LIMIT].images / totals[LIMIT].seconds
    return {
        name: {
            "images_per_second": total.images / total.seconds,
            "tokens_per_second": total.tokens / total.seconds,
            "of_the_limit": total.images / total.seconds / limit,
        }
        for name, total in totals.items()
    }


def demand(
    cfg: Any,
    images_per_row: float,
    tokens_per_row: float,
    *,
    images_per_second: float,
    step_seconds: float,
    num_hosts: int,
) -> dict[str, float]:
    """Returns the load that a step of the whole batch puts on each host.

    Args:
        cfg: Config of the input, with all of its rows.
        images_per_second: Rate of one core, for rows with that many images and tokens.
    """
    if cfg.batch_size % num_hosts:
        raise ValueError(f"--hosts={num_hosts}: must divide input.batch_size={cfg.batch_size}")
    rows = cfg.batch_size // num_hosts
    # This host's part of the buffer then also holds images of other hosts' rows.
    decoded_twice = cfg.images_per_row is not None and rows % cfg.image_group_rows > 0
    images = images_per_row * rows * (2 if decoded_twice else 1)
    return {
        "images_per_step": images_per_row * cfg.batch_size,
        "tokens_per_step": tokens_per_row * cfg.batch_size,
        "images_per_step_of_a_host": images,
        "cores_of_a_host": images / images_per_second / step_seconds,
    }


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    lines = [
        "| per second of a core | images | tokens | of the limit |",
        "|---|---:|---:|---:|",
    ]
    for name, result in results.items():
        tokens = f"{result['tokens_per_second']:,.0f}" if name in (IN_PROCESS, WORKER) else ""
        lines.append(
            f"| {name} | {result['images_per_second']:,.1f} | {tokens} | "
            f"{result['of_the_limit']:.2f} |"
        )
    for own, other in ((IN_PROCESS, OTHER_IN_PROCESS), (WORKER, OTHER_WORKER)):
        if other in results:
            ratio = results[own]["of_the_limit"] / results[other]["of_the_limit"]
            lines.append(f"\n{own} is {ratio:.2f} times as fast as {other}.")
    return "\n".join(lines)


def benchmark(args: argparse.Namespace, cfg: Any, folder: Path) -> dict[str, Any]:
    """Measures the input of config `cfg`, prints the results and returns them."""
    if args.synthetic is not None or args.photos is not None:
        photos = [] if args.photos is None else photographs(Path(args.photos))
        cfg.streams = synthetic_streams(folder, args.synthetic or 0, photos=photos)
        cfg.tokenizer = cfg.tokenizer.clone(model_path=None, num_pieces=None)
    if not cfg.max_images:
        raise ValueError(f"--config={args.config} reads no images; there is nothing to compare")
    small = input_config(cfg, args.rows)
    recorded, input = record(small), small.instantiate()
    results = compare(contestants(input, recorded, folder), args.rounds)
    decoder = input.image_transform.config.jpeg_decoder.name
    images, tokens = planned(input)
    print(
        f"{args.config}: rows of {images:.1f} images and {tokens:,.0f} of "
        f"{input.max_sequence_length:,} positions, {input.batch_size} at a time; {decoder} to "
        f"{input.image_size} x {input.image_size} pixels\n\n{table(results)}"
    )
    report = {
        "config": args.config,
        "synthetic": args.synthetic,
        "jpeg_decoder": decoder,
        "images_per_row": images,
        "tokens_per_row": tokens,
        "results": results,
    }
    if args.step_seconds is not None:
        need = demand(
            cfg,
            images,
            tokens,
            images_per_second=results[WORKER]["images_per_second"],
            step_seconds=args.step_seconds,
            num_hosts=args.hosts,
        )
        report["demand"] = need | {"hosts": args.hosts, "step_seconds": args.step_seconds}
        print(
            f"\nA step of {cfg.batch_size} rows has {need['images_per_step']:,.0f} images and "
            f"{need['tokens_per_step']:,.0f} tokens. At {args.step_seconds:g} s per step, each of "
            f"{args.hosts} hosts decodes {need['images_per_step_of_a_host']:,.0f} of them per "
            f"step, which keeps {need['cores_of_a_host']:.1f} such cores busy: set "
            f"input.num_workers to {math.ceil(need['cores_of_a_host'])} or more."
        )
    return report


@command
def main(argv: Sequence[str] | None = None) -> int:
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    args = parse(rest)
    cfg = chosen_launch(args, overrides).resolved_config().input
    with tempfile.TemporaryDirectory() as folder:
        report = benchmark(args, cfg, Path(folder))
    if args.json is not None:
        write_whole(args.json, json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

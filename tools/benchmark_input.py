"""Measures the input of a config on one core, beside what decoding and resizing alone would take.

    python tools/benchmark_input.py --config=mm1_3b --data_dir=data --step_seconds=8 --hosts=16
    python tools/benchmark_input.py --config=mm1_3b --synthetic

The whole path (plan, read, tokenise, decode, resize, concatenate) against the same pictures decoded
and resized in a loop, which no input can beat, and against webdataset with torch's DataLoader on a
shard of the same pictures.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import contextlib
import copy
import functools
import io
import json
import math
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from mm1_jax.batch import Batch, Image
from mm1_jax.command import command
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.corpora.interleaved import interleaved_document
from mm1_jax.data.corpora.text import text_document
from mm1_jax.data.images import Fit, ImageTransform, JpegDecoder
from mm1_jax.data.input import Input
from mm1_jax.data.mixture import CorpusWeight, Stream
from mm1_jax.data.sources.jsonl import JsonlSource
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.flags import local_path, number, whole
from mm1_jax.launch.config_options import add_config_options, chosen_launch, split_overrides
from mm1_jax.storage import write_whole

# The pictures of so many batches are what the others decode, and a turn is as many, or a multiple.
NUM_RECORDED = 4
# A turn of less is short beside the hundredths of a second in which processes are timed.
LEAST_SECONDS = 1.0
# Batches that are planned, to know what a row holds.
NUM_PLANNED = 100
LIMIT = "decode and resize alone"
IN_PROCESS, WORKER = "input", "input, one worker"
OTHER_IN_PROCESS, OTHER_WORKER = "webdataset", "webdataset, one worker"

EPILOG = """\
Rates are per second of CPU time, of this process and of the workers that it starts, and the ways
take turns: on a machine with other work, ratios of one run mean something, and times do not. Linux
only.

webdataset and torch are left out where they are not installed (pip install webdataset torch). They
get pictures that are files, each with the text after it: RGB, resized, as normalised floats, and
tokens. Text without a picture is left out there, and no order is shuffled.

examples:
  python tools/benchmark_input.py --config=mm1_tiny --rounds=3
  python tools/benchmark_input.py --config=mm1_3b --synthetic --json=input.json \\
      --config.input.image_transform.jpeg_decoder=PILLOW_DRAFT
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/benchmark_input.py",
        description="Measures the input of a config on one core.",
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
        help="draw JPEGs of so many pixels (1000) and two thirds of it in height, with captions, "
        "pages and texts, instead of data",
    )
    parser.add_argument("--rows", default=4, type=whole(), help="of the batches that are made (4)")
    parser.add_argument("--rounds", default=4, type=whole(), help="in which all take turns (4)")
    parser.add_argument(
        "--step_seconds",
        type=number(exclusive=True),
        metavar="S",
        help="says how many cores feed such steps",
    )
    parser.add_argument("--hosts", default=1, type=whole(), help="which share a step (1)")
    parser.add_argument("--json", type=local_path, metavar="FILE", help="where to keep the numbers")
    return parser.parse_args(arguments)


class Counts(NamedTuple):
    """Pictures, and positions with a token."""

    images: float
    tokens: float


class Measured(NamedTuple):
    """What was made in some CPU time."""

    images: float
    tokens: float
    seconds: float


class Contestant:
    """A way to make batches without end, and the CPU time that a batch takes it."""

    def __init__(self, make: Callable[[], Iterator[Counts]]):
        before = _descendants()
        self._batches = make()
        # Workers are started by the first.
        next(self._batches)
        self._workers = _descendants() - before

    def turn(self) -> "Measured":
        counts, start = [], self._settled()
        first = time.monotonic()
        while not counts or time.monotonic() - first < LEAST_SECONDS:
            counts += [next(self._batches) for _ in range(NUM_RECORDED)]
        seconds = self._settled() - start
        return Measured(*map(sum, zip(*counts, strict=True)), seconds)

    def _settled(self) -> float:
        """CPU time so far, as of a moment when workers have made all that they make ahead.

        So as many batches are made in a turn as are taken. They are not the same: what a worker
        made ahead in one turn is taken in the next, and only the sum over turns is right.
        """
        seconds = self._worker_seconds()
        while self._workers:
            time.sleep(0.25)
            before, seconds = seconds, self._worker_seconds()
            # The clock of processes ticks in hundredths; and one that waits for a core has no
            # ticks either.
            if seconds - before <= 0.011 and not self._wants_a_core():
                break
        return seconds + time.process_time()

    def _wants_a_core(self) -> bool:
        """Whether any thread of a worker could go on."""
        tasks = [
            task for worker in self._workers for task in Path(f"/proc/{worker}/task").iterdir()
        ]
        for task in tasks:
            with contextlib.suppress(FileNotFoundError):
                if (task / "stat").read_text().rpartition(")")[2].split()[0] in "RD":
                    return True
        return False

    def _worker_seconds(self) -> float:
        ticks = 0
        for worker in self._workers:
            # The name of the program, in brackets, may hold spaces.
            fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def _descendants() -> set[int]:
    found, unseen = set(), [os.getpid()]
    while unseen:
        children = set()
        for path in Path(f"/proc/{unseen.pop()}/task").glob("*/children"):
            children |= {int(pid) for pid in path.read_text().split()}
        unseen += children - found
        found |= children
    return found


class Recorded(NamedTuple):
    """Pictures of batches as they are stored, and the text after each."""

    images: list[Image]
    texts: list[str]


class RecordingTransform(ImageTransform):
    """Keeps the pictures that it was given, but for those that are bad."""

    def __init__(self, cfg: ImageTransform.Config):
        super().__init__(cfg)
        self.images: list[Image] = []

    def __call__(self, image: Image, *args: Any) -> np.ndarray:
        pixels = super().__call__(image, *args)
        self.images.append(image)
        return pixels


def record(cfg: Any) -> Recorded:
    """The pictures of the first batches of an input, in order."""
    fields = {name: value for name, value in cfg.image_transform.items() if name != "klass"}
    transform = RecordingTransform.default_config().set(**fields)
    input = cfg.clone(image_transform=transform).instantiate()
    iterator = input.iterator()
    texts = []
    for _ in range(NUM_RECORDED):
        texts += texts_after_images(next(iterator), input)
    iterator.close()
    assert len(input.image_transform.images) == len(texts)
    return Recorded(input.image_transform.images, texts)


def texts_after_images(batch: Batch, input: Input) -> list[str]:
    """For each picture of a batch, the text up to the next or to the end of its document."""
    texts = []
    for b, image_index in enumerate(batch.image_index):
        is_image = (batch.tokens[b] == input.tokenizer.image_token) & (batch.segment_ids[b] > 0)
        ends = np.flatnonzero(is_image)[input.num_image_tokens - 1 :: input.num_image_tokens] + 1
        for index, start in zip(image_index, ends.tolist(), strict=False):
            if index < 0:
                continue
            stop = start
            same = batch.segment_ids[b, start - 1]
            while (
                stop < len(is_image) and not is_image[stop] and batch.segment_ids[b, stop] == same
            ):
                stop += 1
            texts.append(input.tokenizer.decode(batch.tokens[b, start:stop].tolist()))
    return texts


def batches_of(input: Input) -> Iterator[Counts]:
    """The whole path. A worker goes on; in this process, the recorded batches come again."""
    while True:
        iterator = input.iterator()
        while input.num_workers or iterator.step < NUM_RECORDED:
            batch = next(iterator)
            yield Counts(int(np.sum(batch.image_index >= 0)), int(np.sum(batch.segment_ids > 0)))


def bare(images: Sequence[Image], transform: ImageTransform) -> Iterator[Counts]:
    """Decoding and resizing, by as few calls as there can be."""
    decode = functools.partial(_bare_file, size=transform.image_size, cfg=transform.config)
    size = -(-len(images) // NUM_RECORDED)
    while True:
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            for image in batch:
                # Pictures that are drawn are no files.
                decode(image.data) if isinstance(image.data, bytes) else transform(image)
            yield Counts(len(batch), 0)


def _bare_file(data: bytes, size: int, cfg: Any) -> np.ndarray:
    picture = PIL.Image.open(io.BytesIO(data))
    inner = (size, size)
    if cfg.fit is Fit.PAD:
        scale = size / max(picture.size)
        inner = tuple(max(1, round(side * scale)) for side in picture.size)
    if cfg.jpeg_decoder is JpegDecoder.SIMPLEJPEG and picture.format == "JPEG":
        import simplejpeg

        pixels = simplejpeg.decode_jpeg(data, min_width=inner[0], min_height=inner[1])
        picture = PIL.Image.fromarray(pixels)
    elif cfg.jpeg_decoder is JpegDecoder.PILLOW_DRAFT:
        picture.draft(None, inner)
    picture.load()
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    return np.asarray(picture.resize(inner, PIL.Image.Resampling.BICUBIC))


def write_shard(path: Path, recorded: Recorded) -> None:
    """A shard of webdataset: `KEY.jpg`, whatever the format is, and `KEY.txt`."""
    with tarfile.open(path, "w") as tar:
        for i, (image, text) in enumerate(zip(*recorded, strict=True)):
            for name, data in ((f"{i:06}.jpg", image.data), (f"{i:06}.txt", text.encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def webdataset_batches(
    shard: Path, tokenizer: Tokenizer, *, size: int, num_images: int, num_workers: int
) -> Iterator[Counts]:
    """The pipeline that OpenFlamingo reads captions by, on one thread a process."""
    import torch
    import webdataset

    torch.set_num_threads(1)
    dataset = (
        webdataset.WebDataset(str(shard), resampled=True, shardshuffle=False)
        .decode("pilrgb")
        .to_tuple("jpg", "txt")
        .map_tuple(functools.partial(_normalised, size=size), tokenizer.encode)
        .batched(num_images, collation_fn=_collate)
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=num_workers)
    for images, tokens, _ in loader:
        yield Counts(len(images), int(tokens.numel()))


def _normalised(picture: PIL.Image.Image, size: int) -> Any:
    import torch

    pixels = np.array(picture.resize((size, size), PIL.Image.Resampling.BICUBIC))
    values = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255)
    return values.sub(0.5).div(0.25)


def _collate(samples: Sequence[tuple[Any, list[int]]]) -> Any:
    import torch

    longest = max(len(ids) for _, ids in samples)
    tokens = torch.zeros(len(samples), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, (_, ids) in enumerate(samples):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    return torch.stack([image for image, _ in samples]), tokens, mask


def _missing_packages() -> list[str]:
    missing = []
    for name in ("webdataset", "torch"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    return missing


def picture(rng: np.random.Generator, width: int) -> bytes:
    """A JPEG with as much detail as a photograph: noise whose amplitude is that of its grain."""
    height = width * 2 // 3
    values = np.full((height, width, 3), 128.0)
    for log_size in range(1, 8):
        shape = (height * 2**log_size // width + 1, 2**log_size + 1, 3)
        grain = PIL.Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        grown = grain.resize((width, height), PIL.Image.Resampling.BICUBIC)
        values += (np.asarray(grown, float) - 128) / log_size
    file = io.BytesIO()
    pixels = np.clip(values, 0, 255).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def synthetic_streams(folder: Path, width: int, num_images: int = 48) -> list[Stream.Config]:
    """Writes captions, pages and texts, and reads them in MM1's proportions of rows."""
    rng = np.random.default_rng(0)
    words = ["a", "photograph", "of", "two", "small", "red", "boats", "in", "the", "old", "harbour"]

    def text(num_words: int) -> str:
        return " ".join(rng.choice(words, num_words))

    names = [f"{i}.jpg" for i in range(num_images)]
    for name in names:
        (folder / name).write_bytes(picture(rng, width))
    captions = [{"image": name, "caption": text(12)} for name in names]
    pages = [
        {"images": [None, *pair, None], "texts": [text(60), None, None, text(60)]}
        for pair in zip(names[::2], names[1::2], strict=True)
    ]
    texts = [{"text": text(700)} for _ in names]
    streams = []
    for name, weight, records, to_document in (
        ("captions", 9, captions, caption_document),
        ("interleaved", 9, pages, interleaved_document),
        ("text", 2, texts, text_document),
    ):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        source = JsonlSource.default_config().set(path=str(path))
        corpus = Corpus.default_config().set(name=name, source=source, to_document=to_document)
        entry = CorpusWeight().set(corpus=corpus)
        streams.append(Stream.default_config().set(name=name, weight=weight, corpora=[entry]))
    return streams


def input_config(cfg: Any, num_rows: int) -> Any:
    """The input of an experiment with batches of a few of its rows, made in this process."""
    num_rows = min(num_rows, cfg.batch_size)
    group_rows = math.gcd(cfg.image_group_rows, num_rows)
    cfg = cfg.clone(batch_size=num_rows, image_group_rows=group_rows, num_workers=0, prefetch=0)
    cfg.packing.num_shards = None
    return cfg


def planned(input: Input) -> Counts:
    """Pictures and tokens of a row, on average over many rows."""
    planner = input.planner(range(input.batch_size))
    rows = [row for _ in range(NUM_PLANNED) for row in planner.next_rows()]
    records = [record for row in rows for record in row.records]
    return Counts(
        sum(record.num_images for record in records) / len(rows),
        sum(record.num_tokens for record in records) / len(rows),
    )


def contestants(input: Input, recorded: Recorded, folder: Path) -> dict[str, Contestant]:
    if not recorded.images:
        raise ValueError("the first batches hold no picture; there is nothing to compare")
    with_worker = copy.copy(input)
    with_worker.num_workers, with_worker.prefetch = 1, 1
    makers = {
        LIMIT: functools.partial(bare, recorded.images, input.image_transform),
        IN_PROCESS: functools.partial(batches_of, input),
        WORKER: functools.partial(batches_of, with_worker),
    }
    missing = _missing_packages()
    if missing:
        print(f"without webdataset: pip install {' '.join(missing)}", file=sys.stderr)
    elif not all(isinstance(image.data, bytes) for image in recorded.images):
        print("without webdataset: pictures of this config are drawn, not files", file=sys.stderr)
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
    """Pictures and tokens a second over rounds in which all take turns, and shares of the limit."""
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
    """What a step of the whole batch asks of each host.

    Args:
        cfg: The input's config, with all of its rows.
        images_per_second: Of a core, in rows that have so many pictures and tokens.
    """
    if cfg.batch_size % num_hosts:
        raise ValueError(f"--hosts={num_hosts}: must divide input.batch_size={cfg.batch_size}")
    rows = cfg.batch_size // num_hosts
    # Pictures that rows of other hosts show lie in this host's part of the buffer.
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
        "| per second of a core | pictures | tokens | of the limit |",
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
    """Measures the input of config `cfg`, prints what is found, and returns it."""
    if args.synthetic is not None:
        cfg.streams = synthetic_streams(folder, args.synthetic)
        cfg.tokenizer = cfg.tokenizer.clone(model_path=None, num_pieces=None)
    if not cfg.max_images:
        raise ValueError(f"--config={args.config} reads no pictures; there is nothing to compare")
    small = input_config(cfg, args.rows)
    recorded, input = record(small), small.instantiate()
    results = compare(contestants(input, recorded, folder), args.rounds)
    decoder = input.image_transform.config.jpeg_decoder.name
    images, tokens = planned(input)
    print(
        f"{args.config}: rows of {images:.1f} pictures and {tokens:,.0f} of "
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
            f"\nA step of {cfg.batch_size} rows has {need['images_per_step']:,.0f} pictures and "
            f"{need['tokens_per_step']:,.0f} tokens. At {args.step_seconds:g} s a step, each of "
            f"{args.hosts} hosts decodes {need['images_per_step_of_a_host']:,.0f} of them a step, "
            f"which keeps {need['cores_of_a_host']:.1f} such cores busy: set input.num_workers to "
            f"{math.ceil(need['cores_of_a_host'])} or more."
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

"""Converts datasets of other projects into a folder of records, the format that training reads.

    python -m mm1_jax convert_records --format=webdataset --input=cc3m --output=data/captions

After a stop or a kill, the same command resumes. The files do not depend on the number of workers.
"""

import argparse
import contextlib
import inspect
import os
import re
import shlex
import sys
import time
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mm1_jax.command import command, started_as
from mm1_jax.config import close_names
from mm1_jax.data.ingest.conversion_log import (
    OVERLAP,
    PROGRESS,
    QUARANTINE,
    example_of,
    reasons_of,
)
from mm1_jax.data.ingest.convert import Conversion, Progress, convert
from mm1_jax.data.ingest.filters import EvaluationOverlap, Filter, ImageCount
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.formats.registry import FORMATS
from mm1_jax.data.ingest.runners import Workers, beam_runner
from mm1_jax.data.record_files import MANIFEST, Manifest, RecordKind, verify
from mm1_jax.experiment_folders import EXPERIMENTS
from mm1_jax.flags import local_path, local_text, number, whole
from mm1_jax.launch.config_options import split_overrides
from mm1_jax.launch.launch import Launch
from mm1_jax.launch.named_configs import find_named_config, import_module

DAMAGED = 1
SECONDS_BETWEEN_LINES = 10

# Counts in the manifest, and their names in the summary.
NOTED = {
    "end_of_document_marks": "marks of the end of a document, at which pages and texts were cut",
    "empty_documents": "empty documents between such marks, which were dropped",
    "missing_images": "images that are missing from pages",
    "merged_turns": "turns of one role in a row, which were merged",
    "leading_answers": "answers before the first question, which were dropped",
    "blank_answers": "answers without text, which were dropped with their questions",
    "unanswered_questions": "questions at the end without an answer, which were dropped",
    "merged_questions": "questions that were merged into a conversation about the same image",
    "repeated_questions": "questions that were asked about the same image before, and dropped",
    "low_rated_questions": "questions with a low rating, which were dropped",
    "ocr_token_lines": "lines of reference OCR tokens, which were dropped",
    "entries_of_other_splits": "entries of other splits, which were skipped",
    "blank_system_turns": "system turns without text, which were dropped",
    "hidden_files": "hidden files, such as ._name, which were skipped",
}

EPILOG = """\
The finished folder holds shards of records and manifest.json. quarantine.jsonl lists entries that
are not valid records, with reasons, and overlap.jsonl images that are in a benchmark, if there are
any. Until the conversion is finished, DIR/progress/ records what is done.

options of a format:
  --option.NAME=VALUE   --list shows the options of each format

examples:
  %(prog)s --list
  %(prog)s --format=webdataset --input=cc3m --output=data/captions \\
      --license="see cc3m/LICENSE" --num_workers=8
  %(prog)s --format=obelics --input=obelics --output=data/interleaved \\
      --filters=mm1 --benchmark_images=benchmarks/mmbench
  %(prog)s --format=text --input=books --output=data/text \\
      --lengths_for=mm1_7b
  %(prog)s --verify --output=data/captions
  %(prog)s --format=webdataset --input=cc3m --output=data/captions \\
      --runner=beam --beam_args="--runner=FlinkRunner --flink_master=localhost:8081"

exit codes:
  0    done, or was done already
  1    --verify: a shard is damaged or missing
  2    the command or the data must be changed; the message says how
  130  interrupted; the same command resumes (143: by SIGTERM)
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    rest, overrides = split_overrides(arguments)
    rest, options = split_options(rest)
    parser = argparse.ArgumentParser(
        prog=started_as("convert_records"),
        description="Converts datasets of other projects into a folder of records.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="describe the formats, and exit")
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="a name of --list, or MODULE:CLASS for a Format of your own",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        type=local_path,
        metavar="PATH",
        help="file or folder in that format; may be repeated",
    )
    parser.add_argument(
        "--output", type=local_path, metavar="DIR", help="new folder for the records"
    )
    parser.add_argument("--license", default="unknown", metavar="TEXT", help="license of the data")
    parser.add_argument(
        "--filters",
        default="none",
        choices=list(named_filters()),
        help="filters of the module experiments.filters (default: none)",
    )
    parser.add_argument(
        "--benchmark_images",
        type=local_text,
        action="append",
        default=[],
        metavar="PATH",
        help="folder or file of benchmark images: images that are equal to them or look the same "
        "are dropped; may be repeated",
    )
    parser.add_argument(
        "--max_shard_bytes",
        type=_bytes,
        default=512 * 2**20,
        metavar="SIZE",
        help="most bytes of records per shard, before compression (default: 512M)",
    )
    parser.add_argument(
        "--max_bad_fraction",
        type=number(most=1.0),
        default=0.1,
        metavar="X",
        help="stop if a larger fraction of entries are not valid records, after at least 1000 "
        "entries (default: 0.1)",
    )
    parser.add_argument(
        "--num_workers",
        type=whole(),
        metavar="N",
        help="number of processes (default: number of cores)",
    )
    parser.add_argument(
        "--runner", choices=("local", "beam"), default="local", help="default: local"
    )
    parser.add_argument("--beam_args", default="", metavar="ARGS", help="pipeline options for Beam")
    parser.add_argument(
        "--lengths_for",
        metavar="NAME",
        help="a named config that reads --output: also compute its table of lengths, which packing "
        "needs (otherwise its first launch computes it); --config.PATH=VALUE sets a field",
    )
    parser.add_argument(
        "--module", metavar="MODULE", help="module of --lengths_for (default: experiments)"
    )
    parser.add_argument(
        "--data_dir",
        type=local_text,
        metavar="DIR",
        help="folder of the tokenizer and the records of --lengths_for (default: the parent of "
        "--output)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare the shards of --output with its manifest"
    )
    args = parser.parse_args(rest)
    args.options, args.overrides = options, overrides
    needed = ("output",) if args.verify else () if args.list else ("format", "input", "output")
    if missing := [f"--{name}" for name in needed if not getattr(args, name)]:
        parser.error(f"{', '.join(missing)}: required; --help has examples")
    if args.num_workers is None:
        has_affinity = hasattr(os, "sched_getaffinity")
        args.num_workers = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return args


def split_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates `--option.NAME=VALUE` from the other arguments."""
    rest, options = [], {}
    for argument in arguments:
        if (match := re.fullmatch(r"--option\.(\w+)=(.*)", argument, re.DOTALL)) is None:
            rest.append(argument)
        else:
            options[match[1]] = match[2]
    return rest, options


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)B?", text.upper())
    if match is None or int(match[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected bytes, such as 100000 or 512M")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def find_format(name: str) -> type[Format]:
    """Returns the format with a name of the registry, or the class at MODULE:CLASS."""
    if name in FORMATS:
        return FORMATS[name]
    module, colon, class_name = name.partition(":")
    if not colon:
        close = close_names(name, FORMATS)
        hint = f"did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(FORMATS)}."
        raise ValueError(f"--format={name}: there is no such format; {hint}")
    try:
        found = getattr(import_module(module, "--format"), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--format={name}: {error}; expected a module that Python finds (PYTHONPATH), and a "
            "Format in it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Format)):
        raise ValueError(f"--format={name}: it is not a subclass of Format")
    return found


def named_filters() -> dict[str, list[Filter.Config]]:
    """Returns filters by name, from the module `experiments.filters`."""
    return import_module(f"{EXPERIMENTS}.filters", "--filters").named_filters()


def without_benchmarks(
    filters: Sequence[Filter.Config], images: Sequence[str]
) -> list[Filter.Config]:
    """Adds a filter for images of benchmarks, before a filter that counts images of documents."""
    overlap = EvaluationOverlap.default_config().set(images=list(images))
    is_last = [cfg.klass is ImageCount for cfg in filters]
    place = is_last.index(True) if True in is_last else len(filters)
    return [*filters[:place], overlap, *filters[place:]]


def format_options(format: type[Format]) -> dict[str, inspect.Parameter]:
    common = dict(inspect.signature(Format.make, eval_str=True).parameters)
    common.pop("options")
    if format.__init__ is object.__init__:
        return common
    parameters = inspect.signature(format.__init__, eval_str=True).parameters
    return {name: value for name, value in parameters.items() if name != "self"} | common


def parse_options(format: type[Format], texts: dict[str, str]) -> dict[str, Any]:
    """Converts the values of a format's options to the types in its constructor's signature."""
    known = format_options(format)
    values = {}
    for name, text in texts.items():
        if name not in known:
            close = close_names(name, known)
            hint = f"did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(
                f"--option.{name}: the format {format.name} has no such option; "
                f"{hint or 'it has ' + (', '.join(known) or 'none')}"
            )
        annotation = known[name].annotation
        union = isinstance(annotation, types.UnionType)
        choices = [each for each in typing.get_args(annotation) if each is not types.NoneType]
        values[name] = _value(f"--option.{name}", choices[0] if union else annotation, text)
    return values


def _value(flag: str, kind: Any, text: str) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{flag}={text}: expected true or false")
        return text.lower() == "true"
    if kind in (int, float, Path):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"{flag}={text}: expected a value of type {kind.__name__}") from None
    return text


def describe_formats() -> str:
    lines = []
    for name, format in sorted(FORMATS.items()):
        summary = (inspect.getdoc(format) or "").partition("\n")[0]
        # A format may learn the kind of its records from the data.
        kind = format.kind.value if isinstance(format.kind, RecordKind) else "any"
        lines.append(f"{name:<20} {kind:<14} {summary}")
        if options := format_options(format):
            lines.append(f"{'':<20} {'':<14} options: {', '.join(options)}")
    return "\n".join(lines)


class Display:
    """Shows progress: a bar on a terminal, otherwise a line every few seconds."""

    def __init__(self):
        self._start = self._last = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._stage = ""

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self.close()
            self._stage, self._start = progress.stage, time.monotonic()
            if self._is_terminal:
                self._bar = tqdm(
                    desc=progress.stage,
                    total=progress.num_units,
                    initial=progress.units,
                    unit="unit",
                    # Refreshes the count of entries even while no unit is finished.
                    miniters=0,
                )
        seconds = max(time.monotonic() - self._start, 1e-9)
        speed = f"{progress.entries} entries, {progress.entries / seconds:.0f}/s"
        if self._bar is not None:
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(progress.units - self._bar.n)
        elif time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            units = f"{progress.units} of {progress.num_units} units"
            print(f"{progress.stage}: {units}, {speed}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def summary(folder: Path, manifest: Manifest) -> str:
    counts = manifest.counts
    size = sum(shard.num_bytes for shard in manifest.shards)
    shards = f"{len(manifest.shards)} shard{'s' * (len(manifest.shards) != 1)}"
    lines = [
        f"{folder / MANIFEST}: {manifest.num_records} records of {manifest.kind.value} in "
        f"{shards}, {size / 1e6:.1f} MB; {counts.get('images', 0)} images, "
        f"{counts.get('characters', 0)} characters"
    ]
    for name, said in NOTED.items():
        if name in counts:
            lines.append(f"{said}: {counts[name]}")
            lines += [f"  {n:>9}  {reason}" for reason, n in reasons_of(name, counts)]
    for mark, n in reasons_of("marks", counts):
        lines.append(f"records that hold {mark}, which is kept as text: {n}")
    if reasons := reasons_of("rejected", counts):
        lines.append(
            f"{counts['rejected']} of {counts['entries']} entries were rejected; "
            f"{folder / QUARANTINE} lists them"
        )
        lines += [f"  {n:>9}  {name}" for name, n in reasons]
        lines.append(example_of(folder, reasons[0][0]))
    dropped = {name: n for name, n in counts.items() if name[0].isupper()}
    if dropped:
        lines.append("dropped by filters")
        lines += [f"  {n:>9}  {name}" for name, n in dropped.items()]
    if (folder / OVERLAP).exists():
        lines.append(f"{folder / OVERLAP} lists the images that are in benchmarks")
    return "\n".join(lines)


def verified(folder: Path) -> int:
    num_shards = len(Manifest.read(folder).shards)
    damaged = list(verify(folder))
    for name in damaged:
        print(f"{folder / name}: damaged or missing")
    if not damaged:
        print(f"{folder}: all {num_shards} shards are as they were written")
    return DAMAGED if damaged else 0


def lengths_input(args: argparse.Namespace) -> Any:
    """Returns the input config of --lengths_for. Raises ValueError if it does not read --output."""
    # Imported here, since the processes that convert do not need it.
    from mm1_jax.data.input import corpora_of_folder

    data_dir = args.data_dir or str(args.output.absolute().parent)
    named = find_named_config(args.lengths_for, args.module)
    overrides = {
        **args.overrides,
        "input.data_dir": data_dir,
        "input.num_workers": str(args.num_workers),
    }
    try:
        cfg = Launch(named.name, named.module, overrides).resolved_config().input
        corpora_of_folder(cfg, args.output, "train")
    except ValueError as error:
        raise ValueError(f"--lengths_for={args.lengths_for}: {error}") from error
    return cfg


def lengths(cfg: Any, folder: Path) -> list[str]:
    """Computes the tables of lengths of a converted folder, and describes the training ones."""
    from mm1_jax.data.input import lengths_of_folder

    tables = {split: lengths_of_folder(cfg, folder, split) for split in ("train", "test")}
    return [f"{name}, examples to train on: {x.describe()}" for name, x in tables["train"].items()]


def conversion(args: argparse.Namespace) -> Conversion:
    format = find_format(args.format)
    options = parse_options(format, args.options)
    filters = list(named_filters()[args.filters])
    if args.benchmark_images:
        filters = without_benchmarks(filters, args.benchmark_images)
    return Conversion(
        format=format.make(**options),
        inputs=tuple(args.input),
        output=args.output,
        license=args.license,
        options=options,
        filters=tuple(filters),
        max_shard_bytes=args.max_shard_bytes,
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.list:
        print(describe_formats())
        return 0
    if args.verify:
        return verified(args.output)
    # Before the conversion, so that errors in the options appear at once.
    cfg = None if args.lengths_for is None else lengths_input(args)
    is_beam = args.runner == "beam"
    runner = beam_runner(shlex.split(args.beam_args)) if is_beam else Workers(args.num_workers)
    was_done = (args.output / MANIFEST).exists()
    try:
        with contextlib.closing(Display()) as display:
            manifest = convert(
                conversion(args),
                runner=runner,
                max_bad_fraction=args.max_bad_fraction,
                on_progress=display,
            )
    except KeyboardInterrupt as stop:
        stop.add_note(f"{args.output / PROGRESS} knows what is done, the same command resumes")
        raise
    if was_done:
        print("This was converted before; nothing is left to do.")
    print(summary(args.output, manifest))
    if cfg is not None:
        try:
            print("\n".join(lengths(cfg, args.output)))
        except ValueError as error:
            raise ValueError(f"--lengths_for={args.lengths_for}: {error}") from error
    return 0

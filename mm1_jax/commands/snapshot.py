"""Samples the mixture of a config once and stores the batches, to train from them many times.

python -m mm1_jax snapshot --config=mm1_tiny --steps=100 --output=snapshots/tiny
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from mm1_jax.command import command, started_as
from mm1_jax.data.input import Input, packed
from mm1_jax.data.packing import PlannedRow
from mm1_jax.data.snapshot import CorpusExamples, Form, Snapshot, write_snapshot
from mm1_jax.flags import local_path, whole
from mm1_jax.launch.config_options import (
    add_config_options,
    chosen_launch,
    say_note,
    split_overrides,
)

EPILOG = """\
--form=ids stores which records are in each row; --form=rows also stores their tokens and encoded
images, so that training reads one file instead of all corpora. Both make the same batches as the
config itself, bit for bit. --config.PATH=VALUE changes the config as in a launch, which must then
be given the same value.

examples:
  %(prog)s --config=mm1_tiny --steps=100 --output=snapshots/tiny
  python -m mm1_jax.launch --config=mm1_tiny --config.input.snapshot=snapshots/tiny \\
      --config.trainer.max_steps=100
"""


def planned_steps(input: Input, num_steps: int) -> Iterator[Sequence[PlannedRow]]:
    planner = input.planner(range(input.batch_size))
    for _ in range(num_steps):
        yield planner.next_rows()


def snapshot(input: Input, num_steps: int, form: Form, folder: Path) -> Snapshot:
    """Writes the first steps of an Input. Until all are written, the folder holds no snapshot."""
    if input.snapshot is not None:
        raise ValueError("input.snapshot is set: this is a snapshot already")
    facts = {
        "num_steps": num_steps,
        "batch_size": input.batch_size,
        "fingerprint": input.fingerprint(),
        "corpora": dict(zip(input.corpus_names, input.num_usable, strict=True)),
    }
    with tqdm(total=num_steps, unit=" steps", mininterval=1, desc=str(folder)) as progress:
        write_snapshot(
            folder,
            form,
            planned_steps(input, num_steps),
            examples=CorpusExamples(input.corpora, input.lengths, input.example_builder),
            facts=facts,
            progress=progress.update,
        )
    return Snapshot(folder)


@command
def main(argv: Sequence[str] | None = None) -> int:
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog=started_as("snapshot"),
        description="Samples the mixture of a config once and stores it, for any number of runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_options(parser)
    parser.add_argument(
        "--steps", type=whole(), required=True, metavar="N", help="number of batches"
    )
    parser.add_argument(
        "--output", type=local_path, required=True, metavar="DIR", help="new folder"
    )
    parser.add_argument(
        "--form", choices=[form.value for form in Form], default=Form.IDS.value, help="default: ids"
    )
    options = parser.parse_args(rest)
    if options.output.exists() and any(options.output.iterdir()):
        raise ValueError(f"--output={options.output} is not empty; name a new folder")
    cfg = chosen_launch(options, overrides).resolved_config(note=say_note)
    input = packed(cfg.input.instantiate(split="train"))
    made = snapshot(input, options.steps, Form(options.form), options.output)
    size = sum(path.stat().st_size for path in made.folder.iterdir())
    rows = made.num_steps * made.batch_size
    print(
        f"{made.folder}: {made.num_steps:,} steps, {rows:,} rows, {size:,} bytes "
        f"({size / rows:,.0f} a row)"
    )
    return 0

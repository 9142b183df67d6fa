"""Trains a sentencepiece tokenizer on records or text files, or the one that ships.

python -m mm1_jax train_tokenizer --data_dir=data --output=data/tokenizer.model
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mm1_jax.batch import Document, Text
from mm1_jax.command import command, started_as
from mm1_jax.data.corpora import digits, scenes
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.corpora.kinds import TO_DOCUMENT
from mm1_jax.data.input import Input
from mm1_jax.data.mixed_input import used_corpora
from mm1_jax.data.record_files import MANIFEST, BadRecord, RecordFiles
from mm1_jax.data.splitting import text_blocks
from mm1_jax.data.tokenizers import sentencepiece as tokenizer
from mm1_jax.flags import local_path, whole
from mm1_jax.launch.config_options import (
    add_config_options,
    chosen_launch,
    say_note,
    split_overrides,
)
from mm1_jax.storage import write_whole

EPILOG = """\
--config reads the training documents of a config, including the words that the config adds to the
records. File and size default to its fields input.tokenizer.model_path and num_pieces. Without
--config, --data_dir and --text, the tokenizer is trained on the embedded corpora, like the one that
ships with the package.

The same texts give the same file. Records are sampled evenly from each folder or corpus, in equal
shares of --max_characters.

examples:
  %(prog)s --data_dir=data --output=data/tokenizer.model --vocab_size=32000
  %(prog)s --config=mm1_tiny_easy_vqa --data_dir=data
  %(prog)s --text a.txt b.txt --output=my.model --vocab_size=8000
"""
VOCAB_SIZE = 704
NUM_RECORDS = 1024  # Per embedded corpus; more records add no new words.


def embedded_texts() -> Iterator[str]:
    """Yields the texts of the first training records of every embedded corpus."""
    for family in (digits, scenes):
        for kind in Kind:
            corpus = family.corpus(kind, num_records=NUM_RECORDS).instantiate(split="train")
            for index in range(min(len(corpus), NUM_RECORDS)):
                for segment in corpus.document(index).segments:
                    if isinstance(segment, Text):
                        yield segment.text


def file_texts(paths: list[Path]) -> Iterator[str]:
    is_empty = True
    for path in paths:
        try:
            with path.open(encoding="utf-8-sig") as file:
                for line in file:
                    if "\0" in line:
                        raise ValueError(f"--text: {path} is not UTF-8 but, by its NULs, UTF-16")
                    is_empty = is_empty and not line.strip()
                    yield from text_blocks(line.rstrip("\n"), 1000)
        except UnicodeDecodeError as error:
            raise ValueError(f"--text: {path} is not UTF-8: {error}") from error
    if is_empty:
        raise ValueError(f"--text: there is no text in {', '.join(map(str, paths))}")


def folder_texts(data_dir: Path, max_characters: int) -> Iterator[str]:
    """Yields texts of the records of all folders in `data_dir`, in equal shares of characters."""
    folders = sorted(path.parent for path in data_dir.glob(f"*/{MANIFEST}"))
    if not folders:
        raise ValueError(
            f"--data_dir={data_dir} has no folder of records; make some with "
            "python -m mm1_jax convert_records"
        )
    for folder in folders:
        files = RecordFiles(folder)
        print(f"{folder}: {len(files):,} records of {files.manifest.kind.value}", file=sys.stderr)
        yield from _first_characters(_record_texts(files), max_characters // len(folders))


def _record_texts(files: RecordFiles) -> Iterator[str]:
    to_document = TO_DOCUMENT[files.manifest.kind]
    # Without their boxes, texts of conversations keep the placeholders.
    return _texts(len(files), lambda index: to_document({**files[index], "boxes": None}))


def corpora_texts(cfg: Input.Config, max_characters: int) -> Iterator[str]:
    """Yields texts of the training documents of an input, in equal shares of characters."""
    corpora = used_corpora(cfg)
    for corpus_cfg in corpora:
        corpus = corpus_cfg.instantiate(split="train")
        print(f"{corpus.name}: {len(corpus):,} records", file=sys.stderr)
        yield from _first_characters(
            _texts(len(corpus), corpus.document), max_characters // len(corpora)
        )


def _texts(num: int, document_of: Callable[[int], Document]) -> Iterator[str]:
    """Yields the lines of `num` documents, whose order samples them evenly at any point."""
    for index in _evenly(num):
        try:
            document = document_of(index)
        except (BadRecord, LookupError, TypeError, AttributeError):
            # Training quarantines such a record; a tokenizer does not need it.
            continue
        for segment in document.segments:
            if isinstance(segment, Text):
                for line in segment.text.splitlines():
                    # sentencepiece skips texts longer than 4192 bytes.
                    yield from text_blocks(line, 1000)


def _first_characters(texts: Iterable[str], max_characters: int) -> Iterator[str]:
    left = max_characters
    for text in texts:
        if not text.strip():
            continue
        yield text
        left -= len(text)
        if left <= 0:
            return


def _evenly(num: int) -> Iterator[int]:
    """Yields all of range(num) in bit-reversed order: any first n of them are spread evenly."""
    bits = max(1, (num - 1).bit_length())
    for i in range(1 << bits):
        index = int(f"{i:0{bits}b}"[::-1], 2)
        if index < num:
            yield index


@command
def main(argv: Sequence[str] | None = None) -> int:
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog=started_as("train_tokenizer"),
        description="Trains a sentencepiece tokenizer on records, text files or embedded corpora.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=local_path, help="file to write; required without --config"
    )
    parser.add_argument(
        "--vocab_size",
        type=whole(),
        help=f"most pieces (default: {VOCAB_SIZE}, or the field of --config)",
    )
    add_config_options(parser, required=False)
    parser.add_argument("--text", type=local_path, nargs="*", default=[], help="UTF-8 text files")
    parser.add_argument(
        "--max_characters",
        type=whole(),
        default=100_000_000,
        help="most characters to read, over all folders or corpora (default: %(default)s)",
    )
    args = parser.parse_args(rest)
    output, vocab_size = args.output, args.vocab_size
    if args.config is not None:
        cfg = chosen_launch(args, overrides).resolved_config(note=say_note).input
        texts = corpora_texts(cfg, args.max_characters)
        if output is None and cfg.tokenizer.model_path is None:
            raise ValueError(
                f"--output is required: {args.config} uses the tokenizer of the package "
                "(input.tokenizer.model_path is not set)"
            )
        output = tokenizer.tokenizer_path(cfg.tokenizer) if output is None else output
        vocab_size = cfg.tokenizer.num_pieces if vocab_size is None else vocab_size
    elif output is None:
        raise ValueError("--output=FILE is required without --config")
    elif args.data_dir is not None:
        texts = folder_texts(Path(args.data_dir), args.max_characters)
    elif args.text:
        texts = file_texts(args.text)
    else:
        texts = embedded_texts()
    model = tokenizer.train(texts, VOCAB_SIZE if vocab_size is None else vocab_size)
    write_whole(output, model)
    print(f"Wrote {output}")
    return 0

"""Trains a sentencepiece tokenizer: on the records of a folder, on text files, or the shipped one.

    python tools/train_tokenizer.py --data_dir=data --output=data/tokenizer.model --vocab_size=32000
    python tools/train_tokenizer.py --text a.txt b.txt --output=my.model --vocab_size=8000
    python tools/train_tokenizer.py --output=mm1_jax/data/assets/tiny.model

The last one makes the tokenizer that ships with the package, of the embedded corpora. The same
texts give the same file. Of a folder, texts are taken from records that lie evenly over all of it,
as many characters from each folder of records in it, up to --max_characters.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from mm1_jax.batch import Text
from mm1_jax.data import tokenizer
from mm1_jax.data.corpora import digits, scenes
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.corpora.kinds import TO_DOCUMENT
from mm1_jax.data.record_files import MANIFEST, RecordFiles
from mm1_jax.data.sources import BadRecord
from mm1_jax.data.splitting import text_blocks
from mm1_jax.files import write_whole

VOCAB_SIZE = 704
NUM_RECORDS = 1024  # Of each embedded corpus; more of them say nothing new.


def embedded_texts() -> Iterator[str]:
    """The texts of the first training records of every embedded corpus."""
    for family in (digits, scenes):
        for kind in Kind:
            corpus = family.corpus(kind, num_records=NUM_RECORDS).instantiate(split="train")
            for index in range(min(len(corpus), NUM_RECORDS)):
                for segment in corpus.document(index).segments:
                    if isinstance(segment, Text):
                        yield segment.text


def file_texts(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield from text_blocks(line.rstrip("\n"), 1000)


def folder_texts(data_dir: Path, max_characters: int) -> Iterator[str]:
    """Texts of the records of all folders in `data_dir`, as many characters of each."""
    folders = sorted(path.parent for path in data_dir.glob(f"*/{MANIFEST}"))
    if not folders:
        raise ValueError(
            f"--data_dir={data_dir} has no folder of records; make some with "
            "tools/convert_records.py"
        )
    for folder in folders:
        files = RecordFiles(folder)
        print(f"{folder}: {len(files):,} records of {files.manifest.kind.value}", file=sys.stderr)
        yield from _first_characters(_record_texts(files), max_characters // len(folders))


def _record_texts(files: RecordFiles) -> Iterator[str]:
    to_document = TO_DOCUMENT[files.manifest.kind]
    for index in _evenly(len(files)):
        try:
            document = to_document(files[index])
        except (BadRecord, LookupError, TypeError, AttributeError):
            # Training quarantines it; here, it is one of very many.
            continue
        for segment in document.segments:
            if isinstance(segment, Text):
                for line in segment.text.splitlines():
                    # The trainer passes over what is longer than 4192 bytes.
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
    """All of range(num), so that the first n of them lie evenly over it, for any n."""
    bits = max(1, (num - 1).bit_length())
    for i in range(1 << bits):
        index = int(f"{i:0{bits}b}"[::-1], 2)
        if index < num:
            yield index


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    parser.add_argument("--vocab_size", type=int, default=VOCAB_SIZE, help="default: %(default)s")
    parser.add_argument("--data_dir", type=Path, help="a folder with folders of records")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="UTF-8 text files")
    parser.add_argument(
        "--max_characters",
        type=int,
        default=100_000_000,
        help="of --data_dir, over all its folders (default: %(default)s)",
    )
    args = parser.parse_args()
    try:
        if args.data_dir is not None:
            texts = folder_texts(args.data_dir, args.max_characters)
        elif args.text:
            texts = file_texts(args.text)
        else:
            texts = embedded_texts()
        model = tokenizer.train(texts, args.vocab_size)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_whole(args.output, model)
    print(f"Wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

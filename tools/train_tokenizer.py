"""Trains the tokenizer that ships with the package, on the texts of the embedded corpora.

    python tools/train_tokenizer.py --output=mm1_jax/data/assets/tiny.model

The same corpora give the same file. With --text, trains on the lines of text files instead.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from mm1_jax.batch import Text
from mm1_jax.data import tokenizer
from mm1_jax.data.corpora import digits, scenes
from mm1_jax.data.corpora.embedded import Kind

VOCAB_SIZE = 704
NUM_RECORDS = 1024  # Of each corpus; more of them say nothing new.


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
        yield from path.read_text(encoding="utf-8").splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vocab_size", type=int, default=VOCAB_SIZE)
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="UTF-8 text files")
    args = parser.parse_args()
    texts = file_texts(args.text) if args.text else embedded_texts()
    args.output.write_bytes(tokenizer.train(texts, args.vocab_size))
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()

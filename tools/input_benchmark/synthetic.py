"""Random captions, pages and texts on disk, with images that cost as much as photographs."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.corpora.interleaved import interleaved_document
from mm1_jax.data.corpora.text import text_document
from mm1_jax.data.mixture import CorpusWeight, Stream
from mm1_jax.data.sources.jsonl import JsonlSource

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def picture(rng: np.random.Generator, width: int) -> bytes:
    """Returns a JPEG as detailed as a photograph: noise of all grain sizes, weaker if finer."""
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


def photographs(folder: Path) -> list[bytes]:
    """Returns the image files of a folder."""
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(f"--photos={folder}: no files with the suffixes {', '.join(SUFFIXES)}")
    return [path.read_bytes() for path in paths]


def synthetic_streams(
    folder: Path, width: int, num_images: int = 48, photos: Sequence[bytes] = ()
) -> list[Stream.Config]:
    """Writes captions, pages and texts; returns streams in MM1's proportions of rows.

    Args:
        photos: Image files to take instead of drawn ones; as many pictures as there are.
    """
    num_images = len(photos) // 2 * 2 or num_images
    rng = np.random.default_rng(0)
    words = ["a", "photograph", "of", "two", "small", "red", "boats", "in", "the", "old", "harbour"]

    def text(num_words: int) -> str:
        return " ".join(rng.choice(words, num_words))

    names = [f"{i}.jpg" for i in range(num_images)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(photos[i] if photos else picture(rng, width))
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

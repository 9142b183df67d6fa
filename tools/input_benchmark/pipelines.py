"""Ways to make batches of the same images: our input, bare decoding, webdataset with torch."""

import functools
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from input_benchmark.contestants import NUM_RECORDED, Counts

from mm1_jax.batch import Batch, Image, View
from mm1_jax.data.grids import padded_size
from mm1_jax.data.images import Fit, ImageTransform, JpegDecoder
from mm1_jax.data.input import Input
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer


class Recorded(NamedTuple):
    """Images of batches as they are stored, and the text after each."""

    images: list[Image]
    texts: list[str]


class RecordingTransform(ImageTransform):
    """Records the images that it transforms, except those that fail to decode."""

    def __init__(self, cfg: ImageTransform.Config):
        super().__init__(cfg)
        self.images: list[Image] = []

    def views(self, images: Sequence[Image], *args: Any) -> list[np.ndarray]:
        pixels = super().views(images, *args)
        self.images += images
        return pixels


def record(cfg: Any) -> Recorded:
    """Returns the images of the first batches of an input, in order."""
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
    """Returns the text after each image of a batch, up to the next image or the document's end."""
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
    """Yields counts of our input; without a worker, the recorded batches repeat."""
    while True:
        iterator = input.iterator()
        while input.num_workers or iterator.step < NUM_RECORDED:
            batch = next(iterator)
            yield Counts(int(np.sum(batch.image_index >= 0)), int(np.sum(batch.segment_ids > 0)))


def bare(images: Sequence[Image], transform: ImageTransform) -> Iterator[Counts]:
    """Makes the pixels of batches with as few calls as possible: the limit of any input.

    Like the input, decodes each picture, resizes it to its grid and to its overview by the same
    filter, cuts the tiles, and copies all views into one new array per batch. Other than the input,
    reads no records, plans and tokenizes nothing, decodes once even if views allow different
    scales, applies no EXIF orientation or transparency, and has no empty slots to fill.
    """
    pictures: list[list[Image]] = []
    for image in images:
        if image.continues:
            pictures[-1].append(image)
        else:
            pictures.append([image])
    length, size = -(-len(pictures) // NUM_RECORDED), transform.image_size
    while True:
        for start in range(0, len(pictures), length):
            batch = pictures[start : start + length]
            pixels = np.empty((sum(map(len, batch)), size, size, 3), np.uint8)
            slots = iter(pixels)
            for views in batch:
                data = views[0].data
                # Drawn images are not files.
                made = (
                    bare_views(data, views, size, transform.config)
                    if isinstance(data, bytes)
                    else transform.views(views)
                )
                for view in made:
                    next(slots)[:] = view
            yield Counts(len(pixels), 0)


def bare_views(data: bytes, views: Sequence[Image], size: int, cfg: Any) -> list[np.ndarray]:
    """Decodes a picture once, resizes it to its grid and to its overview, and cuts the tiles."""
    picture = PIL.Image.open(io.BytesIO(data))
    grid = next((image.view for image in views if image.view is not None), View(1, 1, 0, 0))
    full = inner = (grid.columns * size, grid.rows * size)
    if grid.pads or (views[0].view is None and len(views) == 1 and cfg.fit is Fit.PAD):
        inner = padded_size(picture.size, full)
    if cfg.jpeg_decoder is JpegDecoder.SIMPLEJPEG and picture.format == "JPEG":
        import simplejpeg

        pixels = simplejpeg.decode_jpeg(data, min_width=inner[0], min_height=inner[1])
        picture = PIL.Image.fromarray(pixels)
    elif cfg.jpeg_decoder is JpegDecoder.PILLOW_DRAFT:
        picture.draft(None, inner)
    picture.load()
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    canvas = picture.resize(inner, PIL.Image.Resampling.BICUBIC)
    if inner != full:
        padded = PIL.Image.new("RGB", full)
        padded.paste(canvas, ((full[0] - inner[0]) // 2, (full[1] - inner[1]) // 2))
        canvas = padded
    whole, made = np.asarray(canvas), []
    for image in views:
        if image.view is None and full != (size, size):
            made.append(np.asarray(picture.resize((size, size), PIL.Image.Resampling.BICUBIC)))
        else:
            row, column = (0, 0) if image.view is None else (image.view.row, image.view.column)
            made.append(whole[row * size :, column * size :][:size, :size])
    return made


def write_shard(path: Path, recorded: Recorded) -> None:
    """Writes a webdataset shard: `KEY.jpg` (of any image format) and `KEY.txt`."""
    with tarfile.open(path, "w") as tar:
        for i, (image, text) in enumerate(zip(*recorded, strict=True)):
            for name, data in ((f"{i:06}.jpg", image.data), (f"{i:06}.txt", text.encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def webdataset_batches(
    shard: Path, tokenizer: Tokenizer, *, size: int, num_images: int, num_workers: int
) -> Iterator[Counts]:
    """Runs OpenFlamingo's pipeline for captions, with one thread per process."""
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


def missing_packages() -> list[str]:
    missing = []
    for name in ("webdataset", "torch"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    return missing

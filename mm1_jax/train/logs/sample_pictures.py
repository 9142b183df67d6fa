"""Images of samples: each tile shows an input image, the prompt and the model's answer."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

TILE_WIDTH = 208
_PICTURE_HEIGHT = 112
_MARGIN = 8
_FONT_SIZE = 13
_LINE_HEIGHT = 17
_LETTERS_PER_LINE = 28
_PROMPT_LINES = 3
_ANSWER_LINES = 4
# Fewer than both limits together: if prompt and answer are both long, the answer is truncated.
_TEXT_LINES = 6
TILE_HEIGHT = _PICTURE_HEIGHT + _TEXT_LINES * _LINE_HEIGHT + 4 * _MARGIN

_GREY, _GREEN, _RED, _WHITE = (90, 90, 90), (0, 120, 40), (190, 20, 20), (255, 255, 255)


def sample_tile(sample: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Draws the image of a sample above its prompt and the answer.

    The frame is green for a correct answer and red for a wrong one. A wrong answer is shown with
    the correct one: "answer 3, expected 7".

    Args:
        sample: An `evals.evaluator.Sample` with an image.
    """
    colour = {True: _GREEN, False: _RED, None: _GREY}[sample.correct]
    tile = Image.new("RGB", (TILE_WIDTH, TILE_HEIGHT), _WHITE)
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(_FONT_SIZE)
    draw.rectangle((2, 2, TILE_WIDTH - 3, TILE_HEIGHT - 3), outline=colour, width=2)

    picture = _fit(Image.fromarray(sample.image))
    tile.paste(picture, ((TILE_WIDTH - picture.width) // 2, _MARGIN))

    answer = sample.answer.strip() or "(nothing)"
    answer_lines = _last_lines(answer, _ANSWER_LINES)
    if sample.correct is False:
        answer_lines = _answer_and_reference(answer, sample.reference.strip())
    lines = [(line, _GREY) for line in _last_lines(sample.prompt, _PROMPT_LINES)]
    lines += [(line, colour) for line in answer_lines]
    for i, (line, fill) in enumerate(lines[:_TEXT_LINES]):
        top = _PICTURE_HEIGHT + 2 * _MARGIN + i * _LINE_HEIGHT
        draw.text((_MARGIN, top), line, fill=fill, font=font)
    return np.asarray(tile)


def sample_grid(samples: Sequence[Any], num_columns: int = 8) -> UInt8[np.ndarray, "h w 3"]:
    """Arranges the tiles of samples in rows; the last row is filled with white."""
    tiles = [sample_tile(sample) for sample in samples]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % num_columns)
    starts = range(0, len(tiles), num_columns)
    rows = [np.concatenate(tiles[start : start + num_columns], axis=1) for start in starts]
    return np.concatenate(rows, axis=0)


def choose_samples(samples: Sequence[Any], count: int) -> list[Any]:
    """Chooses at most `count` samples with images, evenly from all benchmarks, in order."""
    by_benchmark = defaultdict(list)
    for sample in samples:
        if sample.image is not None:
            by_benchmark[sample.benchmark].append(sample)
    longest = max(map(len, by_benchmark.values()), default=0)
    turns = [group[i] for i in range(longest) for group in by_benchmark.values() if i < len(group)]
    chosen = {id(sample) for sample in turns[:count]}
    return [sample for group in by_benchmark.values() for sample in group if id(sample) in chosen]


def _fit(picture: Image.Image) -> Image.Image:
    """Scales an image to the available height or width; enlarged images keep sharp pixels."""
    scale = min(_PICTURE_HEIGHT / picture.height, (TILE_WIDTH - 2 * _MARGIN) / picture.width)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)


def _answer_and_reference(answer: str, reference: str) -> list[str]:
    """Formats a wrong answer and the correct one, on one line if both are short."""
    given, right = f"answer {answer},", f"expected {reference}"
    if len(line := f"{given} {right}") <= _LETTERS_PER_LINE:
        return [line]
    half = _ANSWER_LINES // 2
    return [*_first_lines(given, half), *_first_lines(right, half)]


def _first_lines(text: str, limit: int) -> list[str]:
    lines = textwrap.wrap(" ".join(text.split()), _LETTERS_PER_LINE)
    return lines if len(lines) <= limit else [*lines[: limit - 1], lines[limit - 1][:-4] + " ..."]


def _last_lines(text: str, limit: int) -> list[str]:
    """Wraps text to at most `limit` lines; keeps the end of longer text, which has the question."""
    lines = textwrap.wrap(" ".join(text.split()), _LETTERS_PER_LINE)
    return lines if len(lines) <= limit else ["...", *lines[len(lines) - limit + 1 :]]

"""HTML page of a benchmark's best and worst answers: picture, prompt, references, answer.

The page is a single file that contains the pictures and loads nothing from the network.
"""

import base64
import html
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_JPEG_QUALITY = 88
# Gray level between pictures side by side; white and black backgrounds both stand out from it.
_GAP_GRAY = 200
_STYLE = """
body{font:15px/1.4 system-ui,sans-serif;margin:2rem;color:#222;background:#fff}
.cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(18rem,1fr));gap:1rem}
.case{border:1px solid #ccc;border-left:6px solid #888;padding:.6rem;overflow-wrap:anywhere}
.best .case{border-left-color:#087828}.worst .case{border-left-color:#be1414}
img{max-width:100%;max-height:16rem;min-height:6rem;display:block;margin-bottom:.4rem;
image-rendering:pixelated}
dt{font-weight:600;font-size:.8rem;color:#666}dd{margin:0 0 .4rem;white-space:pre-wrap}
"""
# The browser loads nothing from outside the page, whatever HTML an answer contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Case:
    """One task and the model's answer.

    Attributes:
        image: The pictures of the task, side by side; None without pictures.
        prompt: The prompt without exemplars.
        references: The right answers; empty if they are not published.
        answer: The model's answer.
        quality: Quality of the answer, in the unit of the benchmark; NaN if unknown.
        key: The id of the task.
    """

    image: UInt8[np.ndarray, "h w 3"] | None
    prompt: str
    references: tuple[str, ...]
    answer: str
    quality: float
    key: str


def best_and_worst(
    quality: Float[np.ndarray, "n"], keys: Sequence[str], count: int
) -> tuple[list[int], list[int]]:
    """Returns the indices of the `count` best tasks, best first, and of the worst, worst first.

    The keys decide between equal tasks. No task is in both lists, and none without a quality.
    """
    known = [i for i in range(len(quality)) if not np.isnan(quality[i])]
    # A shuffle that is the same in every run, so that equal tasks are not all from the beginning.
    known.sort(key=lambda i: (zlib.crc32(keys[i].encode("utf-8", "replace")), keys[i]))
    ranked = sorted(known, key=lambda i: -quality[i])
    count = min(count, (len(ranked) + 1) // 2)
    worst = ranked[max(count, len(ranked) - count) :]
    return ranked[:count], worst[::-1]


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenates pictures of equal height, with a gray gap between them."""
    first, *others = pictures
    height, width, depth = first.shape
    gap = np.full((height, max(1, width // 12), depth), _GAP_GRAY, np.uint8)
    return np.concatenate([first, *(part for one in others for part in (gap, one))], axis=1)


def cases_page(title: str, best: Sequence[Case], worst: Sequence[Case]) -> str:
    """Returns the HTML of the page."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
    ]
    for name, cases in (("best", best), ("worst", worst)):
        parts.append(f'<h2>{name}</h2><section class="cases {name}">')
        parts += map(_case, cases)
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>", ""])


def _case(case: Case) -> str:
    picture = "" if case.image is None else f'<img alt="" src="{_data_url(case.image)}">'
    fields = [
        ("prompt", case.prompt),
        ("answer", case.answer.strip() or "(nothing)"),
        ("reference", "\n".join(case.references) or "(none)"),
        ("quality", f"{case.quality:.4g}"),
        ("task", case.key),
    ]
    listed = "".join(
        f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in fields if text
    )
    return f'<article class="case">{picture}<dl>{listed}</dl></article>'


def _data_url(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"

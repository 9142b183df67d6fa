"""Parts of an HTML page about a batch: its frame, figures, bars, pictures and texts.

A page is one file without scripts, and loads nothing from the network.
"""

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from mm1_jax.data.tokenizers.sentencepiece import Tokenizer

_PAGE, _STYLE = (Path(__file__).with_name(f"page.{suffix}") for suffix in ("html", "css"))
# Number of colors that documents cycle through.
_NUM_HUES = 6


def visible(text: str) -> str:
    """Escapes markup and invisible characters of a text.

    The latter include characters that change the direction of writing, which would reorder the
    text around them.
    """
    spelled = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
    return html.escape(spelled)


def piece_of(tokenizer: Tokenizer) -> Callable[[int], str]:
    """Returns a function from a token to its text, spaces included; special tokens have names."""
    # The last name counts: a tokenizer without a pad or an image token names another one by it.
    names = {i: name for name, i in tokenizer.special_tokens.items()} | {
        tokenizer.pad: "<pad>",
        tokenizer.image_token: "<image>",
        tokenizer.bos: "<bos>",
        tokenizer.eos: "<eos>",
    }
    # Tokens are decoded after another one: at the start of a text, a tokenizer drops the space.
    before = tokenizer.encode("a")
    start = len(tokenizer.decode(before))
    pieces: dict[int, str] = {}

    def piece(token: int) -> str:
        if token not in pieces:
            text = names.get(token) or tokenizer.decode([*before, token])[start:]
            pieces[token] = text or f"<{token}>"
        return pieces[token]

    return piece


def page(
    title: str,
    *,
    summary: str,
    columns: Sequence[str],
    corpora: str,
    legend: str,
    rows: Iterable[str],
) -> str:
    """Fills the template; everything but the title is markup.

    Args:
        columns: Columns of the table of corpora behind their names.
    """
    return _PAGE.read_text().format(
        title=visible(title),
        style=_STYLE.read_text(),
        summary=summary,
        columns="".join(f"<th>{name}</th>" for name in ("corpus", *columns)),
        corpora=corpora,
        legend=legend,
        rows="\n".join(rows),
    )


def tiles(tiles: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f'<div class="tile"><strong>{value}</strong><span>{label}</span></div>'
        for value, label in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def cells(name: str, cells: Iterable[str]) -> str:
    """Returns a row of the table of corpora."""
    return f"<tr><th>{visible(name)}</th>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def mean(lengths: np.ndarray) -> float:
    return float(lengths.mean()) if lengths.size else 0.0


def img(pixels: UInt8[np.ndarray, "h w 3"], note: str) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    height, width, _ = pixels.shape
    # Small images are enlarged by whole factors, so that pixels stay square.
    zoom = max(1, 96 // max(height, width))
    size = f'width="{width * zoom}" height="{height * zoom}"'
    return f'<img {size} alt="{note}" title="{note}" src="data:image/png;base64,{data}">'


def bar(length: int, kind: str, style: str) -> str:
    return f'<div class="{kind}" style="flex-grow:{length};{style}"></div>'


def hue(segment: int) -> str:
    return f"--hue:{(segment * 5 % _NUM_HUES) * 360 // _NUM_HUES + 20}"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def span(rows: range) -> str:
    return f"rows {rows.start} to {rows.stop - 1}" if len(rows) > 1 else f"row {rows.start}"

"""Writes an HTML page that shows the batch of a step: rows, tokens, targets, images.

    python -m mm1_jax show_batch --config=mm1_tiny --step=5 --rows=0:4 --output=batch.html

The page is one file without scripts, and loads nothing from the network.
"""

import argparse
import base64
import html
import io
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from mm1_jax.batch import Batch, Image, ImageTextBatch, Markup
from mm1_jax.command import command, started_as
from mm1_jax.data.images import BadImage
from mm1_jax.data.input import Input, packed
from mm1_jax.data.mixed_input import MixedInput
from mm1_jax.data.packing import PlannedRow
from mm1_jax.data.pairs import PairInput
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.snapshot import CorpusExamples
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.flags import local_path, whole
from mm1_jax.launch.config_options import (
    add_config_options,
    chosen_launch,
    say_note,
    split_overrides,
)
from mm1_jax.storage import write_whole

# With more rows of a large config, the page is slow to load.
MOST_ROWS = 8
PAGE, STYLE = (Path(__file__).with_suffix(suffix) for suffix in (".html", ".css"))
# Number of colors that documents cycle through.
NUM_HUES = 6
LEGEND = """\
<div class="legend">
<div><span class="t"><small>position</small><b>input</b></span> not scored</div>
<div><span class="t s"><small>position</small><b>input</b><i>target</i></span>
scored: the token to predict there stands below it</div>
<div><span class="t a"><b>token</b></span> of an answer that is scored</div>
<div><span class="t m"><b>token</b></span> markup of a chat format</div>
<div class="switches"><label><input type="checkbox" id="positions" checked> positions</label>
<label><input type="checkbox" id="targets" checked> targets</label></div>
</div>"""

EPILOG = """\
Images keep their exact pixels (PNG). A picture that is shown in several views stands in its grid,
and the markup of a chat format is set apart from the texts of turns. The statistics include rows
that share an image buffer with the shown ones. A row of an encoder's batch is a picture, as it was
cropped and changed, beside the tokens of its text.

examples:
  %(prog)s --config=mm1_tiny --step=1000
  %(prog)s --config=mm1_3b --config.input.streams.2.weight=0 --rows=0:2
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=started_as("show_batch"),
        description="Writes an HTML page that shows the batch of a step.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_options(parser)
    parser.add_argument("--step", default=0, type=whole(0), help="step of the batch (default: 0)")
    parser.add_argument(
        "--rows",
        type=_rows,
        metavar="A:B",
        help=f"rows A to B - 1 (default: the first {MOST_ROWS})",
    )
    parser.add_argument(
        "--output", type=local_path, metavar="FILE", help="default: NAME_step_STEP.html"
    )
    return parser.parse_args(arguments)


def _rows(text: str) -> range:
    first, colon, last = text.partition(":")
    try:
        rows = range(int(first or 0), int(last if colon else first) + (not colon))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected A:B, such as 0:4") from None
    if rows.start < 0 or not rows:
        raise argparse.ArgumentTypeError(f"{text!r}: holds no row")
    return rows


class MadeRows(NamedTuple):
    """Rows of a batch, with the counts of each corpus.

    Attributes:
        rows: Their numbers in the global batch; whole groups that share an image buffer.
        first_slot: Index of the first image of `batch.images` in the global buffer, from which
            `batch.image_index` counts.
    """

    batch: Batch
    rows: range
    first_slot: int
    accounting: dict[str, dict[str, int | float]]
    # The views of each row's images in order, and which of its positions are markup.
    images: list[list[Image]]
    is_markup: np.ndarray


class PlannedBatch(NamedTuple):
    """Rows of a batch, with their records and the counts of each corpus."""

    batch: Any
    planned: list[PlannedRow]
    accounting: dict[str, dict[str, int | float]]


def make_batch(input: MixedInput, step: int, rows: range) -> PlannedBatch:
    """Makes rows of a step."""
    planner = input.planner(rows)
    while planner.step < step:
        planner.next_rows()
    index = planner.next_index.tolist()
    iterator = input.iterator(rows)
    try:
        iterator.set_state(iterator.get_state() | {"step": step, "next_index": index})
        batch = next(iterator)
        return PlannedBatch(batch, planner.next_rows(), iterator.accounting())
    finally:
        iterator.close()


def make_rows(input: Input, step: int, rows: range) -> MadeRows:
    """Makes rows of a step, and the rows that share an image buffer with them."""
    _raise_if_too_many(input, rows)
    rows = input.image_buffer.whole_groups(rows)
    batch, planned, accounting = make_batch(input, step, rows)
    return MadeRows(
        batch,
        rows,
        input.image_buffer.slots(rows).start,
        accounting,
        [images_of(input, row) for row in planned],
        np.stack([markup_of(input, row) for row in planned]),
    )


def _raise_if_too_many(input: MixedInput, rows: range) -> None:
    if rows.stop > input.batch_size:
        raise ValueError(
            f"--rows={rows.start}:{rows.stop}: input.batch_size={input.batch_size} rows are all"
        )


def images_of(input: Input, row: PlannedRow) -> list[Image]:
    """Returns the images of a row, each of which is a view of a picture."""
    images: list[Image] = []
    for place, record in enumerate(row.records):
        try:
            images += input.examples.example(row, place).images
        except BadRecord:
            images += [Image(b"", is_tiled=False)] * record.num_images
    return images


def markup_of(input: Input, row: PlannedRow) -> np.ndarray:
    """Returns which positions of a row are markup of a chat format; none in a snapshot of rows."""
    is_markup = np.zeros(input.max_sequence_length, bool)
    if not isinstance(input.examples, CorpusExamples):
        return is_markup
    start = 0
    for place, record in enumerate(row.records):
        position = start + 1  # After the token that begins a text.
        start += record.num_tokens
        try:
            document = input.example_builder.tiled(input.examples.document(row, place))
            sizes = input.example_builder.sizes(document)
        except BadRecord:
            continue
        for segment, size in zip(document.segments, sizes, strict=True):
            # A document may be truncated, and its last token is a target alone.
            is_markup[min(position, start) : min(position + size, start)] = isinstance(
                segment, Markup
            )
            position += size
    return is_markup


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


class Run(NamedTuple):
    """Consecutive positions of one document: text, or the positions of one image."""

    start: int
    stop: int
    # Index of the image within the row; None for text.
    image: int | None


class RowDocument(NamedTuple):
    """A document of a row, or its padding (segment 0)."""

    segment: int
    start: int
    stop: int
    runs: tuple[Run, ...]


def documents_of(
    segment_ids: np.ndarray, is_image: np.ndarray, tokens_per_image: int
) -> Iterator[RowDocument]:
    """Yields the documents of a row in order, each split into runs of text and images."""
    edges = np.flatnonzero(np.diff(segment_ids)) + 1
    images = itertools.count()
    for start, stop in itertools.pairwise([0, *edges.tolist(), len(segment_ids)]):
        runs, position = [], start
        while position < stop:
            if is_image[position]:
                end, image = position + tokens_per_image, next(images)
            else:
                after = np.flatnonzero(is_image[position:stop])
                end, image = position + int(after[0]) if after.size else stop, None
            runs.append(Run(position, end, image))
            position = end
        yield RowDocument(int(segment_ids[start]), start, stop, tuple(runs))


class Page:
    """HTML page of a range of rows."""

    def __init__(self, input: Input, made: MadeRows, shown: range, *, title: str, step: int):
        self.input = input
        self.made = made
        self.shown = shown
        self.title = title
        self.step = step
        self.piece = piece_of(input.tokenizer)
        tokenizer = input.tokenizer
        self.special = {tokenizer.bos, tokenizer.eos, *tokenizer.special_tokens.values()}
        # Name of the images: a picture in tiles is several views.
        self.noun = "picture" if input.example_builder.tiling is None else "view"
        self.is_image = (made.batch.tokens == input.tokenizer.image_token) & (
            made.batch.segment_ids > 0
        )

    def text(self) -> str:
        columns = (
            *("documents", "positions", "of all", f"for {self.noun}s", "scored targets"),
            *("of positions", f"{self.noun}s", "bad documents", "without room"),
        )
        return _page(
            f"{self.title}, step {self.step}",
            summary=self._summary(),
            columns=columns,
            corpora=self._corpora(),
            legend=LEGEND,
            rows=(self._row(number) for number in self.shown),
        )

    def _summary(self) -> str:
        batch, rows, input = self.made.batch, self.made.rows, self.input
        used = int(np.sum(batch.image_index >= 0))
        filled, scored = int(np.sum(batch.segment_ids > 0)), int(batch.loss_mask.sum())
        documents = int(batch.segment_ids.max(axis=1).sum())
        slots = input.image_buffer.num_slots(len(rows))
        tiles = [
            (f"{filled / batch.tokens.size:.1%}", f"filled: {filled:,} positions"),
            (f"{scored / max(1, filled):.1%}", f"of these scored: {scored:,} targets"),
            (
                f"{used:,}",
                f"{self.noun}s, in {slots:,} slots"
                + (slots > 0) * f" ({used / max(1, slots):.1%})",
            ),
            (f"{documents:,}", f"documents in {_count(len(rows), 'row')}"),
        ]
        return (
            f"<p>{_span(self.shown).capitalize()} of a batch of {input.batch_size:,}; a row has "
            f"{input.max_sequence_length:,} positions and at most {input.max_images} {self.noun}s, "
            f"a {self.noun} {input.num_image_tokens} positions and {input.image_size} x "
            f"{input.image_size} pixels. The numbers are of {_span(rows)}.</p>{_tiles(tiles)}"
        )

    def _corpora(self) -> str:
        batch = self.made.batch
        total = max(1, int(np.sum(batch.segment_ids > 0)))
        lines, num_absent = [], 0
        for i, name in enumerate(self.input.corpus_names):
            own = batch.corpus_ids == i
            if not own.any():
                num_absent += 1
                continue
            counts = self.made.accounting[name]
            positions, scored = int(own.sum()), int(batch.loss_mask[own].sum())
            cells = [
                f"{counts['documents']:,}",
                f"{positions:,}",
                f"{positions / total:.1%}",
                f"{int(np.sum(own & self.is_image)) / max(1, positions):.1%}",
                f"{scored:,}",
                f"{scored / max(1, positions):.1%}",
                f"{counts['images']:,}",
                f"{counts['bad_documents']:,}",
                f"{counts['overflowed']:,}",
            ]
            lines.append(_cells(name, cells))
        if num_absent:
            others = f"{num_absent} other{'s' * (num_absent != 1)}"
            lines.append(
                f'<tr><td colspan="10">{others} without a document in these rows</td></tr>'
            )
        return "\n".join(lines)

    def _row(self, number: int) -> str:
        b = number - self.made.rows.start
        batch = self.made.batch
        documents = list(
            documents_of(batch.segment_ids[b], self.is_image[b], self.input.num_image_tokens)
        )
        count = sum(document.segment > 0 for document in documents)
        filled = int(np.sum(batch.segment_ids[b] > 0))
        used = int(np.sum(batch.image_index[b] >= 0))
        summary = (
            f"<strong>Row {number}</strong> <span>{_count(count, 'document')}, "
            f"{filled:,} of {self.input.max_sequence_length:,} positions, "
            f"{_count(used, self.noun)}, {int(batch.loss_mask[b].sum()):,} targets scored</span>"
        )
        strip = "".join(self._strip(b, document) for document in documents)
        blocks = "\n".join(self._document(b, document) for document in documents)
        return (
            f'<details class="row" open><summary>{summary}\n<div class="strip">{strip}</div>'
            f'</summary>\n<div class="parts">\n{blocks}\n</div></details>'
        )

    def _strip(self, b: int, document: RowDocument) -> str:
        """Draws a document to scale, as colored bars."""
        if not document.segment:
            return _bar(document.stop - document.start, "padding", "")
        bars = []
        for run in document.runs:
            if run.image is not None:
                bars.append(_bar(run.stop - run.start, "picture", _hue(document.segment)))
                continue
            mask = self.made.batch.loss_mask[b, run.start : run.stop]
            for scored, group in itertools.groupby(mask.tolist()):
                kind = "scored" if scored else "unscored"
                bars.append(_bar(len(list(group)), kind, _hue(document.segment)))
        return "".join(bars)

    def _document(self, b: int, document: RowDocument) -> str:
        batch = self.made.batch
        length = document.stop - document.start
        if not document.segment:
            text = f"padding: {_count(length, 'position')}, {document.start} to {document.stop - 1}"
            return f'<section class="padding"><span>{text}</span></section>'
        corpus = self.input.corpus_names[int(batch.corpus_ids[b, document.start])]
        scored = int(batch.loss_mask[b, document.start : document.stop].sum())
        header = (
            f"<header><b>{document.segment}</b> <strong>{visible(corpus)}</strong> "
            f"<span>positions {document.start} to {document.stop - 1} of the row, "
            + (f"{scored:,} targets scored" if scored else "not scored")
            + "</span></header>"
        )
        runs = "".join(
            self._views(b, runs) if len(runs) > 1 else self._run(b, runs[0])
            for runs in self._pictures(b, document.runs)
        )
        return (
            f'<section class="document" style="{_hue(document.segment)}">{header}\n'
            f'<div class="flow">{runs}</div></section>'
        )

    def _pictures(self, b: int, runs: Sequence[Run]) -> Iterator[Sequence[Run]]:
        """Yields runs one by one, but the views of a picture together with the marks between."""
        start = 0
        while start < len(runs):
            end = start + 1
            if runs[start].image is not None:
                for i in range(start + 1, len(runs)):
                    if (number := runs[i].image) is not None:
                        if not self.made.images[b][number].continues:
                            break
                        end = i + 1
            yield runs[start:end]
            start = end

    def _run(self, b: int, run: Run) -> str:
        return self._text(b, run) if run.image is None else self._picture(b, run)

    def _text(self, b: int, run: Run) -> str:
        return "".join(
            self._token(b, t, visible(self.piece(int(self.made.batch.tokens[b, t]))))
            for t in range(run.start, run.stop)
        )

    def _token(self, b: int, t: int, shown: str) -> str:
        """Shows the input token of a position, and below it the target if it is scored."""
        batch = self.made.batch
        token, target = int(batch.tokens[b, t]), int(batch.targets[b, t])
        scored = bool(batch.loss_mask[b, t])
        piece = visible(self.piece(target))
        note = f"position {batch.positions[b, t]} of its document, {t} of the row; token {token}; "
        note += f"target {target} ({piece}), " + ("scored" if scored else "not scored")
        note += ", markup of the chat format" * bool(self.made.is_markup[b, t])
        kind = "t" + " special" * (token in self.special) + " s" * scored
        # A token is part of an answer if the position before it is scored.
        kind += " a" * bool(t and batch.positions[b, t] and batch.loss_mask[b, t - 1])
        kind += " m" * bool(self.made.is_markup[b, t])
        below = f"<i{' class=stop' * (target in self.special)}>{piece}</i>" if scored else ""
        return (
            f'<span class="{kind}" title="{note}"><small>{batch.positions[b, t]}</small>'
            f"<b>{shown}</b>{below}</span>"
        )

    def _picture(self, b: int, run: Run) -> str:
        """Shows an image in place of its positions."""
        return (
            f"<figure>{self._pixels(b, run)}<figcaption>{self._positions(b, run)}</figcaption>"
            "</figure>"
        )

    def _views(self, b: int, runs: Sequence[Run]) -> str:
        """Shows the views of a picture in their grid, and then their positions in order."""
        shown = [run for run in runs if run.image is not None]
        views = [self.made.images[b][run.image].view for run in shown if run.image is not None]
        grid = next((view for view in views if view is not None), None)
        columns, rows = (grid.columns, grid.rows) if grid else (0, 1)
        cells, names = [], []
        for run, view in zip(shown, views, strict=True):
            if view is None:
                place, name = f"1/{columns + 1}/span {rows}", "overview"
            else:
                place = f"{view.row + 1}/{view.column + 1}"
                name = f"tile, row {view.row + 1} of {rows}, column {view.column + 1} of {columns}"
            names.append(name)
            cells.append(
                f'<div style="grid-area:{place}" title="{name}">{self._pixels(b, run, name)}</div>'
            )
        waiting = iter(names)
        flow = "".join(
            self._text(b, run)
            if run.image is None
            else f'<div class="view"><small>{next(waiting)}</small>{self._positions(b, run)}</div>'
            for run in runs
        )
        title = f"{columns} x {rows} tiles" + (None in views) * " and an overview"
        return (
            f'<div class="views"><small>one picture: {title}</small>'
            f'<div class="grid">{"".join(cells)}</div><div class="flow">{flow}</div></div>'
        )

    def _pixels(self, b: int, run: Run, name: str = "") -> str:
        batch, made = self.made.batch, self.made
        index = int(batch.image_index[b, run.image])
        if index < 0:
            return '<div class="none">no picture: not decoded, or without room</div>'
        note = f"picture {run.image} of the row, slot {index} of the buffer"
        pixels = batch.images[index - made.first_slot]
        return _img(pixels, f"{name}; {note}" if name else note)

    def _positions(self, b: int, run: Run) -> str:
        """Shows the positions of an image, the last of which predicts the next text."""
        batch = self.made.batch
        first, last = batch.positions[b, [run.start, run.stop - 1]].tolist()
        # Only the last position can be scored: the targets of the others are placeholders.
        assert not batch.loss_mask[b, run.start : run.stop - 1].any(), "scored inside a picture"
        others = run.stop - 1 - run.start
        before = (
            f'<span class="t"><small>{first} to {last - 1}</small>'
            f"<b>{others} x &lt;image&gt;</b></span>"
        )
        last_token = self._token(b, run.stop - 1, visible("<image>"))
        return (before if others else "") + last_token


class PairPage:
    """HTML page of rows that are a picture and its text each."""

    def __init__(self, input: PairInput, step: int, shown: range, *, title: str):
        _raise_if_too_many(input, shown)
        self.input, self.step, self.shown, self.title = input, step, shown, title
        made = make_batch(input, step, shown)
        self.batch: ImageTextBatch = made.batch
        self.planned, self.accounting = made.planned, made.accounting
        self.piece = piece_of(input.tokenizer)
        self.special = {input.tokenizer.bos, input.tokenizer.eos}

    def text(self) -> str:
        return _page(
            f"{self.title}, step {self.step}",
            summary=self._summary(),
            columns=("rows", "of all", "tokens per text", "bad records"),
            corpora="\n".join(self._corpora()),
            legend="",
            rows=(self._row(b) for b in range(len(self.shown))),
        )

    def _summary(self) -> str:
        input, lengths = self.input, self.batch.lengths[self.batch.corpus_ids >= 0]
        size, length = input.image_size, input.max_sequence_length
        tiles = [(f"{len(lengths):,}", f"pictures in {_count(len(self.shown), 'row')}")]
        text = "and no text"
        if length:
            text = f"and a text of at most {length:,} tokens"
            tiles += [
                (f"{_mean(lengths):.1f}", "tokens per text, with bos and eos"),
                (f"{int(np.sum(lengths == length)):,}", "texts that fill their row or were cut"),
            ]
        return (
            f"<p>{_span(self.shown).capitalize()} of a batch of {input.batch_size:,}; a row has a "
            f"picture of {size} x {size} pixels {text}.</p>{_tiles(tiles)}"
        )

    def _corpora(self) -> Iterator[str]:
        ids = self.batch.corpus_ids
        for i, name in enumerate(self.input.corpus_names):
            number, bad = int(np.sum(ids == i)), self.accounting[name]["bad_documents"]
            cells = (
                f"{number:,}",
                f"{number / len(ids):.1%}",
                f"{_mean(self.batch.lengths[ids == i]):.1f}",
                f"{bad:,}",
            )
            yield _cells(name, cells)

    def _row(self, b: int) -> str:
        (record,) = self.planned[b].records
        corpus, length = self.input.corpus_names[record.corpus], int(self.batch.lengths[b])
        said = f"record {record.index:,} in epoch {record.epoch}"
        if self.input.max_sequence_length:
            said += f", {_count(length, 'token')}"
        header = (
            f"<summary><strong>Row {self.shown[b]}</strong> <b>{visible(corpus)}</b> "
            f"<span>{said}</span></summary>"
        )
        if self.batch.corpus_ids[b] < 0:
            content = f'<div class="none">no record: {visible(self._fault(b))}</div>'
        else:
            picture = _img(self.batch.images[b], f"picture of row {self.shown[b]}")
            tokens = "".join(self._token(b, t) for t in range(length))
            content = f'<figure>{picture}</figure><div class="flow">{tokens}</div>'
        style = _hue(record.corpus)
        return (
            f'<details class="row" style="{style}" open>{header}\n<div class="pair">{content}</div>'
            "</details>"
        )

    def _fault(self, b: int) -> str:
        """Returns why the record of a row cannot be used."""
        (record,) = self.planned[b].records
        maker: Any = self.input.batch_maker
        try:
            maker.loader.load(record)
        except (BadRecord, BadImage) as error:
            return str(error)
        raise AssertionError("a record that can be loaded fills its row")

    def _token(self, b: int, t: int) -> str:
        token = int(self.batch.tokens[b, t])
        kind = "t" + " special" * (token in self.special)
        return (
            f'<span class="{kind}" title="position {t}; token {token}"><small>{t}</small>'
            f"<b>{visible(self.piece(token))}</b></span>"
        )


def _page(
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
    return PAGE.read_text().format(
        title=visible(title),
        style=STYLE.read_text(),
        summary=summary,
        columns="".join(f"<th>{name}</th>" for name in ("corpus", *columns)),
        corpora=corpora,
        legend=legend,
        rows="\n".join(rows),
    )


def _tiles(tiles: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f'<div class="tile"><strong>{value}</strong><span>{label}</span></div>'
        for value, label in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _cells(name: str, cells: Iterable[str]) -> str:
    """Returns a row of the table of corpora."""
    return f"<tr><th>{visible(name)}</th>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def _mean(lengths: np.ndarray) -> float:
    return float(lengths.mean()) if lengths.size else 0.0


def _img(pixels: UInt8[np.ndarray, "h w 3"], note: str) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    height, width, _ = pixels.shape
    # Small images are enlarged by whole factors, so that pixels stay square.
    zoom = max(1, 96 // max(height, width))
    size = f'width="{width * zoom}" height="{height * zoom}"'
    return f'<img {size} alt="{note}" title="{note}" src="data:image/png;base64,{data}">'


def _bar(length: int, kind: str, style: str) -> str:
    return f'<div class="{kind}" style="flex-grow:{length};{style}"></div>'


def _hue(segment: int) -> str:
    return f"--hue:{(segment * 5 % NUM_HUES) * 360 // NUM_HUES + 20}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _span(rows: range) -> str:
    return f"rows {rows.start} to {rows.stop - 1}" if len(rows) > 1 else f"row {rows.start}"


@command
def main(argv: Sequence[str] | None = None) -> int:
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    args = parse(rest)
    output = args.output or Path(f"{args.config}_step_{args.step}.html")
    cfg = chosen_launch(args, overrides).resolved_config(note=say_note).input
    input = cfg.set(num_workers=0, prefetch=0).instantiate()
    shown = args.rows or range(min(MOST_ROWS, input.batch_size))
    if isinstance(input, PairInput):
        page: Any = PairPage(input, args.step, shown, title=args.config)
    else:
        made = make_rows(packed(input), args.step, shown)
        page = Page(packed(input), made, shown, title=args.config, step=args.step)
    write_whole(output, page.text())
    print(output)
    return 0

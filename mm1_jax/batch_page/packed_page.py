"""HTML page of packed rows: documents, tokens, targets and images."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mm1_jax.batch import Batch, Image, Markup
from mm1_jax.batch_page import markup
from mm1_jax.batch_page.planned_batch import make_batch, raise_if_too_many
from mm1_jax.data.input import Input
from mm1_jax.data.packing import PlannedRow
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.snapshot import CorpusExamples

_LEGEND = """\
<div class="legend">
<div><span class="t"><small>position</small><b>input</b></span> not scored</div>
<div><span class="t s"><small>position</small><b>input</b><i>target</i></span>
scored: the token to predict there stands below it</div>
<div><span class="t a"><b>token</b></span> of an answer that is scored</div>
<div><span class="t m"><b>token</b></span> markup of a chat format</div>
<div class="switches"><label><input type="checkbox" id="positions" checked> positions</label>
<label><input type="checkbox" id="targets" checked> targets</label></div>
</div>"""


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


def make_rows(input: Input, step: int, rows: range) -> MadeRows:
    """Makes rows of a step, and the rows that share an image buffer with them."""
    raise_if_too_many(input, rows)
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


class PackedPage:
    """HTML page of a range of rows."""

    def __init__(self, input: Input, made: MadeRows, shown: range, *, title: str, step: int):
        self.input = input
        self.made = made
        self.shown = shown
        self.title = title
        self.step = step
        self.piece = markup.piece_of(input.tokenizer)
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
        return markup.page(
            f"{self.title}, step {self.step}",
            summary=self._summary(),
            columns=columns,
            corpora=self._corpora(),
            legend=_LEGEND,
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
            (f"{documents:,}", f"documents in {markup.count(len(rows), 'row')}"),
        ]
        return (
            f"<p>{markup.span(self.shown).capitalize()} of a batch of {input.batch_size:,}; a row "
            f"has {input.max_sequence_length:,} positions and at most {input.max_images} "
            f"{self.noun}s, a {self.noun} {input.num_image_tokens} positions and "
            f"{input.image_size} x {input.image_size} pixels. The numbers are of "
            f"{markup.span(rows)}.</p>{markup.tiles(tiles)}"
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
            lines.append(markup.cells(name, cells))
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
            f"<strong>Row {number}</strong> <span>{markup.count(count, 'document')}, "
            f"{filled:,} of {self.input.max_sequence_length:,} positions, "
            f"{markup.count(used, self.noun)}, "
            f"{int(batch.loss_mask[b].sum()):,} targets scored</span>"
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
            return markup.bar(document.stop - document.start, "padding", "")
        bars = []
        for run in document.runs:
            if run.image is not None:
                bars.append(
                    markup.bar(run.stop - run.start, "picture", markup.hue(document.segment))
                )
                continue
            mask = self.made.batch.loss_mask[b, run.start : run.stop]
            for scored, group in itertools.groupby(mask.tolist()):
                kind = "scored" if scored else "unscored"
                bars.append(markup.bar(len(list(group)), kind, markup.hue(document.segment)))
        return "".join(bars)

    def _document(self, b: int, document: RowDocument) -> str:
        batch = self.made.batch
        length = document.stop - document.start
        if not document.segment:
            text = markup.count(length, "position")
            return (
                f'<section class="padding"><span>padding: {text}, {document.start} to '
                f"{document.stop - 1}</span></section>"
            )
        corpus = self.input.corpus_names[int(batch.corpus_ids[b, document.start])]
        scored = int(batch.loss_mask[b, document.start : document.stop].sum())
        header = (
            f"<header><b>{document.segment}</b> <strong>{markup.visible(corpus)}</strong> "
            f"<span>positions {document.start} to {document.stop - 1} of the row, "
            + (f"{scored:,} targets scored" if scored else "not scored")
            + "</span></header>"
        )
        runs = "".join(
            self._views(b, runs) if len(runs) > 1 else self._run(b, runs[0])
            for runs in self._pictures(b, document.runs)
        )
        return (
            f'<section class="document" style="{markup.hue(document.segment)}">{header}\n'
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
            self._token(b, t, markup.visible(self.piece(int(self.made.batch.tokens[b, t]))))
            for t in range(run.start, run.stop)
        )

    def _token(self, b: int, t: int, shown: str) -> str:
        """Shows the input token of a position, and below it the target if it is scored."""
        batch = self.made.batch
        token, target = int(batch.tokens[b, t]), int(batch.targets[b, t])
        scored = bool(batch.loss_mask[b, t])
        piece = markup.visible(self.piece(target))
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
        return markup.img(pixels, f"{name}; {note}" if name else note)

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
        last_token = self._token(b, run.stop - 1, markup.visible("<image>"))
        return (before if others else "") + last_token

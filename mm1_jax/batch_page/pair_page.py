"""HTML page of rows that are a picture and its text each."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mm1_jax.batch import ImageTextBatch
from mm1_jax.batch_page import markup
from mm1_jax.batch_page.planned_batch import make_batch, raise_if_too_many
from mm1_jax.data.images import BadImage
from mm1_jax.data.pairs import PairInput
from mm1_jax.data.record_files import BadRecord


class PairPage:
    """HTML page of rows that are a picture and its text each."""

    def __init__(self, input: PairInput, step: int, shown: range, *, title: str):
        raise_if_too_many(input, shown)
        self.input, self.step, self.shown, self.title = input, step, shown, title
        made = make_batch(input, step, shown)
        self.batch: ImageTextBatch = made.batch
        self.planned, self.accounting = made.planned, made.accounting
        self.piece = markup.piece_of(input.tokenizer)
        self.special = {input.tokenizer.bos, input.tokenizer.eos}

    def text(self) -> str:
        return markup.page(
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
        tiles = [(f"{len(lengths):,}", f"pictures in {markup.count(len(self.shown), 'row')}")]
        text = "and no text"
        if length:
            text = f"and a text of at most {length:,} tokens"
            tiles += [
                (f"{markup.mean(lengths):.1f}", "tokens per text, with bos and eos"),
                (f"{int(np.sum(lengths == length)):,}", "texts that fill their row or were cut"),
            ]
        return (
            f"<p>{markup.span(self.shown).capitalize()} of a batch of {input.batch_size:,}; a row "
            f"has a picture of {size} x {size} pixels {text}.</p>{markup.tiles(tiles)}"
        )

    def _corpora(self) -> Iterator[str]:
        ids = self.batch.corpus_ids
        for i, name in enumerate(self.input.corpus_names):
            number, bad = int(np.sum(ids == i)), self.accounting[name]["bad_documents"]
            cells = (
                f"{number:,}",
                f"{number / len(ids):.1%}",
                f"{markup.mean(self.batch.lengths[ids == i]):.1f}",
                f"{bad:,}",
            )
            yield markup.cells(name, cells)

    def _row(self, b: int) -> str:
        (record,) = self.planned[b].records
        corpus, length = self.input.corpus_names[record.corpus], int(self.batch.lengths[b])
        said = f"record {record.index:,} in epoch {record.epoch}"
        if self.input.max_sequence_length:
            said += f", {markup.count(length, 'token')}"
        header = (
            f"<summary><strong>Row {self.shown[b]}</strong> <b>{markup.visible(corpus)}</b> "
            f"<span>{said}</span></summary>"
        )
        if self.batch.corpus_ids[b] < 0:
            content = f'<div class="none">no record: {markup.visible(self._fault(b))}</div>'
        else:
            picture = markup.img(self.batch.images[b], f"picture of row {self.shown[b]}")
            tokens = "".join(self._token(b, t) for t in range(length))
            content = f'<figure>{picture}</figure><div class="flow">{tokens}</div>'
        style = markup.hue(record.corpus)
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
            f"<b>{markup.visible(self.piece(token))}</b></span>"
        )

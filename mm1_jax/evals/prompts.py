"""Zero- and few-shot prompts as Documents (MM1, section 4).

A solved task is the Document that training makes of its record; a prompt is some solved tasks, the
exemplars, and one more without its answer:

    (image, question, answer)  (image, question, answer)  (image, question)

Being cut from training documents, prompts are tokenised exactly as these are.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from mm1_jax.batch import Document, Text


def exemplar_indices(
    num_records: int,
    shots: int,
    *,
    seed: int,
    benchmark: str,
    query: int,
    exclude: int | None = None,
) -> list[int]:
    """`shots` different records out of `num_records`, at random for each query.

    A function of its arguments alone: equal on every host, and in any order of the queries.

    Args:
        exclude: A record that is never drawn: the query itself, where it is among the records.
    """
    candidates = num_records - (exclude is not None)
    if shots > candidates:
        raise ValueError(
            f"{benchmark}: shots={shots}, but there are only {candidates} records to draw "
            "exemplars from; use fewer shots or a larger source"
        )
    rng = np.random.default_rng([seed, zlib.crc32(benchmark.encode()), query, shots])
    drawn = rng.choice(candidates, size=shots, replace=False).tolist()
    # Over the gap that the excluded record leaves.
    return [i + (exclude is not None and i >= exclude) for i in drawn]


def subset(num_records: int, limit: int | None, *, seed: int, benchmark: str) -> list[int]:
    """The records that are asked, in order: all, or `limit` of them at random."""
    if limit is None or limit >= num_records:
        return list(range(num_records))
    rng = np.random.default_rng([seed, zlib.crc32(benchmark.encode())])
    return sorted(rng.choice(num_records, size=limit, replace=False).tolist())


def reference(document: Document) -> str:
    """The answer of a solved task: its last segment."""
    return _answer_segment(document).text


def without_answer(document: Document) -> Document:
    """A solved task as it is put to the model."""
    _answer_segment(document)
    return Document(document.segments[:-1])


def few_shot(exemplars: Sequence[Document], query: Document) -> Document:
    """The exemplars with their answers, in order, then the query without."""
    segments = [segment for exemplar in exemplars for segment in exemplar.segments]
    return Document((*segments, *without_answer(query).segments))


def text_of(document: Document) -> str:
    """The texts of a prompt, for people to read."""
    return " ".join(part.text.strip() for part in document.segments if isinstance(part, Text))


def _answer_segment(document: Document) -> Text:
    last = document.segments[-1]
    if not isinstance(last, Text) or not last.scored or len(document.segments) < 2:
        raise ValueError(
            "the document of a benchmark must end with a scored text, the answer, after something "
            f"that asks for it; got the segments {[type(s).__name__ for s in document.segments]}"
        )
    return last

"""Markers in the data of other projects: character sequences that are not meant as text."""

import re
from collections.abc import Iterable

# OBELICS writes it before another article of a page, and replaces it by eos in training.
END_OF_DOCUMENT = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"
# GPT-2's end of a text, which separates the documents of a file.
END_OF_TEXT = "<|endoftext|>"


# Tokens of models and placeholders of datasets. They are encoded as text, but may not be meant as
# text. One expression per first character keeps the search as fast as memory.
_MARKERS = [
    re.compile(pattern, re.VERBOSE)
    for pattern in (
        r"""<(?: \|(?:endoftext|startoftext|endofchunk|end_of_text|begin_of_text|im_start|im_end
                  |eot_id|image|pad|sep)\|
            | image | PERSON | /?s | unk | pad | mask | bos | eos | extra_id_\d+ )>""",
        r"\[(?: IMG | SEP | CLS | MASK | UNK | PAD )\]",
        END_OF_DOCUMENT,
    )
]


def find_markers(texts: Iterable[str]) -> set[str]:
    """Returns the markers in texts that may not be meant as text, with N for numbers."""
    return {
        re.sub(r"\d+", "N", found)
        for text in texts
        for pattern in _MARKERS
        for found in pattern.findall(text)
    }


def cut(text: str, mark: str) -> list[str]:
    """Splits a text at a mark, and strips the whitespace around the mark.

    >>> cut("one\\n\\n<|endoftext|>\\n\\ntwo", "<|endoftext|>")
    ['one', 'two']
    """
    if not mark or mark not in text:
        return [text]
    first, *between, last = text.split(mark)
    return [first.rstrip(), *map(str.strip, between), last.lstrip()]

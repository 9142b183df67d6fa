"""Spellings that stand for something else in the data of other projects, and are not text."""

# OBELICS writes it where a page goes on with another article; its own training puts eos there.
END_OF_DOCUMENT = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"
# GPT-2's end of a text, which files of concatenated documents have between them.
END_OF_TEXT = "<|endoftext|>"


def cut(text: str, mark: str) -> list[str]:
    """The parts of a text between marks, without the space around these.

    >>> cut("one\\n\\n<|endoftext|>\\n\\ntwo", "<|endoftext|>")
    ['one', 'two']
    """
    if not mark or mark not in text:
        return [text]
    first, *between, last = text.split(mark)
    return [first.rstrip(), *map(str.strip, between), last.lstrip()]

"""Conversations about images: `{"images", "turns": [{"role", "text"}]}`; answers are scored.

`<image>` in a text stands for the next image. The prompt format is Vicuna's, as in LLaVA.
"""

from collections.abc import Iterator

from mm1_jax.batch import Document, Image, Record, Text
from mm1_jax.data.record_files import BadRecord

IMAGE = "<image>"
_PREFIX = {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "}


def conversation_document(record: Record) -> Document:
    """Returns the turns in order; images that no `<image>` refers to come first."""
    images = iter(Image(image) for image in record["images"])
    turns = [(turn["role"], turn["text"] or "") for turn in record["turns"]]
    named = sum(text.count(IMAGE) for _, text in turns)
    unnamed = len(record["images"]) - named
    if unnamed < 0:
        raise BadRecord(f"{named} times {IMAGE} for {len(record['images'])} images")
    segments: list[Text | Image] = [next(images) for _ in range(unnamed)]
    for role, text in turns:
        segments += _turn(role, text, images)
    if not any(isinstance(segment, Text) and segment.scored for segment in segments):
        raise BadRecord("no answer that is not blank")
    return Document(tuple(segments))


def _turn(role: str, text: str, images: Iterator[Image]) -> Iterator[Text | Image]:
    if role not in _PREFIX:
        raise BadRecord(f"role {role!r}; expected one of {', '.join(_PREFIX)}")
    first, *others = text.split(IMAGE)
    is_answer = role == "assistant"
    if is_answer:
        # The model writes only the text after the name of its role.
        yield Text(_PREFIX[role].rstrip(), scored=False)
    elif first.strip() or _PREFIX[role]:
        yield Text((_PREFIX[role] + first.strip()).rstrip(), scored=False)
    if is_answer and first.strip():
        yield Text(first.strip())
    for other in others:
        yield next(images)
        if other.strip():
            yield Text(other.strip(), scored=is_answer)

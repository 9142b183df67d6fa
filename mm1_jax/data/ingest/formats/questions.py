"""Questions and answers of academic datasets -> conversations with LLaVA's format prompts."""

import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mm1_jax.data.format_prompts import OPTION_LETTER
from mm1_jax.data.ingest.formats.chats import counted
from mm1_jax.data.readers.entries import Entry, Rejected
from mm1_jax.data.readers.source_files import entry_id
from mm1_jax.data.record_files import IMAGE, BadRecord
from mm1_jax.data.records import as_list, as_text, conversation_record

DESCRIBE = "Describe the image in detail."

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Asked:
    """Questions about an image and their answers: all that one entry of a file holds.

    Attributes:
        image: The key of the image: its possible names.
        pairs: Questions, with their format prompts, and answers.
        fields: Further fields of the record.
    """

    entry: str
    image: tuple[Any, ...]
    pairs: tuple[tuple[str, Any], ...]
    source: str | None = None
    source_id: Any = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def with_format_prompt(question: Any, prompt: str) -> str:
    """Returns a question with a line after it; raises BadRecord if it has no text."""
    if not as_text(question, "question").strip():
        raise BadRecord("no question")
    return f"{question.strip()}\n{prompt}" if prompt else question


def multiple_choice(
    question: Any, choices: Any, correct: Any, prompt: str = OPTION_LETTER
) -> tuple[str, str]:
    """Returns the question with its lettered options, and the letter of the correct one."""
    texts = [str(choice) for choice in as_list(choices, "choices")]
    if not isinstance(correct, int) or isinstance(correct, bool):
        raise BadRecord(f"the correct choice is {correct!a:.20}, expected its place")
    if not 0 <= correct < len(texts) or len(texts) > len(LETTERS):
        raise BadRecord(f"choice {correct} of {len(texts)}")
    options = (f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    asked = "\n".join([as_text(question, "question").strip(), *options])
    return with_format_prompt(asked, prompt), LETTERS[correct]


def question_records(
    items: Iterable[Asked | Rejected],
    read: Callable[..., bytes],
    *,
    merge: bool,
    after_image: str = "\n",
) -> Iterator[Entry]:
    """Yields a conversation for each question, or, if `merge`, for each image.

    Merging holds the questions and answers of a whole file in memory, but no image. The manifest
    counts `merged_questions`, and `repeated_questions` about an image, of which the first is kept.

    Args:
        read: Returns the image of one of some names.
        after_image: Stands between the image and the first question.
    """
    groups: dict[tuple[Any, ...], list[Asked]] = {}
    for item in items:
        if isinstance(item, Rejected):
            yield item
        elif merge:
            groups.setdefault(item.image, []).append(item)
        elif len(item.pairs) == 1:
            yield _record(item, item.pairs, read, after_image)
        else:
            for place, pair in enumerate(item.pairs):
                yield _record(item, [pair], read, after_image, place)
    for group in groups.values():
        yield _merged(group, read, after_image)


def _merged(group: Sequence[Asked], read: Callable[..., bytes], after_image: str) -> Entry:
    pairs = [pair for item in group for pair in item.pairs]
    first = dict(reversed([(question, (question, answer)) for question, answer in pairs]))
    kept = sorted(first.values(), key=pairs.index)
    counts = Counter(merged_questions=len(kept) - 1, repeated_questions=len(pairs) - len(kept))
    made = _record(group[0], kept, read, after_image)
    if isinstance(made, Rejected):
        return Rejected(made.id, f"{made.reason}; {len(pairs)} questions about it")
    return counted(made, +counts)


def _record(
    item: Asked,
    pairs: Sequence[tuple[str, Any]],
    read: Callable[..., bytes],
    after_image: str,
    place: int | None = None,
) -> Entry:
    entry = entry_id(item.entry, place)
    try:
        turns = [turn for question, answer in pairs for turn in _turns(question, answer)]
        if turns:
            turns[0] = ("user", f"{IMAGE}{after_image}{turns[0][1]}")
        return conversation_record(
            entry,
            [read(*item.image)],
            turns,
            fields=item.fields,
            source_id=item.source_id,
            source=item.source,
        )
    except BadRecord as error:
        return Rejected(entry, str(error))


def _turns(question: str, answer: Any) -> list[tuple[str, Any]]:
    if IMAGE in question or (isinstance(answer, str) and IMAGE in answer):
        raise BadRecord(f"{IMAGE} in a question of a layout without placeholders")
    return [("user", question), ("assistant", answer)]

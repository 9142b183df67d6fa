"""Turns of a conversation under construction, and the rules by which their roles alternate.

A conversation is at most one system turn, then questions and answers in turn. Datasets break this
in ways that are repaired here, and counted:

    merged_turns           two turns of one role in a row become one, with a line break between
    leading_answers        an answer before the first question is dropped (LLaVA drops it, too)
    blank_answers          an answer without text is dropped, and its question
    unanswered_questions   a question at the end is dropped, and its images
    blank_system_turns     a system turn without text is dropped

The images of a dropped turn belong to the next question.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mm1_jax.data.record_files import IMAGE, BadRecord


@dataclass
class RecordTurn:
    """A turn with the images and the boxes that its placeholders stand for."""

    role: str
    text: str
    has_loss: bool = True
    images: list[bytes] = field(default_factory=list)
    boxes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_blank(self) -> bool:
        """True if the turn has no text beside its images."""
        return not self.text.replace(IMAGE, "" if self.images else IMAGE).strip()


def alternating(turns: Iterable[RecordTurn]) -> tuple[list[RecordTurn], Counter[str]]:
    """Returns the turns after the repairs above, and the number of each.

    Raises:
        BadRecord: A system turn follows a question, or answers with and without a loss follow each
            other, or no answer is left.
    """
    counts: Counter[str] = Counter()
    merged = _merged(turns, counts)
    kept: list[RecordTurn] = []
    if merged and merged[0].role == "system":
        system = merged.pop(0)
        if system.is_blank and not system.images:
            counts["blank_system_turns"] += 1
        else:
            kept.append(system)
    if any(turn.role == "system" for turn in merged):
        raise BadRecord("a system turn that is not the first turn")
    images: list[bytes] = []
    if merged and merged[0].role == "assistant":
        counts["leading_answers"] += 1
        images += merged.pop(0).images
        if not merged:
            raise BadRecord("an answer without a question")
    if len(merged) % 2:
        counts["unanswered_questions"] += 1
        merged.pop()
    for question, answer in zip(merged[::2], merged[1::2], strict=True):
        if answer.is_blank:
            counts["blank_answers"] += 1
            images += question.images + answer.images
            continue
        question.text = f"{IMAGE}\n" * len(images) + question.text
        question.images = images + question.images
        kept += [question, answer]
        images = []
    if not any(turn.role == "assistant" for turn in kept):
        raise BadRecord("no answer that is not blank")
    if not any(turn.role == "assistant" and turn.has_loss for turn in kept):
        raise BadRecord("no answer has a loss")
    return kept, counts


def _merged(turns: Iterable[RecordTurn], counts: Counter[str]) -> list[RecordTurn]:
    """Merges turns of one role that follow each other; a blank one adds nothing but its images."""
    merged: list[RecordTurn] = []
    for turn in turns:
        if not merged or merged[-1].role != turn.role:
            merged.append(turn)
            continue
        counts["merged_turns"] += 1
        last = merged[-1]
        if last.has_loss != turn.has_loss and not (last.is_blank or turn.is_blank):
            raise BadRecord("two answers in a row, one with a loss and one without")
        merged[-1] = RecordTurn(
            turn.role,
            "\n".join(text for text in (last.text, turn.text) if text.strip()),
            (turn if last.is_blank else last).has_loss,
            last.images + turn.images,
            last.boxes + turn.boxes,
        )
    return merged

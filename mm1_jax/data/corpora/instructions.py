"""Instructions about the embedded pictures, drawn from a seed: fine-tuning without a download.

Every instruction asks for a form of answer: a short answer, a letter of options, yes or no, a
sentence, a JSON object, the box of a shape, or a text-only reply.

    user       <image>
               what color is the circle?
               Answer in JSON with the key "color".
    assistant  {"color": "red"}

Some records have earlier turns: about the same picture in other forms, or, as in a few-shot prompt,
about other pictures in the same form. Pictures of the test split are those of the corpora
`scenes` and `digits`, so a model that was pre-trained on these has not seen them. Text-only
questions are few, and those of the test split occur in training too.
"""

import enum
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mm1_jax.batch import Record
from mm1_jax.config import config_class
from mm1_jax.data.corpora import digits
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.conversations import ConversationDocument
from mm1_jax.data.corpora.embedded import DrawnSource
from mm1_jax.data.corpora.picture_facts import YES_NO, Fact, Subject, Subjects
from mm1_jax.data.format_prompts import OPTION_LETTER, SHORT_ANSWER
from mm1_jax.data.grounding import Coordinates
from mm1_jax.data.record_files import BOX, IMAGE
from mm1_jax.field_types import PositiveInt, Share


class Form(enum.Enum):
    """The form of answer that an instruction asks for.

    Fingerprints in saved states contain the name of this class.
    """

    SHORT_ANSWER = "short_answer"
    LETTER = "letter"
    YES_NO = "yes_no"
    SENTENCE = "sentence"
    JSON = "json"
    BOX = "box"
    TEXT = "text"


INSTRUCTIONS = {
    Form.SHORT_ANSWER: SHORT_ANSWER,
    Form.LETTER: OPTION_LETTER,
    Form.YES_NO: "Answer yes or no.",
    Form.SENTENCE: "Answer in one sentence.",
    Form.JSON: "Answer in JSON with the {keys}.",
    Form.BOX: "Answer with its bounding box.",
}
LETTERS = "ABCD"
# Forms of each set of pictures. No form is asked of a picture that has no answer to it.
_OF_ANY_PICTURE = (Form.SHORT_ANSWER, Form.LETTER, Form.YES_NO, Form.SENTENCE, Form.JSON)
FORMS = {
    "scenes": (*_OF_ANY_PICTURE, Form.BOX),
    "digits": _OF_ANY_PICTURE,
    "none": (Form.TEXT,),
}
# All pairs of pictures and form, in the order of a source that has all of them.
ALL_FORMS = tuple((pictures, form) for pictures, forms in FORMS.items() for form in forms)


@dataclass(frozen=True)
class Exchange:
    """A user turn and its answer.

    Attributes:
        key: The key of the fact that is asked for; None for a box.
        box: The box that the answer names, if it does.
        fields: Facts that a scoring function needs.
    """

    asked: str
    answer: str
    key: str | None = None
    box: tuple[float, ...] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


class InstructionsSource(DrawnSource):
    """Conversations whose last turn asks for one form of answer."""

    @config_class
    class Config(DrawnSource.Config):
        # None takes all forms of all pictures in turn.
        form: Form | None = None
        # The pictures that instructions are about; "none" for text-only instructions.
        pictures: Literal["scenes", "digits", "none"] = "scenes"
        num_records: PositiveInt = 4096  # In the training split.
        # Shares of records with earlier turns: about the same picture in other forms, or about
        # other pictures in the same form.
        same_picture_turns: Share = 0.3
        other_picture_turns: Share = 0.15
        # Number of earlier turns about other pictures, and whether they ask the same question.
        max_other_pictures: PositiveInt = 3
        other_questions: Literal["same", "any"] = "same"

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        if cfg.form is not None and cfg.form not in FORMS[cfg.pictures]:
            known = ", ".join(form.name for form in FORMS[cfg.pictures])
            raise ValueError(
                f"source.form={cfg.form.name} with pictures={cfg.pictures!r}: expected {known}"
            )
        self._subjects = Subjects(split)

    def drawn(self, index: int) -> Record:
        """Returns a conversation; fields such as `form` and `options` describe its last turn."""
        cfg = self._config
        pictures, form = cfg.pictures, cfg.form
        if form is None:
            index, place = divmod(index, len(ALL_FORMS))
            pictures, form = ALL_FORMS[place]
        name = f"{pictures}/{form.value}/{self.split}/{cfg.seed}/{index}"
        rng = random.Random(f"instructions/{name}")
        images, exchanges = self._conversation(rng, pictures, form)
        turns, boxes = [], []
        for number, exchange in enumerate(exchanges):
            shown = images[number] if number < len(images) else ()
            asked = "\n".join([IMAGE] * len(shown) + [exchange.asked])
            turns += [
                {"role": "user", "text": asked},
                {"role": "assistant", "text": exchange.answer},
            ]
            if exchange.box is not None:
                # Pictures of the turns so far; the box lies in the last one.
                place = sum(map(len, images[: number + 1])) - 1
                boxes.append({"image": place, "box": list(exchange.box)})
        record = {
            "id": name,
            "images": [image for shown in images for image in shown],
            "turns": turns,
            "source": form.value,
            "form": form.value,
            **exchanges[-1].fields,
        }
        return {**record, "boxes": boxes} if boxes else record

    def _conversation(
        self, rng: random.Random, pictures: str, form: Form
    ) -> tuple[list[tuple[Any, ...]], list[Exchange]]:
        """Returns the pictures that each turn shows, and the turns."""
        cfg = self._config
        draw = rng.random()
        subject = self._subject(rng, pictures, form)
        exchange = _exchange(rng, form, subject)
        if draw < cfg.other_picture_turns:
            key = exchange.key if cfg.other_questions == "same" else None
            number = rng.randint(1, cfg.max_other_pictures)
            others = [self._subject(rng, pictures, form, key) for _ in range(number)]
            return (
                [each.images for each in (*others, subject)],
                [*(_exchange(rng, form, each, key) for each in others), exchange],
            )
        earlier = []
        if draw < cfg.other_picture_turns + cfg.same_picture_turns:
            possible = [
                each for each in FORMS[pictures] if each is not form and _facts(each, subject)
            ]
            earlier = rng.sample(possible, min(len(possible), rng.randint(1, 2)))
        return [subject.images], [*(_exchange(rng, each, subject) for each in earlier), exchange]

    def _subject(
        self, rng: random.Random, pictures: str, form: Form, key: str | None = None
    ) -> Subject:
        """Draws pictures that a form, and a question of a key, can be asked about."""
        while True:
            subject = self._subjects.draw(pictures, rng)
            if _facts(form, subject, key):
                return subject


def corpus(form: Form | None = None, pictures: str = "scenes", **source: Any) -> Corpus.Config:
    """Returns the corpus of a form, or of all; `source` sets fields of `InstructionsSource`."""
    name = "instructions" if form is None else f"{pictures}_{form.value}".removeprefix("none_")
    return Corpus.default_config().set(
        name=name,
        source=InstructionsSource.default_config().set(form=form, pictures=pictures, **source),
        to_document=ConversationDocument.default_config().set(
            coordinates=Coordinates.default_config()
        ),
        # A box would not move with the picture of a scene.
        augmentation=digits.augmentation() if pictures == "digits" else None,
    )


def _facts(form: Form, subject: Subject, key: str | None = None) -> list[Any]:
    """Returns the facts, or the boxes with their names, that a form can ask for."""
    if form is Form.BOX:
        return sorted(subject.boxes.items())
    facts = [fact for fact in subject.facts if key is None or fact.key == key]
    if form in (Form.LETTER, Form.SENTENCE, Form.JSON):
        return [fact for fact in facts if fact.choices != YES_NO]
    return facts


def _exchange(rng: random.Random, form: Form, subject: Subject, key: str | None = None) -> Exchange:
    """Draws an instruction about a subject."""
    facts = _facts(form, subject, key)
    if form is Form.JSON:
        return _in_json(rng, facts)
    fact = rng.choice(facts)
    if form is Form.BOX:
        name, box = fact
        return Exchange(f"where is the {name}?\n{INSTRUCTIONS[form]}", BOX, box=box)
    if form is Form.TEXT:
        return _text_only(rng, fact)
    if form is Form.LETTER:
        return _in_letters(rng, fact)
    if form is Form.YES_NO:
        return _yes_or_no(rng, fact)
    answer = _sentence(fact.said(fact.answer)) if form is Form.SENTENCE else fact.answer
    return Exchange(f"{fact.question}\n{INSTRUCTIONS[form]}", answer, fact.key)


def _in_json(rng: random.Random, facts: list[Fact]) -> Exchange:
    chosen = [rng.choice(facts)]
    if len({fact.key for fact in facts}) == len(facts) > 1 and rng.random() < 0.5:
        # No key occurs twice, such as the colors of two shapes, so the names say what is asked.
        chosen = rng.sample(facts, 2)
    asked = chosen[0].question if len(chosen) == 1 else "what do you see?"
    names = " and ".join(f'"{fact.key}"' for fact in chosen)
    keys = f"key {names}" if len(chosen) == 1 else f"keys {names}"
    answer = {fact.key: fact.value for fact in chosen}
    return Exchange(
        f"{asked}\n{INSTRUCTIONS[Form.JSON].format(keys=keys)}",
        json.dumps(answer),
        chosen[0].key,
        fields={"keys": [*answer]},
    )


def _in_letters(rng: random.Random, fact: Fact) -> Exchange:
    others = [choice for choice in fact.choices if choice != fact.answer]
    options = [fact.answer, *rng.sample(others, min(len(others), len(LETTERS) - 1))]
    rng.shuffle(options)
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return Exchange(
        "\n".join([fact.question, *lines, INSTRUCTIONS[Form.LETTER]]),
        LETTERS[options.index(fact.answer)],
        fact.key,
        fields={"options": options},
    )


def _yes_or_no(rng: random.Random, fact: Fact) -> Exchange:
    instruction = INSTRUCTIONS[Form.YES_NO]
    if fact.choices == YES_NO:
        return Exchange(f"{fact.question}\n{instruction}", fact.answer, fact.key)
    is_true = rng.random() < 0.5
    others = [choice for choice in fact.choices if choice != fact.answer]
    said = fact.said(fact.answer if is_true else rng.choice(others))
    return Exchange(f"is it true that {said}?\n{instruction}", YES_NO[not is_true], fact.key)


def _text_only(rng: random.Random, fact: Fact) -> Exchange:
    if rng.random() < 0.5:
        return Exchange(fact.question, _sentence(fact.said(fact.answer)), fact.key)
    return Exchange(f"{fact.question}\n{INSTRUCTIONS[Form.SHORT_ANSWER]}", fact.answer, fact.key)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."

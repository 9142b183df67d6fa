"""Corpora of the small world: captions, questions, interleaved pages and texts.

Short captions say part of what a picture shows, as alt texts do, and some belong to another
picture. Synthetic captions say all of it, as those of VeCap do (MM1, section 3.2). The fields of
`WorldSource` set how hard each task is.
"""

import random
from collections.abc import Sequence
from typing import Any, Literal

from mm1_jax.batch import Record
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.corpora import world_texts as texts
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import (
    NUMBERS,
    ORDINALS,
    TO_DOCUMENT,
    DrawnSource,
    Kind,
    PageContent,
    page_record,
    text_record,
)
from mm1_jax.data.corpora.questions import question_prompt
from mm1_jax.data.corpora.scenes import plural
from mm1_jax.data.corpora.world import (
    MAX_COUNT,
    NUM_BEINGS,
    Look,
    Painter,
    Picture,
    Thing,
    relation,
)
from mm1_jax.field_types import NonNegative, NonNegativeInt, PositiveInt, Share

Topic = Literal["attributes", "relations", "counting", "print", "details", "knowledge"]
# Kinds of questions by topic.
TOPICS: dict[Topic, tuple[str, ...]] = {
    "attributes": ("color", "shape", "size"),
    "relations": ("relation",),
    "counting": ("count",),
    "print": ("print",),
    "details": ("pattern",),
    "knowledge": ("home", "food"),
}
# References of a caption.
NUM_REFERENCES = 5


class WorldSource(DrawnSource):
    """Records of one kind about pictures of one split."""

    @config_class
    class Config(DrawnSource.Config):
        kind: Required[Kind] = REQUIRED
        num_records: PositiveInt = 32_768  # In the training split.
        topics: Sequence[Topic] = tuple(TOPICS)  # Topics of questions, in rotation.
        max_objects: PositiveInt = 3  # At most 4, as many as there are shapes.
        max_count: PositiveInt = 6  # Most objects to count, at most 8.
        max_others: NonNegativeInt = 4  # Most objects beside them, at most 8.
        print_sizes: Sequence[PositiveInt] = (6, 8, 11)  # Fonts of signs in pixels.
        noise: NonNegative = 16.0  # Standard deviation, in levels of 0 to 255.
        synthetic_share: Share = 0.07  # Share of captions that say all that a picture shows.
        wrong_share: Share = 0.1  # Share of the short captions of training of another picture.
        max_between: NonNegativeInt = 2  # Most nouns between a head and its verb, at most 3.

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        most = {"max_objects": 4, "max_count": MAX_COUNT, "max_others": 8, "max_between": 3}
        for name, limit in most.items():
            if (value := getattr(cfg, name)) > limit:
                raise ValueError(f"{name}={value}: expected at most {limit}")
        if not cfg.topics or not cfg.print_sizes:
            raise ValueError("topics and print_sizes: expected at least one each")
        self._topics = tuple(cfg.topics)
        self._painter = Painter(split, tuple(cfg.print_sizes), cfg.noise)

    def drawn(self, index: int) -> Record:
        """Returns a record. A picture renders itself when called."""
        kind = self._config.kind
        rng = random.Random(f"world/{kind.value}/{self.split}/{self._config.seed}/{index}")
        if kind is Kind.CAPTIONS:
            return self._captioned(rng)
        if kind is Kind.QUESTIONS:
            return self._question(rng, self._topics[index % len(self._topics)])
        if kind is Kind.TEXT:
            return text_record(self._sentence(rng) for _ in range(rng.randint(4, 9)))
        return page_record(self._page(rng))

    def _picture(self, rng: random.Random) -> Picture:
        cfg, draw = self._config, rng.random()
        if draw < 0.3:
            return self._painter.objects(rng, rng.randint(1, cfg.max_objects))
        if draw < 0.5:
            return self._crowd(rng)
        if draw < 0.8:
            return self._painter.sign(rng, rng.randint(0, 2))
        return self._painter.being(rng, None, rng.randint(0, 1))

    def _crowd(self, rng: random.Random) -> Picture:
        cfg = self._config
        count = rng.randint(1, cfg.max_count)
        return self._painter.crowd(rng, count, rng.randint(0, cfg.max_others))

    def _captioned(self, rng: random.Random) -> Record:
        cfg, picture = self._config, self._picture(rng)
        caption = short_caption(rng, picture)
        if rng.random() < cfg.synthetic_share:
            caption = long_caption(rng, picture)
        elif self.split == "train" and rng.random() < cfg.wrong_share:
            caption = short_caption(rng, self._picture(rng))
        references = {caption: None}
        # Small scenes have few captions, so that some of the references may be equal.
        for _ in range(12):
            if len(references) < NUM_REFERENCES:
                references[short_caption(rng, picture)] = None
        return {
            "image": picture,
            "caption": caption,
            "images": [picture],
            "captions": list(references),
        }

    def _question(self, rng: random.Random, topic: Topic) -> dict[str, Any]:
        kind = rng.choice(TOPICS[topic])
        picture, question, answer = self._asked(rng, kind)
        if picture.sign is not None and kind == "print":
            kind = f"print_{picture.sign.size}"
        return {"images": [picture], "question": question, "answer": answer, "kind": kind}

    def _asked(self, rng: random.Random, kind: str) -> tuple[Picture, str, str]:
        if kind == "count":
            picture = self._crowd(rng)
            first = picture.things[0].look
            count = sum(thing.look == first for thing in picture.things)
            asked = f"how many {first.color} {plural(first.shape)} are there?"
            return picture, asked, NUMBERS[count]
        if kind == "print":
            picture = self._painter.sign(rng, rng.randint(0, 2))
            assert picture.sign is not None
            return picture, "what does the sign say?", picture.sign.word
        if kind in ("home", "food"):
            # Held out are the beings of which nothing but text tells the facts.
            told = self.split == "train"
            number = rng.randrange(*((0, texts.NUM_TOLD) if told else (texts.NUM_TOLD, NUM_BEINGS)))
            picture = self._painter.being(rng, number, rng.randint(0, 1))
            asked = "where is it from" if kind == "home" else "what does it eat"
            answer = f"a {texts.NAMES[number]} {texts.trait(kind, number)}"
            return picture, f"what is this and {asked}?", answer
        if kind == "relation":
            while True:
                picture = self._painter.objects(
                    rng, rng.randint(2, max(2, self._config.max_objects))
                )
                thing, other = rng.sample(picture.things, 2)
                if (found := relation(thing, other)) is not None:
                    break
            asked = f"where is the {thing.look.shape} relative to the {other.look.shape}?"
            return picture, asked, found
        picture = self._painter.objects(rng, rng.randint(1, self._config.max_objects))
        asked_look = rng.choice(picture.things).look
        if kind == "shape":
            return picture, f"which shape is {asked_look.color}?", asked_look.shape
        question = {
            "color": f"what color is the {asked_look.shape}?",
            "size": f"how large is the {asked_look.shape}?",
            "pattern": f"which pattern does the {asked_look.shape} have?",
        }[kind]
        return picture, question, getattr(asked_look, kind)

    def _page(self, rng: random.Random) -> PageContent:
        form = rng.choice(("captions", "questions", "questions", "tour", "beings", "crowds"))
        if form == "questions":
            topics = self._topics if rng.random() < 0.3 else (rng.choice(self._topics),)
            records = [self._question(rng, rng.choice(topics)) for _ in range(rng.randint(3, 8))]
            return [
                part
                for each in records
                for part in (
                    *each["images"],
                    f"{question_prompt(each['question'])} {each['answer']}",
                )
            ]
        if form == "crowds":
            return self._crowds(rng)
        if form == "beings":
            return self._beings(rng)
        pictures = [self._picture(rng) for _ in range(rng.randint(2, len(ORDINALS)))]
        if form == "captions":
            return [part for picture in pictures for part in (picture, short_caption(rng, picture))]
        page: PageContent = [f"Here are {NUMBERS[len(pictures)]} pictures."]
        for ordinal, picture in zip(ORDINALS, pictures, strict=False):
            page += [picture, f"The {ordinal} picture shows {long_caption(rng, picture)}."]
        return page

    def _crowds(self, rng: random.Random) -> PageContent:
        first, second = self._crowd(rng), self._crowd(rng)
        counts = [len(picture.things) for picture in (first, second)]
        more = ORDINALS[counts[1] > counts[0]]
        told = "Both have as many shapes."
        if counts[0] != counts[1]:
            told = f"The {more} picture has more shapes."
        return [first, f"Here are {_objects(first)}.", second, f"Now {_objects(second)}. {told}"]

    def _beings(self, rng: random.Random) -> PageContent:
        page: PageContent = ["Look at this."]
        for _ in range(rng.randint(2, 5)):
            picture = self._painter.being(rng, None, 0)
            assert picture.being is not None
            number = picture.being.number
            told = f"This is a {picture.being.color} {texts.NAMES[number]}."
            if number < texts.NUM_TOLD:
                kinds = rng.sample(("home", "food"), 2)
                told += f" It is a {texts.NAMES[number]} {texts.trait(kinds[0], number)}."
            page += [picture, told]
        return page

    def _sentence(self, rng: random.Random) -> str:
        if rng.random() < 0.15:
            picture = self._painter.objects(rng, 2)
            return f"{long_caption(rng, picture)}."
        return texts.draw_sentence(rng, self._config.max_between)


class WorldTextTasks(DrawnSource):
    """Facts or sentences of the text of the world, with options for the second part of each."""

    @config_class
    class Config(DrawnSource.Config):
        asks: Required[Literal["facts", "grammar"]] = REQUIRED
        num_records: PositiveInt = 4096  # In the training split, which exemplars are from.
        max_between: NonNegativeInt = 2  # As in `WorldSource`.

    def drawn(self, index: int) -> Record:
        cfg, is_test = self._config, self.split == "test"
        rng = random.Random(f"world/{cfg.asks}/{self.split}/{cfg.seed}/{index}")
        if cfg.asks == "facts":
            kind = texts.FACT_KINDS[index % len(texts.FACT_KINDS)]
            return texts.draw_fact(rng, kind, is_test=is_test).record(rng)
        return texts.draw_agreement(rng, cfg.max_between, is_test=is_test).record(rng)


def corpus(kind: Kind, **source: Any) -> Corpus.Config:
    """Returns the corpus of a kind; `source` sets fields of `WorldSource`."""
    return Corpus.default_config().set(
        name=f"world_{kind.value}",
        source=WorldSource.default_config().set(kind=kind, **source),
        to_document=TO_DOCUMENT[kind],
    )


def short_caption(rng: random.Random, picture: Picture) -> str:
    """Returns a caption that says part of what a picture shows."""
    groups = _groups(picture)
    rng.shuffle(groups)
    named = [_named(look, count, rng.random()) for look, count in groups[:2]]
    if picture.sign is not None:
        named.insert(rng.randrange(len(named) + 1), f"a sign {picture.sign.word}")
    if picture.being is not None:
        color = f"{picture.being.color} " if rng.random() < 0.8 else ""
        named.insert(0, f"a {color}{texts.NAMES[picture.being.number]}")
    frame = rng.choice(("{}", "{}", "{}", "a picture of {}"))
    return frame.format(" and ".join(named[: rng.choice((1, 2, 2))]))


def long_caption(rng: random.Random, picture: Picture) -> str:
    """Returns a caption that says all that a picture shows, and the place of objects and sign."""
    if (
        picture.sign is None
        and picture.being is None
        and len(_groups(picture)) == len(picture.things)
    ):
        told = _whole(picture.things[0].look, 1)
        for thing, other in zip(picture.things, picture.things[1:], strict=False):
            where = relation(thing, other)
            joint = {None: " and", "left": " left of", "right": " right of"}.get(where, f" {where}")
            told += f"{joint} {_whole(other.look, 1)}"
        return told
    named = [_whole(look, count) for look, count in _groups(picture)]
    if picture.being is not None:
        named.insert(0, f"a {picture.being.color} {texts.NAMES[picture.being.number]}")
    if picture.sign is not None:
        side = "above" if picture.sign.row < 2 else "below"
        named.insert(0, f"a sign {picture.sign.word} {side}")
    return " and ".join(named)


def _objects(picture: Picture) -> str:
    return " and ".join(_named(look, count, 0.9) for look, count in _groups(picture))


def _groups(picture: Picture) -> list[tuple[Look, int]]:
    """Returns the looks of objects with their numbers, in order."""
    things: Sequence[Thing] = picture.things
    looks = dict.fromkeys(thing.look for thing in things)
    return [(look, sum(thing.look == look for thing in things)) for look in looks]


def _named(look: Look, count: int, detail: float) -> str:
    """Returns the objects with more or less detail, a number from 0 to 1."""
    words = [look.shape if count == 1 else plural(look.shape)]
    if detail > 0.1:
        words.insert(0, look.color)
    if detail > 0.8 and count == 1:
        words.insert(0, look.size)
    if count == 1:
        return f"a {' '.join(words)}"
    return " ".join([NUMBERS[count], *words] if detail > 0.3 else words)


def _whole(look: Look, count: int) -> str:
    if count > 1:
        return f"{NUMBERS[count]} {look.size} {look.color} {plural(look.shape)}"
    return f"a {look.size} {look.color} {look.pattern} {look.shape}"

"""The small world: answers follow from pixels and positions, and splits share no part."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest

from mm1_jax.data.corpora import world_texts as texts
from mm1_jax.data.corpora.embedded import NUMBERS, Kind
from mm1_jax.data.corpora.scenes import COLORS
from mm1_jax.data.corpora.world import NUM_BEINGS, SIDE, Painter, Picture, figure
from mm1_jax.data.corpora.world_records import NUM_REFERENCES, TOPICS, WorldTextTasks, corpus


def source(kind, split="train", num_records=240, **fields):
    return corpus(kind, num_records=num_records, **fields).instantiate(split=split).source


def records(*args, **fields):
    made = source(*args, **fields)
    return [made[i] for i in range(len(made))]


def pictures(record):
    return [each for each in record.get("images") or [record["image"]] if each is not None]


def texts_of(record):
    found = [record.get("caption"), record.get("answer"), record.get("question")]
    found += [*record.get("captions", ()), *record.get("texts", ())]
    return [text for text in found if text]


def has_color(pixels, color):
    """Returns the pixels of a color, without those of edges and of the dark parts of patterns."""
    return np.abs(pixels.astype(int) - COLORS[color]).max(axis=-1) < 45


def num_patches(mask):
    """Returns the number of connected sets of pixels, by flooding."""
    left, count = {tuple(place) for place in np.argwhere(mask)}, 0
    while left:
        count += 1
        stack = [left.pop()]
        while stack:
            y, x = stack.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack += near
    return count


@pytest.mark.parametrize("kind", Kind)
def test_records_are_functions_of_split_and_index(kind):
    for split in ("train", "test"):
        first, second = source(kind, split), source(kind, split)
        for i in (3, len(first) - 1, 0, 3):
            assert first[i] == second[i]
        with pytest.raises(IndexError):
            first[len(first)]
    assert source(kind)[0] != source(kind, seed=1)[0]


def test_the_asked_color_and_direction_are_those_of_the_pixels():
    asked = records(Kind.QUESTIONS, topics=("attributes", "relations"), num_records=400, noise=0.0)
    checked = set()
    for record in asked:
        (picture,) = record["images"]
        pixels, words = picture(), record["question"].rstrip("?").split()
        places = {}
        for color in COLORS:
            found = np.argwhere(has_color(pixels, color))
            if len(found) > 8:
                places[color] = found.mean(axis=0), np.ptp(found, axis=0).max()
        color_of = {thing.look.shape: thing.look.color for thing in picture.things}
        if record["kind"] == "color":
            assert record["answer"] in places
            assert len(picture.things) > 1 or [*places] == [record["answer"]]
        elif record["kind"] == "relation":
            (y, x), _ = places[color_of[words[3]]]
            (other_y, other_x), _ = places[color_of[words[-1]]]
            dx, dy = x - other_x, y - other_y
            right = {"left": -dx, "right": dx, "above": -dy, "below": dy}
            assert max(right, key=right.__getitem__) == record["answer"]
        elif record["kind"] == "size":
            _, extent = places[color_of[words[-1]]]
            assert (extent > 16) == (record["answer"] == "large")
        checked.add(record["kind"])
    assert checked == {"color", "shape", "size", "relation"}


def test_the_asked_number_is_the_number_of_patches_of_the_color():
    asked = records(Kind.QUESTIONS, topics=("counting",), num_records=120, noise=0.0)
    numbers = set()
    for record in asked:
        (picture,) = record["images"]
        first = picture.things[0].look
        assert f"{first.color} {first.shape}" in record["question"]
        if all(each.look.color != first.color or each.look == first for each in picture.things):
            count = num_patches(has_color(picture(), first.color))
            # Neighbors may touch.
            assert count <= NUMBERS.index(record["answer"])
            numbers.add(count)
    assert len(numbers) >= 5


def test_pictures_with_other_words_or_patterns_have_other_pixels():
    painter = Painter("train", (8,), 0.0)
    signs = [
        replace(picture, sign=replace(picture.sign, shifts=((0, 0),) * 3))
        for picture in (painter.sign(random.Random(i), 0) for i in range(40))
    ]
    crops = {}
    for picture in signs:
        assert picture.sign is not None
        top, left = picture.sign.row * 16, picture.sign.column * 16
        crop = picture()[top : top + 16, left : left + 48].astype(int) - picture.ground
        crops.setdefault(picture.sign.word, []).append(crop[2:-2, 2:-2])
    found = [crop[0].tobytes() for crop in crops.values()]
    assert len(set(found)) == len(found) > 20
    looks = [painter.objects(random.Random(i), 1) for i in range(300)]
    variety = {}
    for picture in looks:
        (thing,) = picture.things
        share = has_color(picture(), thing.look.color).sum() / (2 * thing.radius + 1) ** 2
        variety.setdefault((thing.look.shape, thing.look.pattern), []).append(share)
    for shape in {shape for shape, _ in variety}:
        plain = np.mean(variety[shape, "plain"])
        assert all(
            np.mean(shares) < 0.95 * plain
            for (other, pattern), shares in variety.items()
            if other == shape and pattern != "plain"
        )


def test_figures_differ_and_are_symmetric():
    made = [figure(number) for number in range(NUM_BEINGS)]
    for number, each in enumerate(made):
        np.testing.assert_array_equal(each, each[:, ::-1])
        assert all((each != other).sum() >= 4 for other in made[:number])


def parts(picture):
    found = {frozenset((str(a.look), [b.look for b in picture.things].count(a.look))
                       for a in picture.things)} - {frozenset()}  # fmt: skip
    if picture.sign is not None:
        found.add(picture.sign.word)
    if picture.being is not None:
        found.add((picture.being.number, picture.being.color))
    return found


def test_no_part_of_a_test_picture_is_in_a_training_picture():
    seen = {"train": set(), "test": set()}
    for split, number in (("train", 400), ("test", 800)):
        for kind in (Kind.CAPTIONS, Kind.QUESTIONS, Kind.INTERLEAVED):
            for record in records(kind, split, number):
                for picture in pictures(record):
                    assert isinstance(picture, Picture)
                    assert picture.splits == {split}
                    seen[split] |= parts(picture)
    assert not seen["train"] & seen["test"]
    assert min(map(len, seen.values())) > 100


def test_texts_alone_tell_the_facts_of_the_beings_that_knowledge_asks_for():
    untold = texts.NAMES[texts.NUM_TOLD : NUM_BEINGS]
    fact = re.compile(rf"\b({'|'.join(untold)}) (from|that|lives|eats)\b")
    for kind in (Kind.CAPTIONS, Kind.QUESTIONS, Kind.INTERLEAVED):
        found = records(kind, num_records=400)
        named = any(name in text for each in found for text in texts_of(each) for name in untold)
        assert named == (kind is not Kind.QUESTIONS)
        assert not any(fact.search(text) for each in found for text in texts_of(each))
    told = " ".join(each["text"] for each in records(Kind.TEXT, num_records=1200))
    asked = records(Kind.QUESTIONS, "test", topics=("knowledge",))
    for record in asked:
        name, trait = re.fullmatch(r"a (\w+) (.*)", record["answer"]).groups()
        assert name in untold
        assert f"a {name} {trait} met" in told or f"met a {name} {trait}." in told
    assert {record["answer"].split()[1] for record in asked} == set(untold)


def test_synthetic_captions_say_more_and_wrong_ones_are_of_other_pictures():
    def mean_length(**fields):
        return np.mean([len(each["caption"].split()) for each in records(Kind.CAPTIONS, **fields)])

    short, long = (mean_length(synthetic_share=share, wrong_share=0.0) for share in (0.0, 1.0))
    assert long > 1.5 * short
    for record in records(Kind.CAPTIONS, synthetic_share=1.0):
        for thing in record["image"].things:
            assert thing.look.color in record["caption"] and thing.look.shape in record["caption"]

    def share_of_wrong(split, **fields):
        made = [
            (record["image"].being, record["caption"])
            for record in records(Kind.CAPTIONS, split, 600, synthetic_share=0.0, **fields)
            if record["image"].being is not None
        ]
        return np.mean([texts.NAMES[being.number] not in text for being, text in made])

    assert share_of_wrong("train", wrong_share=0.0) == share_of_wrong("test", wrong_share=0.5) == 0
    assert 0.3 < share_of_wrong("train", wrong_share=0.5) < 0.6


def test_references_of_a_caption_differ():
    for record in records(Kind.CAPTIONS, "test", synthetic_share=0.0):
        found = record["captions"]
        assert found[0] == record["caption"]
        assert 2 <= len(set(found)) == len(found) <= NUM_REFERENCES


def test_agreement_follows_the_first_noun_and_splits_share_no_subject():
    subjects = {}
    for split in ("train", "test"):
        made = WorldTextTasks.default_config().set(asks="grammar", num_records=1200)
        tasks = made.instantiate(split=split)
        for i in range(len(tasks)):
            record = tasks[i]
            head = record["question"].split()[1]
            verb = "are" if head.endswith("s") and head != "cross" else "is"
            assert record["options"][record["label"]].split()[0] == verb
            assert len({option.split()[0] for option in record["options"]}) == 2
            subjects.setdefault(split, set()).add(record["question"])
    assert not subjects["train"] & subjects["test"]


def test_weights_are_an_order_and_the_asked_pairs_are_in_no_text():
    told = set()
    for record in records(Kind.TEXT, num_records=1200):
        for name, word, other in re.findall(
            r"the (\w+) weighs (\w+) than the (\w+)", record["text"]
        ):
            told.add((name, other) if word == "more" else (other, name))
    asked = WorldTextTasks.default_config().set(asks="facts").instantiate(split="test")
    pairs = set()
    for record in map(asked.__getitem__, range(600)):
        if record["kind"] == "weight":
            name, (word, *_, other) = record["question"].split()[1], record["answer"].split()
            pairs.add((name, other) if word == "more" else (other, name))
    assert len(pairs) > 50 and not any({pair, pair[::-1]} & told for pair in pairs)
    # A topological order exists: no being is heavier than itself through others.
    heavier = {}
    for name, other in told | pairs:
        heavier.setdefault(name, set()).add(other)
    remaining = set(texts.NAMES)
    while light := {name for name in remaining if not heavier.get(name, set()) & remaining}:
        remaining -= light
    assert not remaining


def test_fields_out_of_range_are_named():
    for field, value in (("max_objects", 5), ("max_count", 9), ("max_between", 4)):
        with pytest.raises(ValueError, match=f"{field}={value}: expected at most"):
            source(Kind.CAPTIONS, **{field: value})
    with pytest.raises(ValueError, match="expected at least one each"):
        source(Kind.QUESTIONS, topics=())


def test_every_topic_is_asked_equally_often():
    kinds = [record["kind"] for record in records(Kind.QUESTIONS, num_records=120)]
    for wanted in TOPICS.values():
        assert sum(kind.split("_")[0] in wanted for kind in kinds) == 20
    assert source(Kind.CAPTIONS)[0]["image"]().shape == (SIDE, SIDE, 3)

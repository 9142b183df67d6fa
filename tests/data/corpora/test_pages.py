"""Rendered pages show the digits and colors that their records name."""

import numpy as np
import pytest

from mm1_jax.batch import Image, Text
from mm1_jax.data.corpora import pages
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.corpora.pages import COLORS, SIDE, PagesSource
from mm1_jax.data.images import picture_size


def _records(kind: Kind, split: str = "train", n: int = 60, **fields) -> list:
    source = PagesSource.default_config().set(kind=kind, **fields).instantiate(split=split)
    return [source[i] for i in range(n)]


def _ink(page) -> np.ndarray:
    """Returns where a page differs from its colors."""
    pixels = page().astype(int)
    grounds = [np.abs(pixels - np.array(color)).max(-1) for color in COLORS.values()]
    return np.min(grounds, axis=0) > 0


def test_the_color_covers_most_of_the_page_and_the_digits_are_those_of_the_prints():
    for record in _records(Kind.CAPTIONS):
        page, reading = record["image"], dict(record["reading"])
        share = {name: (page() == color).all(-1).mean() for name, color in COLORS.items()}
        assert max(share, key=share.get) == reading.pop("color") == page.larger
        assert reading == {each.quarter: each.digit for each in page.prints}
        assert sorted(reading) == list("abcd")


@pytest.mark.parametrize("sizes", [(6, 8, 12), (16, 24)])
def test_neither_tiles_nor_patches_cut_a_digit_and_every_quarter_has_one(sizes):
    # A patch of 14 pixels at 56 is 28 pixels of a page; small print fits into one at 112, too.
    cell = 14 if max(sizes) <= 12 else 28
    for record in _records(Kind.CAPTIONS, sizes=sizes):
        inked = _ink(record["image"]).reshape(SIDE // cell, cell, -1, cell).any(axis=(1, 3))
        assert inked.sum() == 4
        quarters = inked.reshape(2, len(inked) // 2, 2, -1).any(axis=(1, 3))
        assert quarters.all()


def test_a_question_asks_for_one_thing():
    for asks in ("digit", "color"):
        for record in _records(Kind.QUESTIONS, asks=asks):
            ((name, answer),) = record["reading"]
            page = record["image"]
            if asks == "color":
                assert (name, answer, record["kind"]) == ("color", page.larger, "color")
            else:
                (each,) = [each for each in page.prints if each.quarter == name]
                assert (answer, record["kind"]) == (each.digit, f"digit_{each.size}")


def test_only_answers_are_scored():
    record = _records(Kind.CAPTIONS, n=1)[0]
    image, *texts = pages.reading_document(record).segments
    assert image == Image(record["image"])
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    assert pairs == [(Text(x, scored=False), Text(y)) for x, y in record["reading"]]


def test_repeated_pages_have_one_digit_and_ask_for_it_once():
    for share in (0.0, 1.0):
        records = _records(Kind.CAPTIONS, repeated_share=share)
        repeated = [len({x.digit for x in record["image"].prints}) == 1 for record in records]
        assert np.mean(repeated) == pytest.approx(share, abs=0.1)
        assert [len(record["reading"]) for record in records] == [2 if x else 5 for x in repeated]


def test_records_depend_on_seed_split_and_index_alone():
    def drawn(**fields):
        return [record["image"] for record in _records(Kind.CAPTIONS, **fields)]

    assert drawn() == drawn()
    assert not set(drawn()) & set(drawn(split="test"))
    assert not set(drawn()) & set(drawn(seed=1))


def test_the_size_of_a_page_is_known_without_rendering():
    page = _records(Kind.CAPTIONS, n=1)[0]["image"]
    before = pages._rendered.cache_info().misses
    assert picture_size(Image(page)) == (SIDE, SIDE)
    assert pages._rendered.cache_info().misses == before
    assert page().shape == (SIDE, SIDE, 3)


def test_invalid_fields_are_refused():
    with pytest.raises(ValueError, match="pages have CAPTIONS and QUESTIONS"):
        PagesSource.default_config().set(kind=Kind.TEXT).instantiate(split="train")
    with pytest.raises(ValueError, match=r"sizes=\(48,\): expected fonts of 1 to 24 pixels"):
        PagesSource.default_config().set(kind=Kind.CAPTIONS, sizes=(48,)).instantiate(split="train")

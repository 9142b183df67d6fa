"""Rendered pages show the digits and colors that their records name."""

import numpy as np
import pytest

from mm1_jax.batch import Image
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


def test_the_answer_is_in_the_dense_reading_and_the_color_covers_most_of_the_page():
    for record in _records(Kind.QUESTIONS):
        page = record["page"]
        assert record["answer"] in page.reading
        pixels = page()
        share = {name: (pixels == color).all(-1).mean() for name, color in COLORS.items()}
        assert max(share, key=share.get) == page.larger
        if record["kind"] == "color":
            assert record["answer"] == page.larger
        else:
            asked = record["question"].removesuffix("?")
            (each,) = [each for each in page.prints if each.place == asked]
            assert (record["answer"], record["kind"]) == (each.digit, f"digit_{each.size}")


def test_no_tile_cuts_a_digit_and_every_quarter_has_one():
    for record in _records(Kind.QUESTIONS, sizes=(8, 24)):
        ink = _ink(record["page"])
        half = SIDE // 2
        assert not ink[[half - 1, half]].any() and not ink[:, [half - 1, half]].any()
        quarters = ink.reshape(2, half, 2, half).any(axis=(1, 3))
        assert quarters.all()


def test_wide_print_is_print_twice_as_large():
    drawn = [record["page"] for record in _records(Kind.CAPTIONS)]
    wide = {each.size for page in drawn if len(page.prints) == 2 for each in page.prints}
    narrow = {each.size for page in drawn if len(page.prints) == 4 for each in page.prints}
    assert wide == {2 * size for size in narrow}
    page = next(page for page in drawn if len(page.prints) == 2)
    half = SIDE // 2
    assert not _ink(page)[[half - 1, half]].any() and not _ink(page)[:, [half - 1, half]].any()


def test_records_depend_on_seed_split_and_index_alone():
    def drawn(**fields):
        return [record["page"] for record in _records(Kind.CAPTIONS, **fields)]

    assert drawn() == drawn()
    assert not set(drawn()) & set(drawn(split="test"))
    assert not set(drawn()) & set(drawn(seed=1))


def test_the_size_of_a_page_is_known_without_rendering():
    page = _records(Kind.CAPTIONS, n=1)[0]["page"]
    before = pages._rendered.cache_info().misses
    assert picture_size(Image(page)) == (SIDE, SIDE)
    assert pages._rendered.cache_info().misses == before
    assert page().shape == (SIDE, SIDE, 3)


def test_pages_have_no_text_of_other_kinds():
    with pytest.raises(ValueError, match="pages have CAPTIONS and QUESTIONS"):
        PagesSource.default_config().set(kind=Kind.TEXT).instantiate(split="train")

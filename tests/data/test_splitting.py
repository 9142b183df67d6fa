import doctest
import itertools
import json

import numpy as np
import pytest

from mm1_jax.batch import Document, Image, Text
from mm1_jax.data import splitting
from mm1_jax.data.splitting import Splitter, text_blocks
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer

WORDS = ["a", "cat.", "Two", "dogs;", "\n", "  ", "caf\u00e9!", "x" * 30, "\u96e8"]


def _text(seed, words=200):
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.default_config().instantiate()


def test_examples_in_docstrings_hold():
    assert doctest.testmod(splitting).failed == 0


@pytest.mark.parametrize("seed", range(20))
def test_blocks_are_short_and_have_the_tokens_of_the_text(tokenizer, seed):
    text = _text(seed)
    blocks = text_blocks(text, 200)
    assert len(blocks) > 5
    assert max(map(len, blocks)) <= 200
    assert " ".join(blocks) == text
    ids = [tokenizer.encode(block) for block in blocks]
    assert list(itertools.chain(*ids)) == tokenizer.encode(text)


def test_blocks_of_real_chapters_have_the_tokens_of_the_chapter(tokenizer, test_data):
    source = test_data / "d2l" / "text.jsonl"
    for line in source.read_text(encoding="utf-8").splitlines()[:10]:
        text = json.loads(line)["text"]
        blocks = text_blocks(text, 1000)
        ids = [tokenizer.encode(block) for block in blocks]
        assert list(itertools.chain(*ids)) == tokenizer.encode(text)


def test_blocks_end_with_a_sentence_if_one_ends_late_enough():
    text = " ".join(f"This is number {i} of the sentences." for i in range(100))
    blocks = text_blocks(text, 100)
    assert all(block.endswith("sentences.") and len(block) > 50 for block in blocks[:-1])


def test_a_text_without_spaces_loses_nothing():
    text = "\u96e8" * 1000
    blocks = text_blocks(text, 64)
    assert "".join(blocks) == text and max(map(len, blocks)) <= 64


def _parts(sizes, kinds, *, max_tokens, max_images=4, **fields):
    splitter = Splitter.default_config().set(**fields).instantiate()
    is_image = [kind == "i" for kind in kinds]
    return splitter.pieces(sizes, is_image, max_tokens=max_tokens, max_images=max_images)


@pytest.mark.parametrize("seed", range(30))
def test_parts_cover_the_text_in_order_fit_and_keep_images_with_their_text(seed):
    rng = np.random.default_rng(seed)
    kinds = "".join(rng.choice(list("ittt"), 40))
    sizes = [4 if kind == "i" else int(rng.integers(1, 30)) for kind in kinds]
    parts = _parts(sizes, kinds, max_tokens=60)
    covered = [i for part in parts for i in part]
    assert covered == sorted(set(covered))
    assert {i for i, kind in enumerate(kinds) if kind == "t"} <= set(covered)
    for part in parts:
        assert sum(sizes[i] for i in part) <= 60
        assert sum(kinds[i] == "i" for i in part) <= 4
        # A part ends with an image only at the end of the page.
        assert kinds[part[-1]] == "t" or part.stop == len(kinds)
    # Parts are greedy: none has room for the first unit of the next.
    for part, following in itertools.pairwise(parts):
        unit = following[: next(n for n, i in enumerate(following, 1) if kinds[i] == "t")]
        joined = [*part, *range(part.stop, unit[0]), *unit]
        fits = sum(sizes[i] for i in joined) <= 60 and sum(kinds[i] == "i" for i in joined) <= 4
        assert not fits


def test_an_image_may_be_separated_from_its_text_if_configured():
    kinds, sizes = "tit", [50, 4, 20]
    assert _parts(sizes, kinds, max_tokens=60) == [range(0, 1), range(1, 3)]
    parted = _parts(sizes, kinds, max_tokens=60, may_part_image_from_text=True)
    assert parted == [range(0, 2), range(2, 3)]


def test_with_too_many_images_the_nearest_stay_with_the_text():
    assert _parts([1] * 8, "iiiiiitt", max_tokens=100, max_images=4) == [range(2, 8)]


def test_a_block_longer_than_a_row_is_a_separate_part():
    assert _parts([5, 99, 5], "ttt", max_tokens=60) == [range(0, 1), range(1, 2), range(2, 3)]


def test_a_page_of_images_alone_has_no_parts():
    assert _parts([1] * 9, "i" * 9, max_tokens=100, max_images=4) == []


def test_blocks_keep_images_scores_and_the_end():
    splitter = Splitter.default_config().set(block_characters=20).instantiate()
    document = Document((Text("one two three four five six", scored=False), Image(b""), Text("b")))
    blocks = splitter.blocks(document)
    assert [type(segment) for segment in blocks.segments] == [Text, Text, Image, Text]
    assert [s.scored for s in blocks.segments if isinstance(s, Text)] == [False, False, True]
    assert blocks.piece(0, 2).ends is False and blocks.piece(2, 4).ends is True


def test_a_block_length_of_zero_is_an_error():
    with pytest.raises(ValueError, match="block_characters=0: expected at least 1"):
        Splitter.default_config().set(block_characters=0).instantiate()

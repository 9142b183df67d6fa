"""A conversation answered turn by turn, against `generate` on each whole prompt."""

import functools
import itertools

import numpy as np
import pytest
from drawn_model import tiny
from near_ties import assert_same_answers, logits_after

from mm1_jax.batch import Batch
from mm1_jax.decoding import conversation as module
from mm1_jax.decoding.conversation import ContextFull, ConversationDecoder, PromptImage
from mm1_jax.decoding.engine import Engine, Request
from mm1_jax.decoding.generate import generate
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.decoding.sampling import Sampling

PAD, BOS, EOS, IMAGE, STOP = 0, 1, 2, 3, 4
NEW, LENGTH = 6, 80
OPTIONS = DecodingOptions(NEW, eos=STOP, pad=PAD, forbidden=(BOS, IMAGE), also_ends=(EOS,))
SHOWN = [IMAGE] * 4
# The new tokens and pictures of each turn; an answer stands before each but the first.
TURNS = [
    ([BOS, 5, *SHOWN, 6, 7], ["red"]),
    ([5, 8, 9, 10], []),
    ([5, *SHOWN, *SHOWN, 11], ["gray", "white"]),
    ([5, 12, 13], []),
]
GRAY = {"red": 30, "gray": 120, "white": 250}


def pixels(name: str) -> np.ndarray:
    return np.random.default_rng(GRAY[name]).integers(0, 255, (8, 8, 3)).astype(np.uint8)


def images(names: list[str], encoded: list[str]) -> list[PromptImage]:
    """Images that record when their pixels are read."""

    def read(name: str) -> np.ndarray:
        encoded.append(name)
        return pixels(name)

    return [PromptImage(name, functools.partial(read, name)) for name in names]


def whole(tokens: list[int], names: list[str]) -> Batch:
    row = np.array([tokens], np.int32)
    return Batch(
        tokens=row,
        targets=np.zeros_like(row),
        loss_mask=np.zeros(row.shape, bool),
        positions=np.arange(len(tokens), dtype=np.int32)[None],
        segment_ids=np.ones_like(row),
        corpus_ids=np.zeros_like(row),
        images=np.stack([*map(pixels, names)]),
        image_index=np.arange(len(names), dtype=np.int32)[None],
    )


def assert_as_one_prompt(answer: list[int], tokens: list[int], names: list[str]) -> None:
    batch = whole(tokens, names)
    wanted = np.asarray(generate(tiny(), batch, OPTIONS))[0].tolist()
    found = answer + [PAD] * (NEW - len(answer))
    scores = logits_after(tiny(), batch, [wanted])
    assert_same_answers([found], [wanted], lambda row, step: scores(0, step))


def decoder(**options) -> ConversationDecoder:
    sizes = {"length": LENGTH, "image_size": 8, "steps_per_check": 4} | options
    return ConversationDecoder(tiny(), OPTIONS, **sizes)


@pytest.fixture
def read_lengths(monkeypatch) -> list[tuple[int, int]]:
    """The numbers of new positions and of image slots of each prefill."""
    found = []
    program = module._read

    def wrapped(model, caches, prompt, *rest, **named):
        found.append((int(np.sum(prompt.segment_ids > 0)), len(prompt.images)))
        return program(model, caches, prompt, *rest, **named)

    monkeypatch.setattr(module, "_read", wrapped)
    return found


def test_turn_by_turn_is_as_one_prompt_and_every_picture_is_encoded_once(read_lengths):
    talk, tokens, names, encoded = decoder(), [], [], []
    for new_tokens, new_names in TURNS:
        tokens, names = tokens + new_tokens, names + new_names
        answer = list(talk.reply(tokens, images(names, encoded)))
        assert_as_one_prompt(answer, tokens, names)
        tokens = [*tokens, *answer]
    assert encoded == ["red", "gray", "white"]
    assert [slots for _, slots in read_lengths] == [1, 0, 2, 0]
    # Later turns read the end of the last answer and the new question alone.
    for (length, _), (new_tokens, _) in zip(read_lengths, TURNS, strict=True):
        assert length <= len(new_tokens) + 1


def test_a_prompt_that_differs_earlier_is_read_from_there(read_lengths):
    talk, encoded = decoder(), []
    first, *_ = TURNS
    answer = list(talk.reply(first[0], images(["red"], encoded)))
    # The answer is tokenized again in another way.
    tokens = [*first[0], *answer[:1], 9, 9, 9, 5, 6]
    assert_as_one_prompt(list(talk.reply(tokens, images(["red"], encoded))), tokens, ["red"])
    assert read_lengths[1][0] == len(tokens) - len(first[0]) - (answer[0] != STOP)
    # Another picture at the same place, and then a shorter prompt with the first one.
    for names, prompt in ((["gray"], tokens), (["red"], first[0])):
        assert_as_one_prompt(list(talk.reply(prompt, images(names, encoded))), prompt, names)
    assert encoded == ["red", "gray", "red"]
    # The same prompt again reads its last token alone.
    assert_as_one_prompt(list(talk.reply(first[0], images(["red"], encoded))), first[0], ["red"])
    assert read_lengths[-1] == (1, 0) and len(encoded) == 3


def test_an_answer_that_is_not_read_to_its_end_leaves_the_cache_usable():
    talk = decoder(steps_per_check=1)
    tokens = TURNS[0][0]
    next(talk.reply(tokens, images(["red"], [])))
    assert_as_one_prompt(list(talk.reply(tokens, images(["red"], []))), tokens, ["red"])


def test_an_interrupted_program_does_not_spoil_later_answers(monkeypatch):
    talk, tokens = decoder(), TURNS[0][0]
    list(talk.reply(tokens, images(["red"], [])))
    longer = [*tokens, 5, 6, 7]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_read", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            list(talk.reply(longer, images(["red"], [])))
    assert_as_one_prompt(list(talk.reply(longer, images(["red"], []))), longer, ["red"])


def test_samples_depend_on_seed_and_turn_alone():
    options = DecodingOptions(
        NEW, eos=STOP, pad=PAD, forbidden=(BOS, IMAGE), sampling=Sampling(1.5), seed=3
    )
    prompt = [BOS, 5, 6]
    groups = (1, 4)
    first, second = (
        ConversationDecoder(tiny(), options, length=LENGTH, image_size=8, steps_per_check=n)
        for n in groups
    )
    assert list(first.reply(prompt, row_id=2)) == list(second.reply(prompt, row_id=2))
    drawn = {tuple(first.reply(prompt, row_id=i)) for i in range(4)}
    assert len(drawn) > 1


def test_a_conversation_ends_when_its_cache_is_full():
    prompt = [BOS, *itertools.islice(itertools.cycle([5, 6, 7]), 29)]
    talk = decoder(length=31)
    answer = list(talk.reply(prompt))
    assert len(answer) <= 2
    with pytest.raises(ContextFull, match="32 positions of 31"):
        talk.reply([*prompt, 8, 9])
    # The refused prompt changes nothing.
    assert list(talk.reply(prompt)) == answer


def test_image_tokens_and_images_must_match():
    with pytest.raises(ValueError, match="4 image tokens and 0 images of 4"):
        decoder().reply(TURNS[0][0])
    for name in ("length", "steps_per_check"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            decoder(**{name: 0})


def test_every_decoder_stops_at_each_of_several_ends():
    prompts = [[BOS, i, j] for i in range(5, 12) for j in (6, 9)]
    ends = set()
    engine = Engine(tiny(), OPTIONS, num_slots=2, cache_length=LENGTH)
    batches = [whole(prompt, ["red"]) for prompt in prompts]
    together = dict(engine.run(Request(batch) for batch in batches))
    for i, (prompt, batch) in enumerate(zip(prompts, batches, strict=True)):
        answer = list(decoder().reply(prompt))
        alone = np.asarray(generate(tiny(), batch, OPTIONS))[0].tolist()
        for found in (answer, together[i], [token for token in alone if token != PAD]):
            assert not {STOP, EOS} & {*found[:-1]}
        ends.add(answer[-1])
    assert {STOP, EOS} & ends

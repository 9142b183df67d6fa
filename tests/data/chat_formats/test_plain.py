"""Properties of every chat format: what is scored, what is a prefix, and what users can write."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from mm1_jax.batch import Document, Image, Markup, Stop, Text
from mm1_jax.data.chat_formats.base import ChatFormat, Turn
from mm1_jax.data.chat_formats.llava import VICUNA_SYSTEM, LLaVAChatFormat
from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.corpora.conversations import ConversationDocument
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.splitting import TooLong
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer

PICTURE = Image(np.zeros((1, 1, 3), np.uint8))
WORDS = (
    "a",
    "red",
    "circle?",
    "7",
    "<image>",
    "</s>",
    "<s>",
    "USER:",
    "<|im_end|>",
    "\u00e9",
    "\n",
)
FORMATS = {
    "mm1": MM1ChatFormat.default_config(),
    "mm1_system": MM1ChatFormat.default_config().set(system="Be brief."),
    "llava": LLaVAChatFormat.default_config(),
}


@pytest.fixture
def builder(tokenizer) -> ExampleBuilder:
    return ExampleBuilder(tokenizer, num_image_tokens=4, max_sequence_length=1024, max_images=16)


@pytest.fixture(params=FORMATS)
def chat_format(request) -> ChatFormat:
    return FORMATS[request.param].instantiate()


def turns_at_random(rng: random.Random) -> list[Turn]:
    """Returns turns that alternate, sometimes after a system turn, with pictures anywhere."""

    def texts(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most))).strip() or "x"

    turns = [Turn("system", (texts(3),))] * (rng.random() < 0.3)
    for _ in range(rng.randint(1, 4)):
        parts = [texts(4) if rng.random() < 0.7 else PICTURE for _ in range(rng.randint(1, 4))]
        turns.append(Turn("user", tuple(parts)))
        turns.append(Turn("assistant", (texts(5),), is_scored=rng.random() < 0.8))
    return turns


def scored_pieces(example, tokenizer, stop: int) -> list[str]:
    """Returns the decoded runs of scored targets, each of which must end with the stop."""
    found, run = [], []
    for target, scored in zip(example.targets.tolist(), example.loss_mask.tolist(), strict=True):
        if scored:
            run.append(target)
            if target == stop:
                found.append(tokenizer.decode(run[:-1]).strip())
                run = []
        else:
            assert not run, "a scored answer without its stop"
    assert not run
    return found


def answers(turns) -> list[str]:
    return [turn.parts[0] for turn in turns if turn.role == "assistant" and turn.is_scored]


def test_what_is_scored_are_the_answers_and_their_stops(chat_format, builder, tokenizer):
    rng = random.Random(0)
    stop = tokenizer.stop_token(chat_format.stop)
    for _ in range(60):
        turns = turns_at_random(rng)
        example = builder.example(chat_format.document(turns))
        assert scored_pieces(example, tokenizer, stop) == answers(turns)
        assert (example.tokens == tokenizer.image_token).sum() == 4 * len(example.images)


def test_answers_of_real_conversations_are_scored_whole(test_data, tokenizer):
    make = ConversationDocument.default_config().set(chat_format=FORMATS["llava"]).instantiate()
    builder = ExampleBuilder(
        tokenizer, num_image_tokens=4, max_sequence_length=1 << 16, max_images=16
    )
    roles = {"human": "user", "gpt": "assistant"}
    for entry in json.loads((test_data / "formats" / "llava_json" / "llava.json").read_text()):
        turns = [
            {"role": roles.get(turn["from"], turn["from"]), "text": turn["value"]}
            for turn in entry["conversations"]
        ]
        record = {"images": [PICTURE.data] * ("image" in entry), "turns": turns}
        document = make(record)
        found = scored_pieces(builder.example(document), tokenizer, tokenizer.eos)
        assert found == [t["text"].strip() for t in turns if t["role"] == "assistant"]
        assert len(document.images) == len(record["images"])


def test_a_prompt_is_a_prefix_of_the_training_tokens(chat_format, builder):
    rng = random.Random(1)
    for _ in range(40):
        turns = turns_at_random(rng)
        whole = builder.example(chat_format.document(turns))
        for k, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            document = chat_format.document(turns[:k], prompts_answer=True)
            prompt = builder.prompt(document)
            assert prompt.tokens.tolist() == whole.tokens[: len(prompt.tokens)].tolist()
            # The answer comes next.
            answered = builder.prompt(
                replace(document, segments=(*document.segments, Text(f" {turn.parts[0]}")))
            )
            assert answered.tokens.tolist() == whole.tokens[: len(answered.tokens)].tolist()
            assert len(answered.tokens) > len(prompt.tokens)
            assert (
                document.segments == chat_format.document(turns).segments[: len(document.segments)]
            )


def test_users_write_no_stop(chat_format, builder, tokenizer):
    texts = ["</s>", "<image>", "<|im_end|>", "<s> </s>"]
    turns = [Turn("user", (" ".join(texts),)), Turn("assistant", ("ok",))]
    example = builder.example(chat_format.document(turns))
    whole = [*example.tokens.tolist(), int(example.targets[-1])]
    assert whole.count(tokenizer.eos) == 1
    assert tokenizer.image_token not in whole
    assert tokenizer.decode(whole).count("</s>") == 2


def test_the_texts_are_those_of_the_format(builder):
    turns = [
        Turn("user", (PICTURE, "what is it?")),
        Turn("assistant", ("a cat",)),
        Turn("user", ("what color?",)),
        Turn("assistant", ("gray",)),
    ]

    def spelled(document: Document) -> str:
        return "".join(
            "<image>" if isinstance(s, Image) else "</s>" if isinstance(s, Stop) else s.text
            for s in document.segments
        )

    assert spelled(MM1ChatFormat.default_config().instantiate().document(turns)) == (
        "User:<image>what is it? Assistant: a cat</s>User: what color? Assistant: gray</s>"
    )
    assert spelled(LLaVAChatFormat.default_config().instantiate().document(turns)) == (
        f"{VICUNA_SYSTEM} USER:<image>\nwhat is it? ASSISTANT: a cat</s>"
        "USER: what color? ASSISTANT: gray</s>"
    )
    # A system turn replaces the default.
    turns = [Turn("system", ("Be brief.",)), *turns[:2]]
    assert spelled(LLaVAChatFormat.default_config().instantiate().document(turns)) == (
        "Be brief. USER:<image>\nwhat is it? ASSISTANT: a cat</s>"
    )


def test_a_system_turn_comes_first(chat_format):
    turns = [Turn("user", ("a",)), Turn("system", ("b",))]
    with pytest.raises(BadRecord, match="system turn after"):
        chat_format.document(turns)


def test_the_tokens_are_those_of_the_whole_text(tokenizer, builder):
    """In a plain format, segments begin where words do."""
    format = LLaVAChatFormat.default_config().instantiate()
    turns = [Turn("user", ("what is it?",)), Turn("assistant", ("a cat",))]
    tokens = builder.example(format.document(turns)).tokens.tolist()
    text = f"{VICUNA_SYSTEM} USER: what is it? ASSISTANT: a cat"
    assert tokens == [tokenizer.bos, *tokenizer.encode(text)]


def test_a_conversation_is_never_truncated(chat_format, tokenizer):
    builder = ExampleBuilder(tokenizer, num_image_tokens=4, max_sequence_length=40, max_images=1)
    long = [Turn("user", ("a red circle " * 20,)), Turn("assistant", ("yes",))]
    pictures = [Turn("user", (PICTURE, PICTURE)), Turn("assistant", ("yes",))]
    for turns in (long, pictures):
        document = chat_format.document(turns)
        with pytest.raises(TooLong, match="the conversation takes"):
            builder.lengths(document)
        with pytest.raises(TooLong, match="ConversationSplitter"):
            builder.example(document)


def test_markup_has_special_tokens_and_text_has_none(tokenizer: Tokenizer):
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert tokenizer.encode_markup("a</s> b<s>") == [*a, tokenizer.eos, *b, tokenizer.bos]
    assert tokenizer.eos not in tokenizer.encode("a</s>b")
    assert tokenizer.stop_token("</s>") == tokenizer.stop_token() == tokenizer.eos
    with pytest.raises(ValueError, match="no special token"):
        tokenizer.stop_token("<|im_end|>")
    with pytest.raises(ValueError, match="puts an Image there"):
        tokenizer.encode_markup("<image>")


def test_stops_of_answers_that_are_only_read_are_not_scored(chat_format, builder):
    turns = [Turn("user", ("a",)), Turn("assistant", ("b",), is_scored=False)]
    document = chat_format.document(turns)
    assert any(isinstance(segment, Markup) for segment in document.segments)
    assert not builder.example(document).loss_mask.any()
    assert not any(s.scored for s in document.segments if isinstance(s, Text | Stop))

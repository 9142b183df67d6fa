"""Chat templates: ids are those of transformers, answers are scored, users write no token."""

import doctest
import json
import random

import cloudpickle
import numpy as np
import pytest
import transformers
from chat_templates import EOS, TEMPLATES, write_template

from mm1_jax.batch import Image, Markup, Stop, Text
from mm1_jax.data.chat_formats import base, jinja
from mm1_jax.data.chat_formats.base import Turn
from mm1_jax.data.chat_formats.hf import HFChatFormat
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.input import Input, chat_format
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.tokenizers.hf import HFTokenizer
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer

PICTURE = Image(np.zeros((1, 1, 3), np.uint8))
# Words that end or begin no token of the templates' own text.
WORDS = ("a", "red", "circle", "7", "12", "\u00e9", "(yes)", "it's", "two\nlines", "two\n\nmore")
STOPS = {
    "chatml": "<|im_end|>",
    "vision": "<|im_end|>",
    "llama_3": "<|eot|>",
    "swallowing": "<|turn_end|>",
}


@pytest.fixture(params=TEMPLATES)
def name(request) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path, name):
    return write_template(tmp_path / name, TEMPLATES[name])


def format_of(folder, **fields) -> HFChatFormat:
    return HFChatFormat.default_config().set(folder=str(folder), **fields).instantiate()


def builder_of(folder) -> ExampleBuilder:
    cfg = HFTokenizer.default_config().set(model_path=str(folder / "tokenizer.json"))
    return ExampleBuilder(
        cfg.instantiate(), num_image_tokens=4, max_sequence_length=2048, max_images=16
    )


def turns_at_random(rng: random.Random, *, system: bool, pictures: bool = False) -> list[Turn]:
    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 5)))

    turns = [Turn("system", (text(),))] * (system and rng.random() < 0.5)
    for _ in range(rng.randint(1, 4)):
        parts: list = [text()]
        if pictures:
            parts[rng.randint(0, 1) :] = [PICTURE] * rng.randint(0, 2) + parts[1:]
            parts = parts or [text()]
        turns.append(Turn("user", tuple(parts)))
        turns.append(Turn("assistant", (text(),), is_scored=rng.random() < 0.8))
    return turns


def whole_ids(example) -> list[int]:
    return [*example.tokens.tolist(), int(example.targets[-1])]


def theirs(folder, turns, **options) -> list[int]:
    """Returns the ids that transformers gives to turns of text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": turn.role, "content": turn.parts[0]} for turn in turns]
    return tokenizer.apply_chat_template(messages, return_dict=False, **options)


def test_the_ids_are_those_of_transformers(folder, name):
    format, builder = format_of(folder), builder_of(folder)
    rng = random.Random(0)
    has_bos = name in ("llama_3", "instruct")
    for _ in range(8):
        turns = turns_at_random(rng, system=name != "instruct")
        ids = whole_ids(builder.example(format.document(turns)))
        assert ids[0] == builder.tokenizer.bos
        assert ids[not has_bos :] == theirs(folder, turns)
        prompt = builder.prompt(format.document(turns[:-1], prompts_answer=True))
        expected = theirs(folder, turns[:-1], add_generation_prompt=True)
        assert prompt.tokens[not has_bos :].tolist() == expected


def test_what_is_scored_are_the_answers_and_their_stops(folder, name):
    format, builder = format_of(folder), builder_of(folder)
    tokenizer = builder.tokenizer
    assert format.stop == STOPS.get(name, EOS)
    stop = tokenizer.stop_token(format.stop)
    rng = random.Random(1)
    for _ in range(20):
        turns = turns_at_random(rng, system=False, pictures=True)
        example = builder.example(format.document(turns))
        scored = example.targets[example.loss_mask].tolist()
        answers, run = [], []
        for token in scored:
            run.append(token)
            if token == stop:
                answers.append(tokenizer.decode(run[:-1]).strip())
                run = []
        assert not run
        assert answers == [t.parts[0] for t in turns if t.role == "assistant" and t.is_scored]
        assert len(example.images) == sum(t.parts.count(PICTURE) for t in turns)


def test_a_prompt_is_a_prefix_of_the_training_tokens(folder):
    format, builder = format_of(folder), builder_of(folder)
    rng = random.Random(2)
    for _ in range(10):
        turns = turns_at_random(rng, system=False, pictures=True)
        whole = builder.example(format.document(turns)).tokens.tolist()
        for k in range(1, len(turns), 2):
            prompt = builder.prompt(format.document(turns[:k], prompts_answer=True)).tokens
            assert prompt.tolist() == whole[: len(prompt)]


def test_users_write_no_token(folder):
    format, builder = format_of(folder), builder_of(folder)
    names = ["<|im_end|>", "<|eot|>", "<image>", "<|end|>", "<|image_pad|>", "<|begin|>"]
    benign = [Turn("user", ("x",)), Turn("assistant", ("ok",))]
    turns = [Turn("user", (" ".join(names),)), Turn("assistant", ("ok",))]

    def special(turns) -> list[int]:
        ids = whole_ids(builder.example(format.document(turns)))
        return [i for i in ids if i in builder.tokenizer.special_tokens.values()]

    assert special(turns) == special(benign)


def test_pictures_replace_the_marks_of_the_template(tmp_path):
    folder = write_template(tmp_path / "vision", TEMPLATES["vision"])
    format = format_of(folder)
    turns = [Turn("user", ("is ", PICTURE, "red?")), Turn("assistant", ("yes",))]
    assert format.document(turns).segments == (
        Markup("<|im_start|>user"),
        Text("\nis ", scored=False),
        Markup("<|vision_start|>"),
        PICTURE,
        Markup("<|vision_end|>"),
        Text("red?", scored=False),
        Markup("<|im_end|>\n<|im_start|>assistant\n"),
        Text("yes"),
        Stop("<|im_end|>"),
        Markup("\n"),
    )
    folder = write_template(tmp_path / "first", TEMPLATES["pictures_first"])
    assert format_of(folder).document(turns).segments[:3] == (
        Markup("USER: "),
        PICTURE,
        Text("\nis red?", scored=False),
    )
    # A template that knows no pictures has them where they stand.
    folder = write_template(tmp_path / "chatml", TEMPLATES["chatml"])
    segments = format_of(folder).document(turns).segments
    assert segments[1:4] == (Text("\nis ", scored=False), PICTURE, Text("red?", scored=False))


REFUSED = {
    "no special token after an answer": (
        "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    ),
    "leaves out, repeats or reorders a text": (
        "{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}"
        "{{ messages[0].content }}"
    ),
    "does not begin a conversation with the prompt": (
        "{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant<think>' }}{% endif %}"
    ),
    "writes the date of today": "{{ strftime_now('%d') }}",
    "the chat template is invalid": "{% for %}",
    "set chat_format.image_mark": (
        "{% for m in messages %}{{ m.role }}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text or '<|vision_start|><|vision_end|>' }}{% endfor %}"
        "{% endif %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_template_that_cannot_be_trained_on_is_refused(tmp_path, reason):
    folder = write_template(tmp_path / "x", REFUSED[reason])
    with pytest.raises(ValueError, match=f"chat_format.folder.*{reason}"):
        format_of(folder)


def test_the_tokenizer_must_have_the_special_tokens_of_the_template(folder):
    chat = HFChatFormat.default_config().set(folder=str(folder))
    cfg = Input.default_config().set(chat_format=chat)
    tokenizer = builder_of(folder).tokenizer
    made = chat_format(cfg, tokenizer)
    assert made is not None and made.stop in made.special_tokens
    with pytest.raises(ValueError, match="special token"):
        chat_format(cfg, Tokenizer.default_config().instantiate())
    # A tokenizer with the stop, but without what the template writes elsewhere.
    lacking = sorted(set(made.special_tokens) - {made.stop})
    if lacking:
        vars(tokenizer)["special_tokens"] = {made.stop: tokenizer.special_tokens[made.stop]}
        with pytest.raises(ValueError, match=r"writes '.*has not among its special tokens"):
            chat_format(cfg, tokenizer)


def test_turns_that_a_template_refuses_are_bad_records(tmp_path):
    format = format_of(write_template(tmp_path / "x", TEMPLATES["instruct"]))
    with pytest.raises(BadRecord, match="no system turn"):
        format.document([Turn("system", ("s",)), Turn("user", ("a",)), Turn("assistant", ("b",))])
    with pytest.raises(BadRecord, match="roles must alternate"):
        format.document([Turn("user", ("a",)), Turn("user", ("a",)), Turn("assistant", ("b",))])


def test_the_end_of_a_picture_is_not_the_stop_of_an_answer(tmp_path):
    format = format_of(write_template(tmp_path / "vision", TEMPLATES["vision"]))
    turns = [Turn("user", ("a cat?",)), Turn("assistant", ("here", PICTURE))]
    with pytest.raises(BadRecord, match="ends an answer with '<.vision_end.>', and others"):
        format.document(turns)


def test_variables_choose_what_a_template_writes(tmp_path):
    template = "{{ '' if short else strftime_now('%d') }}" + TEMPLATES["chatml"]
    folder = write_template(tmp_path / "x", template)
    format = format_of(folder, variables={"short": True})
    turns = [Turn("user", ("a",)), Turn("assistant", ("b",))]
    assert format.document(turns).segments[-3] == Text("b")
    assert format.fingerprint() != format_of(folder, variables={"short": 1}).fingerprint()


def test_examples_in_docstrings_hold():
    assert doctest.testmod(jinja).failed == 0
    assert doctest.testmod(base).failed == 0


def test_templates_are_found_beside_the_tokenizer(tmp_path):
    folder = write_template(tmp_path / "x", TEMPLATES["chatml"])
    named = format_of(folder).fingerprint()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template; expected a chat_template.jinja"):
        format_of(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for value in (
        TEMPLATES["chatml"],
        [{"name": "tool", "template": ""}, {"name": "default", "template": TEMPLATES["chatml"]}],
    ):
        path.write_text(json.dumps(config | {"chat_template": value}))
        assert format_of(folder).fingerprint() == named


def test_a_format_can_be_sent_to_workers(folder):
    format = format_of(folder)
    turns = [Turn("user", ("a",)), Turn("assistant", ("b",))]
    copy = cloudpickle.loads(cloudpickle.dumps(format))
    assert copy.document(turns) == format.document(turns)
    assert copy.fingerprint() == format.fingerprint()


def test_blank_answers_have_an_unscored_stop(folder):
    format = format_of(folder)
    turns = [Turn("user", ("a",)), Turn("assistant", (), is_scored=False)]
    stops = [s for s in format.document(turns).segments if isinstance(s, Stop)]
    assert stops == [Stop(format.stop, scored=False)]

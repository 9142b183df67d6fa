"""`generate --chat` holds a conversation; plain `generate` asks chat runs in their format."""

import io
import sys

import numpy as np
import PIL.Image
import pytest

from mm1_jax.batch import Image
from mm1_jax.commands import generate as tool
from mm1_jax.data.chat_formats.base import Turn
from mm1_jax.data.rows import RowShape, assemble
from mm1_jax.decoding import conversation
from mm1_jax.decoding.generate import generate
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.evals.evaluator import PromptInput
from mm1_jax.serve.chat import Chat, parts

NEW = 6
VIEWS = 5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, paths = tmp_path_factory.mktemp("pictures"), []
    for name, seed in (("a.png", 0), ("b.png", 1)):
        pixels = np.random.default_rng(seed).integers(0, 255, (20, 28, 3)).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / name)
        paths.append(folder / name)
    return paths


def whole_prompt(run, turns) -> str:
    """The answer of `generate` to a prompt rendered whole."""
    _, model, cfg = run
    parts_of = PromptInput.of(cfg.input)
    chat_format = cfg.input.chat_format.instantiate()
    example = parts_of.example_builder.prompt(chat_format.document(turns, prompts_answer=True))
    shape = RowShape(len(example.tokens), max(1, len(example.images)), 8)
    batch = assemble([example], parts_of.image_transform, shape)
    options = DecodingOptions.of(parts_of.tokenizer, NEW, stop=chat_format.stop)
    return parts_of.tokenizer.decode(
        np.asarray(generate(model, batch, options))[0].tolist()
    ).strip()


def talk(monkeypatch, capsys, folder, lines, *flags) -> tuple[int, list[str], str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    status = tool.main(
        [f"--checkpoint={folder}", "--chat", f"--max_new_tokens={NEW}", *map(str, flags)]
    )
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_a_conversation_answers_as_one_prompt_and_encodes_each_picture_once(
    chat_run, pictures, monkeypatch, capsys
):
    slots = []

    program = conversation._read

    def counted(model, caches, prompt, *rest, **named):
        slots.append(len(prompt.images))
        return program(model, caches, prompt, *rest, **named)

    monkeypatch.setattr(conversation, "_read", counted)
    first, second = pictures
    lines = ["what color?", f"/image {second}", "and <image> is?", "", "why", "/quit", "never"]
    flags = (f"--image={first}", "--prompt=what is it?", "--system=Be brief.")
    status, answers, _ = talk(monkeypatch, capsys, chat_run[0], lines, *flags)
    assert status == 0 and len(answers) == 4
    # All views of a picture are encoded in its turn, and never again.
    assert slots == [VIEWS, 0, VIEWS, 0]
    turns = [Turn("system", ("Be brief.",))]
    images = [Image(path.read_bytes()) for path in pictures]
    messages = [(images[0], "what is it?"), ("what color?",), ("and", images[1], "is?"), ("why",)]
    for message, answer in zip(messages, answers, strict=True):
        turns.append(Turn("user", message))
        whole = whole_prompt(chat_run, turns)
        # An answer is printed as one line, without control characters.
        assert answer == "".join(c for c in " ".join(whole.splitlines()) if c.isprintable())
        turns.append(Turn("assistant", (whole,)))


def test_plain_generate_asks_in_the_format_of_the_run(chat_run, pictures):
    folder = chat_run[0]
    flags = [f"--checkpoint={folder}", f"--max_new_tokens={NEW}", f"--image={pictures[0]}"]
    turn = Turn("user", (Image(pictures[0].read_bytes()), "what is it?"))
    asked = tool.answer(tool.parse([*flags, "--prompt=what is it?"]))
    assert asked == whole_prompt(chat_run, [turn])
    system = tool.answer(tool.parse([*flags, "--prompt=what is it?", "--system=Be brief."]))
    assert system == whole_prompt(chat_run, [Turn("system", ("Be brief.",)), turn])


def test_a_reset_begins_a_new_conversation(chat_run, monkeypatch, capsys):
    _, answers, _ = talk(monkeypatch, capsys, chat_run[0], ["one?", "two?", "/reset", "one?"])
    assert answers[0] == answers[2]


def test_mistakes_are_named_and_a_script_ends_with_them(chat_run, pictures, monkeypatch, capsys):
    folder = chat_run[0]
    text = pictures[0].with_name("text.png")
    text.write_text("not a picture")
    for line, message in (
        ("/image", "/image: give the file"),
        (f"/image {folder / 'none.png'}", "none.png: cannot be read"),
        (f"/image {text}", "text.png: not an image that can be shown"),
        ("/picture a.png", "/picture: no such command"),
        ("x " * 600, "the context is full: the conversation takes"),
    ):
        status, answers, error = talk(monkeypatch, capsys, folder, [line, "never"])
        assert status == 2 and not answers
        assert message in error
    lines = [f"/image {pictures[0]}", "<image> and <image>"]
    status, _, error = talk(monkeypatch, capsys, folder, lines)
    assert status == 2 and "2 <image> marks and 1 pictures" in error
    # Without pictures, the mark is text.
    assert talk(monkeypatch, capsys, folder, ["what is <image>?"])[0] == 0


def test_a_person_sees_mistakes_and_goes_on(chat_run, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("/image none.png\n/help\nhello\n"))
    flags = [f"--checkpoint={chat_run[0]}", "--chat", "--max_new_tokens=2"]
    assert tool.main(flags) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n> ") == 4 and printed.count("/reset ") == 2
    assert "none.png: cannot be read" in printed
    assert "[the answer was cut after 2 tokens]" in printed


def test_a_run_without_a_chat_format_holds_no_conversation(run, monkeypatch, capsys):
    status, _, error = talk(monkeypatch, capsys, run[0], ["hello"])
    assert status == 2 and "the run has no chat format" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--chat", "--beams=2"), "without --format and --beams"),
        (("--chat", "--format=raw"), "without --format and --beams"),
        (("--prompt=a", "--format=raw", "--system=b"), "--format=raw has no system turn"),
        ((), "or --chat"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        tool.parse(["--checkpoint=a", *flags])
    assert message in capsys.readouterr().err


def test_pieces_of_an_answer_are_whole_characters(chat_run):
    _, model, cfg = chat_run
    input = PromptInput.of(cfg.input)
    chat = Chat(
        model,
        input,
        cfg.input.chat_format.instantiate(),
        DecodingOptions.of(input.tokenizer, NEW),
    )
    text = "red \u00e9\U0001f600!"
    # Characters that no piece of the vocabulary has are several tokens, one per byte.
    tokens = iter([*input.tokenizer.encode(text), input.tokenizer.eos])
    pieces = list(chat._answer([], 1, tokens))
    assert "".join(pieces) == text and len(pieces) > 2
    assert not any("\ufffd" in piece for piece in pieces)
    assert chat.turns[-1] == Turn("assistant", (text,)) and not chat.ending


def test_marks_place_the_pictures_of_a_message():
    a, b = Image(b"a"), Image(b"b")
    assert parts("same?", [a, b]) == (a, b, "same?")
    assert parts("<image>\nor <image>", [a, b]) == (a, "or", b)
    with pytest.raises(ValueError, match="1 <image> marks and 2 pictures"):
        parts("<image>?", [a, b])

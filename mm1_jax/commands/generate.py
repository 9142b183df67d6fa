"""Generates the answer of a trained model to a question about images, or holds a conversation.

    python -m mm1_jax generate --checkpoint=runs/mm1_tiny --image=FILE --prompt="what digit?"
    python -m mm1_jax generate --checkpoint=runs/mm1_tiny_chat --chat

Answers are printed to standard output.
"""

import argparse
import functools
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mm1_jax.command import command, started_as
from mm1_jax.data.corpora.questions import question_prompt
from mm1_jax.data.record_files import IMAGE
from mm1_jax.flags import local_text, number, whole

EPILOG = """\
formats:
  chat      the prompt is the message of a user, in the chat format of the run (default with a
            prompt, if the run has a chat format)
  question  the prompt is a question, asked in the words of the training data:
            "Question: PROMPT Short answer:" (default with a prompt for other runs)
  caption   the model describes the image, continuing the prompt if there is one
            (default without a prompt)
  raw       the model continues the prompt as it is; for few-shot prompts such as
            --image=a.png --image=b.png --format=raw \\
              --prompt="<image> Question: what digit is this? Short answer: 3
                        <image> Question: what digit is this? Short answer:"

with --chat:
  Each line of the standard input is a message, and the lines /image FILE, /reset, /quit and /help
  are commands. --prompt is the first message, and the pictures of --image are shown with it. The
  KV cache is kept over turns, and each picture is encoded once. If the input is not a terminal,
  each answer is printed as one line.

examples:
  %(prog)s --checkpoint=runs/mm1_tiny --image=a.png --prompt="what digit is this?"
  %(prog)s --checkpoint=runs/mm1_tiny --image=a.png
  %(prog)s --checkpoint=runs/mm1_tiny --image=a.png --image=b.png \\
      --prompt="which picture has more shapes?"
  %(prog)s --checkpoint=runs/mm1_tiny --image=a.png \\
      --temperature=0.8 --top_p=0.9 --seed=1
  %(prog)s --checkpoint=runs/mm1_tiny --image=a.png --beams=4
  %(prog)s --checkpoint=runs/mm1_tiny_chat --chat --image=a.png --system="Be brief."
  printf '%%s\\n' "what is it?" "what color?" | \\
      %(prog)s --checkpoint=runs/mm1_tiny_chat --chat --image=a.png

exit codes:
  0  answered
  2  the command or a file must be changed; the message says how
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=started_as("generate"),
        description="Prints the answer of a trained model to a question about images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        type=local_text,
        required=True,
        metavar="FOLDER",
        help="output folder of a run",
    )
    parser.add_argument("--step", type=whole(0), help="step of the checkpoint; default: the newest")
    parser.add_argument(
        "--image",
        type=local_text,
        action="append",
        default=[],
        metavar="FILE",
        help="image file; may be repeated",
    )
    parser.add_argument(
        "--prompt",
        help=f"text for the model; {IMAGE} marks the place of each image; without marks, "
        "images come first",
    )
    parser.add_argument(
        "--format",
        choices=("chat", "question", "caption", "raw"),
        help="how the prompt is used, see below",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="hold a conversation over lines of the standard input, see below",
    )
    parser.add_argument("--system", default="", help="system turn, with --chat or --format=chat")
    parser.add_argument(
        "--max_new_tokens", type=whole(), help="default: 32, and 512 for each answer of --chat"
    )
    parser.add_argument(
        "--temperature",
        type=number(),
        default=0.0,
        help="temperature of sampling; default: 0, which takes the most likely token",
    )
    parser.add_argument(
        "--top_k", type=whole(), metavar="K", help="sample from the K most likely tokens"
    )
    parser.add_argument(
        "--top_p",
        type=number(most=1.0, exclusive=True),
        default=1.0,
        metavar="P",
        help="sample from the most likely tokens with a total probability of P",
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, help="seed of sampling; default: %(default)s"
    )
    parser.add_argument(
        "--beams",
        type=whole(),
        default=1,
        metavar="N",
        help="beam search with N beams, for the highest mean log probability",
    )
    parser.add_argument(
        "--cache_dtype",
        choices=("float32", "bfloat16", "int8"),
        help="dtype of the KV cache; default: the dtype of the model",
    )
    flags = parser.parse_args(arguments)
    if flags.prompt is None and not flags.image and not flags.chat:
        parser.error("give a --prompt, or an --image to describe, or --chat")
    if flags.chat and (flags.format not in (None, "chat") or flags.beams > 1):
        parser.error("--chat: answers in the chat format of the run, without --format and --beams")
    if flags.prompt is None and flags.format in ("question", "chat") and not flags.chat:
        parser.error(f"--format={flags.format} needs a --prompt")
    if flags.system and not flags.chat and flags.format not in (None, "chat"):
        parser.error(f"--system: --format={flags.format} has no system turn")
    if flags.beams > 1 and flags.temperature:
        parser.error(
            f"--beams={flags.beams} and --temperature={flags.temperature}: beam search does not "
            "sample; give one of the two"
        )
    flags.max_new_tokens = flags.max_new_tokens or (512 if flags.chat else 32)
    return flags


def format_of(flags: argparse.Namespace, has_chat_format: bool) -> str:
    """Returns the format of the prompt; its default depends on the prompt and on the run."""
    if flags.prompt is None:
        return flags.format or "caption"
    return flags.format or ("chat" if has_chat_format else "question")


def parts(prompt: str, format: str, num_images: int) -> list[str | None]:
    """Returns the prompt in reading order: texts, and None for each image.

    `parts("is it odd?", "question", 1) == [None, "Question: is it odd? Short answer:"]`
    """
    marks = prompt.count(IMAGE)
    if not marks:
        prompt = IMAGE * num_images + prompt
    elif marks != num_images:
        raise ValueError(
            f"--prompt has {marks} {IMAGE} marks and there are {num_images} images; give one "
            "--image per mark, or no marks to put the images first"
        )
    if format == "question":
        # The question begins after the leading images.
        start = max((m.end() for m in re.finditer(rf"\A(\s*{IMAGE})+", prompt)), default=0)
        prompt = prompt[:start] + question_prompt(prompt[start:].strip())
    pieces = re.split(f"({IMAGE})", prompt)
    return [None if piece == IMAGE else piece.strip() for piece in pieces if piece.strip()]


class _Run(NamedTuple):
    """The parts of a run that answer prompts."""

    folder: Path
    cfg: Any
    input: Any
    # None for a run that was not trained on conversations in a chat format.
    chat_format: Any
    sampling: Any


def _run_of(flags: argparse.Namespace) -> _Run:
    """Reads the config of the run. Raises ValueError on errors that the user can fix."""
    # Imported here, so that --help and errors in the options do not wait for jax.
    from mm1_jax.decoding.sampling import Sampling
    from mm1_jax.evals.evaluator import PromptInput
    from mm1_jax.launch.run_folder import load_experiment

    try:
        sampling = Sampling(flags.temperature, flags.top_k, flags.top_p)
    except ValueError as error:
        raise ValueError(f"--temperature, --top_k, --top_p: {error}") from error
    folder = Path(flags.checkpoint)
    if not folder.is_dir():
        raise ValueError(
            f"--checkpoint={flags.checkpoint}: no such folder; give a run's output folder"
        )
    cfg = load_experiment(folder)
    if flags.image and not cfg.input.image_size:
        raise ValueError("--image: the model of this run is text-only; give no images")
    chat_format = None if cfg.input.chat_format is None else cfg.input.chat_format.instantiate()
    is_chat = flags.chat or format_of(flags, chat_format is not None) == "chat"
    if is_chat and chat_format is None:
        raise ValueError(
            f"--checkpoint={flags.checkpoint}: the run has no chat format (input.chat_format); "
            "give a run that was fine-tuned on conversations, or another --format"
        )
    if flags.system and not is_chat:
        raise ValueError("--system: the run has no chat format, and so no system turn")
    return _Run(folder, cfg, PromptInput.of(cfg.input), chat_format, sampling)


def answer(flags: argparse.Namespace) -> str:
    """Returns the model's answer. Raises ValueError on errors that the user can fix."""
    import numpy as np

    from mm1_jax.checkpoints.trained_model import load_model
    from mm1_jax.data.images import Viewer
    from mm1_jax.data.rows import RowShape, assemble
    from mm1_jax.decoding.beam_search import beam_search
    from mm1_jax.decoding.generate import bucket, generate
    from mm1_jax.decoding.options import DecodingOptions
    from mm1_jax.evals.prompts import stop_of

    run = _run_of(flags)
    tokenizer, limit = run.input.tokenizer, run.cfg.input.max_sequence_length
    document = _document(flags, run)
    example = run.input.example_builder.without_limits().prompt(document)
    length = len(example.tokens)
    if length + flags.max_new_tokens > limit:
        raise ValueError(
            f"the prompt has {length} positions and --max_new_tokens={flags.max_new_tokens} more, "
            f"above the {limit} of the model; shorten one of them"
        )
    shape = RowShape(bucket(length), max(1, len(example.images)), run.cfg.input.image_size)
    model, _ = load_model(run.folder, run.cfg, flags.step)
    batch = assemble([example], Viewer(run.input.image_transform), shape)
    options = DecodingOptions.of(
        tokenizer,
        flags.max_new_tokens,
        stop=stop_of(document),
        sampling=run.sampling,
        seed=flags.seed,
        cache_dtype=flags.cache_dtype,
    )
    if flags.beams > 1:
        tokens = beam_search(model, batch, options, num_beams=flags.beams).tokens[:, 0]
    else:
        tokens = generate(model, batch, options)
    return tokenizer.decode(np.asarray(tokens)[0].tolist()).strip()


def _document(flags: argparse.Namespace, run: _Run) -> Any:
    """Builds the document that the model continues."""
    from mm1_jax.batch import Document, Text
    from mm1_jax.data.chat_formats.base import Turn
    from mm1_jax.serve import chat

    pictures = [_picture(name, run.input.image_transform) for name in flags.image]
    format = format_of(flags, run.chat_format is not None)
    if format == "chat":
        turns = [Turn("system", (flags.system,))] if flags.system else []
        user = Turn("user", chat.parts(flags.prompt, pictures))
        return run.chat_format.document([*turns, user], prompts_answer=True)
    reading_order = parts(flags.prompt or "", format, len(flags.image))
    waiting = iter(pictures)
    return Document(tuple(next(waiting) if part is None else Text(part) for part in reading_order))


def _picture(name: str, image_transform: Any) -> Any:
    from mm1_jax.batch import Image
    from mm1_jax.data.images import BadImage

    try:
        image = Image(Path(name).read_bytes())
        # Decoded here, so that the error can name the file.
        image_transform(image)
    except OSError as error:
        raise ValueError(f"--image={name}: cannot be read ({error.strerror})") from error
    except BadImage as error:
        raise ValueError(f"--image={name}: not an image that can be decoded ({error})") from error
    return image


def converse(flags: argparse.Namespace) -> None:
    """Holds a conversation over the standard input and output."""
    from mm1_jax.checkpoints.trained_model import load_model
    from mm1_jax.decoding.options import DecodingOptions
    from mm1_jax.serve.chat import Chat
    from mm1_jax.serve.terminal import Terminal

    run = _run_of(flags)
    model, _ = load_model(run.folder, run.cfg, flags.step)
    options = DecodingOptions.of(
        run.input.tokenizer,
        flags.max_new_tokens,
        stop=run.chat_format.stop,
        sampling=run.sampling,
        seed=flags.seed,
        cache_dtype=flags.cache_dtype,
    )
    chat = Chat(model, run.input, run.chat_format, options, system=flags.system)
    terminal = Terminal(
        chat,
        functools.partial(print, end="", flush=True),
        functools.partial(print, end="", flush=True, file=sys.stderr),
        is_interactive=sys.stdin.isatty(),
    )
    for name in flags.image:
        terminal.show(name)
    if flags.prompt is not None:
        terminal.message(flags.prompt)
    terminal.run(sys.stdin)


@command
def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(sys.argv[1:] if argv is None else argv)
    # orbax warns about a checkpoint folder that is opened for reading only.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if flags.chat:
        converse(flags)
    else:
        print(answer(flags))
    return 0

"""Generates the answer of a trained model to a question about images.

    python -m mm1_jax generate --checkpoint=runs/mm1_tiny --image=FILE --prompt="what digit?"

The answer is printed to standard output.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm1_jax.command import command, started_as
from mm1_jax.data.corpora.questions import question_prompt
from mm1_jax.flags import local_text, number, whole

IMAGE_MARK = "<image>"
EPILOG = """\
formats:
  question  the prompt is a question, asked in the words of the training data:
            "Question: PROMPT Short answer:" (default with a prompt)
  caption   the model describes the image, continuing the prompt if there is one
            (default without a prompt)
  raw       the model continues the prompt as it is; for few-shot prompts such as
            --image=a.png --image=b.png --format=raw \\
              --prompt="<image> Question: what digit is this? Short answer: 3
                        <image> Question: what digit is this? Short answer:"

examples:
  %(prog)s --checkpoint=runs/mm1_tiny --image=a.png --prompt="what digit is this?"
  %(prog)s --checkpoint=runs/mm1_tiny --image=a.png
  %(prog)s --checkpoint=runs/mm1_tiny --image=a.png --image=b.png \\
      --prompt="which picture has more shapes?"
  %(prog)s --checkpoint=runs/mm1_tiny --image=a.png \\
      --temperature=0.8 --top_p=0.9 --seed=1
  %(prog)s --checkpoint=runs/mm1_tiny --image=a.png --beams=4

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
        help=f"text for the model; {IMAGE_MARK} marks the place of each image; without marks, "
        "images come first",
    )
    parser.add_argument(
        "--format", choices=("question", "caption", "raw"), help="how the prompt is used, see below"
    )
    parser.add_argument("--max_new_tokens", type=whole(), default=32, help="default: %(default)s")
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
    if flags.prompt is None and not flags.image:
        parser.error("give a --prompt, or an --image to describe")
    if flags.prompt is None and flags.format == "question":
        parser.error("--format=question needs a --prompt")
    if flags.beams > 1 and flags.temperature:
        parser.error(
            f"--beams={flags.beams} and --temperature={flags.temperature}: beam search does not "
            "sample; give one of the two"
        )
    flags.format = flags.format or ("caption" if flags.prompt is None else "question")
    return flags


def parts(prompt: str, format: str, num_images: int) -> list[str | None]:
    """Returns the prompt in reading order: texts, and None for each image.

    `parts("is it odd?", "question", 1) == [None, "Question: is it odd? Short answer:"]`
    """
    marks = prompt.count(IMAGE_MARK)
    if not marks:
        prompt = IMAGE_MARK * num_images + prompt
    elif marks != num_images:
        raise ValueError(
            f"--prompt has {marks} {IMAGE_MARK} marks and there are {num_images} images; give one "
            "--image per mark, or no marks to put the images first"
        )
    if format == "question":
        # The question begins after the leading images.
        start = max((m.end() for m in re.finditer(rf"\A(\s*{IMAGE_MARK})+", prompt)), default=0)
        prompt = prompt[:start] + question_prompt(prompt[start:].strip())
    pieces = re.split(f"({IMAGE_MARK})", prompt)
    return [None if piece == IMAGE_MARK else piece.strip() for piece in pieces if piece.strip()]


def answer(flags: argparse.Namespace) -> str:
    """Returns the model's answer. Raises ValueError on errors that the user can fix."""
    # Imported here, so that --help and errors in the options do not wait for jax.
    import numpy as np

    from mm1_jax.checkpoints.trained_model import load_model
    from mm1_jax.data.rows import RowShape, assemble
    from mm1_jax.decoding.beam_search import beam_search
    from mm1_jax.decoding.generate import bucket, generate
    from mm1_jax.decoding.options import DecodingOptions
    from mm1_jax.decoding.sampling import Sampling
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
    tokenizer = cfg.input.tokenizer.instantiate()
    image_size = cfg.input.image_size
    if flags.image and not image_size:
        raise ValueError("--image: the model of this run is text-only; give no images")
    image_transform: Any = (
        cfg.input.image_transform.set(image_size=image_size).instantiate() if image_size else None
    )
    example = _prompt(flags, cfg, tokenizer, image_transform)
    length, limit = len(example.tokens), cfg.input.max_sequence_length
    if length + flags.max_new_tokens > limit:
        raise ValueError(
            f"the prompt has {length} positions and --max_new_tokens={flags.max_new_tokens} more, "
            f"above the {limit} of the model; shorten one of them"
        )
    shape = RowShape(bucket(length), max(1, len(example.images)), image_size)
    model, _ = load_model(folder, cfg, flags.step)
    batch = assemble([example], image_transform, shape)
    options = DecodingOptions.of(
        tokenizer,
        flags.max_new_tokens,
        sampling=sampling,
        seed=flags.seed,
        cache_dtype=flags.cache_dtype,
    )
    if flags.beams > 1:
        tokens = beam_search(model, batch, options, num_beams=flags.beams).tokens[:, 0]
    else:
        tokens = generate(model, batch, options)
    return tokenizer.decode(np.asarray(tokens)[0].tolist()).strip()


def _prompt(flags: argparse.Namespace, cfg: Any, tokenizer: Any, image_transform: Any) -> Any:
    """Builds the Example that the model continues, with decoded images."""
    from mm1_jax.batch import Document, Image, Text
    from mm1_jax.data.examples import ExampleBuilder
    from mm1_jax.data.images import BadImage

    def picture(name: str) -> Image:
        # Decoded here, so that the error can name the file.
        try:
            return Image(image_transform(Image(Path(name).read_bytes())))
        except OSError as error:
            raise ValueError(f"--image={name}: cannot be read ({error.strerror})") from error
        except BadImage as error:
            raise ValueError(
                f"--image={name}: not an image that can be decoded ({error})"
            ) from error

    pictures = iter([picture(name) for name in flags.image])
    reading_order = parts(flags.prompt or "", flags.format, len(flags.image))
    builder = ExampleBuilder(
        tokenizer,
        num_image_tokens=cfg.input.num_image_tokens,
        # The caller checks the length, including the new tokens.
        max_sequence_length=sys.maxsize,
        max_images=len(flags.image),
    )
    return builder.prompt(
        Document(tuple(next(pictures) if part is None else Text(part) for part in reading_order))
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(sys.argv[1:] if argv is None else argv)
    # orbax warns about a checkpoint folder that is opened for reading only.
    logging.getLogger("absl").setLevel(logging.ERROR)
    print(answer(flags))
    return 0

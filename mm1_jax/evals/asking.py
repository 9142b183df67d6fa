"""Two ways to ask a model: it generates an answer, or options are compared by likelihood.

Both are functions from tasks to answers (`Ask`); a benchmark's config names one of them.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from mm1_jax.batch import Batch, Document, Image, Text
from mm1_jax.data.images import BadImage, ImageTransform, Viewer
from mm1_jax.data.input import Input
from mm1_jax.data.rows import RowShape, assemble
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.decoding.generate import bucket, generate
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.evals.answers import Answer, OptionAnswer, TextAnswer
from mm1_jax.evals.evaluator import PromptInput
from mm1_jax.evals.likelihood import LikelihoodRequest, LikelihoodScorer
from mm1_jax.evals.prompts import continuation, few_shot, stop_of, text_of
from mm1_jax.evals.tasks import Task, Tasks
from mm1_jax.models.mm1 import MM1

# Pixel value of blanked pictures: mid-gray, which is no background in the embedded benchmarks.
BLANK = 128
# Number of batches whose tasks are compared and logged together. A larger number lets more requests
# of similar length share a batch, but a stopped evaluation loses more answers.
_BATCHES_AT_ONCE = 16


class Asked(NamedTuple):
    """Answers, as they are computed, and metrics of the prompts."""

    answers: Iterator[tuple[Task, Answer]]
    remarks: Mapping[str, float]


# The input of a training run, or the parts of it that build prompts.
AskInput = Input | PromptInput
# (model, all tasks, indices of the tasks to ask, config of the benchmark, input, blank) -> answers
Ask = Callable[..., Asked]


def generate_answers(
    model: MM1, tasks: Tasks, indices: Sequence[int], cfg: Any, input: AskInput, *, blank: bool
) -> Asked:
    """Generates greedy answers up to eos or a stop string.

    Args:
        blank: Replaces every picture with a blank one.
    """
    builder = input.example_builder.without_limits()
    sizes = [
        (len(example.tokens), len(example.images))
        for example in (builder.prompt(task.prompt) for task in tasks)
    ]
    longest = max(length for length, _ in sizes)
    # The model needs at least one image slot.
    num_images = max(1, *(number for _, number in sizes))
    # All batches have one shape, so that the program compiles once.
    shape = RowShape(bucket(longest), num_images, image_size(input.image_transform))
    answers = _generated(model, tasks, indices, cfg, input, shape, blank)
    limit = input.example_builder.max_sequence_length
    return Asked(answers, _beyond_training(cfg.name, longest + cfg.max_new_tokens, limit))


def _generated(
    model: MM1,
    tasks: Tasks,
    indices: Sequence[int],
    cfg: Any,
    input: AskInput,
    shape: RowShape,
    blank: bool,
) -> Iterator[tuple[Task, Answer]]:
    tokenizer = input.tokenizer
    options = DecodingOptions.of(
        tokenizer,
        cfg.max_new_tokens,
        stop=stop_of(tasks[indices[0]].prompt) if len(indices) else None,
        stop_strings=tuple(cfg.stop_strings),
    )
    waiting: Iterator[tuple[Task, Answer]] = iter(())
    # A batch is assembled while the device computes the previous one.
    for part in _parts(tasks, indices, cfg.batch_size):
        batch, reasons = _batch(part, shape, cfg.batch_size, input)
        if blank:
            batch = replace(batch, images=np.full_like(batch.images, BLANK))
        tokens = generate(model, batch, options)
        yield from waiting
        waiting = _read(part, reasons, tokens, options, tokenizer)
    yield from waiting


def _read(
    part: Sequence[Task],
    reasons: Sequence[tuple[str, ...]],
    tokens: object,
    options: DecodingOptions,
    tokenizer: Tokenizer,
) -> Iterator[tuple[Task, Answer]]:
    """Waits for the tokens of a batch and yields its answers."""
    # The rows after the tasks are padding.
    rows = np.asarray(tokens)[: len(part)]
    for task, row, bad in zip(part, rows, reasons, strict=True):
        text = options.text(row.tolist(), tokenizer.decode)
        yield task, TextAnswer(text.strip(), bad)


def _batch(
    part: Sequence[Task], shape: RowShape, num_rows: int, input: AskInput
) -> tuple[Batch, list[tuple[str, ...]]]:
    """Returns the prompts as a batch, and why pictures of each prompt could not be decoded.

    The slots of undecodable pictures are empty.
    """
    bad_images: dict[int, str] = {}
    show = Viewer(input.image_transform)

    def pixels(image: Image) -> np.ndarray | None:
        try:
            return show(image)
        except BadImage as error:
            bad_images[id(image)] = str(error)
            return None

    builder = input.example_builder.without_limits()
    examples = [builder.prompt(task.prompt) for task in part]
    batch = assemble(examples, pixels, shape, num_rows=num_rows)
    reasons = [
        tuple(
            bad_images[id(image)]
            for image in example.images
            if id(image) in bad_images and not image.continues
        )
        for example in examples
    ]
    return batch, reasons


def image_size(transform: ImageTransform | None) -> int:
    """Side of the image slots of a batch, in pixels; 1 for a model that reads no images."""
    return 1 if transform is None else transform.image_size


def _beyond_training(name: str, longest: int, limit: int) -> dict[str, float]:
    if longest <= limit:
        return {}
    logging.warning(
        "%s: prompt and answer take up to %d positions, but training rows "
        "(input.max_sequence_length) had %d",
        *(name, longest, limit),
    )
    return {"positions_beyond_training": float(longest - limit)}


def compare_options(
    model: MM1, tasks: Tasks, indices: Sequence[int], cfg: Any, input: AskInput, *, blank: bool
) -> Asked:
    """Computes the likelihoods of the options of each task.

    Prompts longer than a row lose their beginning. `blank` is ignored, as the tasks have no
    pictures.
    """
    return Asked(_compared(model, tasks, indices, cfg, input), {})


def _compared(
    model: MM1, tasks: Tasks, indices: Sequence[int], cfg: Any, input: AskInput
) -> Iterator[tuple[Task, Answer]]:
    scorer = LikelihoodScorer(
        input.tokenizer,
        image_size=image_size(input.image_transform),
        max_length=cfg.max_length or input.example_builder.max_sequence_length,
        batch_size=cfg.batch_size,
    )
    for part in _parts(tasks, indices, _BATCHES_AT_ONCE * cfg.batch_size):
        asked = [likelihood_requests(task, cfg) for task in part]
        found = iter(scorer(model, [*itertools.chain.from_iterable(asked)]))
        for task, own in zip(part, asked, strict=True):
            yield task, OptionAnswer(tuple(next(found) for _ in own))


def likelihood_requests(task: Task, cfg: Any) -> list[LikelihoodRequest]:
    """Returns the requests whose likelihoods are compared: the prompt with each option.

    If a record has a `rest`, its options are beginnings of the query, and the likelihoods of the
    rest after each of them are compared.
    """
    joiner, record = cfg.answer_joiner or "", task.record
    if "rest" not in record:
        return [
            LikelihoodRequest(task.prompt, continuation(task.document, joiner + option))
            for option in record["options"]
        ]
    found = []
    for start in record["options"]:
        query = Document((Text(start, scored=False), Text(record["rest"])))
        prompt = few_shot(
            task.exemplars,
            query,
            joiner=cfg.answer_joiner,
            separator=cfg.exemplar_separator or "",
        )
        found.append(LikelihoodRequest(prompt, joiner + record["rest"]))
    return found


def _parts(tasks: Tasks, indices: Sequence[int], size: int) -> Iterator[list[Task]]:
    for start in range(0, len(indices), size):
        yield [tasks[i] for i in indices[start : start + size]]


def described(task: Task, exemplars: str, cfg: Any) -> str:
    """Describes for people to read how tasks are asked.

    Args:
        task: A task without exemplars.
        exemplars: A description of how exemplars are chosen.
    """
    parts = [f"a prompt without exemplars: {text_of(task.prompt)!r}", exemplars]
    if cfg.answer_joiner is not None:
        parts.append(f"exemplars end with {cfg.exemplar_separator!r}")
    if cfg.num_tiled_exemplars is not None:
        parts.append(f"only the last {cfg.num_tiled_exemplars} exemplars in tiles")
    if cfg.asking is compare_options:
        continuations = [one.continuation for one in likelihood_requests(task, cfg)]
        parts.insert(1, f"followed by one of {continuations}")
        return "; ".join([*parts, "compared by log-probability"])
    stops = list(cfg.stop_strings)
    parts.append(f"greedy, at most {cfg.max_new_tokens} tokens, up to one of {stops}")
    return "; ".join(parts)

"""Model of a run for the adapters, which generates answers and computes likelihoods.

Requests may come in any number and order. They are grouped by shape and run in batches, the longest
first; results are in the order of the requests.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mm1_jax.batch import Document, Example
from mm1_jax.checkpoints.trained_model import load_model
from mm1_jax.data.images import Viewer
from mm1_jax.data.rows import RowShape, assemble
from mm1_jax.decoding.generate import bucket, generate
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.evals.answers import Likelihood
from mm1_jax.evals.asking import image_size
from mm1_jax.evals.evaluator import PromptInput
from mm1_jax.evals.likelihood import LikelihoodRequest, LikelihoodScorer
from mm1_jax.launch.run_folder import load_experiment


@dataclass(frozen=True)
class Prompt:
    """A document to continue, and the options of decoding."""

    document: Document
    options: DecodingOptions


class RunModel:
    """The model of a run, with its tokenizer and image transform.

    Args of its methods:
        max_length: Maximum positions of a text-only row, including the answer; None means no limit.
            A longer prompt loses its beginning except for bos.
        on_result: Called with the index of a request and its result, as soon as it is known.
    """

    def __init__(self, checkpoint: str, *, step: Any = None, batch_size: Any = 1, seed: Any = 0):
        """Loads the model. Options may be texts, as on command lines.

        Args:
            checkpoint: The run's output folder.
            step: Step of the checkpoint; defaults to the newest.
            batch_size: Rows per batch.
            seed: Seed of sampled answers.

        Raises:
            ValueError: There is no such run or step, or an option is out of its range.
        """
        self.batch_size = whole_number("--batch_size", batch_size, least=1)
        self._seed = whole_number("--model_args seed", seed, least=0)
        step = None if step is None else whole_number("--model_args step", step, least=0)
        folder = Path(checkpoint)
        if not folder.is_dir():
            raise ValueError(
                f"--model_args checkpoint={checkpoint}: no such folder; give a run's output folder"
            )
        cfg = load_experiment(folder)
        # Config of the chat format; None for a run without one.
        self.chat_format = cfg.input.chat_format
        self.input = PromptInput.of(cfg.input)
        self._pixels = Viewer(self.input.image_transform)
        self._builder = self.input.example_builder.without_limits()
        self._model, self.step = load_model(folder, cfg, step)

    def options(self, max_new_tokens: int, **others: Any) -> DecodingOptions:
        """Returns options of decoding with the special tokens of the run's tokenizer."""
        return DecodingOptions.of(self.input.tokenizer, max_new_tokens, seed=self._seed, **others)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_length: int | None = None,
        on_result: Callable[[int, str], object] | None = None,
    ) -> list[str]:
        """Returns the answer to each prompt, up to the first of its stop strings.

        A sampled answer depends on the seed and on the index of its prompt.
        """
        groups: dict[tuple[Any, ...], list[tuple[int, Example]]] = defaultdict(list)
        num_cut = 0
        for place, prompt in enumerate(prompts):
            whole = self._builder.prompt(prompt.document)
            example = _cut(whole, max_length, prompt.options.max_new_tokens)
            num_cut += example is not whole
            shape = bucket(len(example.tokens)), max(1, len(example.images))
            groups[*shape, prompt.options].append((place, example))
        _warn_of_cut("prompts", num_cut, max_length)
        answers = [""] * len(prompts)
        for key, members in sorted(groups.items(), key=lambda item: item[0][:2], reverse=True):
            length, num_images, options = key
            for start in range(0, len(members), self.batch_size):
                places, examples = zip(*members[start : start + self.batch_size], strict=True)
                padding = [0] * (self.batch_size - len(places))
                tokens = generate(
                    self._model,
                    assemble(
                        examples,
                        self._pixels,
                        RowShape(length, num_images, image_size(self.input.image_transform)),
                        num_rows=self.batch_size,
                    ),
                    options,
                    row_ids=jnp.array([*places, *padding], jnp.int32),
                )
                for place, row in zip(places, np.asarray(tokens), strict=False):
                    answers[place] = options.text(row.tolist(), self.input.tokenizer.decode)
                    if on_result is not None:
                        on_result(place, answers[place])
        return answers

    def likelihoods(
        self,
        requests: Sequence[LikelihoodRequest],
        *,
        max_length: int | None = None,
        on_result: Callable[[int, Likelihood], object] | None = None,
    ) -> list[Likelihood]:
        """Returns the likelihoods of continuations after their prompts."""
        found = self._scorer(max_length)(self._model, requests, on_result=on_result)
        _warn_of_cut("requests", sum(one.num_cut > 0 for one in found), max_length)
        return found

    def rolling_likelihoods(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        on_result: Callable[[int, Likelihood], object] | None = None,
    ) -> list[Likelihood]:
        """Returns the likelihoods of whole texts, in windows of at most `max_length` tokens."""
        return self._scorer(max_length).rolling(self._model, texts, on_result=on_result)

    def _scorer(self, max_length: int | None) -> LikelihoodScorer:
        return LikelihoodScorer(
            self.input.tokenizer,
            num_image_tokens=self._builder.num_image_tokens,
            image_size=image_size(self.input.image_transform),
            pixels=self._pixels if self.input.image_transform is not None else None,
            max_length=max_length,
            batch_size=self.batch_size,
        )


def whole_number(name: str, value: Any, *, least: int) -> int:
    """Returns the value of a command line option as an integer.

    Raises:
        ValueError: It is not a whole number, or is less than `least`.
    """
    if not str(value).isdecimal() or int(value) < least:
        raise ValueError(f"{name}={value}: must be a whole number, at least {least}")
    return int(value)


def check_unknown(others: Collection[str], known: Collection[str]) -> None:
    """Raises ValueError if a harness passes options that the adapter does not have."""
    # Both harnesses pass this option to every model, for a search of the batch size.
    if unknown := set(others) - {"max_batch_size"}:
        raise ValueError(
            f"--model_args: mm1_jax has no {', '.join(sorted(unknown))}; it has {', '.join(known)}"
        )


def _cut(example: Example, max_length: int | None, max_new_tokens: int) -> Example:
    """Shortens a prompt to leave room for its answer: keeps its first token and its end."""
    if max_length is None or len(example.tokens) + max_new_tokens <= max_length:
        return example
    assert not example.images, "prompts with images have no limit"
    room = max_length - max_new_tokens
    if room < 2:
        raise ValueError(
            f"an answer may have {max_new_tokens} tokens, so max_length={max_length} leaves no "
            "room for its prompt; use fewer tokens (--gen_kwargs max_gen_toks=N) or longer rows "
            "(--model_args max_length=N)"
        )
    kept = np.r_[0, len(example.tokens) - room + 1 : len(example.tokens)]
    return replace(
        example,
        tokens=example.tokens[kept],
        targets=example.targets[kept],
        loss_mask=example.loss_mask[kept],
    )


def _warn_of_cut(name: str, number: int, max_length: int | None) -> None:
    if number:
        logging.getLogger(__name__).warning(
            "%d %s are longer than max_length=%s and lose their beginning", number, name, max_length
        )

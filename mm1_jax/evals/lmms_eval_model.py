"""The model of a run for lmms-eval: `lmms-eval --model mm1_jax --model_args checkpoint=FOLDER`.

lmms-eval finds it by the entry point of its group `lmms_eval.models`, and its tasks, prompts and
metrics are then those of lmms-eval. It wants torch, which nothing else here does:

    pip install "mm1_jax[lmms-eval]"
"""

import importlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mm1_jax.batch import Document, Example, Image, Text
from mm1_jax.checkpoints.trained_model import load_model
from mm1_jax.data.corpora.conversations import IMAGE
from mm1_jax.data.rows import RowShape, assemble
from mm1_jax.decoding.generate import bucket, generate
from mm1_jax.evals.evaluator import PromptInput
from mm1_jax.evals.likelihood import LikelihoodScorer, Request
from mm1_jax.evals.metrics.answers import truncate
from mm1_jax.evals.prompts import ChatTask, without_answer
from mm1_jax.launch.run_folder import load_experiment

# The library's classes by name: a type checker need not have it installed.
_Base: Any = importlib.import_module("lmms_eval.api.model").lmms
_GenerationResult: Any = importlib.import_module("lmms_eval.api.instance").GenerationResult
_ModelManifest: Any = importlib.import_module("lmms_eval.models.registry_v2").ModelManifest

# Where a task does not say how long an answer may be.
_MAX_NEW_TOKENS = 128
_PROMPTS = ("chat", "plain")


def manifest() -> Any:
    """What the entry point gives lmms-eval: the model's name and its class."""
    return _ModelManifest("mm1_jax", simple_class_path=f"{__name__}.MM1ForLmmsEval")


class _Prompt(NamedTuple):
    """A prompt at its place among the requests, and where its answer ends."""

    place: int
    example: Example
    until: tuple[str, ...]


class MM1ForLmmsEval(_Base):
    """Answers greedily, and scores continuations.

    lmms-eval shows one picture a question, without exemplars; its pictures come first here. Where a
    task asks for sampling, the answer is greedy all the same, and a warning says so.
    """

    is_simple = True

    def __init__(
        self,
        checkpoint: str,
        step: int | str | None = None,
        prompt: str = "chat",
        batch_size: int | str = 1,
        device: str | None = None,
        **others: Any,
    ):
        """The model of a run.

        Args:
            checkpoint: The run's output folder.
            step: Which checkpoint; the newest if None.
            prompt: "chat", the words around a turn of a user that the model was fine-tuned with,
                or "plain", the text of the task as it is, for a model that was only pre-trained.
            batch_size: Prompts at once.
            device: lmms-eval's, a torch device; jax uses its own.
            others: Of lmms-eval's own; names that are not known are refused.

        Raises:
            ValueError: There is no such run, step or option.
        """
        super().__init__()
        del device
        if unknown := set(others) - {"max_batch_size"}:
            raise ValueError(
                f"--model_args: mm1_jax has no {', '.join(sorted(unknown))}; it has checkpoint, "
                "step, prompt and batch_size"
            )
        if prompt not in _PROMPTS:
            raise ValueError(f"--model_args prompt={prompt}: must be one of {', '.join(_PROMPTS)}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"--batch_size={batch_size}: must be a number, at least 1")
        folder = Path(checkpoint)
        if not folder.is_dir():
            raise ValueError(f"--model_args checkpoint={checkpoint}: no such folder; give a run's")
        cfg = load_experiment(folder)
        self._input = PromptInput.of(cfg.input)
        self._model, self.step = load_model(folder, cfg, None if step is None else int(step))
        self.batch_size = int(batch_size)
        self._style, self._chat = (
            prompt,
            ChatTask.default_config().set(instruction="").instantiate(),
        )
        transform = self._input.image_transform
        self._image_size = 1 if transform is None else transform.image_size
        self._builder = self._input.example_builder.without_limits()
        self._warned = False

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, up to the first of its `until`.

        A request's arguments are context, generation options, doc_to_visual, document, task, split.
        """
        groups: dict[tuple[int, int, int], list[_Prompt]] = defaultdict(list)
        for place, request in enumerate(requests):
            context, options, doc_to_visual, doc_id, task, split = request.args
            self._check_greedy(options)
            until = options.get("until") or ()
            until = (until,) if isinstance(until, str) else tuple(until)
            images = self._images(doc_to_visual, doc_id, task, split)
            example = self._builder.prompt(self._document(context, images))
            max_new_tokens = int(options.get("max_new_tokens") or _MAX_NEW_TOKENS)
            key = (bucket(len(example.tokens)), max(1, len(example.images)), max_new_tokens)
            groups[key].append(_Prompt(place, example, until))
        answers = [""] * len(requests)
        tokenizer = self._input.tokenizer
        for (length, num_images, max_new_tokens), prompts in sorted(groups.items(), reverse=True):
            for part in _parts(prompts, self.batch_size):
                batch = assemble(
                    [prompt.example for prompt in part],
                    self._pixels,
                    RowShape(length, num_images, self._image_size),
                    num_rows=self.batch_size,
                )
                tokens = generate(
                    self._model,
                    batch,
                    max_new_tokens=max_new_tokens,
                    eos=tokenizer.eos,
                    pad=tokenizer.pad,
                    forbidden=tokenizer.not_text,
                )
                for prompt, row in zip(part, np.asarray(tokens), strict=False):
                    text = tokenizer.decode(row.tolist())
                    answers[prompt.place] = truncate(text, prompt.until)
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args[:2], answer)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """How likely each continuation is, and whether it is greedy: a pair for each.

        The pairs are wrapped, as release 0.7.3 makes a text of all that is neither a text nor its
        `GenerationResult`. It takes the smallest value among the options of a multiple choice, as
        its models return losses there, and logarithms of probabilities elsewhere. The options of a
        choice are texts, where other continuations are functions of a document; that tells which
        of the two to return.
        """
        tokenizer = self._input.tokenizer
        scorer = LikelihoodScorer(
            tokenizer,
            num_image_tokens=self._input.example_builder.num_image_tokens,
            image_size=self._image_size,
            pixels=self._pixels if self._input.image_transform is not None else None,
            batch_size=self.batch_size,
        )
        asked, is_option = [], []
        for request in requests:
            context, continuation, *rest = request.args
            is_option.append(isinstance(continuation, str))
            # Options without a prompt come without a document.
            images = self._images(*rest) if rest else []
            if not isinstance(continuation, str):
                doc_id, task, split = rest[1:]
                continuation = continuation(self.task_dict[task][split][doc_id])
            asked.append(Request(self._document(context, images), continuation))
        found = scorer(self._model, asked)
        return [
            _GenerationResult(
                (-one.log_probability if option else one.log_probability, one.is_greedy)
            )
            for one, option in zip(found, is_option, strict=True)
        ]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("mm1_jax answers one turn; leave out tasks of several")

    def _images(
        self,
        doc_to_visual: Callable[[Any], Iterable[Any]] | None,
        doc_id: Any,
        task: str,
        split: str,
    ) -> list[Image]:
        if doc_to_visual is None:
            return []
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        images = []
        for visual in visuals:
            if not hasattr(visual, "convert"):
                raise ValueError(
                    f"{task}, document {doc_id}: shows a {type(visual).__name__}; mm1_jax reads "
                    "pictures"
                )
            images.append(Image(np.asarray(visual.convert("RGB"))))
        return images

    def _document(self, context: str, images: Sequence[Image]) -> Document:
        """The pictures, then the words of the task, in those of a chat where it is one."""
        if self._style == "plain" or not context:
            return Document((*images, Text(context, scored=False)))
        # Marks that no picture belongs to are text of another model's prompt.
        question = context if context.count(IMAGE) <= len(images) else context.replace(IMAGE, "")
        record = {"images": [image.data for image in images], "question": question, "answer": ""}
        return without_answer(self._chat(record))

    def _pixels(self, image: Image) -> np.ndarray:
        transform = self._input.image_transform
        assert transform is not None, "a prompt of a model that reads images"
        return transform(image)

    def _check_greedy(self, options: Mapping[str, Any]) -> None:
        if self._warned or not options.get("do_sample") or not options.get("temperature"):
            return
        self._warned = True
        logging.getLogger(__name__).warning(
            "a task asks for sampling (%s); mm1_jax answers greedily", dict(options)
        )


def _parts(prompts: Sequence[_Prompt], size: int) -> list[Sequence[_Prompt]]:
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]

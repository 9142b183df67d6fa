"""Adapter of a run's model to lmms-eval.

    lmms-eval --model mm1_jax --model_args checkpoint=FOLDER

lmms-eval finds the model by an entry point in its group `lmms_eval.models`. Tasks, prompts and
metrics are then those of lmms-eval. It needs torch, unlike the rest of the package:

    pip install "mm1_jax[lmms-eval]"
"""

import importlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mm1_jax.batch import Document, Image, Text
from mm1_jax.data.record_files import IMAGE
from mm1_jax.evals.adapters.run_model import Prompt, RunModel, check_unknown
from mm1_jax.evals.likelihood import LikelihoodRequest
from mm1_jax.evals.prompts import ChatTask, stop_of, without_answer

# The library is imported by name, so that type checkers work without it.
_Base: Any = importlib.import_module("lmms_eval.api.model").lmms
_GenerationResult: Any = importlib.import_module("lmms_eval.api.instance").GenerationResult
_ModelManifest: Any = importlib.import_module("lmms_eval.models.registry_v2").ModelManifest

# The default maximum length of an answer, if a task does not set it.
_MAX_NEW_TOKENS = 128
_PROMPTS = ("chat", "plain")
_OPTIONS = ("checkpoint", "step", "prompt", "batch_size")


def manifest() -> Any:
    """Returns the model's name and class, for the entry point of lmms-eval."""
    return _ModelManifest("mm1_jax", simple_class_path=f"{__name__}.MM1ForLmmsEval")


class MM1ForLmmsEval(_Base):
    """Answers greedily, and scores continuations.

    The pictures of a question come before its text; lmms-eval shows no exemplars. If a task
    requests sampling, the answer is greedy all the same, and a warning says so.
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
        """Loads the model of a run.

        Args:
            checkpoint: The run's output folder.
            step: Step of the checkpoint; defaults to the newest.
            prompt: "chat" for the chat format of fine-tuning, or "plain" for the text of the task
                as it is, for a model that was only pre-trained.
            batch_size: Prompts per batch.
            device: lmms-eval's torch device; ignored, since JAX uses its own.
            others: Options that lmms-eval passes to every model; unknown names are refused.

        Raises:
            ValueError: There is no such run, step or option.
        """
        super().__init__()
        del device
        check_unknown(others, _OPTIONS)
        if prompt not in _PROMPTS:
            raise ValueError(f"--model_args prompt={prompt}: must be one of {', '.join(_PROMPTS)}")
        self._run = RunModel(checkpoint, step=step, batch_size=batch_size)
        self.batch_size = self._run.batch_size
        self._style = prompt
        task = ChatTask.default_config().set(instruction="", chat_format=self._run.chat_format)
        self._chat = task.instantiate()
        self._warned = False

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns the answer to each request, up to the first of its `until`.

        A request's arguments are context, generation options, doc_to_visual, document, task, split.
        """
        prompts = [self._prompt(*request.args) for request in requests]
        answers = [answer.strip() for answer in self._run.generate(prompts)]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args[:2], answer)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Returns a pair per request: the continuation's log-probability, and whether it is greedy.

        The pairs are wrapped in a `GenerationResult`, as release 0.7.3 converts other values to
        text. For multiple choice, lmms-eval takes the smallest value, since its models return
        losses there, but log-probabilities elsewhere. Options of multiple choice are texts, and
        other continuations are functions of a document, which decides the sign here.
        """
        asked, is_option = [], []
        for request in requests:
            context, continuation, *rest = request.args
            is_option.append(isinstance(continuation, str))
            # Requests for an option without its prompt have no document.
            images = self._images(*rest) if rest else []
            if not isinstance(continuation, str):
                doc_id, task, split = rest[1:]
                continuation = continuation(self.task_dict[task][split][doc_id])
            asked.append(LikelihoodRequest(self._document(context, images), continuation))
        found = self._run.likelihoods(asked)
        return [
            _GenerationResult(
                (-one.log_probability if option else one.log_probability, one.is_greedy)
            )
            for one, option in zip(found, is_option, strict=True)
        ]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("mm1_jax answers single turns; leave out multi-round tasks")

    def _prompt(
        self,
        context: str,
        options: Mapping[str, Any],
        doc_to_visual: Callable[[Any], Iterable[Any]] | None,
        doc_id: Any,
        task: str,
        split: str,
    ) -> Prompt:
        self._check_greedy(options)
        until = options.get("until") or ()
        images = self._images(doc_to_visual, doc_id, task, split)
        document = self._document(context, images)
        decoding = self._run.options(
            int(options.get("max_new_tokens") or _MAX_NEW_TOKENS),
            stop=stop_of(document),
            stop_strings=(until,) if isinstance(until, str) else tuple(until),
        )
        return Prompt(document, decoding)

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
                    "only pictures"
                )
            images.append(Image(np.asarray(visual.convert("RGB"))))
        return images

    def _document(self, context: str, images: Sequence[Image]) -> Document:
        """Returns the pictures, then the text of the task, which is a user turn in chat style."""
        if self._style == "plain" or not context:
            return Document((*images, Text(context, scored=False)))
        # Marks beyond the number of pictures are text of another model's prompt.
        question = context if context.count(IMAGE) <= len(images) else context.replace(IMAGE, "")
        record = {"images": [image.data for image in images], "question": question, "answer": ""}
        return without_answer(self._chat(record))

    def _check_greedy(self, options: Mapping[str, Any]) -> None:
        if self._warned or not options.get("do_sample") or not options.get("temperature"):
            return
        self._warned = True
        logging.getLogger(__name__).warning(
            "a task asks for sampling (%s); mm1_jax answers greedily", dict(options)
        )

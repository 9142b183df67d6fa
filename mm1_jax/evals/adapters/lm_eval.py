"""Adapter of a run's model to EleutherAI's lm-evaluation-harness, and the harness's command.

    python -m mm1_jax.evals.adapters.lm_eval --model mm1_jax --model_args checkpoint=FOLDER ...

The harness (0.4.13) finds only its own models by name and has no entry point for others, so its
command `lm_eval` cannot find this one. Importing this module registers the model. Run as a script,
the module also calls the harness's `main` with the same arguments. It needs the harness:

    pip install "mm1_jax[lm-eval]"
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from mm1_jax.batch import Document, Text
from mm1_jax.data.corpora.conversations import conversation_document
from mm1_jax.data.record_files import IMAGE
from mm1_jax.decoding.sampling import GREEDY, Sampling
from mm1_jax.evals.adapters.run_model import Prompt, RunModel, check_unknown, whole_number
from mm1_jax.evals.likelihood import LikelihoodRequest
from mm1_jax.evals.prompts import text_of

# The library is imported by name, so that type checkers work without it. Its own models must be
# imported first: the harness registers them only while no other model is registered.
importlib.import_module("lm_eval.models")
_LM: Any = importlib.import_module("lm_eval.api.model").LM
_register_model: Any = importlib.import_module("lm_eval.api.registry").register_model
_normalize_gen_kwargs: Any = importlib.import_module("lm_eval.models.utils").normalize_gen_kwargs

_OPTIONS = ("checkpoint", "step", "max_length", "max_gen_toks", "seed", "batch_size")


@_register_model("mm1_jax")
class MM1ForLmEval(_LM):
    """Scores continuations and texts, and answers greedily or by sampling, as tasks request."""

    def __init__(
        self,
        checkpoint: str,
        step: int | str | None = None,
        max_length: int | str | None = None,
        max_gen_toks: int | str = 256,
        seed: int | str = 0,
        batch_size: int | str = 1,
        device: str | None = None,
        **others: Any,
    ):
        """Loads the model of a run.

        Args:
            checkpoint: The run's output folder.
            step: Step of the checkpoint; defaults to the newest.
            max_length: Maximum positions of a row; defaults to those of the run's training. A
                longer context loses its beginning except for bos.
            max_gen_toks: Maximum tokens of an answer, if a task does not set it.
            seed: Seed of sampled answers.
            batch_size: Rows per batch.
            device: The harness's torch device; ignored, since JAX uses its own.
            others: Options that the harness passes to every model; unknown names are refused.

        Raises:
            ValueError: There is no such run, step or option.
        """
        super().__init__()
        del device
        check_unknown(others, _OPTIONS)
        self._run = RunModel(checkpoint, step=step, batch_size=batch_size, seed=seed)
        self.batch_size = self._run.batch_size
        if max_length is None:
            max_length = self._run.input.example_builder.max_sequence_length
        self.max_length = whole_number("--model_args max_length", max_length, least=2)
        self.max_gen_toks = whole_number("--model_args max_gen_toks", max_gen_toks, least=1)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Returns the log-probability of each continuation, and whether it is greedy."""
        asked = [LikelihoodRequest(_document(r.args[0]), r.args[1]) for r in requests]
        return self._answered(
            "loglikelihood",
            requests,
            lambda keep: self._run.likelihoods(
                asked,
                max_length=self.max_length,
                on_result=lambda i, one: keep(i, (one.log_probability, one.is_greedy)),
            ),
            disable_tqdm,
        )

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the log-probability of each text, in windows of at most `max_length` tokens."""
        return self._answered(
            "loglikelihood_rolling",
            requests,
            lambda keep: self._run.rolling_likelihoods(
                [r.args[0] for r in requests],
                max_length=self.max_length,
                on_result=lambda i, one: keep(i, one.log_probability),
            ),
            disable_tqdm,
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns the answer to each context, up to the first of its stop strings."""
        prompts = [self._prompt(*r.args) for r in requests]
        return self._answered(
            "generate_until",
            requests,
            lambda keep: self._run.generate(prompts, max_length=self.max_length, on_result=keep),
            disable_tqdm,
        )

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns the turns in the chat format of training: "USER: ... ASSISTANT:".

        Raises:
            ValueError: The run has a chat format of its own.
        """
        if self._run.chat_format is not None:
            raise ValueError(
                "--apply_chat_template: the harness asks a conversation as one text, in which the "
                f"stops of {self._run.chat_format.klass.__name__}, the chat format of the run, "
                "would be characters; omit the option, or ask with `python -m mm1_jax evaluate`"
            )
        turns = [{"role": t["role"], "text": t["content"].replace(IMAGE, "")} for t in chat_history]
        if not add_generation_prompt:
            return text_of(conversation_document({"images": (), "turns": turns}))
        # A conversation needs an answer. This placeholder is the last segment, which is dropped.
        turns.append({"role": "assistant", "text": "-"})
        document = conversation_document({"images": (), "turns": turns})
        return text_of(Document(document.segments[:-1]))

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the chat template as text, for the harness's record of a run."""
        if isinstance(chat_template, str):
            raise ValueError(
                f"--apply_chat_template={chat_template}: mm1_jax has one template; omit the name"
            )
        turn = {"role": "user", "content": "{content}"}
        return self.apply_chat_template([turn]) if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        return self._run.input.tokenizer.fingerprint()

    def get_model_info(self) -> dict[str, Any]:
        """Returns entries for the harness's record of a run."""
        return {"checkpoint_step": self._run.step, "max_length": self.max_length}

    def _prompt(self, context: str, options: Mapping[str, Any]) -> Prompt:
        options = dict(_normalize_gen_kwargs(options, self.max_gen_toks))
        stop_strings = tuple(options.pop("until") or ())
        max_new_tokens = options.pop("max_gen_toks")
        is_sampled = options.pop("do_sample")
        temperature = float(options.pop("temperature", 0.0))
        top_k, top_p = options.pop("top_k", None), float(options.pop("top_p", 1.0))
        # Tasks with greedy answers may set it.
        if options.get("num_beams") == 1:
            del options["num_beams"]
        if options:
            raise ValueError(
                f"generation_kwargs {options}: mm1_jax has until, max_gen_toks, do_sample, "
                "temperature, top_k and top_p, and one beam; remove the others from the task"
            )
        sampling = Sampling(temperature, top_k, top_p) if is_sampled and temperature else GREEDY
        decoding = self._run.options(max_new_tokens, stop_strings=stop_strings, sampling=sampling)
        return Prompt(_document(context), decoding)

    def _answered(
        self,
        name: str,
        requests: Sequence[Any],
        ask: Callable[[Callable[[int, Any], None]], object],
        disable_tqdm: bool,
    ) -> list[Any]:
        """Returns the answers to the requests, and adds each to the harness's cache as it comes."""
        answers: list[Any] = [None] * len(requests)
        with tqdm(total=len(requests), desc=f"mm1_jax {name}", disable=disable_tqdm) as bar:

            def keep(place: int, answer: Any) -> None:
                answers[place] = answer
                self.cache_hook.add_partial(name, requests[place].args, answer)
                bar.update()

            ask(keep)
        return answers


def _document(context: str) -> Document:
    return Document((Text(context, scored=False),))


if __name__ == "__main__":
    importlib.import_module("lm_eval.__main__").cli_evaluate()

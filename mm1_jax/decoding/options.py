"""Options of decoding: special tokens, how a token is chosen, and where an answer ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mm1_jax.decoding.sampling import GREEDY, Sampling
from mm1_jax.layers.kv_cache import check_cache_dtype


@dataclass(frozen=True)
class DecodingOptions:
    """Options of the answers to a batch of prompts.

    Attributes:
        max_new_tokens: The most tokens of an answer, `eos` included.
        eos: Ends an answer, and is its last token.
        pad: Follows the end of an answer.
        forbidden: Ids that are never chosen, whatever their logits; `pad` is always among them.
        sampling: The way in which a token is chosen.
        seed: Seed of what is drawn at random.
        stop_strings: The text of an answer ends before the first of them.
        cache_dtype: Dtype of keys and values, "float32", "bfloat16" or "int8"; None: the model's.
    """

    max_new_tokens: int
    eos: int
    pad: int = 0
    forbidden: tuple[int, ...] = ()
    sampling: Sampling = GREEDY
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    cache_dtype: str | None = None

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        if self.eos in self.forbidden or self.eos == self.pad:
            raise ValueError(
                f"eos={self.eos} is forbidden or equals pad={self.pad}: no answer could ever end"
            )
        check_cache_dtype(self.cache_dtype)
        # One order, so that equal options share a program.
        object.__setattr__(self, "forbidden", tuple(sorted({self.pad, *self.forbidden})))

    @classmethod
    def of(cls, tokenizer: Any, max_new_tokens: int, **others: Any) -> "DecodingOptions":
        """Options with the tokens of a tokenizer; what is no text is forbidden."""
        return cls(
            max_new_tokens,
            eos=tokenizer.eos,
            pad=tokenizer.pad,
            forbidden=tokenizer.not_text,
            **others,
        )

    def of_program(self) -> "DecodingOptions":
        """The options that are compiled into a program; those that differ in others share it."""
        return replace(self, seed=0, stop_strings=())

    def text(self, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
        """The text of an answer, before its first stop string."""
        return before_stop(decode(tokens), self.stop_strings)


def before_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first of some stop strings; an empty one stops nothing."""
    ends = [end for stop in stop_strings if stop and (end := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]

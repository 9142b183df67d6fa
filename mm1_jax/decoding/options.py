"""Decoding options: special tokens, sampling, and the end of an answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mm1_jax.decoding.sampling import GREEDY, Sampling
from mm1_jax.layers.kv_cache import check_cache_dtype


@dataclass(frozen=True)
class DecodingOptions:
    """Decoding options for a batch of prompts.

    Attributes:
        max_new_tokens: Maximum number of tokens in an answer, including `eos`.
        eos: Token that ends an answer and is its last token.
        also_ends: Other tokens that end an answer, such as the end-of-sequence token beside the
            stop of a chat format.
        pad: Token that fills rows after the end of an answer.
        forbidden: Token ids that are never chosen, regardless of logits. Always includes `pad`.
        sampling: Sampling method.
        seed: Random seed.
        stop_strings: The text of an answer is truncated before the first of these.
        cache_dtype: Dtype of the KV cache, "float32", "bfloat16" or "int8"; defaults to the
            compute dtype of the model.
    """

    max_new_tokens: int
    eos: int
    pad: int = 0
    forbidden: tuple[int, ...] = ()
    sampling: Sampling = GREEDY
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    cache_dtype: str | None = None
    also_ends: tuple[int, ...] = ()

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        for name, end in (("eos", self.eos), *(("also_ends", end) for end in self.also_ends)):
            if end in self.forbidden or end == self.pad:
                raise ValueError(
                    f"{name}={end} is forbidden or equals pad={self.pad}: no answer could ever end"
                )
        check_cache_dtype(self.cache_dtype)
        # Sort, so that equal options share a compiled program.
        object.__setattr__(self, "forbidden", tuple(sorted({self.pad, *self.forbidden})))

    @classmethod
    def of(
        cls, tokenizer: Any, max_new_tokens: int, *, stop: str | None = None, **others: Any
    ) -> "DecodingOptions":
        """Creates options with the special tokens of a tokenizer; forbids non-text tokens.

        Args:
            stop: Name of the special token that ends an answer in a chat format, in addition to the
                end of a sequence.
        """
        eos = tokenizer.eos if stop is None else tokenizer.stop_token(stop)
        ends = {eos, tokenizer.eos}
        return cls(
            max_new_tokens,
            eos=eos,
            pad=tokenizer.pad,
            forbidden=tuple(token for token in tokenizer.not_text if token not in ends),
            also_ends=tuple(ends - {eos}),
            **others,
        )

    def ends(self, tokens: Any) -> Any:
        """Returns which tokens of an array end an answer."""
        found = tokens == self.eos
        for end in self.also_ends:
            found = found | (tokens == end)
        return found

    def static_options(self) -> "DecodingOptions":
        """Returns only the static options, those that are compiled into a program."""
        return replace(self, seed=0, stop_strings=())

    def text(self, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
        """Decodes an answer and truncates it before its first stop string."""
        return before_stop(decode(tokens), self.stop_strings)


def before_stop(text: str, stop_strings: Sequence[str]) -> str:
    """Truncates a text before the first stop string in it; empty stop strings are ignored."""
    ends = [end for stop in stop_strings if stop and (end := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]

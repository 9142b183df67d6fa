"""Answers of a model to a task: a generated text, or the likelihood of each option."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a text after a prompt.

    Attributes:
        log_probability: Sum of the natural log-probabilities of the continuation's tokens, without
            a token that ends the text.
        is_greedy: True if each token is the most likely one of the whole vocabulary at its position
            (the first of equals).
        num_tokens: Number of tokens of the continuation.
        num_bytes: Number of bytes of the continuation in UTF-8.
        num_cut: Number of positions dropped from the start of the prompt to fit into a row.
    """

    log_probability: float
    is_greedy: bool
    num_tokens: int
    num_bytes: int
    num_cut: int = 0


@dataclass(frozen=True)
class TextAnswer:
    """A generated text.

    Attributes:
        text: The text before the first stop string.
        undecodable: The reason for each picture of the prompt that could not be decoded.
    """

    text: str
    undecodable: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptionAnswer:
    """The likelihood of each option of a task, in order."""

    likelihoods: tuple[Likelihood, ...]

    @property
    def best(self) -> int:
        """Index of the most likely option; the first of equals."""
        return int(np.argmax([one.log_probability for one in self.likelihoods]))


Answer = TextAnswer | OptionAnswer

"""Answers of a model to a task: a text that it generated, or how likely it finds each option."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a text after a prompt.

    Attributes:
        log_probability: Sum of the natural log-probabilities of the continuation's tokens; the end
            of the text is not among them.
        is_greedy: True if each token is the most likely one of the whole vocabulary at its place
            (of equals, the first).
        num_tokens: Tokens of the continuation.
        num_bytes: Bytes of its text in UTF-8.
        num_cut: Positions dropped from the start of the prompt because the row is too short.
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
        text: Up to the first stop string.
        undecodable: One reason for each picture of the prompt that could not be decoded.
    """

    text: str
    undecodable: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptionAnswer:
    """The likelihood of each option of a task, in order."""

    likelihoods: tuple[Likelihood, ...]

    @property
    def best(self) -> int:
        """The most likely option; of equals, the first."""
        return int(np.argmax([one.log_probability for one in self.likelihoods]))


Answer = TextAnswer | OptionAnswer

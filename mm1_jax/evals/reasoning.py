"""Chain of thought: a model reasons before it answers, and the answer is read from its last words.

    exemplar   .. Think step by step ..    Plants need light. The window is dark. The answer is B.
    query      .. Think step by step ..    (the model writes the same kind of text)

Exemplars have the `rationale` of their records as reasoning.
"""

import re

from mm1_jax.batch import Record
from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import NonEmpty

_ANSWER = "{answer}"


class Reasoning(Configurable):
    """Writes the answers of exemplars with their reasoning, and extracts answers from replies."""

    @config_class
    class Config(Configurable.Config):
        # Text after the question, in place of the instruction for a short answer.
        instruction: NonEmpty = (
            'Think step by step, and end with "The answer is", followed by the answer alone: the '
            "option's letter if there are options, else a word, a phrase or a number."
        )
        # The last sentence of an answer; must contain `{answer}`.
        conclusion: NonEmpty = f"The answer is {_ANSWER}."

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.conclusion.count(_ANSWER) != 1:
            raise ValueError(
                f"to_document.reasoning.conclusion={cfg.conclusion!r}: must contain {_ANSWER} once"
            )
        before, after = cfg.conclusion.split(_ANSWER)
        end = rf"(?:{re.escape(after)}|\n|\Z)" if after else r"(?:\n|\Z)"
        self._pattern = re.compile(
            rf"{re.escape(before.strip())}:?\s*(.+?){end}(?!\d)", re.IGNORECASE
        )

    def answer(self, record: Record) -> str:
        """Returns the answer of a record after its reasoning, if the record has any."""
        # `replace`, because the text may contain braces.
        conclusion = self._config.conclusion.replace(_ANSWER, record["answer"])
        return f"{record.get('rationale', '').strip()} {conclusion}".strip()

    def extracted(self, reply: str) -> str:
        """Returns the answer in the last conclusion of a reply; without one, the last line.

        >>> reasoning.extracted("It has 3 legs, so 3 x 2 = 6. The answer is 6.")
        '6'
        """
        if found := self._pattern.findall(reply):
            return found[-1].strip()
        lines = [line for line in reply.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

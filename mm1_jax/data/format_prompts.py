"""LLaVA's format prompts: a line after a question that asks for a form of answer.

They are those of LLaVA-1.5 (tables 7 and 8). Training and evaluation ask in the same words.
"""

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
ONE_SENTENCE = "Provide a one-sentence caption for the provided image."

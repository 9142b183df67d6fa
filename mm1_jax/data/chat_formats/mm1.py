"""A plain chat format for models that are pre-trained as MM1, with any tokenizer.

    User:<image>what is it? Assistant: a cat</s>User: what color? Assistant: gray</s>

The paper does not publish its format. This one has the words of a dialog, no system text unless
the config or the record has one, and pictures as in pre-training: no text of the format stands
between a picture and the text about it.
"""

from mm1_jax.data.chat_formats.plain import PlainFormat, Words


class MM1ChatFormat(PlainFormat):
    """`User: question Assistant: answer</s>`."""

    @property
    def words(self) -> Words:
        return Words("User:", "Assistant:")

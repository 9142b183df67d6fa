"""The chat format of LLaVA-1.5, which is version 1.1 of Vicuna's.

A chat between .. questions. USER:<image>
what is it? ASSISTANT: a cat</s>USER: what color? ASSISTANT: gray</s>
"""

from mm1_jax.config import config_class
from mm1_jax.data.chat_formats.plain import PlainFormat, Words

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class LLaVAChatFormat(PlainFormat):
    """`USER: question ASSISTANT: answer</s>`, with a line break after pictures."""

    @config_class
    class Config(PlainFormat.Config):
        system: str = VICUNA_SYSTEM

    @property
    def words(self) -> Words:
        return Words("USER:", "ASSISTANT:", after_image="\n")

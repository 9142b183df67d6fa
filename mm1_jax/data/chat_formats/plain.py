"""Chat formats of plain text, which need no special token but the one that ends a sequence.

    system text USER: question ASSISTANT: answer</s>USER: question ASSISTANT: answer</s>

A user can write the name of a role, but never the token that ends an answer.
"""

import abc
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mm1_jax.batch import Image, Markup, Segment, Stop, Text
from mm1_jax.config import config_class
from mm1_jax.data.chat_formats.base import ChatFormat, Turn
from mm1_jax.data.record_files import IMAGE, BadRecord

_JINJA = """\
{{- bos_token -}}
{%- set ns = namespace(gap='', after_image='') -%}
{%- if SYSTEM and (not messages or messages[0]['role'] != 'system') -%}
    {{- SYSTEM -}}
    {%- set ns.gap = ' ' -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- ns.gap + USER -}}
        {%- set ns.gap = ' ' -%}
    {%- elif message['role'] == 'assistant' -%}
        {{- ns.gap + ASSISTANT -}}
        {%- set ns.gap = ' ' -%}
    {%- elif message['role'] != 'system' or not loop.first -%}
        {{- raise_exception('a turn of the role ' + message['role'] + ' after other turns') -}}
    {%- endif -%}
    {%- set ns.after_image = '' -%}
    {%- if message['content'] is string -%}
        {%- set parts = [{'type': 'text', 'text': message['content']}] -%}
    {%- else -%}
        {%- set parts = message['content'] -%}
    {%- endif -%}
    {%- for part in parts -%}
        {%- if part['type'] == 'image' -%}
            {{- IMAGE -}}
            {%- set ns.gap = '' -%}
            {%- set ns.after_image = AFTER_IMAGE -%}
        {%- elif part['text'] | trim -%}
            {{- (ns.after_image or ns.gap) + part['text'] | trim -}}
            {%- set ns.gap = ' ' -%}
            {%- set ns.after_image = '' -%}
        {%- endif -%}
    {%- endfor -%}
    {%- if message['role'] == 'assistant' -%}
        {{- eos_token -}}
        {%- set ns.gap = '' -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- ns.gap + ASSISTANT -}}
{%- endif -%}
"""


class Words(NamedTuple):
    """The text of a plain format.

    Attributes:
        user: The name before a question.
        assistant: The name before an answer.
        after_image: Stands between a picture and the text after it.
    """

    user: str
    assistant: str
    after_image: str = ""


class PlainFormat(ChatFormat):
    """Names of roles before texts, spaces between them, and the end of a sequence after answers.

    No space stands beside a picture.
    """

    @config_class
    class Config(ChatFormat.Config):
        # System text of conversations without a system turn; empty means none.
        system: str = ""

    @property
    @abc.abstractmethod
    def words(self) -> Words:
        """The text of the format."""

    @property
    def stop(self) -> None:
        return None

    def segments(self, turns: Sequence[Turn], *, prompts_answer: bool) -> Iterator[Segment]:
        if self.config.system and not (turns and turns[0].role == "system"):
            turns = [Turn("system", (self.config.system,)), *turns]
        words, gap = self.words, ""
        for i, turn in enumerate(turns):
            if turn.role == "system" and i:
                raise BadRecord("a system turn after other turns")
            if turn.role != "system":
                yield Markup(gap + (words.user if turn.role == "user" else words.assistant))
                gap = " "
            after_image = ""
            for part in turn.parts:
                if isinstance(part, Image):
                    yield part
                    gap, after_image = "", words.after_image
                else:
                    is_scored = turn.role == "assistant" and turn.is_scored
                    yield Text((after_image or gap) + part, scored=is_scored)
                    gap, after_image = " ", ""
            if turn.role == "assistant":
                yield Stop(scored=turn.is_scored)
                gap = ""
        if prompts_answer:
            yield Markup(gap + words.assistant)

    def jinja(self) -> str:
        values = {
            "SYSTEM": self.config.system,
            "USER": self.words.user,
            "ASSISTANT": self.words.assistant,
            "AFTER_IMAGE": self.words.after_image,
            "IMAGE": IMAGE,
        }
        # JSON strings are Jinja strings as well.
        heads = (f"{{%- set {name} = {json.dumps(text)} -%}}" for name, text in values.items())
        return "\n".join([*heads, _JINJA])

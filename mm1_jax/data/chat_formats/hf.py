"""The chat template of a Hugging Face tokenizer or processor, rendered as transformers does.

A template is a program that writes a whole conversation. It is run on placeholders in place of the
texts and pictures of a conversation, and its output is cut at them: what the template wrote becomes
markup, with its special tokens, and the texts stay texts, in which nobody can write one.

    <|im_start|>user  \\n{0}  <|im_end|>\\n<|im_start|>assistant\\n  {1}  <|im_end|>  \\n
    Markup            Text   Markup                               Text  Stop        Markup

A template is refused if the prompt of an answer is not a prefix of the conversation, as when the
template drops earlier thoughts, or if no special token ends an answer.
"""

import functools
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mm1_jax.batch import Image, Markup, Segment, Stop, Text
from mm1_jax.config import REQUIRED, Required, config_class, derived
from mm1_jax.data.chat_formats.base import ChatFormat, Turn
from mm1_jax.data.chat_formats.jinja import TemplateError, compiled, literal
from mm1_jax.data.record_files import BadRecord
from mm1_jax.storage import read_json_object

# Files that hold a template, in order of preference.
CHAT_TEMPLATE = "chat_template.jinja"
TEMPLATE_FILES = (CHAT_TEMPLATE, "chat_template.json", "tokenizer_config.json")
# Names of the tokens that stand for a picture, where a mark has other special tokens around it.
IMAGE_TOKENS = (
    *("<image>", "<|image_pad|>", "<|image|>", "<image_soft_token>", "<start_of_image>"),
    *("<IMG_CONTEXT>", "[IMG]", "<|image_placeholder|>"),
)
# Characters for private use around the number of a text or picture.
_PLACEHOLDER = re.compile("\ue000([0-9]+)([ti])\ue001")

# The role of each turn, and whether each of its parts is an image.
Shape = tuple[tuple[str, tuple[bool, ...]], ...]
_ROUND: Shape = (("user", (False,)), ("assistant", (False,)))

# For templates that take the content of a message as a string: joins lists of parts.
_JOINED_PARTS = """\
{% set joined = namespace(messages=[], text='') %}\
{% for message in messages %}\
{% if message['content'] is string %}\
{% set joined.messages = joined.messages + [message] %}\
{% else %}\
{% set joined.text = '' %}\
{% for part in message['content'] %}\
{% set joined.text = joined.text + ('<image>' if part['type'] == 'image' else part['text']) %}\
{% endfor %}\
{% set joined.messages = joined.messages + [dict(message, content=joined.text)] %}\
{% endif %}\
{% endfor %}\
{% set messages = joined.messages %}"""


class _Place(NamedTuple):
    """The place of the next text of a conversation, and the template's whitespace beside it."""

    turn: int
    is_answer: bool
    before: str = ""
    after: str = ""


class _Picture(NamedTuple):
    """The place of the next picture of a conversation."""

    turn: int


class _Stop(NamedTuple):
    """The special token that ends the answer of a turn."""

    turn: int
    name: str


# The output of a template for a shape; strings are markup.
_Skeleton = tuple[str | _Place | _Picture | _Stop, ...]


class HFChatFormat(ChatFormat):
    """The chat template in a folder of Hugging Face."""

    @config_class
    class Config(ChatFormat.Config):
        # Folder of the tokenizer or of the whole model, relative to `data_dir`. It has one of
        # `TEMPLATE_FILES`, and the files of the tokenizer.
        folder: Required[str] = REQUIRED
        data_dir: str | None = derived(None)  # `input.data_dir`
        # Variables of the template, such as {"enable_thinking": False}.
        variables: dict[str, Any] = {}
        # The part of the template's output that stands for a picture; None finds it.
        image_mark: str | None = None

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        self._folder = Path(cfg.data_dir or ".", cfg.folder)
        template = template_in(self._folder)
        if template is None:
            raise ValueError(
                f"chat_format.folder={str(self._folder)!r} has no chat template; expected a "
                f"{TEMPLATE_FILES[0]}, or chat_template in {' or '.join(TEMPLATE_FILES[1:])}"
            )
        self._template = template
        self._tokens = _Tokens.of(self._folder)
        try:
            self._compiled = compiled(self._template)
        except TemplateError as error:
            raise ValueError(f"chat_format.folder: {self._folder}: {error}") from None
        self._skeleton = functools.lru_cache(maxsize=1024)(self._new_skeleton)
        try:
            self._writes_image = False
            self._image_mark = self._found_image_mark()
            found = self._skeleton((*_ROUND, *_ROUND, *_ROUND), False)
            self._starts_with_bos = self._begins_with_bos(self._render(_ROUND, False))
        except BadRecord as error:
            raise ValueError(f"chat_format.folder: {self._folder}: {error}") from None
        stops = {part.name for part in found if isinstance(part, _Stop)}
        self._stop = next(iter(stops))
        markup = "".join(part for part in found if isinstance(part, str))
        self._written = tuple(dict.fromkeys((*self._tokens.pattern.findall(markup), *stops)))
        if len(stops) != 1:
            raise ValueError(
                f"chat_format.folder: {self._folder}: the template ends answers with one of "
                f"{', '.join(map(repr, sorted(stops)))}; expected one token"
            )

    @property
    def stop(self) -> str:
        return self._stop

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return self._written

    def segments(self, turns: Sequence[Turn], *, prompts_answer: bool) -> Iterator[Segment]:
        turns = [_with_text(turn) for turn in turns]
        shape = tuple(
            (turn.role, tuple(isinstance(part, Image) for part in turn.parts)) for turn in turns
        )
        texts = iter([part for turn in turns for part in turn.parts if isinstance(part, str)])
        images = iter([part for turn in turns for part in turn.parts if isinstance(part, Image)])
        waiting = ""
        skeleton = self._skeleton(shape, prompts_answer)
        for part, after in itertools.zip_longest(skeleton, skeleton[1:]):
            if isinstance(part, _Place):
                waiting += part.before + next(texts) + part.after
                # Texts that stand side by side, as when pictures move to the front, are one text.
                is_whole = not isinstance(after, _Place) or after.turn != part.turn
                if waiting and is_whole:
                    yield Text(waiting, part.is_answer and turns[part.turn].is_scored)
                    waiting = ""
            elif isinstance(part, _Picture):
                yield next(images)
            elif isinstance(part, _Stop):
                if part.name != self._stop:
                    # Such as the end of a picture, if the answer ends with one.
                    raise BadRecord(
                        f"the template ends an answer with {part.name!r}, and others with "
                        f"{self._stop!r}"
                    )
                yield Stop(part.name, scored=turns[part.turn].is_scored)
            else:
                yield Markup(part)

    def jinja(self) -> str:
        names = [name for name in self._tokens.names if re.search(rf"\b{name}\b", self._template)]
        values = {name: self._tokens.names[name] for name in names} | self.config.variables
        head = ""
        if not self._starts_with_bos:
            # Every sequence begins with the token that the exported tokenizer calls bos.
            head = "{{ bos_token }}"
            values.setdefault("bos_token", "")
        else:
            values.pop("bos_token", None)
        sets = "".join(f"{{% set {name} = {literal(x)} %}}" for name, x in values.items())
        template = self._template
        if self._writes_image and self._image_mark != "<image>":
            template = template.replace(self._image_mark, "<image>")
        if not self._writes_image:
            head += _JOINED_PARTS
        return head + sets + template

    def fingerprint(self) -> str:
        return json.dumps(
            [self._template, self._tokens, self.config.variables, self._image_mark], sort_keys=True
        )

    def _render(self, shape: Shape, prompts_answer: bool) -> str:
        """Returns what the template writes for a conversation of placeholders."""
        texts, images = itertools.count(), itertools.count()
        messages = []
        for role, kinds in shape:
            names = [
                f"\ue000{next(images)}i\ue001" if is_image else f"\ue000{next(texts)}t\ue001"
                for is_image in kinds
            ]
            content: Any = "".join(names)
            if any(kinds) and self._writes_image:
                content = [
                    {"type": "image"} if is_image else {"type": "text", "text": name}
                    for name, is_image in zip(names, kinds, strict=True)
                ]
            messages.append({"role": role, "content": content})
        try:
            return self._compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=prompts_answer,
                **{**self._tokens.names, **self.config.variables},
            )
        except TemplateError as error:
            roles = ", ".join(role for role, _ in shape)
            raise BadRecord(
                f"the template fails for turns of {roles or 'nobody'}: {error}"
            ) from None

    def _found_image_mark(self) -> str:
        """Returns what the template writes for a picture; empty if it writes nothing.

        The string of `image_mark` is replaced by the picture, and the rest of a mark is markup.
        """
        picture: Shape = (("user", (True, False)), ("assistant", (False,)))
        plain = self._render(_ROUND, False)
        try:
            self._writes_image = True
            shown = self._render(picture, False)
        except BadRecord:
            shown = plain
        # A template that takes strings alone fails on parts, or writes them as Python does.
        if "'type'" in shown or '"type"' in shown:
            shown = plain
        start = len(os.path.commonprefix([plain, shown]))
        rest = os.path.commonprefix([plain[start:][::-1], shown[start:][::-1]])
        mark = shown[start : len(shown) - len(rest)]
        self._writes_image = bool(mark)
        chosen = self.config.image_mark
        if not mark:
            if chosen is not None:
                raise BadRecord(f"the template writes no image_mark={chosen!r} for a picture")
            return ""
        named = [name for name in IMAGE_TOKENS if name in mark]
        special = self._tokens.pattern.findall(mark)
        found = [chosen] if chosen is not None else named or (special if len(special) == 1 else [])
        if not found or found[0] not in mark or found[0] in plain:
            raise BadRecord(
                f"the template writes {mark!r} for a picture; set chat_format.image_mark to the "
                "part of it that stands for the picture"
            )
        return found[0]

    def _begins_with_bos(self, text: str) -> bool:
        bos = self._tokens.names.get("bos_token")
        return bool(bos) and text.startswith(bos)

    def _new_skeleton(self, shape: Shape, prompts_answer: bool) -> _Skeleton:
        text = self._render(shape, prompts_answer)
        turns = [turn for turn, (_, kinds) in enumerate(shape) for _ in kinds]
        places = self._places(text, shape)
        found: list[str | _Place | _Picture | _Stop] = []
        end = len(self._tokens.names["bos_token"]) if self._begins_with_bos(text) else 0
        for number, (place, turn) in enumerate(zip(places, turns, strict=True)):
            is_text = place.is_text
            is_answer = shape[turn][0] == "assistant"
            if is_answer and turns.index(turn) == number:
                cut = self._end_of_prompt(text, shape[:turn], place.start)
            elif is_text and not self._tokens.swallows(text[end : place.start].rstrip()):
                # Most tokenizers read a space as the beginning of the next word.
                cut = end + len(text[end : place.start].rstrip())
            else:
                cut = place.start
            before, after = text[cut : place.start], ""
            found.append(text[end:cut])
            end = place.end
            is_last = number + 1 == len(turns) or turns[number + 1] != turn
            stop = None
            if is_answer and is_last:
                stop = self._tokens.pattern.search(text, end)
                if stop is None or text[end : stop.start()].strip():
                    raise BadRecord(
                        "the template writes no special token after an answer, so that nothing "
                        "would teach a model to end one; write eos_token there"
                    )
                after, end = text[end : stop.start()], stop.end()
                if self._tokens.swallows(stop[0]):
                    end += len(text[end:]) - len(text[end:].lstrip())
            if is_text:
                found.append(_Place(turn, is_answer, before, after))
            else:
                found += [before, _Picture(turn), after]
            if stop is not None:
                found.append(_Stop(turn, stop[0]))
        return tuple(part for part in (*found, text[end:]) if part != "")

    def _places(self, text: str, shape: Shape) -> "list[_Span]":
        """Returns where the texts and pictures of a shape stand in what the template writes."""
        kinds = [is_image for _, kinds in shape for is_image in kinds]
        spans = [
            _Span(match.start(), match.end(), match[2] == "t", int(match[1]))
            for match in _PLACEHOLDER.finditer(text)
        ]
        if self._writes_image:
            marks = re.finditer(re.escape(self._image_mark), text)
            spans += [
                _Span(match.start(), match.end(), False, number)
                for number, match in enumerate(marks)
            ]
            spans.sort()
        for is_text, what in ((True, "text"), (False, "picture")):
            numbers = [span.number for span in spans if span.is_text == is_text]
            expected = kinds.count(not is_text)
            if numbers != list(range(expected)):
                raise BadRecord(
                    f"the template leaves out, repeats or reorders a {what} of turns of "
                    f"{', '.join(role for role, _ in shape)}: expected {expected}, each once"
                )
        return spans

    def _end_of_prompt(self, text: str, shape: Shape, start: int) -> int:
        """Returns where an answer begins: after the prompt for it, and at most spaces later."""
        prompt = self._render(shape, True)
        if not text.startswith(prompt) or text[len(prompt) : start].strip():
            end = len(os.path.commonprefix([text, prompt]))
            raise BadRecord(
                "the template does not begin a conversation with the prompt of an earlier answer: "
                f"it writes ..{text[max(0, end - 20) : start]!a} after .."
                f"{text[max(0, end - 40) : end]!a}, and the prompt has {prompt[end:]!a}; choose "
                "other chat_format.variables, or a template that keeps earlier turns"
            )
        return len(prompt)

    def __getstate__(self) -> dict[str, Any]:
        # A compiled template cannot be pickled, so it is made again from the config.
        return {"_config": self._config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_config"])


class _Span(NamedTuple):
    """A text or picture in what a template writes."""

    start: int
    end: int
    is_text: bool
    number: int


def _with_text(turn: Turn) -> Turn:
    """Gives an answer without text an empty one, so that the template writes its stop."""
    if turn.role != "assistant" or any(isinstance(part, str) for part in turn.parts):
        return turn
    return turn._replace(parts=(*turn.parts, ""))


class _Tokens(NamedTuple):
    """The special tokens of a tokenizer.

    Attributes:
        names: Their variables in templates, such as `eos_token`.
        special: All special tokens.
        swallowing: Special tokens that drop the whitespace after them.
    """

    names: dict[str, str]
    special: tuple[str, ...]
    swallowing: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> "_Tokens":
        """Reads the tokens in a folder."""
        files = ("special_tokens_map.json", "tokenizer_config.json", "tokenizer.json")
        content = [
            read_json_object(folder / file) if (folder / file).is_file() else {} for file in files
        ]
        names = {
            name: text
            for each in content[:2]
            for name, value in each.items()
            if name.endswith("_token") and (text := _token_text(value)) is not None
        }
        added = [
            *(content[1].get("added_tokens_decoder") or {}).values(),
            *(content[2].get("added_tokens") or ()),
        ]
        flags = [(each["content"], each.get("rstrip")) for each in added if each.get("special")]
        special = {*names.values(), *(text for text, _ in flags)} - {""}
        swallowing = {text for text, swallows in flags if swallows}
        return cls(names, tuple(sorted(special, key=len, reverse=True)), tuple(sorted(swallowing)))

    @property
    def pattern(self) -> re.Pattern[str]:
        """Finds special tokens in a text."""
        return re.compile("|".join(map(re.escape, self.special)) or "(?!)")

    def swallows(self, text: str) -> bool:
        """Returns whether a text ends with a token that drops the whitespace after it."""
        return text.endswith(self.swallowing) if self.swallowing else False


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def template_in(folder: Path) -> str | None:
    """Returns the chat template of a folder; None if it has none."""
    for name in TEMPLATE_FILES:
        path = folder / name
        if not path.is_file():
            continue
        if path.suffix == ".jinja":
            return path.read_text("utf-8")
        found = read_json_object(path).get("chat_template")
        if isinstance(found, list):
            # Several templates by name.
            found = {each.get("name"): each.get("template") for each in found}.get("default")
        if isinstance(found, str):
            return found
    return None

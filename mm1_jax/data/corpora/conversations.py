"""Conversations about images: `{"images", "turns": [{"role", "text"}]}`; answers are scored.

`<image>` in a text stands for the next image. `ConversationDocument` renders the turns in the chat
format of the config, with a stop after each answer. `conversation_document` is older: its format is
Vicuna's, and only the last answer has a stop.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from mm1_jax.batch import Document, Image, Record, Text
from mm1_jax.config import Configurable, InstantiableConfig, config_class, derived
from mm1_jax.data.chat_formats.base import ChatFormat, Conversation, Turn, reading_order
from mm1_jax.data.record_files import BOX, IMAGE, POINT, BadRecord

_MARK = re.compile(f"{BOX}|{POINT}")
_PREFIX = {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "}


def conversation_document(record: Record) -> Document:
    """Returns the turns in order; images that no `<image>` refers to come first."""
    if record.get("boxes"):
        raise BadRecord(
            "it has boxes; set to_document to a ConversationDocument, which writes boxes"
        )
    images = iter(Image(image) for image in record["images"])
    turns = [(turn, turn["text"] or "") for turn in record["turns"]]
    named = sum(text.count(IMAGE) for _, text in turns)
    unnamed = len(record["images"]) - named
    if unnamed < 0:
        raise BadRecord(f"{named} times {IMAGE} for {len(record['images'])} images")
    segments: list[Text | Image] = [next(images) for _ in range(unnamed)]
    for turn, text in turns:
        segments += _turn(turn["role"], text, images, turn.get("loss") is not False)
    if not any(isinstance(segment, Text) and segment.scored for segment in segments):
        raise BadRecord("no answer that is not blank")
    return Document(tuple(segments))


def _turn(role: str, text: str, images: Iterator[Image], has_loss: bool) -> Iterator[Text | Image]:
    if role not in _PREFIX:
        raise BadRecord(f"role {role!r}; expected one of {', '.join(_PREFIX)}")
    first, *others = text.split(IMAGE)
    is_answer = role == "assistant"
    if is_answer:
        # The model writes only the text after the name of its role.
        yield Text(_PREFIX[role].rstrip(), scored=False)
    elif first.strip() or _PREFIX[role]:
        yield Text((_PREFIX[role] + first.strip()).rstrip(), scored=False)
    if is_answer and first.strip():
        yield Text(first.strip(), scored=has_loss)
    for other in others:
        yield next(images)
        if other.strip():
            yield Text(other.strip(), scored=is_answer and has_loss)


class ConversationDocument(Configurable):
    """Renders a conversation record in a chat format.

    Texts are stripped, also beside images: the format puts its own space there. Boxes and points of
    the record are written where `<box>` and `<point>` stand in its texts.
    """

    @config_class
    class Config(Configurable.Config):
        chat_format: ChatFormat.Config | None = derived(None)  # `input.chat_format`
        # "front" moves the images of a turn to its beginning, as the training code of LLaVA does.
        image_place: Literal["as_written", "front"] = "as_written"
        # Writes the boxes and points of records; None refuses records that have any.
        coordinates: InstantiableConfig | None = None

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.chat_format is None:
            raise ValueError(
                "to_document.chat_format is None: set input.chat_format, such as "
                "MM1ChatFormat.default_config()"
            )
        self.chat_format: ChatFormat = cfg.chat_format.instantiate()
        self._coordinates: Any = None if cfg.coordinates is None else cfg.coordinates.instantiate()

    def __call__(self, record: Record) -> Conversation:
        turns = self.turns(record)
        if not any(turn.role == "assistant" and turn.is_scored for turn in turns):
            raise BadRecord("no scored answer that is not blank")
        return self.chat_format.document(turns)

    def turns(self, record: Record) -> list[Turn]:
        """Returns the turns of a record; blank answers are not scored.

        Raises:
            BadRecord: The texts name more images or boxes than there are, or some of each.
        """
        said = record["turns"]
        for turn in said:
            if turn["role"] not in _PREFIX:
                raise BadRecord(f"role {turn['role']!r}; expected one of {', '.join(_PREFIX)}")
        texts = [turn["text"] or "" for turn in said]
        if record.get("boxes"):
            texts = self._with_boxes(texts, record["boxes"])
        images = [Image(image) for image in record["images"]]
        num_named = sum(text.count(IMAGE) for text in texts) if images else 0
        if num_named not in (0, len(images)):
            raise BadRecord(f"{num_named} times {IMAGE} for {len(images)} images")
        if num_named:
            waiting = iter(images)
            parts = [self._with_images(text, waiting) for text in texts]
        else:
            # `<image>` is text, and all images precede the first question.
            parts = [[text.strip()] for text in texts]
            first = next((i for i, turn in enumerate(said) if turn["role"] == "user"), 0)
            parts[first] = [*images, *parts[first]]
        return [
            Turn(turn["role"], tuple(own), _is_scored(turn, own))
            for turn, own in zip(said, parts, strict=True)
        ]

    def fingerprint(self) -> str:
        """Describes everything that determines the documents, besides the records."""
        own = self._config.clone(chat_format=None).debug_string(
            kv_separator="=", field_separator=" "
        )
        return f"{own} chat_format={self.chat_format.fingerprint()}"

    def _with_boxes(self, texts: Sequence[str], boxes: Sequence[Mapping[str, Any]]) -> list[str]:
        if self._coordinates is None:
            raise BadRecord(
                "it has boxes, and to_document.coordinates is None; set it to write them as text"
            )
        num_named = sum(len(_MARK.findall(text)) for text in texts)
        if num_named != len(boxes):
            raise BadRecord(f"{num_named} times {BOX} or {POINT} for {len(boxes)} boxes")
        entries = iter(boxes)
        return [
            _MARK.sub(lambda _: self._coordinates.write_entry(next(entries)), text)
            for text in texts
        ]

    def _with_images(self, text: str, images: Iterator[Image]) -> list[str | Image]:
        if self._config.image_place == "front":
            first, *others = text.split(IMAGE)
            return [*(next(images) for _ in others), "".join((first, *others)).strip()]
        return reading_order(text, images)


def _is_scored(turn: Mapping[str, Any], parts: Sequence[str | Image]) -> bool:
    has_text = any(isinstance(part, str) and part for part in parts)
    return turn["role"] != "assistant" or (has_text and turn.get("loss") is not False)

"""Zero- and few-shot prompts as Documents (MM1, section 4).

A solved task is the Document that training builds from its record. A prompt consists of solved
tasks, the exemplars, and one more task without its answer:

    (image, question, answer)  (image, question, answer)  (image, question)

Prompts are parts of training documents and are tokenized exactly like them. With a joiner, prompt
and answer are tokenized as one text instead, as written in the paper. In a chat format, exemplars
are earlier turns of the conversation.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from mm1_jax.batch import Document, Image, Markup, Record, Segment, Text
from mm1_jax.config import Configurable, config_class, derived
from mm1_jax.data.chat_formats.base import ChatFormat, Conversation, Turn
from mm1_jax.data.corpora.conversations import ConversationDocument, conversation_document
from mm1_jax.data.corpora.questions import question_prompt
from mm1_jax.data.format_prompts import SHORT_ANSWER
from mm1_jax.data.record_files import IMAGE
from mm1_jax.data.tiling import last_pictures_tiled
from mm1_jax.evals.reasoning import Reasoning


def exemplar_indices(
    num_records: int,
    shots: int,
    *,
    seed: int,
    benchmark: str,
    query: int,
    exclude: int | None = None,
) -> list[int]:
    """Draws `shots` distinct records out of `num_records` at random for each query.

    The draw depends only on the arguments, so it is the same on every host and in any order of the
    queries.

    Args:
        exclude: A record that is never drawn, such as the query itself if it is among the records.
    """
    candidates = num_records - (exclude is not None)
    if shots > candidates:
        raise ValueError(
            f"{benchmark}: shots={shots}, but there are only {candidates} records to draw "
            "exemplars from; use fewer shots or a larger source"
        )
    rng = np.random.default_rng([seed, zlib.crc32(benchmark.encode()), query, shots])
    drawn = rng.choice(candidates, size=shots, replace=False).tolist()
    # Skip the excluded record.
    return [i + (exclude is not None and i >= exclude) for i in drawn]


def subset(num_records: int, limit: int | None, *, seed: int, benchmark: str) -> list[int]:
    """Returns the records to ask, in order: all, or `limit` of them at random."""
    if limit is None or limit >= num_records:
        return list(range(num_records))
    rng = np.random.default_rng([seed, zlib.crc32(benchmark.encode())])
    return sorted(rng.choice(num_records, size=limit, replace=False).tolist())


def reference(document: Document) -> str:
    """Returns the answer of a solved task, its last text."""
    if isinstance(document, Conversation):
        return "".join(part for part in _answer_turn(document).parts if isinstance(part, str))
    return _answer_segment(document).text


def without_answer(document: Document) -> Document:
    """Returns a solved task without its answer, as the model is asked."""
    if isinstance(document, Conversation):
        _answer_turn(document)
        return document.of(document.turns[:-1], prompts_answer=True)
    _answer_segment(document)
    return Document(document.segments[:-1])


def few_shot(
    exemplars: Sequence[Document],
    query: Document,
    *,
    joiner: str | None = None,
    separator: str = "",
    num_tiled: int | None = None,
) -> Document:
    """Returns the exemplars with their answers, in order, then the query without its answer.

    Args:
        joiner: Joins the texts of a task into one. None keeps them apart, so that they are
            tokenized separately.
        separator: Text after the answer of each exemplar; used only with a joiner.
        num_tiled: Number of exemplars, the last ones, whose pictures a tiling may show in several
            views; None means all.
    """
    if num_tiled is not None:
        exemplars = last_pictures_tiled(exemplars, num_tiled)
    if isinstance(query, Conversation):
        return _chat(exemplars, query, joiner)
    asked = without_answer(query)
    if joiner is None:
        segments = [segment for exemplar in exemplars for segment in exemplar.segments]
        return Document((*segments, *asked.segments))
    segments = []
    for exemplar in exemplars:
        *others, last = _joined(exemplar.segments, joiner)
        assert isinstance(last, Text), "an exemplar ends with its answer"
        segments += [*others, Text(last.text + separator)]
    # Tasks without a picture between them become one text as well.
    return Document(tuple(_joined([*segments, *_joined(asked.segments, joiner)], "")))


def _chat(exemplars: Sequence[Document], query: Conversation, joiner: str | None) -> Conversation:
    """Returns one conversation whose earlier turns are the exemplars."""
    if joiner is not None:
        raise ValueError(
            f"answer_joiner={joiner!r}: the chat format of the task joins its texts; leave it None"
        )
    turns = []
    for exemplar in exemplars:
        if not isinstance(exemplar, Conversation):
            raise ValueError("an exemplar is no conversation, but the task that is asked is one")
        turns += exemplar.turns
    _answer_turn(query)
    return query.of([*turns, *query.turns[:-1]], prompts_answer=True)


def stop_of(document: Document) -> str | None:
    """Returns the name of the special token that ends answers; None is the end of a sequence."""
    if not isinstance(document, Conversation) or document.chat_format is None:
        return None
    return document.chat_format.stop


def continuation(document: Document, answer: str) -> str:
    """Returns an answer to a task as it continues the prompt, with the space of a chat format."""
    if not isinstance(document, Conversation):
        return answer
    turns = [*document.turns[:-1], Turn("assistant", ("x",))]
    texts = [part.text for part in document.of(turns).segments if isinstance(part, Text)]
    return texts[-1].removesuffix("x") + answer


def _joined(segments: Sequence[Segment], joiner: str) -> list[Segment]:
    """Joins each run of texts into one text."""
    joined: list[Segment] = []
    for segment in segments:
        last = joined[-1] if joined else None
        if isinstance(segment, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + joiner + segment.text)
        else:
            joined.append(segment)
    return joined


class CaptionTask(Configurable):
    """`{image} A photo of`, then the first of the record's `captions` (MM1, appendix)."""

    @config_class
    class Config(Configurable.Config):
        prompt: str = "A photo of"

    def __call__(self, record: Record) -> Document:
        images = tuple(Image(image) for image in record["images"])
        prompt = (Text(self._config.prompt, scored=False),) if self._config.prompt else ()
        # A split may be published without captions.
        caption = record["captions"][0] if record["captions"] else ""
        return Document((*images, *prompt, Text(caption)))


class QuestionTask(Configurable):
    """`{image} Question: {question} Short answer:`, then the answer (MM1, appendix)."""

    @config_class
    class Config(Configurable.Config):
        # Must contain `{question}`.
        prompt: str = question_prompt("{question}")

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if "{question}" not in cfg.prompt:
            raise ValueError(f"to_document.prompt={cfg.prompt!r}: must contain {{question}}")

    def __call__(self, record: Record) -> Document:
        images = tuple(Image(image) for image in record["images"])
        prompt = self._config.prompt.replace("{question}", record["question"])
        return Document((*images, Text(prompt, scored=False), Text(record["answer"])))


class ChatTask(Configurable):
    """A user turn of question and instruction, in the chat format of training, then the answer.

    `<image>` in a question marks the place of a picture; pictures without a mark come first. A
    record may have an `instruction` of its own. Without a chat format, the document is that of
    `conversation_document`.
    """

    @config_class
    class Config(Configurable.Config):
        chat_format: ChatFormat.Config | None = derived(None)  # `input.chat_format`
        # Text after the question, as in the fine-tuning of LLaVA and MM1.
        instruction: str = SHORT_ANSWER
        # Asks for reasoning before the answer, and shows that of exemplars; None asks for the
        # answer alone.
        reasoning: Reasoning.Config | None = None

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        self._reasoning = None if cfg.reasoning is None else cfg.reasoning.instantiate()
        self._conversation: ConversationDocument | None = None
        if cfg.chat_format is not None:
            self._conversation = (
                ConversationDocument.default_config().set(chat_format=cfg.chat_format).instantiate()
            )

    def __call__(self, record: Record) -> Document:
        instruction = record.get("instruction", self._config.instruction)
        answer = record["answer"]
        if self._reasoning is not None:
            instruction, answer = self._config.reasoning.instruction, self._reasoning.answer(record)
        asked = "\n".join(filter(None, (record["question"], instruction)))
        # A placeholder answer: a question without a label has a blank one, which training refuses.
        turns = [{"role": "user", "text": asked}, {"role": "assistant", "text": "-"}]
        if self._conversation is not None:
            unmarked = len(record["images"]) - asked.count(IMAGE)
            if 0 < unmarked < len(record["images"]):
                turns[0]["text"] = IMAGE * unmarked + asked
            made = self._conversation.turns({"images": record["images"], "turns": turns})
            answered = made[-1]._replace(parts=(answer,))
            return self._conversation.chat_format.document([*made[:-1], answered])
        segments = conversation_document({"images": record["images"], "turns": turns}).segments
        return Document((*segments[:-1], Text(answer)))

    def fingerprint(self) -> str | None:
        """Describes everything that determines the documents; None if that is the config alone."""
        if self._conversation is None:
            return None
        own = self._config.clone(chat_format=None).debug_string(
            kv_separator="=", field_separator=" "
        )
        return f"{own} chat_format={self._conversation.chat_format.fingerprint()}"


def text_of(document: Document) -> str:
    """Returns the texts of a prompt as one line for people to read."""
    return " ".join(
        part.text.strip() for part in document.segments if isinstance(part, Text | Markup)
    )


def _answer_turn(document: Conversation) -> Turn:
    if not document.turns or document.turns[-1].role != "assistant":
        roles = [turn.role for turn in document.turns]
        raise ValueError(f"the conversation of a task must end with an answer; its turns: {roles}")
    return document.turns[-1]


def _answer_segment(document: Document) -> Text:
    last = document.segments[-1]
    if not isinstance(last, Text) or not last.scored or len(document.segments) < 2:
        raise ValueError(
            "the document of a benchmark must end with a scored text, the answer, after at least "
            f"one other segment; got the segments {[type(s).__name__ for s in document.segments]}"
        )
    return last

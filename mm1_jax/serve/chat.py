"""A conversation with a model, in the chat format and the tiling of its run."""

from collections.abc import Iterator, Sequence

from mm1_jax.batch import Image
from mm1_jax.data.chat_formats.base import ChatFormat, Turn, joined, reading_order
from mm1_jax.data.images import BadImage, Viewer
from mm1_jax.data.record_files import IMAGE
from mm1_jax.decoding.conversation import ContextFull, ConversationDecoder, PromptImage
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.evals.evaluator import PromptInput
from mm1_jax.models.mm1 import MM1


class Chat:
    """Holds a conversation. Its KV cache is kept over turns, and pictures are encoded once.

    The prompt of each answer is rendered from all turns, as in training. Earlier pictures are
    encoded again if a tiling shows fewer views of them once there are more pictures.

    Attributes:
        ending: The reason why the last answer ended before the model ended it; empty otherwise.
    """

    def __init__(
        self,
        model: MM1,
        input: PromptInput,
        chat_format: ChatFormat,
        options: DecodingOptions,
        *,
        system: str = "",
    ):
        """Starts a conversation.

        Args:
            options: Must end answers at the stop of the chat format.
            system: Text of the system turn; there is none if it is empty.
        """
        self._format, self._transform = chat_format, input.image_transform
        self._show = Viewer(self._transform)
        self._builder = input.example_builder.without_limits()
        self._decode = input.tokenizer.decode
        self._system = system
        self._max_new_tokens, self._ends = options.max_new_tokens, options.ends
        self._decoder = ConversationDecoder(
            model,
            options,
            length=input.example_builder.max_sequence_length,
            image_size=1 if self._transform is None else self._transform.image_size,
        )
        self.ending = ""
        self.reset()

    def reset(self) -> None:
        """Forgets all turns but that of the system."""
        self.turns = [Turn("system", (self._system,))] if self._system else []
        self._decoder.clear()

    def check_image(self, image: Image) -> None:
        """Raises BadImage if a picture cannot be decoded, or the model reads none."""
        if self._transform is None:
            raise BadImage("the model of this run is text-only")
        self._transform(image)

    def reply(self, text: str, images: Sequence[Image] = ()) -> Iterator[str]:
        """Yields the answer to a message in pieces, as they are decoded.

        The turn counts once the iterator is exhausted.

        Args:
            text: `<image>` marks the place of each picture; without marks, pictures come first.

        Raises:
            ContextFull: The conversation leaves no room for an answer.
            ValueError: Marks and pictures differ in number.
        """
        turns = [*self.turns, Turn("user", parts(text, images))]
        example = self._builder.prompt(self._format.document(turns, prompts_answer=True))
        shown = [
            PromptImage(_key(image), lambda i=image: self._show(i)) for image in example.images
        ]
        try:
            tokens = self._decoder.reply(example.tokens.tolist(), shown, row_id=len(turns))
        except ContextFull as error:
            raise ContextFull(
                f"{error}. Start a new conversation, show fewer pictures, or train with a larger "
                "input.max_sequence_length"
            ) from None
        return self._answer(turns, len(example.tokens), tokens)

    def _answer(
        self, turns: Sequence[Turn], prompt_length: int, tokens: Iterator[int]
    ) -> Iterator[str]:
        answer: list[int] = []
        written = ""
        for token in tokens:
            answer.append(token)
            text = self._decode(answer).lstrip()
            # The last character may lack bytes that the next token has.
            if text.startswith(written) and not text.endswith("\ufffd"):
                yield text[len(written) :]
                written = text
        text = self._decode(answer).strip()
        if len(text) > len(written):
            yield text[len(written) :]
        self.turns = [*turns, Turn("assistant", (text,))]
        self.ending = ""
        if not self._ends(answer[-1]):
            is_cut = len(answer) == self._max_new_tokens
            self.ending = (
                f"the answer was cut after {len(answer)} tokens"
                if is_cut
                else f"the context is full: {prompt_length + len(answer)} positions"
            )


def parts(text: str, images: Sequence[Image]) -> tuple[str | Image, ...]:
    """Returns a message in reading order; `<image>` marks the places of pictures.

    >>> parts("what is it?", [picture])
    (picture, 'what is it?')
    """
    number = text.count(IMAGE) if images else 0
    if not number:
        return (*images, text.strip())
    if number != len(images):
        raise ValueError(
            f"the message has {number} {IMAGE} marks and {len(images)} pictures; give one "
            "picture per mark, or no marks to put the pictures first"
        )
    return joined(reading_order(text, iter(images)))


def _key(image: Image) -> tuple[object, ...]:
    """Identifies the pixels of a view; an array, which is not hashable, by the object."""
    data = image.data if isinstance(image.data, bytes) else id(image.data)
    return data, image.view

"""A conversation over lines of text: messages in, answers out, and commands that begin with "/"."""

from collections.abc import Callable, Iterable
from pathlib import Path

from mm1_jax.batch import Image
from mm1_jax.data.images import BadImage
from mm1_jax.decoding.conversation import ContextFull
from mm1_jax.serve.chat import Chat

HELP = """\
/image FILE   show a picture with the next message; may be repeated
/reset        start a new conversation
/quit         end (or Ctrl-D)
/help         this list
Everything else is a message. <image> in it marks the place of each picture; without marks, pictures
come first."""


class Terminal:
    """Reads messages and writes answers."""

    def __init__(
        self,
        chat: Chat,
        write: Callable[[str], object],
        warn: Callable[[str], object],
        *,
        is_interactive: bool,
    ):
        """Begins a conversation.

        Args:
            write: Writes text, which appears at once.
            warn: Writes that an answer was cut, for scripts.
            is_interactive: Whether a person is typing: prompts are written, and mistakes are
                answered. For scripts, the first mistake raises ValueError, and each answer is one
                line.
        """
        self._chat, self._is_interactive = chat, is_interactive
        self._write = write
        self._warn = write if is_interactive else warn
        self._images: list[Image] = []

    def run(self, lines: Iterable[str]) -> None:
        """Answers lines until they end, or one is `/quit`."""
        if self._is_interactive:
            self._say(f"{HELP}\n")
        self._prompt()
        for line in lines:
            try:
                if not self.line(line.strip()):
                    return
            except ValueError as error:
                if not self._is_interactive:
                    raise
                self._say(f"{error}\n")
            self._prompt()
        if self._is_interactive:
            self._say("\n")

    def line(self, text: str) -> bool:
        """Answers one line; returns False if it ends the conversation.

        Raises:
            ValueError: The line has a mistake, or the conversation is too long for an answer.
        """
        command, _, argument = text.partition(" ")
        if command == "/quit":
            return False
        if command == "/reset":
            self._chat.reset()
            self._images.clear()
            self._note("a new conversation")
        elif command == "/help":
            self._say(f"{HELP}\n")
        elif command == "/image":
            self.show(argument.strip())
        elif command.startswith("/") and command[1:].isalpha():
            raise ValueError(f"{command}: no such command; there are /image, /reset, /quit, /help")
        elif text:
            self.message(text)
        return True

    def show(self, name: str) -> None:
        """Adds a picture to the next message. Raises ValueError if it cannot be read."""
        if not name:
            raise ValueError("/image: give the file of a picture after it")
        try:
            image = Image(Path(name).read_bytes())
        except OSError as error:
            raise ValueError(f"{name}: cannot be read ({error.strerror})") from error
        try:
            self._chat.check_image(image)
        except BadImage as error:
            raise ValueError(f"{name}: not an image that can be shown ({error})") from error
        self._images.append(image)
        self._note(f"{name} is shown with the next message")

    def message(self, text: str) -> None:
        """Writes the answer to a message and the pictures that wait for one."""
        answer = ""
        try:
            for piece in self._chat.reply(text, self._images):
                answer += piece
                if self._is_interactive:
                    self._say(piece)
        except KeyboardInterrupt:
            if not self._is_interactive:
                raise
            self._say("\n")
            self._note("stopped; the message and its answer do not count")
            return
        except ContextFull as error:
            raise ValueError(f"the context is full: {error}") from error
        self._images.clear()
        # A script reads one line per answer.
        self._say("\n" if self._is_interactive else " ".join(answer.splitlines()) + "\n")
        if self._chat.ending:
            self._warn(f"[{self._chat.ending}]\n")

    def _prompt(self) -> None:
        if self._is_interactive:
            self._say("> ")

    def _note(self, text: str) -> None:
        if self._is_interactive:
            self._say(f"[{text}]\n")

    def _say(self, text: str) -> None:
        # A model could write control characters, which terminals obey.
        self._write("".join(c for c in text if c.isprintable() or c in "\n\t"))

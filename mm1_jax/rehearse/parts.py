"""Parts of the model that a program's instructions belong to, from the files that they come from.

HLO text lists the stack frames of the code that was traced, and instructions name their frame. An
instruction belongs to the part of the innermost file in a table; gradients and recomputation belong
to the part of their forward operation.
"""

import re
from collections.abc import Mapping

from mm1_jax.rehearse.hlo import Instruction, Module

# Part of a step -> the end of a path, or a folder in it.
FILES = {
    "vision_encoder": "mm1_jax/models/vision_encoder.py",
    "connector": "mm1_jax/models/connectors/",
    "decoder": "mm1_jax/models/decoder.py",
    "merge": "mm1_jax/models/image_exchange.py",
    "pixel_head": "mm1_jax/models/aim.py",
    "loss": "mm1_jax/models/cross_entropy.py",
    "optimizer": "mm1_jax/train/optimizers/",
}
OTHER = "other"


class Parts:
    """Finds the part of an instruction."""

    def __init__(self, text: str, module: Module, files: Mapping[str, str] = FILES):
        """Reads the stack frames of a module's text.

        Args:
            files: The end of a path, or a folder in it, by part.
        """
        self._module, self._files = module, files
        names = dict(re.findall(r'^(\d+) "(.*)"$', _table(text, "FileNames"), re.MULTILINE))
        locations = dict(
            re.findall(r"^(\d+) \{file_name_id=(\d+) ", _table(text, "FileLocations"), re.MULTILINE)
        )
        pattern = r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?"
        # A parent is given by its number plus 1.
        self._frames = {
            int(number): (names.get(locations.get(location, ""), ""), int(parent or 1) - 1)
            for number, location, parent in re.findall(
                pattern, _table(text, "StackFrames"), re.MULTILINE
            )
        }

    def of(self, instruction: Instruction) -> str:
        """Returns the part of an instruction; that of a fusion is the part of most of its work."""
        return self._of(instruction) or OTHER

    def _of(self, instruction: Instruction) -> str | None:
        match = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        part = self._of_frame(int(match[1])) if match else None
        if part is not None or instruction.opcode != "fusion":
            return part
        found = [
            each
            for computation in self._module.called(instruction, "calls")
            for inner in computation.instructions
            if (each := self._of(inner)) is not None
        ]
        return max(sorted(set(found)), key=found.count) if found else None

    def _of_frame(self, number: int) -> str | None:
        while number in self._frames:
            file, number = self._frames[number]
            for part, path in self._files.items():
                if path in file:
                    return part
        return None


def _table(text: str, name: str) -> str:
    """Returns the lines of a table at the beginning of a module's text."""
    match = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    return match[1] if match else ""

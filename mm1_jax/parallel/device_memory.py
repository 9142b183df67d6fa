"""Memory of a compiled program on one device."""

from dataclasses import dataclass
from typing import Any

from mm1_jax.parallel.chips import GIB


@dataclass(frozen=True)
class Memory:
    """Bytes on one device; a donated argument and its output count once in `total`."""

    arguments: int
    temporaries: int
    outputs: int
    aliased: int
    code: int
    peak: int

    @classmethod
    def of(cls, analysis: Any) -> "Memory":
        """Reads the `memory_analysis` of a compiled program."""
        return cls(
            arguments=analysis.argument_size_in_bytes,
            temporaries=analysis.temp_size_in_bytes,
            outputs=analysis.output_size_in_bytes,
            aliased=analysis.alias_size_in_bytes,
            code=analysis.generated_code_size_in_bytes,
            peak=analysis.peak_memory_in_bytes,
        )

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.outputs - self.aliased

    @property
    def total_with_code(self) -> int:
        """Bytes to compare with the memory of a device."""
        return self.total + self.code


def bytes_text(number: int | float) -> str:
    if abs(number) >= 0.1 * GIB:
        return f"{number / GIB:.2f} GiB"
    return f"{number / 2**20:.2f} MiB"

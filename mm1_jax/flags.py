"""Types for numbers and paths on command lines, whose errors say which values are expected."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from mm1_jax.storage import raise_if_remote


def whole(least: int = 1) -> Callable[[str], int]:
    """Returns the type of whole numbers that are at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least {least}")
        return value

    return parse


def number(
    least: float = 0.0, most: float = math.inf, *, exclusive: bool = False
) -> Callable[[str], float]:
    """Returns the type of finite numbers from `least` to `most`.

    Args:
        exclusive: Excludes `least` itself.
    """
    expected = f"{'above' if exclusive else 'at least'} {least:g}"
    if math.isfinite(most):
        expected += f" and at most {most:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        is_above = value > least if exclusive else value >= least
        if not (is_above and value <= most and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number {expected}")
        return value

    return parse


def local_text(text: str) -> str:
    """Type of local files and folders whose path stays text."""
    try:
        raise_if_remote("value", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def local_path(text: str) -> Path:
    """Type of local files and folders."""
    return Path(local_text(text))

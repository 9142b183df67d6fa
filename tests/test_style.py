"""Lint, format and types."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def check(*command: str) -> None:
    result = subprocess.run(
        (sys.executable, "-m", *command), cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_finds_nothing():
    check("ruff", "check", ".")


def test_the_code_is_formatted():
    check("ruff", "format", "--check", ".")


@pytest.mark.slow
def test_pyright_finds_nothing():
    """Slow, as its first run fetches Node.js."""
    check("pyright")

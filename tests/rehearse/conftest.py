import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLICE = "v5e:2x2"


@pytest.fixture(scope="session")
def run_afresh() -> Callable:
    """Runs Python in a process that no setting of these tests reaches: flags change programs."""

    def run(*arguments: str, requires: str = "libtpu") -> subprocess.CompletedProcess:
        if find_spec(requires) is None:
            pytest.skip(f"{requires}, a compiler, is not installed; see extra [rehearse]")
        environment = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
        environment["PYTHONPATH"] = f"{ROOT}:{Path(__file__).parent}"
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True
        )

    return run


@pytest.fixture(scope="session")
def programs(run_afresh, tmp_path_factory) -> Path:
    """The folder with the HLO texts of the programs in compile_programs.py."""
    folder = tmp_path_factory.mktemp("programs")
    result = run_afresh(str(Path(__file__).parent / "compile_programs.py"), str(folder))
    assert result.returncode == 0, result.stderr
    return folder

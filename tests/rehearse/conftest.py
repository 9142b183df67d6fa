import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mm1_jax.rehearse.compile import other_versions, version

ROOT = Path(__file__).parents[2]
SLICE = "v5e:2x2"


@pytest.fixture(scope="session")
def run_afresh() -> Callable:
    """Runs Python in a process without the XLA flags of these tests, which change programs."""

    def run(*arguments: str, compiler: str = "libtpu") -> subprocess.CompletedProcess:
        if version(compiler) is None:
            pytest.skip(f"{compiler}, a compiler, is not installed; see extra [rehearse]")
        for difference in other_versions(compiler):
            pytest.skip(difference)
        environment = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
        environment["PYTHONPATH"] = f"{ROOT}:{Path(__file__).parent}"
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True
        )

    return run


@pytest.fixture(scope="session")
def programs(run_afresh, tmp_path_factory) -> Path:
    """A folder with the HLO texts of the programs in compile_programs.py."""
    folder = tmp_path_factory.mktemp("programs")
    result = run_afresh(str(Path(__file__).parent / "compile_programs.py"), str(folder))
    assert result.returncode == 0, result.stderr
    return folder

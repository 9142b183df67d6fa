"""Starts launches as separate processes, which tests wait for and stop."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def start(
    arguments: Sequence[str],
    cache: Path,
    *,
    xla_flags: str = "",
    is_quick: bool = True,
    **environment: str,
) -> subprocess.Popen:
    """Starts a launch. Launches with the same cache share compiled programs, which saves time.

    Args:
        is_quick: Compile with fewer optimizations than a user's launch.
    """
    flags = os.environ["MM1_TEST_QUICK_XLA_FLAGS" if is_quick else "MM1_TEST_XLA_FLAGS"]
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"{xla_flags} {flags}",
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "mm1_jax.launch", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    return output


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    path = folder / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < step:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)

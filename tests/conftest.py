"""Strict settings for every test: eight CPU devices, no rank promotion, shapes checked.

Test programs are small and run once, so they are compiled with few optimizations. XLA takes the
last of repeated flags, and the caller's XLA_FLAGS come last, so that
`XLA_FLAGS="--xla_cpu_max_isa=AVX2 --xla_backend_optimization_level=2" pytest` rounds as another
processor does. Tests that start processes pass them MM1_TEST_XLA_FLAGS, which compiles as a user's
launch does, or MM1_TEST_QUICK_XLA_FLAGS.
"""

import gc
import logging
import os
import platform
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
# setdefault, because workers of pytest-xdist inherit the XLA_FLAGS set below.
FLAGS = os.environ.setdefault("MM1_TEST_XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
# Fusion emitters take half of the time to compile a small program. Later releases have no others
# and reject the flag.
EMITTERS = ["--xla_cpu_use_fusion_emitters=false"] * version("jaxlib").startswith("0.10.")
QUICK = os.environ["MM1_TEST_QUICK_XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        *EMITTERS,
        FLAGS,
    )
)
os.environ["XLA_FLAGS"] = f"{QUICK} --xla_force_host_platform_device_count=8"

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from beartype import BeartypeConf
from beartype.claw import beartype_packages
from jaxtyping import install_import_hook

# Configs have no shapes; checking shapes makes a function call 5 times as slow.
SHAPELESS = {f"mm1_jax.{name}" for name in ("config", "field_types", "overrides", "stored_config")}
PARTS = (path.stem for path in Path(__file__).parents[1].glob("mm1_jax/[a-z]*"))
beartype_packages(tuple(SHAPELESS), conf=BeartypeConf(claw_is_pep526=False))
install_import_hook(
    [name for name in map("mm1_jax.{}".format, PARTS) if name not in SHAPELESS], "beartype.beartype"
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Caches compiled programs across runs and across the workers of a run.

    Compilation is two thirds of the suite's time. JAX_COMPILATION_CACHE_DIR names another folder,
    such as an empty one for measurements. Processes that tests start have their own caches, because
    their programs are compiled with the flags of a user's launch.
    """
    # Code compiled for one CPU may not run on another that shares the folder.
    programs = config.rootpath / ".pytest_cache" / "programs" / platform.node()
    options = {
        "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(programs)),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in options.items():
        jax.config.update(name, value)


def pytest_collection_finish() -> None:
    """Collects garbage rarely, and never in imported objects, which saves a seventh of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture(autouse=True)
def absl_level() -> Iterator[None]:
    """Restores absl's level, which a command sets for its whole process."""
    logger = logging.getLogger("absl")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def prng_key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def call() -> Callable:
    """Calls a module as one compiled program."""
    return jax.jit(lambda module, *args: module(*args))


@pytest.fixture(scope="session")
def with_few_records() -> Callable:
    """Shrinks the corpora of streams, whose lengths are computed before the first batch."""

    def shrink(streams: Iterable[Any]) -> None:
        for stream in streams:
            for entry in stream.corpora:
                entry.corpus.source.num_records = 64

    return shrink

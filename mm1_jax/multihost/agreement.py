"""Checks before a run that all processes agree on everything that decides what it computes.

Facts map names to text: fields of the resolved config, digests of data and code, versions, compiler
flags. Processes that differ would sum gradients of different models, or wait for each other
forever. The error names the fact, the processes and their values. Processes exchange digests first,
and send facts only if the digests differ.
"""

import hashlib
import importlib.metadata
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mm1_jax.multihost import distributed

# Fields of a config that may differ between hosts, with all fields inside them. The first is a
# location of data, which is compared by its content.
FIELDS_MAY_DIFFER = (
    "input.snapshot",
    # Speed of reading, and what a host logs and records.
    "input.num_workers",
    "input.prefetch",
    "trainer.profile",
    "trainer.progress",
    "trainer.watchdog",
    # Only process 0 uses it.
    "trainer.wandb",
)
# Names of fields that may differ at any depth: paths of tokenizers, sources and weights.
NAMES_MAY_DIFFER = ("data_dir", "model_path", "path", "test_path")

# Parts of names of JAX options that change neither programs nor results.
JAX_OPTIONS_MAY_DIFFER = (
    *("_cache", "_log", "_dump", "traceback", "_visible_devices", "_timeout", "_address"),
    *("_pprint", "_default_device", "_source_url_schema", "_preemption_service", "_thread_guard"),
)
XLA_FLAGS_MAY_DIFFER = ("dump", "cache_dir", "log")
_XLA_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_VARIABLES = ("NVIDIA_TF32_OVERRIDE",)

# Packages that compute, read, decode, order or store, which may depend on the version.
_PACKAGES = (
    *("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin"),
    *("jax-cuda13-pjrt", "flax", "optax", "orbax-checkpoint", "tensorstore", "ml_dtypes", "numpy"),
    *("grain", "array_record", "pyarrow", "pillow", "simplejpeg", "scikit-learn", "scipy"),
    *("sentencepiece", "tokenizers", "seqio", "tfds-nightly", "tensorflow-datasets", "zstandard"),
    *("attrs", "etils", "ml_collections", "msgpack", "cloudpickle"),
)

# Limits on the differences per process that are sent and shown, and on characters per value.
_MOST = 20
_LONGEST = 200


def agree(facts: Mapping[str, Any], advice: str = "Give all processes the same.") -> None:
    """Checks that all processes have the same facts; every process must call it.

    Raises:
        ValueError: They differ. Every process raises it, with a list of the differences.
    """
    if distributed.process_count() == 1:
        return
    texts = {name: str(value) for name, value in facts.items()}
    if len(set(distributed.exchange(digest_of(texts)))) == 1:
        return
    first = distributed.broadcast(texts)
    own = differences(first, texts)
    raise ValueError(f"{described(distributed.exchange(own))}\n{advice}")


def digest_of(facts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def differences(first: Mapping[str, str], own: Mapping[str, str]) -> dict[str, Any]:
    """Returns facts that differ from process 0, as (its value, own value), and how many more do."""
    names = [name for name in sorted(first.keys() | own.keys()) if first.get(name) != own.get(name)]
    shown = {
        name: (_shortened(first.get(name)), _shortened(own.get(name))) for name in names[:_MOST]
    }
    return {"facts": shown, "more": max(0, len(names) - _MOST)}


def described(answers: Sequence[Mapping[str, Any]]) -> str:
    """Formats the differences of all processes, one line per fact."""
    names = sorted({name for answer in answers for name in answer["facts"]})
    lines = ["The processes of this run differ:"]
    for name in names[:_MOST]:
        processes: dict[str, list[int]] = {}
        base = next(answer["facts"][name][0] for answer in answers if name in answer["facts"])
        for process, answer in enumerate(answers):
            value = answer["facts"][name][1] if name in answer["facts"] else base
            processes.setdefault(value, []).append(process)
        values = (f"{value} in {_named_processes(those)}" for value, those in processes.items())
        lines.append(f"  {name}: {'; '.join(values)}")
    if more := max(answer["more"] for answer in answers) + max(0, len(names) - _MOST):
        lines.append(f"  and {more} more")
    return "\n".join(lines)


def config_facts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a config by path, without those that may differ between hosts."""
    return {path: value for path, value in fields.items() if not _may_differ(path)}


def host_facts(modules: Iterable[str] = ()) -> dict[str, str]:
    """Returns code digests, versions, compiler flags and JAX options of this process.

    Args:
        modules: Top-level modules of the run to include even if they are installed packages.
    """
    facts = {f"code of {name}": digest for name, digest in _code(modules)}
    facts["version of python"] = ".".join(map(str, sys.version_info[:2]))
    for name in _PACKAGES:
        facts[f"version of {name}"] = _version(name)
    for variable in _XLA_VARIABLES:
        for flag in os.environ.get(variable, "").split():
            name, _, value = flag.partition("=")
            if not any(part in name for part in XLA_FLAGS_MAY_DIFFER):
                facts[f"{variable} {name}"] = value or "set"
    for variable in _VARIABLES:
        facts[variable] = os.environ.get(variable, "not set")
    for name, value in jax.config.values.items():
        if not any(part in name for part in JAX_OPTIONS_MAY_DIFFER):
            facts[f"option of JAX {name}"] = str(value)
    return facts


def _may_differ(path: str) -> bool:
    if path.rpartition(".")[2] in NAMES_MAY_DIFFER:
        return True
    return any(path == each or path.startswith(f"{each}.") for each in FIELDS_MAY_DIFFER)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _code(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields digests of this package's code and of the user's loaded code, by top-level module."""
    package = Path(__file__).parents[1]
    yield package.name, _digest((str(p.relative_to(package)), p) for p in package.rglob("*.py"))
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    wanted, files = set(modules), {}
    for name, module in list(sys.modules.items()):
        top, source = name.partition(".")[0], getattr(module, "__file__", None)
        if source is None or not source.endswith(".py") or top in (package.name, "__main__"):
            continue
        # Some libraries create modules whose `__file__` is not a path of a file.
        if not Path(source).is_file():
            continue
        is_own = not any(folder in Path(source).parents for folder in installed)
        if is_own or top in wanted:
            files.setdefault(top, []).append((name, Path(source)))
    for top, found in sorted(files.items()):
        yield top, _digest(found)


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files):
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _shortened(value: str | None) -> str:
    if value is None:
        return "not set"
    if len(value) <= _LONGEST:
        return value
    # The hash shows a difference that lies beyond the cut.
    return f"{value[:_LONGEST]}... ({hashlib.sha256(value.encode()).hexdigest()[:8]})"


def _named_processes(processes: Sequence[int]) -> str:
    """Formats process numbers as ranges, such as "processes 0-2, 5"."""
    spans: list[list[int]] = []
    for number in processes:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"process{'es' * (len(processes) > 1)} {text}"

"""Processes of one run compare all that decides what it computes, before any of them computes.

Facts are texts by name: fields of the resolved config, digests of data and code, versions,
compiler flags. Hosts that differ would train on sums of different things, or wait for each other
forever; the error names the fact, the processes, and their values. Digests go first, so that equal
processes exchange a few bytes; only what differs is sent whole.
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

# Fields of a config that may differ between hosts, with all that is inside them. First where data
# lies: what is there is compared by its content.
FIELDS_MAY_DIFFER = (
    "input.snapshot",
    # How fast a host reads, and what it says and records of itself.
    "input.num_workers",
    "input.prefetch",
    "trainer.profile",
    "trainer.progress",
    "trainer.watchdog",
    # Process 0 alone speaks to it.
    "trainer.wandb",
)
# Last parts of paths of fields, wherever they are: those of tokenizers, sources and weights.
NAMES_MAY_DIFFER = ("data_dir", "model_path", "path", "test_path")

# Options of JAX that change no program and no number, by parts of their names.
JAX_OPTIONS_MAY_DIFFER = (
    *("_cache", "_log", "_dump", "traceback", "_visible_devices", "_timeout", "_address"),
    *("_pprint", "_default_device", "_source_url_schema", "_preemption_service", "_thread_guard"),
)
XLA_FLAGS_MAY_DIFFER = ("dump", "cache_dir", "log")
_XLA_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_VARIABLES = ("NVIDIA_TF32_OVERRIDE",)

# Packages that compute, read, decode, order or store; another version may do so otherwise.
_PACKAGES = (
    *("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin"),
    *("jax-cuda13-pjrt", "flax", "optax", "orbax-checkpoint", "tensorstore", "ml_dtypes", "numpy"),
    *("grain", "array_record", "pyarrow", "pillow", "simplejpeg", "scikit-learn", "scipy"),
    *("sentencepiece", "tokenizers", "seqio", "tfds-nightly", "tensorflow-datasets", "zstandard"),
    *("attrs", "etils", "ml_collections", "msgpack", "cloudpickle"),
)

# Differences of a process that are sent and shown, and characters of a value, at most.
_MOST = 20
_LONGEST = 200


def agree(facts: Mapping[str, Any], advice: str = "Give all processes the same.") -> None:
    """Returns if all processes have the same facts; each has to call it.

    Raises:
        ValueError: They do not, in every process alike; the differences are listed.
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
    """Facts that differ from those of process 0, as (its, own), and how many more there are."""
    names = [name for name in sorted(first.keys() | own.keys()) if first.get(name) != own.get(name)]
    shown = {name: (_cut(first.get(name)), _cut(own.get(name))) for name in names[:_MOST]}
    return {"facts": shown, "more": max(0, len(names) - _MOST)}


def described(answers: Sequence[Mapping[str, Any]]) -> str:
    """The differences of all processes, a line for each fact."""
    names = sorted({name for answer in answers for name in answer["facts"]})
    lines = ["The processes of this run are not alike:"]
    for name in names[:_MOST]:
        processes: dict[str, list[int]] = {}
        base = next(answer["facts"][name][0] for answer in answers if name in answer["facts"])
        for process, answer in enumerate(answers):
            value = answer["facts"][name][1] if name in answer["facts"] else base
            processes.setdefault(value, []).append(process)
        values = (f"{value} in {_numbers(those)}" for value, those in processes.items())
        lines.append(f"  {name}: {'; '.join(values)}")
    if more := max(answer["more"] for answer in answers) + max(0, len(names) - _MOST):
        lines.append(f"  and {more} more")
    return "\n".join(lines)


def config_facts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config by path, without those that may differ between hosts."""
    return {path: value for path, value in fields.items() if not _may_differ(path)}


def host_facts(modules: Iterable[str] = ()) -> dict[str, str]:
    """Code, versions, compiler flags and options of JAX of this process.

    Args:
        modules: Top-level modules of the run, besides those that lie outside of the folders of
            installed packages.
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
    """Digests of own code: all of this package, and what is loaded of the user's."""
    package = Path(__file__).parents[1]
    yield package.name, _digest((str(p.relative_to(package)), p) for p in package.rglob("*.py"))
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    wanted, files = set(modules), {}
    for name, module in list(sys.modules.items()):
        top, source = name.partition(".")[0], getattr(module, "__file__", None)
        if source is None or not source.endswith(".py") or top in (package.name, "__main__"):
            continue
        # Some libraries make modules whose file is a name alone.
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


def _cut(value: str | None) -> str:
    if value is None:
        return "not set"
    if len(value) <= _LONGEST:
        return value
    # What differs may be in the part that is left out.
    return f"{value[:_LONGEST]}... ({hashlib.sha256(value.encode()).hexdigest()[:8]})"


def _numbers(processes: Sequence[int]) -> str:
    """`_numbers([0, 1, 2, 5]) == "processes 0-2, 5"`"""
    spans: list[list[int]] = []
    for number in processes:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"process{'es' * (len(processes) > 1)} {text}"

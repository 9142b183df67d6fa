"""The start of a training run without training: compile the step, load a batch, report.

No parameter is drawn or loaded, and no step is run. The step is compiled as a run compiles it, so
that a launch on the same devices finds it in the compilation cache.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mm1_jax.batch import Batch, ImageTextBatch
from mm1_jax.parallel.chips import CHIPS
from mm1_jax.parallel.device_memory import Memory, bytes_text
from mm1_jax.parallel.parallelism import device_kind, devices_name
from mm1_jax.train.host_batches import HostBatch, HostBatches
from mm1_jax.train.program import Program


def dry_run(program: Program, input: Any) -> str:
    """Compiles the step of a program and loads its first batch; the result is a report.

    Args:
        input: A `data.mixed_input.MixedInput`, of which `batch_size`, `corpus_names`, `iterator()`
            and `describe()` are used.
    """
    devices = program.mesh.devices.flatten().tolist()
    start = time.perf_counter()
    lowered = program.lower()
    lowered_at = time.perf_counter()
    compiled = program.compile(lowered)
    compiled_at = time.perf_counter()
    batches = HostBatches(input, program.rows)
    try:
        batch = next(batches)
    finally:
        batches.close()
    mesh = ", ".join(f"{axis}={size}" for axis, size in program.mesh.shape.items() if size > 1)
    lines = [
        ("devices", f"{devices_name(devices)}{f', mesh {mesh}' if mesh else ''}"),
        ("parameters", f"{program.num_parameters:,}"),
        (
            "step",
            f"lowered in {lowered_at - start:.1f} s, compiled in {compiled_at - lowered_at:.1f} s",
        ),
        ("memory", _memory(compiled, program, program.mesh.local_devices[0])),
        ("data", input.describe().replace("\n", "\n" + " " * 14)),
        ("first batch", f"loaded in {time.perf_counter() - compiled_at:.1f} s"),
        *(("", line) for line in _batch_lines(batch, input.corpus_names)),
    ]
    return "\n".join(f"{name:12}  {text}" for name, text in lines)


def _memory(compiled: Any, program: Program, device: Any) -> str:
    """Describes the memory per device during a step."""
    analysis = compiled.memory_analysis()
    state = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(program.abstract_state)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )
    if analysis is None:
        return f"{bytes_text(state)} of training state per device; the compiler reports no more"
    memory = Memory.of(analysis)
    text = (
        f"{bytes_text(memory.total_with_code)} per device: {bytes_text(state)} of training state, "
        f"{bytes_text(max(memory.arguments - state, 0))} of batch, "
        f"{bytes_text(memory.temporaries)} of temporaries"
    )
    limit = _device_bytes(device)
    if limit is None:
        return text
    free = 1 - memory.total_with_code / limit
    return f"{text}; {free:.0%} of {bytes_text(limit)} stays free"


def _device_bytes(device: Any) -> float | int | None:
    """Returns the memory of a device; None if it is unknown, as that of a CPU."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    chip = CHIPS.get(device_kind(device))
    return limit or (None if chip is None else chip.hbm_bytes)


def _batch_lines(batch: HostBatch, corpus_names: Sequence[str]) -> list[str]:
    """Counts of the rows that this process loads, in total and for each corpus."""
    parts = [part.batch for part in batch.parts]
    if all(isinstance(part, ImageTextBatch) for part in parts):
        return _pair_lines(parts, corpus_names)
    if not all(isinstance(part, Batch) for part in parts):
        return []
    segments, corpora, scored, index = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("segment_ids", "corpus_ids", "loss_mask", "image_index")
    )
    num_slots = sum(len(part.images) for part in parts)
    lines = [
        f"{len(segments)} rows, {np.mean(segments > 0):.0%} of their positions filled",
        f"{np.max(segments, axis=1).sum():,} documents, {scored.sum():,} scored targets, "
        f"{np.sum(index >= 0):,} images in {num_slots:,} slots",
    ]
    for number, name in enumerate(corpus_names):
        is_own = corpora == number
        documents = sum(len(np.unique(row[own])) for row, own in zip(segments, is_own, strict=True))
        if documents:
            lines.append(f"{name}: {documents} documents, {is_own.sum():,} positions")
    return lines


def _pair_lines(parts: Sequence[Any], corpus_names: Sequence[str]) -> list[str]:
    """Counts of pictures and their texts, in total and for each corpus."""
    lengths, corpora = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("lengths", "corpus_ids")
    )
    lines = [f"{len(corpora)} rows, {np.sum(corpora >= 0):,} pictures, {lengths.sum():,} tokens"]
    for number, name in enumerate(corpus_names):
        is_own = corpora == number
        if is_own.any():
            lines.append(f"{name}: {is_own.sum():,} pictures, {lengths[is_own].sum():,} tokens")
    return lines

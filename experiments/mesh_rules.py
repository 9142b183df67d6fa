"""Mesh rules: the parallelism for each kind and number of devices; the first match applies.

Parameters, gradients and optimizer state are sharded over 32 devices (FSDP) and replicated over
such groups; rows are sharded over all devices. This sends less than sharding over all devices:
gradients are reduce-scattered within 32 neighbors, and each device then all-reduces only its 32nd
with the other groups, instead of all gradients over the whole torus. Experts have an axis of their
own. Where memory allows, layers save activations that are expensive to recompute, and a micro-batch
has as many rows as the remaining memory holds. To choose otherwise, write a rule or set fields of
`trainer.parallelism`; `python -m mm1_jax.rehearse` reports memory and speed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mm1_jax.layers.attention_kernels import ATTENTION_OUTPUT, KEY, QUERY, VALUE
from mm1_jax.layers.feed_forward import MLP_GATE, MLP_UP
from mm1_jax.parallel.parallelism import MeshRule, Parallelism

# With these saved, the backward pass does not recompute attention.
ATTENTION = (QUERY, KEY, VALUE, ATTENTION_OUTPUT)
# With these saved, a dense layer recomputes only the products that map back to the model dim.
PRODUCTS = (*ATTENTION, MLP_GATE, MLP_UP)
# For the vision encoder. Its heads of 80 are stored padded to 128, so queries, keys and values take
# as long to write and read as to recompute, and much memory.
VISION_PRODUCTS = (ATTENTION_OUTPUT, MLP_UP)

# The compiler estimates 97% of the peak for products fused with an activation if a fusion may use
# 64 MiB of vector memory, and 73% with the default.
VECTOR_MEMORY = ("xla_tpu_scoped_vmem_limit_kib=65536",)

# Rows that share image slots and therefore belong to one micro-batch.
_GROUP = 64

# Numbers of devices with rules.
_COUNTS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Fit:
    """The rows of a batch that fit on a device at a time, and the activations they save.

    Attributes:
        rows: Rows per device and micro-batch.
        decoder: Activations that the decoder saves.
        vision: Activations that the vision encoder saves.
        fsdp: Devices that shard one copy of the parameters; -1 means all of a slice, or all that
            hold the same experts.
        expert: Devices that shard the experts. With more of them, each gathers fewer expert
            kernels, but all other parameters are sharded over the remaining axes only.
        model: Devices that shard the matrices of a layer, and process `rows` together.
        batch_size: Rows of a step.
    """

    rows: int
    decoder: Sequence[str] = ()
    vision: Sequence[str] = ()
    fsdp: int = 32
    expert: int | None = None
    model: int | None = None
    batch_size: int = 512


PRODUCTS_OF_A_ROW = Fit(1, PRODUCTS, VISION_PRODUCTS)


def dense(
    rows: int,
    *,
    small_rows: int = 1,
    vision: Sequence[str] = VISION_PRODUCTS,
    v4: Fit | None = None,
    v6e: Fit | None = None,
    v5e: Fit | None = None,
) -> list[MeshRule]:
    """Rules of a dense model.

    Args:
        rows: Rows at a time on a device with 95 GB.
        small_rows: Rows at a time with 31 GB. With two or more, devices with 16 GB save the outputs
            of attention.
        vision: Activations that the vision encoder saves with 95 GB.
        v4, v6e, v5e: Replace the choices that follow from `small_rows`.
    """
    small = Fit(small_rows, ATTENTION, (ATTENTION_OUTPUT,))
    outputs = (ATTENTION_OUTPUT,) if small_rows > 1 else ()
    return _rules(
        v5p=Fit(rows, PRODUCTS, vision),
        gpu=Fit(rows, ATTENTION, (ATTENTION_OUTPUT,), fsdp=-1),
        v4=v4 or small,
        v6e=v6e or small,
        v5e=v5e or Fit(2, outputs, outputs, fsdp=-1),
    )


def sparse(v5p: Fit, *, slices: Fit | None = None) -> list[MeshRule]:
    """Rules of a sparse model, with an expert axis.

    Args:
        v5p: For 95 GB; GPUs get as many rows.
        slices: For 95 GB in several slices, each with a copy of all parameters.
    """
    small = Fit(1, ATTENTION, (ATTENTION_OUTPUT,), fsdp=-1, expert=8)
    return _rules(
        v5p=v5p,
        slices=slices,
        gpu=replace(small, rows=v5p.rows),
        v4=small,
        v6e=small,
        v5e=Fit(1, fsdp=-1, expert=8),
    )


def fine_tuning(v5p: Fit, *, v5e: Fit | None = None, batch_size: int = 128) -> list[MeshRule]:
    """Rules for rows of 22 views of 672 px, for which the vision encoder takes most of the memory.

    A view has 2,304 patches, and a row 51,000: 12 times the positions of its text. A kept
    activation of the encoder takes as much again as its layer input, 4.3 GB for a row in ViT-H.

    Args:
        v5p: The choice for 95 GB.
        v5e: The choice for 16 GB; defaults to a row at a time that keeps the inputs of layers only.
    """
    v5p = replace(v5p, batch_size=batch_size)
    v5e = replace(v5e or Fit(1, fsdp=-1, expert=v5p.expert), batch_size=batch_size)
    counts = [number for number in _COUNTS if number <= batch_size]
    return [
        *(_fit(f"v5p-{number}", v5p, number, VECTOR_MEMORY) for number in counts),
        *(_fit(f"tpu7x-{number}", v5p, number) for number in counts),
        *(_fit(f"v5e-{number}", v5e, number, VECTOR_MEMORY) for number in counts),
        _rule("cpu-.*", fsdp=-1),
        _rule(".*", fsdp=-1, expert=v5p.expert),
    ]


def pictures(v5p: Fit) -> list[MeshRule]:
    """Rules for vision encoders, whose rows are pictures of a few hundred patches.

    Devices with less memory have fewer rows at a time; with 16 GB they save the inputs of layers
    only.

    Args:
        v5p: The choice for 95 GB, which GPUs make as well.
    """
    v6e = replace(v5p, rows=max(1, v5p.rows // 4))
    v5e = replace(v6e, decoder=(), vision=(), fsdp=-1)
    gpu = replace(v5p, fsdp=-1)
    counts = [number for number in _COUNTS if number <= v5p.batch_size]
    return [
        *(_fit(f"v5p-{number}", v5p, number, VECTOR_MEMORY) for number in counts),
        *(_fit(f"tpu7x-{number}", v5p, number) for number in counts),
        *(_fit(f"v6e-{number}", v6e, number, VECTOR_MEMORY) for number in counts),
        *(_fit(f"v5e-{number}", v5e, number, VECTOR_MEMORY) for number in counts),
        *(_fit(f"{chip}-{n}", gpu, n, data=1) for chip in ("h100", "h200") for n in (8, *counts)),
        _rule(".*", fsdp=-1),
    ]


def full_recomputation() -> list[MeshRule]:
    """Rules that save only the inputs of layers."""
    return [
        _rule("v5p-.*", data=-1, fsdp=32, compiler_options=VECTOR_MEMORY),
        # Replication over groups of 32 devices would take half a GB more, of 16.
        _rule("v5e-.*", fsdp=-1, compiler_options=VECTOR_MEMORY),
        _rule(".*", fsdp=-1),
    ]


def _rules(
    *, v5p: Fit, gpu: Fit, v4: Fit, v6e: Fit, v5e: Fit, slices: Fit | None = None
) -> list[MeshRule]:
    # With few devices, each holds more rows of an image group. Memory suffices for a few times the
    # rows of `gpu`; beyond that, nothing is saved.
    few = replace(gpu, decoder=(), vision=())
    return [
        # 95 GB a device.
        *_chip("v5p", v5p, VECTOR_MEMORY, slices=slices),
        *_chip("tpu7x", v5p, slices=slices),
        # 80 GB and more. A host counts as a slice; the network between hosts is fast enough to
        # gather parameters over.
        *(
            _fit(f"{chip}-{n}", gpu if n * gpu.rows * times >= _GROUP else few, n, data=1)
            for chip, times in (("h100", 2), ("h200", 4))
            for n in (8, 16, 32, *_COUNTS)
        ),
        # 31 GB. v6e computes products faster than its memory can store them.
        *_chip("v4", v4),
        *_chip("v6e", v6e, VECTOR_MEMORY),
        # 16 GB.
        *_chip("v5e", v5e, VECTOR_MEMORY),
        # A laptop, for smaller sizes of the same configs: it rarely has as many devices as experts.
        _rule("cpu-.*", fsdp=-1),
        _rule(".*", fsdp=-1, expert=v5e.expert),
    ]


def _chip(
    chip: str, fit: Fit, compiler_options: tuple[str, ...] = (), slices: Fit | None = None
) -> list[MeshRule]:
    if slices is None and fit.fsdp > _COUNTS[0]:
        # A slice may have fewer devices than that.
        slices = replace(fit, fsdp=-1)
    return [
        _fit(f"{prefix}{chip}-{number}", each, number, compiler_options)
        for prefix, each in ((r"\d+x", slices), ("", fit))
        if each is not None
        for number in _COUNTS
    ]


def _fit(
    devices: str,
    fit: Fit,
    number: int,
    compiler_options: tuple[str, ...] = (),
    data: int | None = None,
) -> MeshRule:
    shards = number // (fit.model or 1)
    return _rule(
        devices,
        # Replicas, if parameters are sharded over fewer than all devices; None: one per slice.
        data=-1 if fit.fsdp > 0 else data,
        expert=fit.expert,
        fsdp=min(fit.fsdp, number),
        model=fit.model,
        gradient_accumulation=max(1, fit.batch_size // max(shards * fit.rows, _GROUP)),
        decoder_saved_names=tuple(fit.decoder),
        vision_encoder_saved_names=tuple(fit.vision),
        compiler_options=compiler_options,
    )


def _rule(devices: str, **fields: Any) -> MeshRule:
    return MeshRule().set(devices=devices, parallelism=Parallelism.default_config().set(**fields))

"""How the models are spread over each kind and number of devices; the first match counts.

Parameters, gradients and optimiser state are split over 32 devices (FSDP), of which there are
copies; rows over all of them. That sends less than to split over all devices: the gradient of 32
neighbours is reduced and scattered, of which each has a 32nd left to add to those of the copies,
where a torus as a whole reduces all of it for everybody. Experts have an axis of their own besides.
Where memory allows it, layers keep what is dear to recompute, for as many rows at a time as that
leaves room for. Choose others with a rule, or fields of `trainer.parallelism`;
`python -m mm1_jax.rehearse` says what a choice takes and gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mm1_jax.layers.attention_kernels import ATTENTION_OUTPUT, KEY, QUERY, VALUE
from mm1_jax.layers.feed_forward import MLP_GATE, MLP_UP
from mm1_jax.parallel.parallelism import MeshRule, Parallelism

# With these, the backward pass runs no attention again: it needs all of them and nothing else.
ATTENTION = (QUERY, KEY, VALUE, ATTENTION_OUTPUT)
# And with these, no product of a dense layer but those that lead back to the model dim.
PRODUCTS = (*ATTENTION, MLP_GATE, MLP_UP)
# Of the image tower. Its heads of 80 are kept as if of 128: queries, keys and values take as long
# to write and read as to compute, and a lot of memory.
VISION_PRODUCTS = (ATTENTION_OUTPUT, MLP_UP)

# The compiler's estimate for products that end in an activation is 97% of the peak with 64 MiB of
# vector memory for a fusion, and 73% with its default.
VECTOR_MEMORY = ("xla_tpu_scoped_vmem_limit_kib=65536",)

# Rows that share their image slots, and so are of one micro-batch.
_GROUP = 64

# Devices for which there are rules.
_COUNTS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Fit:
    """What a device has room for at a time: rows of a batch of 512, and what layers keep of them.

    Attributes:
        fsdp: Devices that split a copy of the parameters; -1 is all of a slice, or all that have
            the same experts.
        expert: Devices that share the experts. The more they are, the fewer kernels each has to
            gather, but what is not an expert's is split over the others alone.
        model: Devices that split the matrices of a layer, and have `rows` together.
    """

    rows: int
    decoder: Sequence[str] = ()
    vision: Sequence[str] = ()
    fsdp: int = 32
    expert: int | None = None
    model: int | None = None


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
        rows: That a device with 95 GB has room for at a time.
        small_rows: As many for 31 GB. With two or more, 16 GB keep what attention puts out.
        vision: What of the vision encoder there is room for in 95 GB.
        v4, v6e, v5e: In place of what `small_rows` says.
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
    """Rules of a sparse model: an expert axis besides.

    Args:
        v5p: For 95 GB; so many rows for GPUs too.
        slices: For 95 GB where there are several slices, each of which has all parameters.
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


def full_recomputation() -> list[MeshRule]:
    """Nothing is kept but the inputs of layers."""
    return [
        _rule("v5p-.*", data=-1, fsdp=32, compiler_options=VECTOR_MEMORY),
        # Half a GB more, of 16, would be taken by copies of what 32 devices have split.
        _rule("v5e-.*", fsdp=-1, compiler_options=VECTOR_MEMORY),
        _rule(".*", fsdp=-1),
    ]


def _rules(
    *, v5p: Fit, gpu: Fit, v4: Fit, v6e: Fit, v5e: Fit, slices: Fit | None = None
) -> list[MeshRule]:
    # Of few devices each has more rows of an image group. Room is there for some times as many as
    # `gpu` has, of more they keep nothing.
    few = replace(gpu, decoder=(), vision=())
    return [
        # 95 GB a device.
        *_chip("v5p", v5p, VECTOR_MEMORY, slices=slices),
        *_chip("tpu7x", v5p, slices=slices),
        # 80 GB and more. Hosts count as slices; the network between them is one to gather over.
        *(
            _fit(f"{chip}-{n}", gpu if n * gpu.rows * times >= _GROUP else few, n, data=1)
            for chip, times in (("h100", 2), ("h200", 4))
            for n in (8, 16, 32, *_COUNTS)
        ),
        # 31 GB. v6e computes products faster than its memory takes them.
        *_chip("v4", v4),
        *_chip("v6e", v6e, VECTOR_MEMORY),
        # 16 GB.
        *_chip("v5e", v5e, VECTOR_MEMORY),
        # A laptop, for smaller sizes of the same configs: seldom as many devices as experts.
        _rule("cpu-.*", fsdp=-1),
        _rule(".*", fsdp=-1, expert=v5e.expert),
    ]


def _chip(
    chip: str, fit: Fit, compiler_options: tuple[str, ...] = (), slices: Fit | None = None
) -> list[MeshRule]:
    if slices is None and fit.fsdp > _COUNTS[0]:
        # A slice may have fewer.
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
        # Copies of what is split over fewer than all devices; None is one for each slice.
        data=-1 if fit.fsdp > 0 else data,
        expert=fit.expert,
        fsdp=min(fit.fsdp, number),
        model=fit.model,
        gradient_accumulation=max(1, 512 // max(shards * fit.rows, _GROUP)),
        decoder_saved_names=tuple(fit.decoder),
        vision_encoder_saved_names=tuple(fit.vision),
        compiler_options=compiler_options,
    )


def _rule(devices: str, **fields: Any) -> MeshRule:
    return MeshRule().set(devices=devices, parallelism=Parallelism.default_config().set(**fields))

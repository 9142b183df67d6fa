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
from typing import Any

from mm1_jax.layers.attention_kernels import ATTENTION_OUTPUT, KEY, QUERY, VALUE
from mm1_jax.layers.feed_forward import MLP_GATE, MLP_UP
from mm1_jax.parallelism import MeshRule, Parallelism

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


def dense(
    rows: int, *, small_rows: int = 1, vision: Sequence[str] = VISION_PRODUCTS
) -> list[MeshRule]:
    """Rules of a dense model.

    Args:
        rows: Of a batch of 512, that a device with 95 GB has room for at a time.
        small_rows: As many for 31 GB. With two or more, 16 GB keep what attention puts out.
        vision: What of the vision encoder there is room for.
    """
    return _rules(rows, small_rows, {"data": -1, "fsdp": 32}, {"fsdp": -1}, PRODUCTS, vision)


def sparse(
    rows: int, *, expert: int, experts: Sequence[str], vision: Sequence[str]
) -> list[MeshRule]:
    """Rules of a sparse model: an expert axis besides.

    Args:
        rows: Of a batch of 512, that a device with 95 GB has room for at a time.
        expert: Devices that share the experts. The more they are, the fewer kernels each has to
            gather, but what is not an expert's is split over the others alone.
        experts, vision: What of sparse layers and of the vision encoder there is room for.
    """
    axes = {"expert": expert, "fsdp": -1}
    return _rules(rows, 1, axes, {"expert": 8, "fsdp": -1}, (*PRODUCTS, *experts), vision)


def full_recomputation() -> list[MeshRule]:
    """Nothing is kept but the inputs of layers."""
    return [
        _rule("v5p-.*", data=-1, fsdp=32, compiler_options=VECTOR_MEMORY),
        # Half a GB more, of 16, would be taken by copies of what 32 devices have split.
        _rule("v5e-.*", fsdp=-1, compiler_options=VECTOR_MEMORY),
        _rule(".*", fsdp=-1),
    ]


def _rules(
    rows: int,
    small_rows: int,
    axes: dict[str, int],
    small_axes: dict[str, int],
    decoder: Sequence[str],
    vision: Sequence[str],
) -> list[MeshRule]:

    def micro_batches(devices: int, rows: int) -> int:
        return max(1, 512 // (devices * rows))

    return [
        # 95 GB a device.
        *(
            _rule(
                f"{chip}-{devices}",
                **axes,
                gradient_accumulation=micro_batches(devices, rows),
                decoder_saved_names=tuple(decoder),
                vision_encoder_saved_names=tuple(vision),
                compiler_options=compiler_options,
            )
            for chip, compiler_options in (("v5p", VECTOR_MEMORY), ("tpu7x", None))
            for devices in (64, 128, 256, 512)
        ),
        # 80 GB and more.
        *(
            _rule(
                f"(h100|h200)-{devices}",
                **small_axes,
                gradient_accumulation=micro_batches(devices, rows),
                decoder_saved_names=ATTENTION,
                vision_encoder_saved_names=(ATTENTION_OUTPUT,),
            )
            for devices in (8, 16, 32, 64, 128, 256, 512)
        ),
        # 31 GB. v6e computes products faster than its memory takes them.
        *(
            _rule(
                f"{chip}-{devices}",
                **axes,
                gradient_accumulation=micro_batches(devices, small_rows),
                decoder_saved_names=ATTENTION,
                vision_encoder_saved_names=(ATTENTION_OUTPUT,),
                compiler_options=compiler_options,
            )
            for chip, compiler_options in (("v4", None), ("v6e", VECTOR_MEMORY))
            for devices in (64, 128, 256, 512)
        ),
        # 16 GB, two rows, and of the small model what attention puts out.
        *(
            _rule(
                f"v5e-{devices}",
                **small_axes,
                gradient_accumulation=micro_batches(devices, 2),
                decoder_saved_names=(ATTENTION_OUTPUT,) if small_rows > 1 else (),
                vision_encoder_saved_names=(ATTENTION_OUTPUT,) if small_rows > 1 else (),
                compiler_options=VECTOR_MEMORY,
            )
            for devices in (64, 128, 256)
        ),
        # A laptop, for smaller sizes of the same configs: seldom as many devices as experts.
        _rule("cpu-.*", fsdp=-1),
        _rule(".*", **small_axes),
    ]


def _rule(devices: str, **fields: Any) -> MeshRule:
    return MeshRule().set(devices=devices, parallelism=Parallelism.default_config().set(**fields))

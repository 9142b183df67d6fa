"""How the models are spread over each kind and number of devices; the first match counts.

Parameters and rows are split over all devices (FSDP); experts over an axis of their own besides.
Where memory allows it, layers keep what is dear to recompute. Choose others with a rule, or fields
of `trainer.parallelism`; `python -m mm1_jax.rehearse` says what a choice takes and gives.
"""

from mm1_jax.layers.attention_kernels import ATTENTION_OUTPUT, KEY, QUERY, VALUE
from mm1_jax.parallelism import MeshRule, Parallelism

# With these, the backward pass runs no attention again: it needs all of them and nothing else.
ATTENTION = (QUERY, KEY, VALUE, ATTENTION_OUTPUT)


def dense() -> list[MeshRule]:
    return _rules(fsdp=-1)


def sparse(num_experts: int) -> list[MeshRule]:
    """An expert axis of eight, or of all experts if they are fewer."""
    return _rules(fsdp=-1, expert=min(8, num_experts))


def _rules(**axes: int) -> list[MeshRule]:
    def rule(devices: str, **fields: object) -> MeshRule:
        return MeshRule().set(
            devices=devices, parallelism=Parallelism.default_config().set(**axes, **fields)
        )

    return [
        # 95 GB a device. With 64 MiB of vector memory for a fusion, the compiler's estimate for
        # matrix products that end in an activation is 97% of the peak; with its default, 73%.
        rule(
            "v5p-(64|128|256)",
            decoder_saved_names=ATTENTION,
            vision_encoder_saved_names=(ATTENTION_OUTPUT,),
            compiler_options=("xla_tpu_scoped_vmem_limit_kib=65536",),
        ),
        # 16 GB a device, eight rows each.
        rule("v5e-64", gradient_accumulation=4),
        # A laptop, for smaller sizes of the same configs: seldom as many devices as experts.
        MeshRule().set(devices="cpu-.*", parallelism=Parallelism.default_config().set(fsdp=-1)),
        rule(".*"),
    ]

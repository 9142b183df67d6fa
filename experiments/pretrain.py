"""Pre-training runs.

    python -m mm1_jax.launch --config=mm1_tiny

trains on the embedded corpora in minutes on two CPU cores and ends with a report in runs/mm1_tiny.
"""

from collections.abc import Callable

from experiments import mixtures, sizes
from mm1_jax.data.input import Input
from mm1_jax.evals.benchmarks.digits import DigitsCaption, DigitsVQA
from mm1_jax.evals.benchmarks.scenes import ScenesCaption, ScenesVQA
from mm1_jax.evals.held_out_loss import HeldOutLoss
from mm1_jax.experiment import Experiment
from mm1_jax.train.trainer import Trainer


def mm1_tiny() -> Experiment.Config:
    """1M-parameter MM1 on scans of digits and rendered scenes: minutes on two CPU cores."""
    cfg = Experiment.default_config().set(
        model=sizes.tiny(),
        input=Input.default_config().set(
            streams=mixtures.embedded(),
            batch_size=8,
            max_sequence_length=256,
            max_images=16,
        ),
        trainer=Trainer.default_config().set(max_steps=1650),
        evals={
            "held_out_loss": HeldOutLoss.default_config(),
            "digits_vqa": DigitsVQA.default_config(),
            "digits_caption": DigitsCaption.default_config(),
            "scenes_vqa": ScenesVQA.default_config(),
            "scenes_caption": ScenesCaption.default_config(),
        },
    )
    cfg.trainer.optimizer.set(warmup_steps=40)
    cfg.trainer.checkpointer.every_n_steps = 20
    cfg.evals["held_out_loss"].run.n = 200
    return cfg


def mm1_tiny_moe() -> Experiment.Config:
    """`mm1_tiny` with four experts in every second layer, two for each token."""
    cfg = mm1_tiny().set(model=sizes.tiny_moe())
    # A step takes a fifth longer than the dense one's, and fewer are needed.
    cfg.trainer.max_steps = 1100
    return cfg


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {"mm1_tiny": mm1_tiny, "mm1_tiny_moe": mm1_tiny_moe}

"""Training in int8 or fp8 ends at the loss of training in bfloat16.

    python -m mm1_jax run_study --study=low_precision

The 9M decoder of the learning-rate sweep trains on the embedded texts for 1,000 steps of 8 rows of
256. A CPU computes the products with the values of accelerators, and no faster.
"""

from collections.abc import Callable

from experiments import mixtures, pretrain, sizes
from mm1_jax.experiment import Experiment
from mm1_jax.studies.study import Arm, Claim, Metric, Score, Study

STEPS = 1000
SMALLEST = 0.01


def study() -> Study:
    def arm(precision: str) -> Arm:
        overrides = {"model.decoder.low_precision.precision": precision}
        text = f"{precision} forward and for gradients of inputs"
        return Arm(precision, "text_9m", overrides, 25.0, text)

    def claim(precision: str) -> Claim:
        text = f"{precision} ends at the loss of bfloat16"
        scores = (Score(arm, "loss") for arm in (precision, "bfloat16"))
        return Claim(text, *scores, smallest=SMALLEST, alike=True)

    return Study(
        design="Products of 8-bit operands train as well as those of bfloat16: the 9M decoder "
        "trains for 1,000 steps of 8 x 256 positions of embedded texts, with the same rows and "
        "weights at first for all arms of a seed. The metric is the mean held-out loss of the two "
        f"corpora. A difference of {SMALLEST} is of interest.",
        arms=[
            Arm("bfloat16", "text_9m", {}, 25.0, "bfloat16 throughout"),
            arm("int8"),
            arm("fp8"),
        ],
        reference="bfloat16",
        metrics=[
            Metric(
                "loss",
                ("held_out_loss/0/digits_text", "held_out_loss/0/scenes_text"),
                "held-out loss",
            )
        ],
        claims=[claim("int8"), claim("fp8")],
        full_size="`llama2_7b` or `mm1_3b`, with and without "
        "`--config.model.decoder.low_precision.precision=int8`.",
    )


def text_9m() -> Experiment.Config:
    """The 9M decoder in bfloat16 on the embedded texts."""
    cfg = pretrain.mm1_tiny().set(model=sizes.language_model(sizes.decoder("9m")))
    texts = [stream for stream in mixtures.embedded() if stream.name == "text"]
    cfg.input.set(streams=texts, max_images=0)
    cfg.trainer.set(max_steps=STEPS)
    cfg.trainer.checkpointer.every_n_steps = 100
    cfg.evals = {"held_out_loss": cfg.evals["held_out_loss"]}
    return cfg


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {"text_9m": text_9m}

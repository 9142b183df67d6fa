"""Connectors, their tokens, and pixels (MM1, figure 4).

    python -m mm1_jax run_study --study=connector

At 32 pixels the patches have 8 pixels in place of 16, so that the number of patches stays the same.
"""

from collections.abc import Callable

from experiments.small_world import mm1_small_world
from experiments.studies._small_world import STEPS, arm, claim, metrics
from mm1_jax.experiment import Experiment
from mm1_jax.models.connectors.attention_pooling import AttentionPooling
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.studies.study import Study

# Text of each type of connector.
TYPES = {
    "abstractor": "C-Abstractor",
    "average": "average pooling",
    "attention": "attention pooling",
}


def study() -> Study:
    few_pixels = {"model.vision_encoder.image_size": "32", "model.vision_encoder.patch_size": "8"}
    shots = ("shots_0", "shots_8")
    return Study(
        design="The type of the connector is a wash, tokens and pixels are not: "
        f"mm1_small_world, for {STEPS} steps, with three connectors of 16 and 4 tokens a picture, "
        "at 64 and 32 pixels. Metrics are means over the benchmarks of the small world, of which "
        "0.02 is of interest.",
        arms=[
            *(
                arm(
                    f"{name}_{tokens}",
                    f"{text}, {tokens} tokens",
                    name,
                    {"model.connector.num_image_tokens": str(tokens)},
                )
                for tokens in (16, 4)
                for name, text in TYPES.items()
            ),
            arm("abstractor_16_32px", "C-Abstractor, 16 tokens, 32 pixels", overrides=few_pixels),
        ],
        reference="abstractor_16",
        metrics=metrics(),
        claims=[
            *(
                claim(
                    f"{text} is like the C-Abstractor: {metric}",
                    metric,
                    "abstractor_16",
                    f"{name}_16",
                    alike=True,
                )
                for name, text in TYPES.items()
                if name != "abstractor"
                for metric in shots
            ),
            *(
                claim(f"more tokens help: {metric}", metric, "abstractor_16", "abstractor_4")
                for metric in shots
            ),
            *(
                claim(f"more pixels help: {metric}", metric, "abstractor_16", "abstractor_16_32px")
                for metric in shots
            ),
        ],
        full_size="`mm1_1b` with `--config.model.connector.num_image_tokens=64`, with the encoders "
        "`mm1_1b_vit_l14_224` and `_336`, and with other classes of `model.connector`.",
    )


def average() -> Experiment.Config:
    """`mm1_small_world` with average pooling."""
    cfg = mm1_small_world()
    cfg.model.connector = AveragePooling.default_config().set(
        num_image_tokens=cfg.model.connector.num_image_tokens
    )
    return cfg


def attention() -> Experiment.Config:
    """`mm1_small_world` with attention pooling of as many parameters as its C-Abstractor."""
    cfg = mm1_small_world()
    cfg.model.connector = AttentionPooling.default_config().set(
        num_image_tokens=cfg.model.connector.num_image_tokens,
        model_dim=96,
        hidden_dim=192,
        num_heads=4,
    )
    return cfg


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {"abstractor": mm1_small_world, "average": average, "attention": attention}

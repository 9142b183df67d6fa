"""A curriculum makes a model bind new names to pictures, which the wording of questions does not.

    python -m mm1_jax run_study --study=binding

Both arms read 512 names a step, with the encoder of an `mm1_tiny` of the same seed. They differ in
the words between a picture and its name; `experiments/binding.py` describes them.
"""

from experiments.binding import STEPS
from mm1_jax.studies.study import Arm, Claim, Metric, Score, Stage, Study

_SHOTS = (4, 8)


def study() -> Study:
    start = {"trainer.initial_weights.vision_encoder.path": "{mm1_tiny}"}

    def accuracy(benchmark: str) -> tuple[str, ...]:
        return tuple(f"{benchmark}/{shots}/accuracy" for shots in _SHOTS)

    return Study(
        design="A model learns to bind new names to pictures by a curriculum that first has names "
        f"right behind their pictures. Both arms train for {STEPS} steps of 512 names, the only "
        "targets besides the ends of pages. The metric is the accuracy on few-shot questions "
        "about held-out scenes, the mean of 4 and 8 shots; one of the two names that occur is "
        "right half of the time by chance. One shape and one color occur in no page, and are "
        "asked for as new values. With blank pictures, a model can only guess. With the names of "
        "the exemplars swapped, the former answers are wrong if a model binds. Differences of 0.3 "
        "are of interest, and of 0.8 for swapped names.",
        stages=[Stage("mm1_tiny", "mm1_tiny", minutes=9.0)],
        arms=[
            Arm("curriculum", "mm1_tiny_binding", start, 35.0, "0, 2, 7, then 11 tokens"),
            Arm("direct", "mm1_tiny_binding_direct", start, 35.0, "11 tokens from the start"),
        ],
        reference="direct",
        metrics=[
            Metric("binding", accuracy("name_binding"), "right names"),
            Metric("new_values", accuracy("name_binding_new"), "right names of new values"),
            Metric("swapped", accuracy("name_binding_swapped"), "former names after a swap"),
            Metric("blank", accuracy("name_binding_blank"), "right names without pictures"),
            Metric(
                "heard",
                tuple(f"name_binding/{shots}/heard" for shots in _SHOTS),
                "answers that are one of the two names",
            ),
        ],
        claims=[
            Claim(
                "the curriculum makes the model bind names",
                *(Score(arm, "binding") for arm in ("curriculum", "direct")),
                smallest=0.3,
            ),
            Claim(
                "the model binds names of values that no page named",
                Score("curriculum", "new_values"),
                Score("curriculum", "blank"),
                smallest=0.3,
            ),
            Claim(
                "answers follow the names of the exemplars",
                *(Score("curriculum", metric) for metric in ("binding", "swapped")),
                smallest=0.8,
            ),
            Claim(
                "the wording of questions alone leaves the model guessing",
                *(Score("direct", metric) for metric in ("binding", "blank")),
                smallest=0.1,
                alike=True,
            ),
        ],
        full_size="`mm1_3b`, whose interleaved rows are web pages, and few-shot answers by `python "
        "-m mm1_jax evaluate --shots=0,4,8`.",
    )

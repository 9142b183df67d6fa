"""Boxes of shapes after fine-tuning, and the number of tiles at test alone (MM1.5).

    python -m mm1_jax run_study --study=sft_grounding

`mm1_tiny` is fine-tuned to answer with the box of a shape in a scene of 64 pixels: on one view of
32 pixels, or on 2 x 2 tiles of 32 pixels with an overview. Both are tested on one view, on 2 x 2
and on 3 x 3 tiles, and with blank pictures.
"""

from collections.abc import Callable

from experiments.studies import sft_pretraining
from experiments.tiny_chat import mm1_tiny_chat
from mm1_jax.data.corpora.instructions import Form, corpus
from mm1_jax.data.grid_rules import FixedGrid
from mm1_jax.data.mixture import CorpusWeight, Stream
from mm1_jax.data.tiling import Tiling
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.other_tiling import OtherTiling
from mm1_jax.evals.scoring.boxes import box_accuracy
from mm1_jax.experiment import Experiment
from mm1_jax.studies.study import Arm, Claim, Metric, Score, Study

# Tiles per side of a picture at test. One view has no overview.
SIDES = (1, 2, 3)
MAX_STEPS = 600
QUESTIONS_PER_ROW = 8


def study() -> Study:
    start = {f"{sft_pretraining.START}.path": "{mm1_tiny}"}
    tiles, one_view = Score("tiles", "boxes_2x2"), Score("one_view", "boxes_1x1")
    return Study(
        design="A small model states boxes that are right at an IoU of 0.5, better from 2 x 2 "
        "tiles with an overview than from one view, and worse when the number of tiles changes at "
        "test alone. The metric is the fraction of boxes with an IoU of at least 0.5, over 500 "
        "held-out questions. Differences of 0.05 are of interest between the trainings, of 0.1 "
        "for another number of tiles at test, and of 0.3 from blank pictures.",
        stages=sft_pretraining.study().stages,
        arms=[
            Arm("one_view", "one_view", start, 5.0, "trained on one view of 32 pixels"),
            Arm("tiles", "tiles", start, 9.0, "trained on 2 x 2 tiles and an overview"),
        ],
        reference="one_view",
        metrics=[
            *(
                Metric(f"boxes_{side}x{side}", (f"boxes_{side}x{side}/0/accuracy",), text)
                for side, text in zip(
                    SIDES, ("tested on one view", "on 2 x 2 tiles", "on 3 x 3 tiles"), strict=True
                )
            ),
            Metric("blank_1x1", ("boxes_1x1_blank/0/accuracy",), "one view, blank pictures"),
            Metric("blank_2x2", ("boxes_2x2_blank/0/accuracy",), "2 x 2 tiles, blank pictures"),
            Metric("iou_1x1", ("boxes_1x1/0/mean_iou",), "mean IoU on one view"),
            Metric("iou_2x2", ("boxes_2x2/0/mean_iou",), "mean IoU on 2 x 2 tiles"),
        ],
        claims=[
            Claim("boxes come from pixels", tiles, Score("tiles", "blank_2x2"), 0.3),
            Claim("tiles state boxes better than one view", tiles, one_view, 0.05),
            Claim("one view at test alone is worse", tiles, Score("tiles", "boxes_1x1"), 0.1),
            Claim("3 x 3 tiles at test alone are worse", tiles, Score("tiles", "boxes_3x3"), 0.1),
        ],
        full_size="MM1.5's fine-tuning with referring and grounding data, tested with another "
        "least number of tiles (MM1.5: 74.0 falls to 24.5).",
    )


def one_view() -> Experiment.Config:
    """Boxes from one view of a scene."""
    return _boxes(1)


def tiles() -> Experiment.Config:
    """Boxes from 2 x 2 tiles of a scene and an overview."""
    return _boxes(2)


def _boxes(side: int) -> Experiment.Config:
    """Fine-tuning on boxes: all arms have the same questions in order, and pictures per row."""
    cfg = mm1_tiny_chat()
    num_questions = MAX_STEPS * cfg.input.batch_size * QUESTIONS_PER_ROW
    entry = CorpusWeight().set(corpus=_corpus(num_records=num_questions))
    num_views = _num_views(side)
    cfg.input.set(
        streams=[Stream.default_config().set(name="boxes", corpora=[entry])],
        tiling=_tiling(side),
        max_images=QUESTIONS_PER_ROW * num_views,
        max_sequence_length=QUESTIONS_PER_ROW * (4 * num_views + 72),
    )
    cfg.trainer.max_steps = MAX_STEPS
    cfg.evals = {f"boxes_{each}x{each}": _benchmark(each) for each in SIDES}
    return cfg


def _benchmark(side: int) -> OtherTiling.Config:
    benchmark = Benchmark.default_config().set(
        name=f"boxes_{side}x{side}",
        corpus=_corpus(num_records=2000),
        scoring=box_accuracy,
        shots=(0,),
        blank_shots=(0,) if side < SIDES[-1] else (),
        num_examples=500,
        max_new_tokens=40,
    )
    return OtherTiling.default_config().set(evaluator=benchmark, tiling=_tiling(side))


def _corpus(num_records: int):
    return corpus(
        Form.BOX, num_records=num_records, same_picture_turns=0.0, other_picture_turns=0.0
    )


def _tiling(side: int) -> Tiling.Config | None:
    if side == 1:
        return None
    return Tiling.default_config().set(rule=FixedGrid.default_config().set(columns=side, rows=side))


def _num_views(side: int) -> int:
    return 1 if side == 1 else side**2 + 1


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {make.__name__: make for make in (one_view, tiles)}

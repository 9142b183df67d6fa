"""Scorers of prediction files by benchmark."""

from collections.abc import Mapping

from mm1_jax.evals.predictions.captions import CAPTIONS
from mm1_jax.evals.predictions.choices import MMBENCH, SCIENCEQA, SEED
from mm1_jax.evals.predictions.exams import MATHVISTA, MMMU
from mm1_jax.evals.predictions.judged import LLAVA_BENCH, MMVET
from mm1_jax.evals.predictions.questions import (
    CHARTS,
    DOCUMENTS,
    GQA,
    OKVQA,
    TEXTVQA,
    VIZWIZ,
    VQAV2,
)
from mm1_jax.evals.predictions.scorer import Scorer
from mm1_jax.evals.predictions.yes_no import MME, POPE

SCORERS: Mapping[str, Scorer] = {
    "caption": CAPTIONS,
    "coco": CAPTIONS,
    "nocaps": CAPTIONS,
    "textcaps": CAPTIONS,
    "vqav2": VQAV2,
    "textvqa": TEXTVQA,
    "vizwiz": VIZWIZ,
    "okvqa": OKVQA,
    "gqa": GQA,
    "docvqa": DOCUMENTS,
    "infographicvqa": DOCUMENTS,
    "chartqa": CHARTS,
    "pope": POPE,
    "mme": MME,
    "scienceqa": SCIENCEQA,
    "mmbench": MMBENCH,
    "seed": SEED,
    "mmmu": MMMU,
    "mathvista": MATHVISTA,
    "llava_bench": LLAVA_BENCH,
    "mmvet": MMVET,
}

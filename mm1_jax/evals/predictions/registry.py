"""The scorers by the names of their benchmarks."""

from collections.abc import Mapping

from mm1_jax.evals.predictions.base import Scorer
from mm1_jax.evals.predictions.captions import CaptionScorer
from mm1_jax.evals.predictions.choices import (
    MathVistaScorer,
    MMBenchScorer,
    MmmuScorer,
    ScienceQAScorer,
    SeedScorer,
)
from mm1_jax.evals.predictions.judged import LlavaBenchScorer, MmVetScorer
from mm1_jax.evals.predictions.questions import (
    CHARTS,
    DOCUMENTS,
    GQA,
    OKVQA,
    TEXTVQA,
    VIZWIZ,
    VQAV2,
)
from mm1_jax.evals.predictions.yes_no import MmeScorer, PopeScorer

SCORERS: Mapping[str, Scorer] = {
    "caption": CaptionScorer(),
    "coco": CaptionScorer(),
    "nocaps": CaptionScorer(),
    "textcaps": CaptionScorer(),
    "vqav2": VQAV2,
    "textvqa": TEXTVQA,
    "vizwiz": VIZWIZ,
    "okvqa": OKVQA,
    "gqa": GQA,
    "docvqa": DOCUMENTS,
    "infographicvqa": DOCUMENTS,
    "chartqa": CHARTS,
    "pope": PopeScorer(),
    "mme": MmeScorer(),
    "scienceqa": ScienceQAScorer(),
    "mmbench": MMBenchScorer(),
    "seed": SeedScorer(),
    "mmmu": MmmuScorer(),
    "mathvista": MathVistaScorer(),
    "llava_bench": LlavaBenchScorer(),
    "mmvet": MmVetScorer(),
}

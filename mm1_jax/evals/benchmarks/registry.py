"""The benchmarks by name, as `tools/evaluate.py` and the paper's tables have them."""

from collections.abc import Mapping

from mm1_jax.evals.benchmarks.base import Benchmark
from mm1_jax.evals.benchmarks.coco_captions import CocoCaptions
from mm1_jax.evals.benchmarks.digits import DigitsCaption, DigitsVQA
from mm1_jax.evals.benchmarks.gqa import Gqa
from mm1_jax.evals.benchmarks.mathvista import MathVista
from mm1_jax.evals.benchmarks.mmbench import MmBench
from mm1_jax.evals.benchmarks.mme import Mme
from mm1_jax.evals.benchmarks.mmmu import Mmmu
from mm1_jax.evals.benchmarks.nocaps import NoCaps
from mm1_jax.evals.benchmarks.pope import Pope
from mm1_jax.evals.benchmarks.scenes import ScenesCaption, ScenesVQA
from mm1_jax.evals.benchmarks.scienceqa import ScienceQA
from mm1_jax.evals.benchmarks.seed_bench import SeedBench
from mm1_jax.evals.benchmarks.textcaps import TextCaps
from mm1_jax.evals.benchmarks.textvqa import TextVqa
from mm1_jax.evals.benchmarks.vizwiz import VizWiz
from mm1_jax.evals.benchmarks.vqav2 import OkVqa, VqaV2

# Those of pre-training, in the order of the paper's table (MM1, table 3, and GQA of its ablations).
PRETRAINING: Mapping[str, type[Benchmark]] = {
    "coco": CocoCaptions,
    "nocaps": NoCaps,
    "textcaps": TextCaps,
    "vqav2": VqaV2,
    "textvqa": TextVqa,
    "vizwiz": VizWiz,
    "gqa": Gqa,
    "okvqa": OkVqa,
}
# Those of chat models (MM1, table 4) that no judge is needed for.
CHAT: Mapping[str, type[Benchmark]] = {
    "scienceqa": ScienceQA,
    "mmmu": Mmmu,
    "mathvista": MathVista,
    "mme": Mme,
    "mmbench": MmBench,
    "seed": SeedBench,
    "pope": Pope,
}
EMBEDDED: Mapping[str, type[Benchmark]] = {
    "digits_vqa": DigitsVQA,
    "digits_caption": DigitsCaption,
    "scenes_vqa": ScenesVQA,
    "scenes_caption": ScenesCaption,
}
BENCHMARKS: Mapping[str, type[Benchmark]] = {**PRETRAINING, **CHAT, **EMBEDDED}

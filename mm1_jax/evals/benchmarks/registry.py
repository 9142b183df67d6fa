"""The benchmarks by name, as `tools/evaluate.py` and the paper's tables have them."""

from collections.abc import Mapping

from mm1_jax.evals.benchmarks.arc import ArcChallenge, ArcEasy
from mm1_jax.evals.benchmarks.base import Benchmark
from mm1_jax.evals.benchmarks.coco_captions import CocoCaptions
from mm1_jax.evals.benchmarks.digits import DigitsCaption, DigitsVQA
from mm1_jax.evals.benchmarks.gqa import Gqa
from mm1_jax.evals.benchmarks.hellaswag import HellaSwag
from mm1_jax.evals.benchmarks.lambada import Lambada
from mm1_jax.evals.benchmarks.llava_bench import LlavaBench
from mm1_jax.evals.benchmarks.mathvista import MathVista
from mm1_jax.evals.benchmarks.mmbench import MmBench
from mm1_jax.evals.benchmarks.mme import Mme
from mm1_jax.evals.benchmarks.mmmu import Mmmu
from mm1_jax.evals.benchmarks.mmvet import MmVet
from mm1_jax.evals.benchmarks.nocaps import NoCaps
from mm1_jax.evals.benchmarks.piqa import Piqa
from mm1_jax.evals.benchmarks.pope import Pope
from mm1_jax.evals.benchmarks.scenes import SceneNames, ScenesCaption, ScenesVQA
from mm1_jax.evals.benchmarks.scienceqa import ScienceQA
from mm1_jax.evals.benchmarks.sciq import SciQ
from mm1_jax.evals.benchmarks.seed_bench import SeedBench
from mm1_jax.evals.benchmarks.textcaps import TextCaps
from mm1_jax.evals.benchmarks.textvqa import TextVqa
from mm1_jax.evals.benchmarks.triviaqa import TriviaQA
from mm1_jax.evals.benchmarks.vizwiz import VizWiz
from mm1_jax.evals.benchmarks.vqav2 import OkVqa, VqaV2
from mm1_jax.evals.benchmarks.webqs import WebQs
from mm1_jax.evals.benchmarks.winogrande import WinoGrande

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
# The others of that table, which a judge grades.
JUDGED: Mapping[str, type[Benchmark]] = {"llava_bench": LlavaBench, "mmvet": MmVet}
# Those without pictures, which the paper calls TextCore in its ablations.
TEXT_CORE: Mapping[str, type[Benchmark]] = {
    "arc_easy": ArcEasy,
    "arc_challenge": ArcChallenge,
    "piqa": Piqa,
    "lambada": Lambada,
    "winogrande": WinoGrande,
    "hellaswag": HellaSwag,
    "sciq": SciQ,
    "triviaqa": TriviaQA,
    "webqs": WebQs,
}
EMBEDDED: Mapping[str, type[Benchmark]] = {
    "digits_vqa": DigitsVQA,
    "digits_caption": DigitsCaption,
    "scenes_vqa": ScenesVQA,
    "scenes_caption": ScenesCaption,
}
BENCHMARKS: Mapping[str, type[Benchmark]] = {
    **PRETRAINING,
    **CHAT,
    **JUDGED,
    **TEXT_CORE,
    **EMBEDDED,
    # Not of those that every small run is trained for.
    "scenes_names": SceneNames,
}

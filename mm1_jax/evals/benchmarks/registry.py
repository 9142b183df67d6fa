"""Benchmarks by name, as in `python -m mm1_jax evaluate` and the paper's tables."""

from collections.abc import Callable, Mapping

from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.coco_captions import coco
from mm1_jax.evals.benchmarks.digits import digits_caption, digits_chat, digits_vqa
from mm1_jax.evals.benchmarks.gqa import gqa
from mm1_jax.evals.benchmarks.instructions import instructions
from mm1_jax.evals.benchmarks.llava_bench import llava_bench
from mm1_jax.evals.benchmarks.mathvista import mathvista
from mm1_jax.evals.benchmarks.mmbench import mmbench
from mm1_jax.evals.benchmarks.mme import mme
from mm1_jax.evals.benchmarks.mmmu import mmmu
from mm1_jax.evals.benchmarks.mmvet import mmvet
from mm1_jax.evals.benchmarks.nocaps import nocaps
from mm1_jax.evals.benchmarks.pope import pope
from mm1_jax.evals.benchmarks.scenes import (
    scenes_caption,
    scenes_chat,
    scenes_names,
    scenes_vqa,
)
from mm1_jax.evals.benchmarks.scienceqa import scienceqa
from mm1_jax.evals.benchmarks.seed_bench import seed
from mm1_jax.evals.benchmarks.small_world import (
    world_attributes,
    world_captions,
    world_counting,
    world_details,
    world_facts,
    world_grammar,
    world_knowledge,
    world_print,
    world_relations,
)
from mm1_jax.evals.benchmarks.text import (
    arc_challenge,
    arc_easy,
    hellaswag,
    lambada,
    piqa,
    sciq,
    triviaqa,
    webqs,
    winogrande,
)
from mm1_jax.evals.benchmarks.textcaps import textcaps
from mm1_jax.evals.benchmarks.textvqa import textvqa, textvqa_chat
from mm1_jax.evals.benchmarks.vizwiz import vizwiz
from mm1_jax.evals.benchmarks.vqav2 import okvqa, vqav2, vqav2_chat

# A function that returns the config of the benchmark that has the function's name.
Make = Callable[[], Benchmark.Config]


def _by_name(*functions: Make) -> Mapping[str, Make]:
    return {function.__name__: function for function in functions}


# Benchmarks of pre-trained models, in the order of MM1's table 3, and GQA of its ablations.
PRETRAINING = _by_name(coco, nocaps, textcaps, vqav2, textvqa, vizwiz, gqa, okvqa)
# Benchmarks of chat models (MM1, table 4) that need no judge.
CHAT = _by_name(scienceqa, mmmu, mathvista, mme, mmbench, seed, pope)
# The other benchmarks of that table, which a judge grades.
JUDGED = _by_name(llava_bench, mmvet)
# All columns of that table. VQAv2 and TextVQA are asked as the other chat benchmarks are.
TABLE4 = {**_by_name(vqav2_chat, textvqa_chat), **CHAT, **JUDGED}
# Benchmarks without pictures, called TextCore in the paper's ablations.
TEXT_CORE = _by_name(
    *(arc_easy, arc_challenge, piqa, lambada, winogrande, hellaswag, sciq, triviaqa, webqs)
)
EMBEDDED = _by_name(digits_vqa, digits_caption, scenes_vqa, scenes_caption)
# Benchmarks of `mm1_tiny_chat`.
EMBEDDED_CHAT = _by_name(instructions, digits_chat, scenes_chat)
# The stand-in of the paper's benchmark set for small models, and that of TextCore.
SMALL_WORLD = _by_name(
    *(world_captions, world_attributes, world_relations, world_counting, world_print),
    *(world_details, world_knowledge, scenes_names),
)
SMALL_WORLD_TEXT = _by_name(world_facts, world_grammar)
# `scenes_names` is not in EMBEDDED, since small runs are not all trained for it.
BENCHMARKS = {
    **PRETRAINING,
    **TABLE4,
    **TEXT_CORE,
    **EMBEDDED,
    **EMBEDDED_CHAT,
    **SMALL_WORLD,
    **SMALL_WORLD_TEXT,
}
# Names of groups of benchmarks, for the command line.
GROUPS: Mapping[str, Mapping[str, Make]] = {
    "pretraining": PRETRAINING,
    "chat": CHAT,
    "judged": JUDGED,
    "table4": TABLE4,
    "text_core": TEXT_CORE,
    "embedded": EMBEDDED,
    "embedded_chat": EMBEDDED_CHAT,
    "small_world": SMALL_WORLD,
    "small_world_text": SMALL_WORLD_TEXT,
}

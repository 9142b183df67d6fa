"""The models of all named experiments at their full sizes, as shapes."""

import functools
import math

import jax
import pytest
from flax import nnx

from mm1_jax.experiment import Experiment
from mm1_jax.launch.named_configs import named_configs
from mm1_jax.models.connectors.c_abstractor import CAbstractor
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.parallelism import Parallelism, choose
from mm1_jax.parallel.rematerialisation import Remat
from mm1_jax.parallel.sharding import AxisRules, parameter_shardings


@functools.cache
def _config(name: str) -> MM1.Config:
    return Experiment.resolve(named_configs()[name]()).model


# One config name per model: configs with the same model differ in their data.
NAMES = list(
    {_config(name).debug_string(): name for name in sorted(named_configs(), reverse=True)}.values()
)

# Minimum and maximum number of parameters, in millions.
SIZES = {
    "mm1_tiny": (0.8, 3),
    "mm1_tiny_chat_lora": (0.8, 3),
    "mm1_tiny_moe": (1.2, 5),
    "mm1_tiny_binding": (0.3, 0.6),
    "mm1_small_world": (1.4, 1.5),
    "mm1_tiny_easy_vqa": (0.8, 3),
    "mm1_tiny_textbooks": (0.8, 3),
    # The paper's decoders, input and output tables of 32,000 tokens, encoder and connector.
    "mm1_3b": (3_650, 3_900),
    "mm1_7b": (7_250, 7_500),
    "mm1_30b": (30_500, 31_000),
    "mm1_3b_moe": (65_000, 66_000),
    "mm1_7b_moe": (40_500, 41_500),
    "mm1_3b_encoder_ablation": (3_350, 3_550),
    "mm1_9m": (320, 360),
    "mm1_85m": (420, 470),
    "mm1_302m": (650, 720),
    # Qwen3-1.7B has 1,721M and Llama 3 8B 8,030M, without the rows of the image token.
    "mm1_qwen3_1p7b": (2_350, 2_450),
    "mm1_llama3_8b": (8_650, 8_800),
    # Llama 2 7B has 6,738M.
    "llama2_7b": (6_738, 6_739),
    # With the positions of 48 x 48 patches.
    "mm1_3b_chat": (3_650, 3_900),
    # 24M of them in adapters.
    "mm1_3b_chat_lora": (3_820, 3_840),
    "mm1_7b_chat": (7_250, 7_500),
    "mm1_30b_chat": (30_500, 31_000),
    "mm1_3b_moe_chat": (65_000, 66_000),
    "mm1_7b_moe_chat": (40_500, 41_500),
    **{name: (1_600, 4_200) for name in NAMES if name.startswith("mm1_1b")},
    # OpenAI's ViT-L/14 has 427.6M parameters, open_clip's ViT-H/14 986.1M.
    "clip_tiny": (0.7, 0.8),
    "clip_vit_l14": (427, 428),
    "clip_vit_l14_336": (427, 428),
    "clip_vit_h14": (986, 987),
    "clip_vit_h14_378": (986, 987),
    # Trunks of 680.5M, 1,209.4M, 2,720.0M and 309.2M parameters, with what is thrown away.
    "aim_tiny": (0.3, 0.5),
    "aim_600m": (1_087, 1_088),
    "aim_1b": (1_617, 1_618),
    "aim_3b": (3_130, 3_131),
    "aimv2_vit_l14": (530, 531),
}

# Parameter names in checkpoints, as `module: parameters`; a star stands for any number.
ENCODER_AND_CONNECTOR = """
vision_encoder/patch_embedding: kernel
vision_encoder/positions: positions
vision_encoder/stack/layer/attention/key: bias kernel
vision_encoder/stack/layer/attention/output: bias kernel
vision_encoder/stack/layer/attention/query: bias kernel
vision_encoder/stack/layer/attention/value: bias kernel
vision_encoder/stack/layer/attention_norm: bias scale
vision_encoder/stack/layer/feed_forward/down: bias kernel
vision_encoder/stack/layer/feed_forward/up: bias kernel
vision_encoder/stack/layer/feed_forward_norm: bias scale
vision_encoder/final_norm: bias scale
connector/positions: positions
connector/stage_1/*/pointwise_in/linear: kernel
connector/stage_1/*/pointwise_in/norm: bias scale
connector/stage_1/*: depthwise
connector/stage_1/*/depthwise_norm: bias scale
connector/stage_1/*/squeeze_excite/squeeze: bias kernel
connector/stage_1/*/squeeze_excite/excite: bias kernel
connector/stage_1/*/pointwise_out/linear: kernel
connector/stage_1/*/pointwise_out/norm: bias scale
connector/stage_2/*/pointwise_in/linear: kernel
connector/stage_2/*/pointwise_in/norm: bias scale
connector/stage_2/*: depthwise
connector/stage_2/*/depthwise_norm: bias scale
connector/stage_2/*/squeeze_excite/squeeze: bias kernel
connector/stage_2/*/squeeze_excite/excite: bias kernel
connector/stage_2/*/pointwise_out/linear: kernel
connector/stage_2/*/pointwise_out/norm: bias scale
connector/read_out/*: bias kernel
"""
DECODER = """
decoder/embedding: weight
decoder/stack/layer/attention/key: kernel
decoder/stack/layer/attention/output: kernel
decoder/stack/layer/attention/query: kernel
decoder/stack/layer/attention/value: kernel
decoder/stack/layer/attention_norm: scale
decoder/stack/layer/feed_forward/down: kernel
decoder/stack/layer/feed_forward/gate: kernel
decoder/stack/layer/feed_forward/up: kernel
decoder/stack/layer/feed_forward_norm: scale
decoder/norm: scale
decoder/head: weight
"""
SPARSE_LAYERS = """
decoder/stack/last_layer/attention/key: kernel
decoder/stack/last_layer/attention/output: kernel
decoder/stack/last_layer/attention/query: kernel
decoder/stack/last_layer/attention/value: kernel
decoder/stack/last_layer/attention_norm: scale
decoder/stack/last_layer/feed_forward: router
decoder/stack/last_layer/feed_forward/experts: down gate up
decoder/stack/last_layer/feed_forward_norm: scale
"""


@functools.cache
def _params(name: str) -> nnx.State:
    cfg = _config(name)
    return nnx.state(nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0))), nnx.Param)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_builds_and_has_the_expected_size(name):
    least, most = SIZES[name]
    assert least < sum(x.size for x in jax.tree.leaves(_params(name))) / 1e6 < most


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "model": 2}, {"data": 2, "expert": 4}])
@pytest.mark.parametrize("name", NAMES)
def test_the_mesh_divides_every_parameter(name, axes):
    decoder = getattr(_config(name), "decoder", None)
    if "expert" in axes and (decoder is None or decoder.moe is None):
        axes = {"data": 2, "fsdp": 4}
    mesh = Parallelism.default_config().set(**axes).instantiate().mesh()
    params = _params(name)
    shardings = parameter_shardings(params, mesh, AxisRules())
    sizes = {"split": 0, "whole": 0}
    for x, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True):
        shard = math.prod(sharding.shard_shape(x.shape))
        sizes["split" if shard < x.size else "whole"] += x.size
    assert sizes["split"] > sizes["whole"]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("mm1_tiny", ENCODER_AND_CONNECTOR + DECODER),
        ("mm1_tiny_moe", ENCODER_AND_CONNECTOR + DECODER + SPARSE_LAYERS),
    ],
)
def test_parameters_have_their_names_in_checkpoints(name, expected):
    modules: dict[str, set[str]] = {}
    for path, _ in nnx.to_flat_state(_params(name)):
        *module, parameter = ("*" if isinstance(part, int) else part for part in path)
        modules.setdefault("/".join(module), set()).add(parameter)
    lines = [f"{module}: {' '.join(sorted(names))}" for module, names in modules.items()]
    assert sorted(lines) == sorted(filter(None, expected.splitlines()))


@pytest.mark.parametrize("name", ["mm1_tiny", "mm1_tiny_moe"])
def test_tiny_models_have_all_parts_of_the_large_ones(name):
    cfg = _config(name)
    assert isinstance(cfg.connector, CAbstractor.Config) and cfg.connector.depth >= 1
    decoder = cfg.decoder
    assert decoder.num_layers // decoder.moe_every >= 2
    assert decoder.num_kv_heads < decoder.num_heads
    stacks = (decoder.stack, cfg.vision_encoder.stack)
    assert all(stack.remat is not Remat.NONE and not stack.unroll for stack in stacks)


def test_every_second_layer_of_the_sparse_model_routes_to_two_of_at_least_four_experts():
    decoder = _config("mm1_tiny_moe").decoder
    assert _config("mm1_tiny").decoder.moe is None
    assert decoder.moe_every == 2
    assert decoder.moe.num_experts >= 4 and decoder.moe.experts_per_token == 2


@pytest.mark.parametrize("num_devices", [1, 2, 8])
@pytest.mark.parametrize("name", NAMES)
def test_tiny_models_run_on_the_devices_of_a_laptop(name, num_devices):
    trainer = named_configs()[name]().trainer
    devices = jax.devices()[:num_devices]
    parallelism = choose(trainer.mesh_rules, trainer.parallelism, f"cpu-{num_devices}")
    assert parallelism.instantiate().mesh(devices).size == num_devices

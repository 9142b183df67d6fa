"""Small experiments that start from imported weights.

`from_foreign` starts from small Hugging Face checkpoints of an encoder and a decoder, with these
configs; `from_run` is sparse and starts from the run of `from_foreign`.
"""

from drawn_corpus import input_config

from experiments import pretrain
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.interop.families import Changes, make_parts
from mm1_jax.layers.moe import MoE

TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 4,
    "image_size": 16,
}
TEXT = {
    "model_type": "llama",
    "vocab_size": Tokenizer.default_config().instantiate().vocab_size,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
# Only the connector is trained.
PARTS = ("vision_encoder", "decoder")
MAX_STEPS = 40


def from_foreign():
    cfg = pretrain.mm1_tiny()
    cfg.input = input_config(
        image_group_rows=4, images_per_row=3, image_size=None, num_image_tokens=None
    )
    cfg.evals = {}
    for hf in (TOWER, TEXT):
        cfg.model.set(**make_parts(hf, Changes()))
    cfg.trainer.max_steps = MAX_STEPS
    cfg.trainer.optimizer.set(warmup_steps=2, frozen=list(PARTS))
    cfg.trainer.checkpointer.every_n_steps = 4
    cfg.trainer.initial_weights = {
        part: InitialWeights.default_config().set(path=f"weights/{part}") for part in PARTS
    }
    return cfg


def from_run():
    cfg = from_foreign()
    cfg.model.decoder.set(moe=MoE.default_config().set(num_experts=2), moe_every=2)
    cfg.trainer.max_steps = 2
    cfg.trainer.initial_weights = {
        part: InitialWeights.default_config().set(path="runs/from_foreign", upcycle=upcycle)
        for part, upcycle in (("vision_encoder", False), ("connector", False), ("decoder", True))
    }
    return cfg


def named_configs():
    return {make.__name__: make for make in (from_foreign, from_run)}

"""MM1 from open weights: a pre-trained decoder and vision encoder, and a new connector.

    python -m mm1_jax convert_checkpoint import --source=Qwen3-1.7B-Base \\
        --output=data/weights/qwen3_1p7b
    python -m mm1_jax convert_checkpoint import --source=DFN5B-CLIP-ViT-H-14-378 \\
        --output=data/weights/dfn_vit_h14_378
    python -m mm1_jax.launch --config=mm1_qwen3_1p7b --data_dir=data

The connector is initialized randomly, and all parameters are trained, as in the paper. Sources are
downloaded folders with their config and tokenizer. The recipe (batches, schedule, learning-rate
law) is that of the paper's models; the law was fitted to other decoders.
"""

from collections.abc import Callable

from experiments import mesh_rules, pretrain, sizes, vision_encoders
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.data.tokenizers.hf import HFTokenizer
from mm1_jax.experiment import Experiment
from mm1_jax.layers.norm import RMSNorm
from mm1_jax.layers.rotary import Rotary
from mm1_jax.models.decoder import Decoder

ENCODER = "weights/dfn_vit_h14_378"


def qwen3_1p7b() -> Decoder.Config:
    """Qwen3-1.7B: 1.4B parameters in its layers, and tied embeddings of 151,936 rows."""
    cfg = _decoder(eps=1e-6, theta=1e6).set(
        num_layers=28,
        model_dim=2048,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        hidden_dim=6144,
        tied_embeddings=True,
    )
    cfg.stack.layer.attention.qk_norm = RMSNorm.default_config().set(eps=1e-6)
    return cfg


def llama3_8b() -> Decoder.Config:
    """Llama 3 8B: 7.0B parameters in its layers, and two embeddings of 128,256 rows."""
    return _decoder(eps=1e-5, theta=5e5).set(
        num_layers=32,
        model_dim=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        hidden_dim=14336,
    )


def mm1_qwen3_1p7b() -> Experiment.Config:
    """MM1 from Qwen3-1.7B and DFN's ViT-H/14 at 378 px; a new C-Abstractor with 144 tokens."""
    tokenizer = HFTokenizer.default_config().set(num_pieces=151_669, min_vocab_size=151_936)
    return _from_open_weights("weights/qwen3_1p7b", qwen3_1p7b(), tokenizer, rows=8)


def mm1_llama3_8b() -> Experiment.Config:
    """MM1 from Llama 3 8B and DFN's ViT-H/14 at 378 px; a new C-Abstractor with 144 tokens."""
    tokenizer = HFTokenizer.default_config().set(num_pieces=128_256)
    return _from_open_weights("weights/llama3_8b", llama3_8b(), tokenizer, rows=2)


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {make.__name__: make for make in (mm1_qwen3_1p7b, mm1_llama3_8b)}


def _decoder(*, eps: float, theta: float) -> Decoder.Config:
    cfg = Decoder.default_config()
    cfg.norm.eps = cfg.stack.layer.norm.eps = eps
    cfg.stack.layer.attention.rotary = Rotary.default_config().set(theta=theta)
    return cfg


def _from_open_weights(
    weights: str, decoder: Decoder.Config, tokenizer: HFTokenizer.Config, *, rows: int
) -> Experiment.Config:
    model = sizes.mm1(decoder, vision_encoders.vit_h14(378))
    cfg = pretrain.paper(model, mesh_rules.dense(rows=rows, small_rows=max(1, rows // 4)))
    cfg.input.tokenizer = tokenizer.set(model_path=f"{weights}/tokenizer.json")
    cfg.trainer.initial_weights = {
        "vision_encoder": InitialWeights.default_config().set(path=ENCODER),
        "decoder": InitialWeights.default_config().set(path=weights),
    }
    return cfg

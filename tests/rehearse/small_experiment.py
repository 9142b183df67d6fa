"""An experiment that compiles for a TPU in seconds, and one that fits on no slice."""

from experiments import pretrain
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.parallel.rematerialisation import Remat


def small():
    cfg = pretrain.mm1_tiny()
    cfg.model.set(
        dtype="bfloat16", connector=AveragePooling.default_config().set(num_image_tokens=4)
    )
    cfg.model.vision_encoder.num_layers = 1
    cfg.model.decoder.num_layers = 2
    cfg.model.decoder.stack.remat = Remat.NONE
    cfg.trainer.parallelism.fsdp = -1
    return cfg


def too_large():
    cfg = small()
    cfg.model.decoder.set(model_dim=8192, num_heads=64, num_kv_heads=8, hidden_dim=65536)
    cfg.trainer.parallelism.set(data=-1, fsdp=1)
    return cfg


def named_configs():
    return {"small": small, "too_large": too_large}

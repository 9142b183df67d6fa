"""Pre-training of vision encoders, with which MM1 runs can start.

    python -m mm1_jax.rehearse --config=aim_600m --topology=v5p:4x4x4

compiles one without data or TPU. They read caption records from --data_dir; AIM ignores the
captions. An MM1 run takes an encoder by `trainer.initial_weights`.
"""

from collections.abc import Callable, Sequence

from experiments import mesh_rules, mixtures, vision_encoders
from experiments.mesh_rules import Fit
from mm1_jax.data.pairs import PairInput
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.experiment import Experiment
from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.feed_forward import MLP_UP
from mm1_jax.models.aim import AIM, AIMv2
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.parallel.parallelism import MeshRule
from mm1_jax.train.patch_loss import AIMLoss, AIMv2Loss
from mm1_jax.train.trainer import Trainer


def _aim(encoder: VisionEncoder.Config, rules: Sequence[MeshRule]) -> Experiment.Config:
    """AIM by the recipe of L3M: 125k steps of 4,096 pictures of 224 px.

    The paper trained for 500k steps, and its 7B model for 1.2M. L3M sets the eps of norms to 1e-5;
    here it is that of the paper's released trunks, 1e-6.
    """
    model = AIM.default_config().set(vision_encoder=encoder, dtype="bfloat16")
    head = model.pixel_head.set(model_dim=2048, num_layers=12, hidden_dim=8192)
    head.stack.saved_names = (MLP_UP,)
    head.stack.layer.feed_forward.up.bias = False
    head.stack.layer.feed_forward.down.bias = False
    cfg = Experiment.default_config().set(
        model=model,
        input=PairInput.default_config().set(
            streams=mixtures.dfn_and_imagenet(),
            batch_size=4096,
            max_sequence_length=0,
            num_workers=16,
        ),
        trainer=Trainer.default_config().set(max_steps=125_000, loss=AIMLoss.default_config()),
    )
    cfg.trainer.optimizer.set(
        learning_rate=1e-3,
        weight_decay=0.05,
        decayed="matrices",
        warmup_steps=3125,
        final_fraction=0.0,
    )
    cfg.trainer.mesh_rules = list(rules)
    return cfg


def aim_600m() -> Experiment.Config:
    """AIM-600M: a trunk of 681M parameters, a head of 407M."""
    rules = mesh_rules.pictures(Fit(64, vision=mesh_rules.VISION_PRODUCTS, batch_size=4096))
    return _aim(vision_encoders.aim_600m(Pattern.PREFIX), rules)


def aim_1b() -> Experiment.Config:
    """AIM-1B: a trunk of 1,210M parameters, a head of 408M."""
    rules = mesh_rules.pictures(Fit(64, vision=mesh_rules.VISION_PRODUCTS, batch_size=4096))
    return _aim(vision_encoders.aim_1b(Pattern.PREFIX), rules)


def aim_3b() -> Experiment.Config:
    """AIM-3B: a trunk of 2,720M parameters, a head of 410M."""
    rules = mesh_rules.pictures(Fit(32, vision=mesh_rules.VISION_PRODUCTS, batch_size=4096))
    return _aim(vision_encoders.aim_3b(Pattern.PREFIX), rules)


def aimv2_vit_l14() -> Experiment.Config:
    """AIMv2 with ViT-L/14: a trunk of 309M parameters, a decoder of 12 x 1024.

    The recipe is that of L3M: 1.25M steps, and a weight decay of 1e-4 that does not depend on the
    peak rate of 1e-3, 0.1 of it here. L3M states the batch per GPU; 8,192 is the choice here, which
    makes 10B pictures.
    """
    decoder = Decoder.default_config().set(
        model_dim=1024, num_layers=12, num_heads=8, hidden_dim=2816
    )
    decoder.embedding.init_std = 0.02
    decoder.stack.layer.attention.rotary = None
    fit = Fit(64, mesh_rules.PRODUCTS, mesh_rules.VISION_PRODUCTS, batch_size=8192)
    cfg = Experiment.default_config().set(
        model=AIMv2.default_config().set(
            vision_encoder=vision_encoders.aimv2_l14(Pattern.PREFIX),
            decoder=decoder,
            dtype="bfloat16",
        ),
        input=PairInput.default_config().set(
            streams=mixtures.captioned_pictures(),
            tokenizer=Tokenizer.default_config().set(
                model_path="tokenizer.model", num_pieces=32_000
            ),
            batch_size=8192,
            max_sequence_length=77,
            num_workers=16,
        ),
        trainer=Trainer.default_config().set(max_steps=1_250_000, loss=AIMv2Loss.default_config()),
    )
    cfg.trainer.optimizer.set(
        learning_rate=1e-3,
        weight_decay=0.1,
        decayed="matrices_but_positions",
        warmup_steps=12_500,
        final_fraction=0.01,
    )
    cfg.trainer.mesh_rules = mesh_rules.pictures(fit)
    return cfg


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    experiments = (aim_600m, aim_1b, aim_3b, aimv2_vit_l14)
    return {make.__name__: make for make in experiments}

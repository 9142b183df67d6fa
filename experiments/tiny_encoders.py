"""Small vision encoders, in minutes on two CPU cores; no download.

    python -m mm1_jax.launch --config=clip_tiny
    python -m mm1_jax.launch --config=aim_tiny
    python -m mm1_jax evaluate_encoder --checkpoint=runs/aim_tiny --baselines=random

The last command compares attentive probes of the encoder and of the same encoder with random
parameters, on held-out pictures.
"""

from collections.abc import Callable
from typing import Any

from experiments import mixtures, vision_encoders
from mm1_jax.data.corpora import clutter
from mm1_jax.data.corpora.captions import CaptionChoice
from mm1_jax.data.corpora.clutter import Subject
from mm1_jax.data.pairs import PairInput
from mm1_jax.evals.encoders.attentive_probe import AttentiveProbe
from mm1_jax.evals.encoders.corpus_pictures import CorpusPictures
from mm1_jax.evals.encoders.zero_shot import ZeroShot
from mm1_jax.evals.held_out_loss import HeldOutLoss
from mm1_jax.experiment import Experiment
from mm1_jax.layers.attention import Pattern
from mm1_jax.models.aim import AIM
from mm1_jax.models.clip import CLIP
from mm1_jax.models.image_pooling import MeanPooling
from mm1_jax.models.text_encoder import TextEncoder
from mm1_jax.parallel.rematerialisation import Remat
from mm1_jax.train.contrastive_loss import SoftmaxLoss
from mm1_jax.train.patch_loss import AIMLoss
from mm1_jax.train.trainer import Trainer

# Pictures for AIM: noise cannot be predicted, and neither can much clutter by a trunk this small.
_AIM_PICTURES: dict[str, Any] = {"noise": 0.0, "max_others": 1}


def clip_tiny() -> Experiment.Config:
    """CLIP with 0.8M parameters on cluttered digits and shapes: 15 minutes on two CPU cores."""
    text_encoder = TextEncoder.default_config().set(
        model_dim=96, num_layers=2, num_heads=4, hidden_dim=384, position_init_std=0.1
    )
    text_encoder.embedding.init_std = 0.1
    cfg = Experiment.default_config().set(
        model=CLIP.default_config().set(
            vision_encoder=vision_encoders.clip_tiny(),
            # The encoder's final norm has normalized the patches.
            image_pooling=MeanPooling.default_config().set(norm=None),
            text_encoder=text_encoder,
            features_dim=64,
        ),
        input=PairInput.default_config().set(
            streams=mixtures.embedded_pictures(), batch_size=128, max_sequence_length=32
        ),
        trainer=Trainer.default_config().set(
            max_steps=1200,
            # Half of the captions are one of a few.
            loss=SoftmaxLoss.default_config().set(mask_equal_texts=True),
        ),
        evals={
            "held_out_loss": _held_out_loss(),
            **{f"zero_shot_{subject.value}": _zero_shot(subject) for subject in Subject},
        },
    )
    for entry in cfg.input.streams[0].corpora:
        entry.corpus.to_document = CaptionChoice.default_config()
    for tower in (cfg.model.vision_encoder, cfg.model.text_encoder):
        tower.stack.remat = Remat.NONE
    cfg.trainer.optimizer.set(
        learning_rate=2e-3, decayed="matrices", warmup_steps=50, final_fraction=0.02
    )
    cfg.trainer.checkpointer.every_n_steps = 100
    return cfg


def aim_tiny() -> Experiment.Config:
    """AIM with 0.4M parameters on cluttered digits and shapes: minutes on two CPU cores.

    The digits are probed. Shapes are too easy to tell what training is worth: a probe of a random
    trunk names 81% of them.
    """
    model = AIM.default_config().set(vision_encoder=vision_encoders.aim_tiny(Pattern.PREFIX))
    model.pixel_head.set(model_dim=128, num_layers=1, hidden_dim=512)
    for part in (model.vision_encoder, model.pixel_head):
        part.stack.remat = Remat.NONE
    cfg = Experiment.default_config().set(
        model=model,
        input=PairInput.default_config().set(
            streams=mixtures.embedded_pictures(digits=3, **_AIM_PICTURES),
            batch_size=64,
            max_sequence_length=0,
        ),
        trainer=Trainer.default_config().set(max_steps=2500, loss=AIMLoss.default_config()),
        evals={"held_out_loss": _held_out_loss(), "digits_probe": _digits_probe()},
    )
    cfg.trainer.optimizer.set(
        learning_rate=2e-3,
        weight_decay=0.05,
        decayed="matrices",
        warmup_steps=50,
        final_fraction=0.0,
    )
    cfg.trainer.checkpointer.every_n_steps = 100
    return cfg


def _held_out_loss() -> HeldOutLoss.Config:
    cfg = HeldOutLoss.default_config().set(num_batches=4)
    cfg.run.n = 200
    return cfg


def _zero_shot(subject: Subject) -> ZeroShot.Config:
    data = CorpusPictures.default_config().set(
        corpus=clutter.corpus(subject), class_field="class", templates=clutter.TEMPLATES
    )
    return ZeroShot.default_config().set(name=f"clutter_{subject.value}", data=data)


def _digits_probe() -> AttentiveProbe.Config:
    pictures = CorpusPictures.default_config().set(
        corpus=clutter.corpus(Subject.DIGITS, **_AIM_PICTURES), class_field="class"
    )
    return AttentiveProbe.default_config().set(
        name="clutter_digits",
        data=pictures,
        batch_size=100,
        num_epochs=40,
        learning_rates=(1e-3, 3e-3, 1e-2),
    )


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    experiments = (clip_tiny, aim_tiny)
    return {make.__name__: make for make in experiments}

"""Pre-training of vision encoders, with which MM1 runs can start.

    python -m mm1_jax.rehearse --config=aim_600m --topology=v5p:4x4x4

compiles one without data or TPU. They read caption records from --data_dir; AIM ignores the
captions. An MM1 run takes an encoder by `trainer.initial_weights`, and so does the second, short
stage of a CLIP at a higher resolution:

    python -m mm1_jax.launch --config=clip_vit_l14 --data_dir=data
    python -m mm1_jax.launch --config=clip_vit_l14_336 --data_dir=data \\
        --config.trainer.initial_weights.model.path=$PWD/runs/clip_vit_l14
"""

from collections.abc import Callable, Sequence

from experiments import mesh_rules, mixtures, vision_encoders
from experiments.mesh_rules import Fit
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.data.pairs import PairInput
from mm1_jax.data.random_view import ColorJitter, RandomView
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.evals.held_out_loss import HeldOutLoss
from mm1_jax.experiment import Experiment
from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.feed_forward import MLP_UP
from mm1_jax.models.aim import AIM, AIMv2
from mm1_jax.models.clip import CLIP
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.text_encoder import TextEncoder
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.parallel.parallelism import MeshRule
from mm1_jax.train.contrastive_loss import SoftmaxLoss
from mm1_jax.train.patch_loss import AIMLoss, AIMv2Loss
from mm1_jax.train.trainer import Trainer

# Rows of a step of a CLIP.
_CLIP_ROWS = 90_112


def _clip_model(
    vision_encoder: VisionEncoder.Config, *, num_layers: int, model_dim: int, num_heads: int
) -> CLIP.Config:
    """A CLIP whose features are as wide as its text tower; initialized like OpenAI's.

    Args:
        num_layers, model_dim, num_heads: Sizes of the text tower.
    """
    scale = vision_encoder.model_dim**-0.5
    vision_encoder.class_token.init_std = vision_encoder.positions.init_std = scale
    text_encoder = TextEncoder.default_config().set(
        num_layers=num_layers, model_dim=model_dim, num_heads=num_heads, hidden_dim=4 * model_dim
    )
    layer = text_encoder.stack.layer
    layer.feed_forward.activation = vision_encoder.stack.layer.feed_forward.activation
    # The more layers add to the residual stream, the smaller they start.
    branch = (2 * num_layers) ** -0.5
    layer.attention.output.init_scale = branch
    layer.feed_forward.up.init_scale = 2**-0.5
    layer.feed_forward.down.init_scale = 2 * branch
    return CLIP.default_config().set(
        vision_encoder=vision_encoder,
        text_encoder=text_encoder,
        features_dim=model_dim,
        dtype="bfloat16",
    )


def _clip(
    model: CLIP.Config,
    rows: int,
    *,
    num_pictures: float,
    learning_rate: float = 1e-3,
    warmup_steps: int = 10_000,
) -> Experiment.Config:
    """The recipe of DataComp's largest scale, at which DFN's ViT-L/14 was trained.

    AdamW with betas of 0.9 and 0.95, an eps of 1e-6, a weight decay of 0.2 for matrices, and no
    clipping; 10,000 steps of warm-up to 1e-3, then a cosine to 0; 90,112 rows; crops of 90% of a
    picture or more. The numbers are those of `scale_configs.py` in mlfoundations/datacomp, and
    open_clip's where it has none.

    Args:
        rows: Rows at a time on a device with 95 GB.
    """
    cfg = Experiment.default_config().set(
        model=model,
        input=PairInput.default_config().set(
            streams=mixtures.captioned_pictures(),
            tokenizer=Tokenizer.default_config().set(
                model_path="tokenizer.model", num_pieces=49_408
            ),
            batch_size=_CLIP_ROWS,
            max_sequence_length=77,
            augmentation=RandomView.default_config().set(min_area=0.9),
            num_workers=16,
        ),
        trainer=Trainer.default_config().set(
            max_steps=round(num_pictures / _CLIP_ROWS),
            loss=SoftmaxLoss.default_config().set(chunk_size=8192),
        ),
        evals={"held_out_loss": HeldOutLoss.default_config().set(num_batches=1)},
    )
    cfg.trainer.optimizer.set(
        learning_rate=learning_rate,
        b2=0.95,
        eps=1e-6,
        weight_decay=0.2,
        decayed="matrices",
        warmup_steps=warmup_steps,
        final_fraction=0.0,
        clip=None,
    )
    cfg.trainer.mesh_rules = mesh_rules.pictures(
        Fit(rows, vision=mesh_rules.VISION_PRODUCTS, batch_size=_CLIP_ROWS)
    )
    return cfg


def _second_stage(cfg: Experiment.Config, first: str) -> Experiment.Config:
    """Starts from a run at another resolution, and resizes its positions."""
    weights = InitialWeights.default_config().set(path=f"weights/{first}", resize_positions=True)
    cfg.trainer.initial_weights = {"model": weights}
    return cfg


def _vit_l14(image_size: int) -> CLIP.Config:
    encoder = vision_encoders.vit_l14(image_size)
    return _clip_model(encoder, num_layers=12, model_dim=768, num_heads=12)


def _vit_h14(image_size: int) -> CLIP.Config:
    encoder = vision_encoders.vit_h14(image_size)
    return _clip_model(encoder, num_layers=24, model_dim=1024, num_heads=16)


def clip_vit_l14() -> Experiment.Config:
    """CLIP with ViT-L/14 at 224 px, 428M parameters: 12.8B pictures, as DFN's on DFN-2B."""
    return _clip(_vit_l14(224), 704, num_pictures=12.8e9)


def clip_vit_l14_336() -> Experiment.Config:
    """The second stage of `clip_vit_l14`, at 336 px: 512M pictures; the recipe is not published."""
    cfg = _clip(_vit_l14(336), 176, num_pictures=512e6, learning_rate=4e-5, warmup_steps=500)
    return _second_stage(cfg, "clip_vit_l14")


def clip_vit_h14() -> Experiment.Config:
    """CLIP with ViT-H/14 at 224 px, 986M parameters: 39B pictures, as DFN's on DFN-5B.

    Beside that number, the recipe is that of `clip_vit_l14`.
    """
    return _clip(_vit_h14(224), 352, num_pictures=39e9)


def clip_vit_h14_378() -> Experiment.Config:
    """The second stage of `clip_vit_h14`, at MM1's 378 px: 5B pictures, as DFN's.

    The learning rate is not published.
    """
    cfg = _clip(_vit_h14(378), 88, num_pictures=5e9, learning_rate=4e-5, warmup_steps=500)
    return _second_stage(cfg, "clip_vit_h14")


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
            augmentation=RandomView.default_config().set(
                flip=0.5, colors=ColorJitter.default_config()
            ),
            batch_size=4096,
            max_sequence_length=0,
            num_workers=16,
        ),
        trainer=Trainer.default_config().set(max_steps=125_000, loss=AIMLoss.default_config()),
        evals={"held_out_loss": HeldOutLoss.default_config()},
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
            augmentation=RandomView.default_config().set(flip=0.5),
            batch_size=8192,
            max_sequence_length=77,
            num_workers=16,
        ),
        trainer=Trainer.default_config().set(max_steps=1_250_000, loss=AIMv2Loss.default_config()),
        evals={"held_out_loss": HeldOutLoss.default_config()},
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
    experiments = (
        clip_vit_l14,
        clip_vit_l14_336,
        clip_vit_h14,
        clip_vit_h14_378,
        aim_600m,
        aim_1b,
        aim_3b,
        aimv2_vit_l14,
    )
    return {make.__name__: make for make in experiments}

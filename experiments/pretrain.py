"""Pre-training runs.

    python -m mm1_jax.launch --config=mm1_tiny

trains on the embedded corpora in minutes on two CPU cores and writes a report to runs/mm1_tiny. The
models of the paper, `mm1_3b` to `mm1_30b` and two sparse ones, read records from --data_dir;
`python -m mm1_jax.rehearse --config=mm1_7b --topology=v5p:4x4x4` compiles one without data or TPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from experiments import mesh_rules, mixtures, sizes, vision_encoders
from experiments.mesh_rules import Fit
from mm1_jax.data.input import Input
from mm1_jax.data.packing import Packing
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.evals.benchmarks.digits import digits_caption, digits_vqa
from mm1_jax.evals.benchmarks.scenes import scenes_caption, scenes_vqa
from mm1_jax.evals.held_out_loss import HeldOutLoss
from mm1_jax.experiment import Experiment
from mm1_jax.layers.attention_kernels import ATTENTION_OUTPUT
from mm1_jax.layers.moe import EXPERT_GATE, EXPERT_INPUTS, EXPERT_UP
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.parallelism import MeshRule
from mm1_jax.train.trainer import Trainer


def mm1_tiny() -> Experiment.Config:
    """1M-parameter MM1 on scans of digits and rendered scenes: minutes on two CPU cores."""
    cfg = Experiment.default_config().set(
        model=sizes.tiny(),
        input=Input.default_config().set(
            streams=mixtures.embedded(),
            batch_size=8,
            max_sequence_length=256,
            max_images=16,
        ),
        trainer=Trainer.default_config().set(max_steps=1750),
        evals={
            "held_out_loss": HeldOutLoss.default_config(),
            "digits_vqa": digits_vqa(),
            "digits_caption": digits_caption(),
            "scenes_vqa": scenes_vqa(),
            "scenes_caption": scenes_caption(),
        },
    )
    cfg.trainer.optimizer.set(warmup_steps=40)
    cfg.trainer.checkpointer.every_n_steps = 20
    cfg.evals["held_out_loss"].run.n = 200
    return cfg


def mm1_tiny_moe() -> Experiment.Config:
    """`mm1_tiny` with four experts in every second layer, two per token."""
    cfg = mm1_tiny().set(model=sizes.tiny_moe())
    # A step takes a fifth longer than that of the dense model, and fewer steps are needed.
    cfg.trainer.max_steps = 1200
    return cfg


def paper(model: MM1.Config, mesh_rules: Sequence[MeshRule]) -> Experiment.Config:
    """MM1's pre-training (section 3.4): 200k steps of 512 rows of 4096 tokens and 16 images.

    That is 419B positions. The learning rate warms up over 2,000 steps to the peak of the law and
    decays by a cosine to a tenth of it.
    """
    cfg = Experiment.default_config().set(
        model=model,
        input=Input.default_config().set(
            streams=mixtures.pretraining(),
            tokenizer=Tokenizer.default_config().set(
                model_path="tokenizer.model", num_pieces=32_000
            ),
            batch_size=512,
            max_sequence_length=4096,
            max_images=16,
            # A row has 11.7 pictures on average if a row of pages has 10 (captions fill all 16,
            # text has none). 64 rows then need at most 13 slots each, of which 90% are used.
            image_group_rows=64,
            images_per_row=13,
            # Fills 96% of the tokens or the images of a row, whichever run out first. Each shard
            # that a host plans takes about 10 MB.
            packing=Packing.default_config().set(num_shards=128, num_bins=64),
            num_workers=16,
        ),
        trainer=Trainer.default_config().set(max_steps=200_000),
        evals={"held_out_loss": HeldOutLoss.default_config()},
    )
    cfg.trainer.loss.chunk_length = 512
    cfg.trainer.mesh_rules = list(mesh_rules)
    return cfg


def mm1_3b() -> Experiment.Config:
    """MM1-3B: 2.9B dense decoder, ViT-H/14 at 378 px, C-Abstractor with 144 tokens."""
    return paper(
        sizes.mm1_3b(), mesh_rules.dense(rows=4, small_rows=2, v4=mesh_rules.PRODUCTS_OF_A_ROW)
    )


def mm1_7b() -> Experiment.Config:
    """MM1-7B: 6.5B dense decoder, ViT-H/14 at 378 px, C-Abstractor with 144 tokens."""
    return paper(sizes.mm1_7b(), mesh_rules.dense(rows=2, v4=mesh_rules.PRODUCTS_OF_A_ROW))


def mm1_30b() -> Experiment.Config:
    """MM1-30B: 29.7B dense decoder, ViT-H/14 at 378 px, C-Abstractor with 144 tokens."""
    # With 31 GB per device, sharding over 128 devices leaves room for a row's activations. With
    # 16 GB, the kernels of a layer would take half of it: two devices share them, and a row.
    small = Fit(1, mesh_rules.ATTENTION, (ATTENTION_OUTPUT,), fsdp=128)
    rules = mesh_rules.dense(
        rows=2, vision=(ATTENTION_OUTPUT,), v4=small, v6e=small, v5e=Fit(1, fsdp=-1, model=2)
    )
    return paper(sizes.mm1_30b(), rules)


def mm1_3b_moe() -> Experiment.Config:
    """MM1-3B-MoE: 64 experts in every second layer, two per token."""
    kept = (*mesh_rules.PRODUCTS, EXPERT_INPUTS, EXPERT_GATE, EXPERT_UP)
    fit = Fit(2, kept, mesh_rules.PRODUCTS, fsdp=-1, expert=32)
    slices = replace(fit, vision=mesh_rules.VISION_PRODUCTS, expert=16)
    rules = mesh_rules.sparse(fit, slices=slices)
    return paper(sizes.mm1_3b_moe(), rules)


def mm1_7b_moe() -> Experiment.Config:
    """MM1-7B-MoE: 32 experts in every fourth layer, two per token."""
    fit = Fit(4, (*mesh_rules.PRODUCTS, EXPERT_GATE), (ATTENTION_OUTPUT,), fsdp=-1, expert=8)
    rules = mesh_rules.sparse(fit, slices=replace(fit, rows=2))
    return paper(sizes.mm1_7b_moe(), rules)


def ablation(size: str, *, rows: int = 8) -> Experiment.Config:
    """The base of the paper's ablations (section 3.1): ViT-L/14 at 336 px, 144 tokens per image."""
    model = sizes.mm1(sizes.decoder(size), vision_encoders.vit_l14(336))
    return paper(model, mesh_rules.dense(rows=rows, small_rows=2))


def mm1_1b() -> Experiment.Config:
    """The ablation base: 1.2B decoder, ViT-L/14 at 336 px."""
    return ablation("1b")


def mm1_3b_encoder_ablation() -> Experiment.Config:
    """The base of the encoder ablation: 2.9B decoder, ViT-L/14 at 336 px."""
    return ablation("3b", rows=4)


def mm1_9m() -> Experiment.Config:
    """The 9M decoder of the learning-rate sweep, ViT-L/14 at 336 px."""
    return ablation("9m")


def mm1_85m() -> Experiment.Config:
    """The 85M decoder of the learning-rate sweep, ViT-L/14 at 336 px."""
    return ablation("85m")


def mm1_302m() -> Experiment.Config:
    """The 302M decoder of the learning-rate sweep, ViT-L/14 at 336 px."""
    return ablation("302m")


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    experiments = (
        mm1_tiny,
        mm1_tiny_moe,
        mm1_3b,
        mm1_7b,
        mm1_30b,
        mm1_3b_moe,
        mm1_7b_moe,
        mm1_1b,
        mm1_3b_encoder_ablation,
        mm1_9m,
        mm1_85m,
        mm1_302m,
    )
    return {make.__name__: make for make in experiments}

"""Supervised fine-tuning of the paper's models (MM1, section 4), and the two stages of MM1.5.

    python -m mm1_jax.launch --config=mm1_3b_chat --data_dir=data \\
        --config.trainer.initial_weights.model.path=$PWD/runs/mm1_3b

starts from the newest checkpoint of a run, or from a folder of imported weights; by default, from
`weights/mm1_3b` in `--data_dir`. The conversations of `experiments/mixtures.py` are read from
`--data_dir`. `python -m mm1_jax.rehearse --config=mm1_3b_chat --topology=v5p:4x4x4` compiles a
step without data or TPU.
"""

from collections.abc import Callable, Sequence

from experiments import mesh_rules, mixtures, sizes
from experiments.mesh_rules import Fit
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.grid_rules import FewestTiles, FixedGrid
from mm1_jax.data.input import Input
from mm1_jax.data.packing import Packing
from mm1_jax.data.tiling import IndexMarks, Tiling
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.evals.held_out_loss import HeldOutLoss
from mm1_jax.experiment import Experiment
from mm1_jax.layers.attention_kernels import ATTENTION_OUTPUT
from mm1_jax.layers.lora import Adapter, LoRA
from mm1_jax.layers.moe import EXPERT_GATE, EXPERT_INPUTS, EXPERT_UP
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.parallelism import MeshRule
from mm1_jax.train.optimizers.adafactor import Adafactor
from mm1_jax.train.trainer import Trainer

# MM1 fine-tunes for 10,000 steps of 256 conversations, 1.8 epochs of its 1.45M.
EXAMPLES = 10_000 * 256
# Conversations that a row of 4096 holds if a picture takes 720 positions: 4.98 of 784 positions on
# average, which fill 95% of the rows (docs/fine_tuning.md).
PER_ROW = 5.0
# Conversations per row with MM1.5's 4 to 9 tiles: 972 positions each.
PER_ROW_DYNAMIC = 4.0


def steps(num_examples: int, batch_size: int, examples_per_row: float) -> int:
    """Returns the steps in which rows of several examples show `num_examples` of them.

    A step shows batch_size x examples_per_row examples. For `mm1_3b_chat`:

        2,560,000 / (128 x 5.0) = 4,000

    128 rows of 4096 have the 524,288 positions of MM1's 256 rows of 2048. MM1's rows are taken to
    hold one conversation each, 256 per step; packed rows hold 640. The table of the data that a
    launch prints has the epochs that follow from the real lengths.
    """
    return round(num_examples / (batch_size * examples_per_row))


def chat(model: MM1.Config, weights: str, rules: Sequence[MeshRule]) -> Experiment.Config:
    """MM1's fine-tuning: 1344 px as 2 x 2 tiles and an overview of 672 px, 720 tokens a picture.

    AdaFactor decays from 1e-5 to 0 by a cosine, and nothing is frozen. The paper states no more:
    steps are not relative to the size of the matrix, since 1e-5 of it in each of 10,000 steps would
    hardly change the model, and 3% of them warm up, as in LLaVA.
    """
    model.set_recursively(("vision_encoder", "image_size"), value=672)
    cfg = Experiment.default_config().set(
        model=model,
        input=Input.default_config().set(
            streams=mixtures.mm1_instructions(),
            tokenizer=Tokenizer.default_config().set(
                model_path="tokenizer.model", num_pieces=32_000
            ),
            chat_format=MM1ChatFormat.default_config(),
            tiling=Tiling.default_config().set(rule=FixedGrid.default_config()),
            batch_size=128,
            max_sequence_length=4096,
            # A row has at most 28 views of 144 positions, and 22.4 on average: 64 rows share
            # 24 x 64 slots, of which 93% are used.
            max_images=28,
            image_group_rows=64,
            images_per_row=24,
            packing=Packing.default_config().set(num_shards=128, num_bins=64),
            num_workers=16,
        ),
        trainer=Trainer.default_config().set(
            max_steps=steps(EXAMPLES, 128, PER_ROW),
            optimizer=adafactor(1e-5, warmup_steps=120),
            initial_weights={
                "model": InitialWeights.default_config().set(
                    path=f"weights/{weights}", resize_positions=True
                )
            },
            mesh_rules=list(rules),
        ),
        evals={"held_out_loss": HeldOutLoss.default_config()},
    )
    cfg.trainer.loss.chunk_length = 512
    return cfg


def adafactor(learning_rate: float, *, warmup_steps: int) -> Adafactor.Config:
    """AdaFactor with a cosine to 0, and steps of the size of the learning rate."""
    return Adafactor.default_config().set(
        learning_rate=learning_rate,
        relative=False,
        warmup_steps=warmup_steps,
        final_fraction=0.0,
    )


def mm1_3b_chat() -> Experiment.Config:
    """MM1-3B-Chat: `mm1_3b` fine-tuned on 1.45M conversations at 1344 px, packed."""
    return chat(sizes.mm1_3b(), "mm1_3b", mesh_rules.fine_tuning(Fit(1, *_KEPT)))


def mm1_7b_chat() -> Experiment.Config:
    """MM1-7B-Chat: `mm1_7b` fine-tuned on 1.45M conversations at 1344 px, packed."""
    # A row takes 16.4 GiB on v5e; two devices have memory for one, from 128 chips on.
    v5e = Fit(1, fsdp=-1, model=2)
    return chat(sizes.mm1_7b(), "mm1_7b", mesh_rules.fine_tuning(Fit(1, *_KEPT), v5e=v5e))


def mm1_30b_chat() -> Experiment.Config:
    """MM1-30B-Chat: `mm1_30b` fine-tuned on 1.45M conversations at 1344 px, packed."""
    fit = Fit(1, mesh_rules.PRODUCTS, (ATTENTION_OUTPUT,))
    return chat(sizes.mm1_30b(), "mm1_30b", mesh_rules.fine_tuning(fit))


def mm1_3b_moe_chat() -> Experiment.Config:
    """MM1-3B-MoE-Chat: `mm1_3b_moe` fine-tuned on 1.45M conversations at 1344 px, packed."""
    kept = (*mesh_rules.PRODUCTS, EXPERT_INPUTS, EXPERT_GATE, EXPERT_UP)
    fit = Fit(1, kept, (ATTENTION_OUTPUT,), fsdp=-1, expert=16)
    return chat(sizes.mm1_3b_moe(), "mm1_3b_moe", mesh_rules.fine_tuning(fit))


def mm1_7b_moe_chat() -> Experiment.Config:
    """MM1-7B-MoE-Chat: `mm1_7b_moe` fine-tuned on 1.45M conversations at 1344 px, packed."""
    kept = (*mesh_rules.PRODUCTS, EXPERT_GATE)
    fit = Fit(1, kept, (ATTENTION_OUTPUT,), fsdp=-1, expert=8)
    return chat(sizes.mm1_7b_moe(), "mm1_7b_moe", mesh_rules.fine_tuning(fit))


def mm1_3b_chat_unpacked() -> Experiment.Config:
    """`mm1_3b_chat` unpacked: 10,000 steps of 256 rows of 2048, one conversation each."""
    cfg = mm1_3b_chat()
    cfg.input.set(
        batch_size=256,
        max_sequence_length=2048,
        # At most two pictures in tiles; 4.5 views on average.
        max_images=14,
        images_per_row=5,
        packing=Packing.default_config().set(num_shards=256, num_bins=1, max_examples=1),
    )
    cfg.trainer.max_steps = 10_000
    cfg.trainer.optimizer.warmup_steps = 300
    return cfg


def mm1_3b_chat_lora() -> Experiment.Config:
    """`mm1_3b_chat` by adapters of the decoder and a fully trained connector."""
    cfg = mm1_3b_chat()
    adapter = Adapter.default_config().set(rank=16, alpha=32.0)
    cfg.model.lora = LoRA.default_config().set(
        adapters={"decoder/stack": adapter}, trained=("connector",)
    )
    # Adapters start at zero and take larger steps than whole matrices.
    cfg.trainer.optimizer.learning_rate = 2e-4
    return cfg


def mm1p5_3b_continued() -> Experiment.Config:
    """MM1.5's continual pre-training of `mm1_3b`: 45M pages of text at 1344 px, 30,000 steps.

    The paper states batches of 256, AdaFactor at 1e-5 and a cosine. Rows have 4096 positions, as in
    pre-training, and all text on a page is scored.
    """
    cfg = chat(sizes.mm1_3b(), "mm1_3b", mesh_rules.fine_tuning(Fit(1, *_KEPT), batch_size=256))
    cfg.input.set(
        streams=mixtures.text_rich_pages(),
        chat_format=None,
        batch_size=256,
        packing=Packing.default_config().set(num_shards=256, num_bins=64),
    )
    cfg.trainer.max_steps = 30_000
    cfg.trainer.optimizer.warmup_steps = 900
    return cfg


def mm1p5_3b_chat() -> Experiment.Config:
    """MM1.5's fine-tuning after `mm1p5_3b_continued`: 4 to 9 tiles by the size of a picture.

    The paper has 23,000 steps of 256, one epoch of 5.9M examples. Its rule for the grid does not
    say which of equal grids to take; this config takes the fewest tiles that hold the picture.
    """
    cfg = chat(sizes.mm1_3b(), "mm1p5_3b_continued", mesh_rules.fine_tuning(Fit(1, *_KEPT)))
    cfg.input.set(
        streams=mixtures.mm1p5_instructions(),
        tiling=Tiling.default_config().set(
            rule=FewestTiles.default_config().set(min_tiles=4, max_tiles=9),
            marks=IndexMarks.default_config(),
            max_tiled_images=2,
        ),
    )
    num_steps = steps(23_000 * 256, 128, PER_ROW_DYNAMIC)
    cfg.trainer.set(
        max_steps=num_steps, optimizer=adafactor(2e-5, warmup_steps=num_steps * 3 // 100)
    )
    return cfg


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    experiments = (
        mm1_3b_chat,
        mm1_7b_chat,
        mm1_30b_chat,
        mm1_3b_moe_chat,
        mm1_7b_moe_chat,
        mm1_3b_chat_unpacked,
        mm1_3b_chat_lora,
        mm1p5_3b_continued,
        mm1p5_3b_chat,
    )
    return {make.__name__: make for make in experiments}


# Activations that are kept where a device has 95 GB.
_KEPT = (mesh_rules.PRODUCTS, mesh_rules.VISION_PRODUCTS)

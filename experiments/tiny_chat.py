"""Fine-tuning of `mm1_tiny` to a small chat model, in minutes on two CPU cores.

    python -m mm1_jax.launch --config=mm1_tiny
    python -m mm1_jax.launch --config=mm1_tiny_chat
    python -m mm1_jax evaluate --checkpoint=runs/mm1_tiny --benchmarks=embedded_chat

The last command asks the pre-trained model the same instructions. Controls:

    python -m mm1_jax.launch --config=mm1_tiny_chat_shuffled_pictures
    python -m mm1_jax.launch --config=mm1_tiny_chat_all_tokens
"""

from collections.abc import Callable

from experiments import mixtures
from experiments.pretrain import mm1_tiny
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.corpora.controls import ScoredPrompts, ShuffledPictures
from mm1_jax.evals.benchmarks.digits import digits_chat, digits_vqa
from mm1_jax.evals.benchmarks.instructions import instructions
from mm1_jax.evals.benchmarks.scenes import scenes_chat, scenes_vqa
from mm1_jax.evals.held_out_loss import HeldOutLoss
from mm1_jax.experiment import Experiment
from mm1_jax.layers.lora import LoRA
from mm1_jax.train.optimizers.adafactor import Adafactor

PRETRAINED = "runs/mm1_tiny"


def mm1_tiny_chat() -> Experiment.Config:
    """`mm1_tiny` fine-tuned on instructions about digits and scenes."""
    cfg = mm1_tiny()
    cfg.input.set(
        streams=mixtures.embedded_instructions(),
        chat_format=MM1ChatFormat.default_config(),
        batch_size=4,
        max_sequence_length=512,
    )
    cfg.trainer.set(
        max_steps=1500,
        initial_weights={"model": InitialWeights.default_config().set(path=PRETRAINED)},
        # The paper's optimizer and schedule; the rate is relative to the size of each matrix.
        optimizer=Adafactor.default_config().set(
            learning_rate=0.01, warmup_steps=40, final_fraction=0.0
        ),
    )
    cfg.evals = {
        "held_out_loss": HeldOutLoss.default_config(),
        "digits_vqa": digits_vqa(),
        "scenes_vqa": scenes_vqa(),
        "instructions": instructions(),
        "digits_chat": digits_chat(),
        "scenes_chat": scenes_chat(),
    }
    return cfg


def mm1_tiny_chat_shuffled_pictures() -> Experiment.Config:
    """`mm1_tiny_chat` on instructions with the pictures of other ones: blind, but well-formed."""
    cfg = mm1_tiny_chat()
    for entry in _instructions(cfg).corpora:
        entry.corpus.source = ShuffledPictures.default_config().set(source=entry.corpus.source)
    return cfg


def mm1_tiny_chat_all_tokens() -> Experiment.Config:
    """`mm1_tiny_chat` trained on the questions as well as on the answers."""
    cfg = mm1_tiny_chat()
    for entry in _instructions(cfg).corpora:
        document = entry.corpus.to_document
        entry.corpus.to_document = ScoredPrompts.default_config().set(document=document)
    return cfg


def mm1_tiny_chat_lora() -> Experiment.Config:
    """`mm1_tiny_chat` by adapters of rank 8 in the decoder and a fully trained connector."""
    cfg = mm1_tiny_chat()
    cfg.model.lora = LoRA.default_config().set(trained=("connector",))
    # Adapters start at zero, and a step relative to them would stay small.
    cfg.trainer.optimizer.set(relative=False, learning_rate=1e-3)
    return cfg


def _instructions(cfg: Experiment.Config):
    return next(stream for stream in cfg.input.streams if stream.name == "instructions")


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    experiments = (
        mm1_tiny_chat,
        mm1_tiny_chat_shuffled_pictures,
        mm1_tiny_chat_all_tokens,
        mm1_tiny_chat_lora,
    )
    return {make.__name__: make for make in experiments}

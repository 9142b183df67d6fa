"""Small models on small datasets that are read from disk.

    for kind in other yes_no; do
        python -m mm1_jax convert_records --format=vqa --input=easy_vqa/train_questions.json \\
            --filters=${kind}_answers --output=data/easy_vqa_$kind --license=MIT
    done
    python -m mm1_jax convert_records --format=vqa --input=easy_vqa/val_questions.json \\
        --output=data/easy_vqa_val --license=MIT
    python -m mm1_jax train_tokenizer --config=mm1_tiny_easy_vqa --data_dir=data
    python -m mm1_jax.launch --config=mm1_tiny_easy_vqa --data_dir=data

A model that always answers "yes" is right for 37.7% of the validation questions. Expect 99% after
2,500 steps, less than half an hour on two CPU cores (docs/data.md has the curve).

`mm1_tiny_textbooks` reads captions and chapters of OpenStax, recipes, and chapters of "Dive into
Deep Learning", from JSONL files with pictures beside them:

    for name in openstax_captions openstax_chapters recipes d2l_chapters d2l_text recipes_text; do
        python -m mm1_jax convert_records --format=jsonl --input=jsonl/$name --output=data/$name
    done
    python -m mm1_jax train_tokenizer --data_dir=data --output=data/tokenizer.model \\
        --vocab_size=4096
    python -m mm1_jax.launch --config=mm1_tiny_textbooks --data_dir=data
"""

from collections.abc import Callable

from experiments import mixtures, sizes
from mm1_jax.data.input import Input
from mm1_jax.data.mixture import Stage
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.evals.benchmarks.easy_vqa import easy_vqa
from mm1_jax.evals.evaluator import EveryNSteps
from mm1_jax.evals.held_out_loss import HeldOutLoss
from mm1_jax.experiment import Experiment
from mm1_jax.train.trainer import Trainer

# Steps on the questions without a yes/no answer, before the yes/no questions are added.
FIRST_STEPS = 600


def mm1_tiny_easy_vqa() -> Experiment.Config:
    """`mm1_tiny` on the questions of easy-VQA only, the most informative ones first."""
    streams = mixtures.easy_vqa()
    streams[1].weight = 0
    benchmark = easy_vqa(streams[0].corpora[0].corpus).set(
        shots=(0,),
        run=EveryNSteps.default_config().set(n=500),
    )
    model = sizes.tiny()
    # Shapes of at least eight pixels, on nearly white backgrounds.
    model.vision_encoder.set(
        image_size=64,
        patch_size=8,
        pixel_mean=(0.85, 0.85, 0.85),
        pixel_std=(0.25, 0.25, 0.25),
    )
    cfg = Experiment.default_config().set(
        model=model,
        input=Input.default_config().set(
            streams=streams,
            # "What shape is in the image?" teaches a model more about shapes than "is there a
            # circle?". With three times as many of the latter, it guesses for thousands of steps.
            stages=[Stage().set(from_step=FIRST_STEPS, weights={"other": 1, "yes_no": 1})],
            # Tokens are whole words: a question takes 13, and twice as many with the shipped
            # tokenizer.
            tokenizer=Tokenizer.default_config().set(model_path="easy_vqa.model", num_pieces=512),
            batch_size=4,
            max_sequence_length=256,
            max_images=14,
        ),
        trainer=Trainer.default_config().set(max_steps=2500),
        evals={"easy_vqa": benchmark},
    )
    cfg.trainer.optimizer.set(warmup_steps=40)
    cfg.trainer.checkpointer.every_n_steps = 100
    return cfg


def mm1_tiny_textbooks() -> Experiment.Config:
    """`mm1_tiny` at 64 pixels on captions, chapters and text of textbooks and recipes."""
    model = sizes.tiny()
    model.vision_encoder.set(image_size=64, pixel_mean=(0.5,) * 3, pixel_std=(0.3,) * 3)
    tokenizer = Tokenizer.default_config().set(model_path="tokenizer.model", num_pieces=4096)
    cfg = Experiment.default_config().set(
        model=model,
        input=Input.default_config().set(
            streams=mixtures.textbooks(),
            tokenizer=tokenizer,
            batch_size=8,
            max_sequence_length=512,
            max_images=8,
        ),
        trainer=Trainer.default_config().set(max_steps=1000),
        evals={"held_out_loss": HeldOutLoss.default_config()},
    )
    cfg.trainer.optimizer.set(warmup_steps=40)
    cfg.trainer.checkpointer.every_n_steps = 100
    return cfg


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {make.__name__: make for make in (mm1_tiny_easy_vqa, mm1_tiny_textbooks)}

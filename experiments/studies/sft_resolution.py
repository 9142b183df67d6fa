"""Resolution and tiles in fine-tuning (MM1, figure 7b), on rendered pages with small print.

    python -m mm1_jax run_study --study=sft_resolution

Every seed is pre-trained once on dense readings of pages at 56 pixels, in print that is legible at
this size: the digit in each quarter, and the color of the larger part of the page. Fine-tuning
reads pages in print half as large, which at 112 pixels, or in a tile, looks as large as that of
pre-training does at 56. All arms see the same pages in the same order.

Half of the pages of pre-training have one digit in all quarters, so that reading can be learned
before the places are known.
"""

from collections.abc import Callable

from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.data.corpora import pages
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.grid_rules import FixedGrid
from mm1_jax.data.input import Input
from mm1_jax.data.mixture import CorpusWeight, Stream
from mm1_jax.data.tiling import IndexMarks, Overview, Tiling
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.scoring.exact_match import accuracy_by_kind
from mm1_jax.experiment import Experiment
from mm1_jax.models.connectors.c_abstractor import CAbstractor
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.mm1 import MM1
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.parallel.rematerialisation import Remat
from mm1_jax.studies.study import Arm, Claim, Metric, Score, Stage, Study
from mm1_jax.train.trainer import Trainer

# Fonts in pixels of a page of 112. At 56 pixels, digits are 2.2, 2.9 and 4.4 pixels high.
SIZES = (6, 8, 12)
# Sizes in pre-training, twice as large. Most digits have the largest one, which is learned first.
LARGE_SIZES = (12, 16, 24, 24, 24, 24)
NUM_TOKENS = 16
ROWS = 16
PAGES_PER_ROW = 2
READING = 11  # Length of the text of a page, with its first token.
MARK = 2  # Length of the text before a view.


def study() -> Study:
    parts = ("vision_encoder", "connector", "decoder")
    start = {f"trainer.initial_weights.{part}.path": "{pages_pretraining}" for part in parts}

    def arm(name: str, minutes: float, text: str) -> Arm:
        return Arm(name, f"pages_{name}", start, minutes, text)

    def claim(text: str, higher: str, lower: str, metric: str, *, alike: bool = False) -> Claim:
        return Claim(text, Score(higher, metric), Score(lower, metric), 0.05, alike)

    kinds = [("digit", "accuracy")]
    kinds += [(f"digit_{size}", f"accuracy_digit_{size}") for size in SIZES]
    return Study(
        design="Reading small print takes pixels, not tokens: after equal pre-training at 56 "
        "pixels, fine-tuning at 112 pixels by interpolated positions, and on 2 x 2 tiles of 56 "
        "pixels, reads more digits than at 56 pixels, while five times as many tokens of a picture "
        "of 56 pixels do not help; the overview beside the tiles helps to name the main color of "
        "the page. Controls fine-tune at 112 pixels without pre-training, and with random "
        "positions. The metric is the exact match of answers to 800 questions for a digit in one "
        "of three sizes, and 400 for the color, of held-out pages. A difference of 0.05 is "
        "of interest.",
        stages=[Stage("pages_pretraining", "pages_pretraining", minutes=3.0)],
        arms=[
            arm("px56", 2.0, "one view of 56 pixels, 16 tokens"),
            arm("px112", 2.0, "one view of 112 pixels by interpolated positions, 16 tokens"),
            arm("px112_random_positions", 2.0, "the same with random positions"),
            Arm("px112_scratch", "pages_px112_scratch", {}, 2.0, "the same without pre-training"),
            arm("tiles_overview", 4.0, "2 x 2 tiles of 56 pixels and an overview, 80 tokens"),
            arm("tiles", 3.5, "2 x 2 tiles of 56 pixels, 64 tokens"),
            arm("px56_81_tokens", 3.5, "one view of 56 pixels, 81 tokens"),
        ],
        reference="px56",
        metrics=[
            *(Metric(name, (f"pages_digit/0/{key}",)) for name, key in kinds),
            Metric("color", ("pages_color/0/accuracy",), "the color of the larger part"),
        ],
        claims=[
            claim("interpolation to 112 pixels reads more", "px112", "px56", "digit"),
            claim("tiles with an overview read more", "tiles_overview", "px56", "digit"),
            claim("pixels and not tokens read", "tiles_overview", "px56_81_tokens", "digit"),
            claim(
                "five times the tokens make no difference",
                "px56_81_tokens",
                "px56",
                "digit",
                alike=True,
            ),
            claim("large print gains less than 0.05", "px112", "px56", "digit_12", alike=True),
            claim("pre-training is needed", "px112", "px112_scratch", "digit"),
            claim("interpolation is needed", "px112", "px112_random_positions", "digit"),
            claim("the overview shows the whole", "tiles_overview", "tiles", "color"),
        ],
        full_size="the `_chat` configs of `experiments/fine_tune.py` at 336, 672 and 1344 pixels",
    )


def model(image_size: int = 56, num_image_tokens: int = NUM_TOKENS) -> MM1.Config:
    """About 0.3M parameters; no patch of 14 pixels cuts a digit, at 56 or at 112 pixels."""
    vision_encoder = VisionEncoder.default_config().set(
        image_size=image_size,
        patch_size=14,
        model_dim=64,
        num_layers=2,
        num_heads=4,
        hidden_dim=256,
        pixel_mean=(0.1, 0.1, 0.1),
        pixel_std=(0.25, 0.25, 0.25),
    )
    connector = CAbstractor.default_config().set(
        num_image_tokens=num_image_tokens, depth=0, mlp_depth=1
    )
    # Places must be told apart before anything else is learned.
    vision_encoder.positions.init_std = connector.positions.init_std = 0.4
    decoder = Decoder.default_config().set(model_dim=64, num_layers=2, num_heads=4, hidden_dim=128)
    decoder.embedding.init_std = 0.5
    # Activations of such a model are small, and recomputing them takes a fifth of a step.
    vision_encoder.stack.remat = connector.remat = decoder.stack.remat = Remat.NONE
    return MM1.default_config().set(
        vision_encoder=vision_encoder, connector=connector, decoder=decoder
    )


def pages_pretraining() -> Experiment.Config:
    """Dense readings of pages at 56 pixels, in print twice as large as that of fine-tuning."""
    cfg = _on_pages(model(), LARGE_SIZES, max_steps=1500, repeated_share=0.5)
    cfg.trainer.optimizer.set(warmup_steps=50, learning_rate=2e-3)
    return cfg


def pages_px56() -> Experiment.Config:
    """Pages at 56 pixels."""
    return _fine_tuned(model())


def pages_px112() -> Experiment.Config:
    """Pages at 112 pixels, with resized positions and as many tokens."""
    return _fine_tuned(model(112))


def pages_px112_random_positions() -> Experiment.Config:
    """`pages_px112` with random positions in place of resized ones."""
    cfg = pages_px112()
    for part in ("vision_encoder", "connector"):
        cfg.trainer.initial_weights[part].set(
            resize_positions=False, fresh=(positions := (f"{part}/positions",)), unused=positions
        )
    return cfg


def pages_px112_scratch() -> Experiment.Config:
    """`pages_px112` without pre-training."""
    cfg = pages_px112()
    cfg.trainer.initial_weights = {}
    return cfg


def pages_tiles_overview() -> Experiment.Config:
    """Pages in 2 x 2 tiles of 56 pixels, followed by an overview."""
    return _fine_tuned(model(), Overview.LAST)


def pages_tiles() -> Experiment.Config:
    """Pages in 2 x 2 tiles of 56 pixels."""
    return _fine_tuned(model(), Overview.NONE)


def pages_px56_81_tokens() -> Experiment.Config:
    """Pages at 56 pixels, with about as many tokens as tiles with an overview."""
    return _fine_tuned(model(num_image_tokens=81))


def _fine_tuned(model: MM1.Config, overview: Overview | None = None) -> Experiment.Config:
    """Fine-tuning on small print: all arms have the same pages in order, and pages per row."""
    num_views = {None: 1, Overview.NONE: 4, Overview.LAST: 5}[overview]
    cfg = _on_pages(model, SIZES, max_steps=600, num_views=num_views)
    if overview is not None:
        rule = FixedGrid.default_config().set(columns=2, rows=2)
        # Tiles look alike but for the marks before them: row and column, from 1.
        marks = IndexMarks.default_config().set(tile="{row} {column}", overview="0 0")
        cfg.input.tiling = Tiling.default_config().set(rule=rule, overview=overview, marks=marks)
    cfg.trainer.initial_weights = {
        part: InitialWeights.default_config().set(
            path="runs/studies/stages/pages_pretraining/0", resize_positions=part != "decoder"
        )
        for part in ("vision_encoder", "connector", "decoder")
    }
    cfg.trainer.optimizer.set(warmup_steps=20, learning_rate=2e-3)
    return cfg


def _on_pages(
    model: MM1.Config,
    sizes: tuple[int, ...],
    *,
    max_steps: int,
    num_views: int = 1,
    repeated_share: float = 0.0,
) -> Experiment.Config:
    assert model.connector is not None, "the model reads images"
    length = num_views * model.connector.num_image_tokens + READING
    length += MARK * num_views * (num_views > 1)
    corpus = pages.corpus(
        Kind.CAPTIONS,
        sizes=sizes,
        repeated_share=repeated_share,
        num_records=max_steps * ROWS * PAGES_PER_ROW,
    )
    stream = Stream.default_config().set(name="pages", corpora=[CorpusWeight().set(corpus=corpus)])
    cfg = Experiment.default_config().set(
        model=model,
        input=Input.default_config().set(
            streams=[stream],
            batch_size=ROWS,
            max_sequence_length=PAGES_PER_ROW * length,
            max_images=PAGES_PER_ROW * num_views,
        ),
        trainer=Trainer.default_config().set(max_steps=max_steps),
        evals={
            "pages_digit": _benchmark("digit", 800, sizes),
            "pages_color": _benchmark("color", 400, sizes),
        },
    )
    cfg.trainer.checkpointer.every_n_steps = 100
    return cfg


def _benchmark(asks: str, num_examples: int, sizes: tuple[int, ...]) -> Benchmark.Config:
    return Benchmark.default_config().set(
        name=f"pages_{asks}",
        corpus=pages.corpus(Kind.QUESTIONS, asks=asks, sizes=sizes),
        scoring=accuracy_by_kind,
        shots=(0,),
        blank_shots=(),
        num_examples=num_examples,
        batch_size=100,
        max_new_tokens=1,  # A digit or a color is one token.
    )


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    configs = (
        pages_pretraining,
        pages_px56,
        pages_px112,
        pages_px112_random_positions,
        pages_px112_scratch,
        pages_tiles_overview,
        pages_tiles,
        pages_px56_81_tokens,
    )
    return {make.__name__: make for make in configs}

"""The small version of an experiment's config: the same structure, at sizes for a laptop.

Kept: classes, norms, activations and dtypes, the connector, sparse layers at the same distance and
their number of experts per token, streams with their weights and kinds of documents, rows with
several images and groups of rows that share image slots, the schedule and the loss.

Reduced: widths, depths, numbers of heads and of experts, the image size, tokens per image, rows and
their length, and steps. Replaced: corpora and tokenizers that are read from files, by embedded
ones. Removed: evaluators that read files, initial weights, snapshots, and mesh rules, which are for
the large model's devices.
"""

from collections.abc import Callable
from typing import Any

from mm1_jax.config import ConfigBase
from mm1_jax.data.corpora import digits, scenes
from mm1_jax.data.corpora.captions import CaptionChoice, image_document
from mm1_jax.data.corpora.conversations import ConversationDocument
from mm1_jax.data.corpora.embedded import TO_DOCUMENT, Kind
from mm1_jax.data.packing import Packing
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.field_types import class_name
from mm1_jax.parallel.parallelism import Parallelism

NUM_IMAGE_TOKENS = 4
# Patches along each side of an image: more than tokens, for the connector to pool.
PATCHES_PER_SIDE = 4
# The largest sizes; smaller ones stay.
TRANSFORMER = {"model_dim": 64, "hidden_dim": 128, "num_heads": 4, "head_dim": 16}
VISION_ENCODER = {**TRANSFORMER, "num_layers": 2}
CONNECTOR = {
    **TRANSFORMER,
    "num_image_tokens": NUM_IMAGE_TOKENS,
    "depth": 1,
    "hidden_dim": 64,
    "num_layers": 1,
}
NUM_LAYERS = 4
NUM_EXPERTS = 4
# Parts beside a decoder, by their names in the config of a model.
PARTS = {
    "vision_encoder": VISION_ENCODER,
    "connector": CONNECTOR,
    "text_encoder": {**TRANSFORMER, "num_layers": NUM_LAYERS},
    "pixel_head": {"num_layers": 2, "model_dim": 64, "hidden_dim": 128},
}
MODEL = {"features_dim": 64}
INPUT = {"batch_size": 8, "max_sequence_length": 256, "max_images": 8, "num_workers": 0}
GROUP_ROWS = 4
MAX_STEPS = 200
WARMUP_STEPS = 20
CHUNK_LENGTH = 128
EVALUATOR = {"num_batches": 4, "num_examples": 16, "num_few_shot_examples": 8, "batch_size": 16}
EVERY_N_STEPS = 100


def small(cfg: Any, note: Callable[[str], None] = lambda line: None) -> Any:
    """Returns a small copy of an experiment's config, before `resolve`.

    Args:
        note: Called with one line per part, which lists its changes.

    Raises:
        ValueError: A corpus is read from files, and no embedded one has documents of its kind.
    """
    cfg = cfg.clone()
    changes = _Changes()
    _reduce_model(changes, cfg.model)
    is_packed = "packing" in cfg.input
    max_images = cfg.input.max_images if is_packed else 1
    sizes = INPUT | ({"max_images": _most_images(cfg.input)} if is_packed else {})
    changes.at_most("input", cfg.input, sizes)
    _replace_data(changes, cfg.input)
    if is_packed:
        _reduce_packing(changes, cfg.input, max_images)
    _reduce_training(changes, cfg)
    for line in changes.lines():
        note(f"--small: {line}")
    return cfg


def _most_images(cfg: Any) -> int:
    """Returns the images of a row: with tiles, at least the views of one picture."""
    if cfg.tiling is None:
        return INPUT["max_images"]
    return max(INPUT["max_images"], cfg.tiling.clone(tile_size=1).instantiate().most_views)


class _Changes:
    """Sets fields, and records their former values."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def set(self, part: str, cfg: Any, **fields: Any) -> None:
        for name, value in fields.items():
            if (before := getattr(cfg, name)) != value:
                self.say(part, f"{name} {_brief(before)} -> {_brief(value)}")
                setattr(cfg, name, value)

    def at_most(self, part: str, cfg: Any, largest: dict[str, int]) -> None:
        """Reduces the fields that exceed `largest`; ignores fields that `cfg` lacks."""
        for name, most in largest.items():
            value = getattr(cfg, name) if name in cfg else None
            if isinstance(value, int) and value > most:
                self.set(part, cfg, **{name: most})

    def reset(self, part: str, cfg: Any, default: Any) -> None:
        self.set(part, cfg, **dict(default.items()))

    def say(self, part: str, change: str) -> None:
        self._lines.setdefault(part, []).append(change)

    def lines(self) -> list[str]:
        return [f"{part}: {', '.join(changes)}" for part, changes in self._lines.items()]


def _reduce_model(changes: _Changes, model: Any) -> None:
    parts = {name: getattr(model, name) for name in (*PARTS, "decoder") if name in model}
    for name, sizes in PARTS.items():
        if (part := parts.get(name)) is not None:
            changes.at_most(f"model.{name}", part, sizes)
    if (encoder := parts.get("vision_encoder")) is not None:
        size = {"image_size": PATCHES_PER_SIDE * encoder.patch_size}
        changes.at_most("model.vision_encoder", encoder, size)
    if "decoder" in parts:
        _reduce_decoder(changes, parts["decoder"])
    changes.at_most("model", model, MODEL)


def _reduce_decoder(changes: _Changes, decoder: Any) -> None:
    moe = decoder.moe if "moe" in decoder else None
    heads = decoder.num_heads
    kv_heads = decoder.num_kv_heads if "num_kv_heads" in decoder else None
    # Sparse layers stay where they are: the last of every `moe_every`.
    every = 1 if moe is None else decoder.moe_every
    num_layers = -(-NUM_LAYERS // every) * every
    changes.at_most("model.decoder", decoder, {**TRANSFORMER, "num_layers": num_layers})
    if kv_heads is not None:
        fewer = max(1, decoder.num_heads * kv_heads // heads)
        changes.at_most("model.decoder", decoder, {"num_kv_heads": fewer})
    if moe is not None:
        most = max(NUM_EXPERTS, moe.experts_per_token)
        sizes = {"num_experts": most, "hidden_dim": TRANSFORMER["hidden_dim"]}
        changes.at_most("model.decoder.moe", moe, sizes)


def _replace_data(changes: _Changes, cfg: Any) -> None:
    embedded = (digits.corpus, scenes.corpus)
    kinds = {to_document: kind for kind, to_document in TO_DOCUMENT.items()}
    kinds[image_document] = Kind.CAPTIONS
    number = 0
    for stream in cfg.streams:
        for entry in (*stream.corpora, *stream.fillers):
            corpus = entry.corpus
            if not _reads_files(corpus):
                continue
            match corpus.to_document:
                case ConversationDocument.Config():
                    kind = Kind.QUESTIONS
                case CaptionChoice.Config():
                    kind = Kind.CAPTIONS
                case to_document:
                    kind = kinds.get(to_document)
            if kind is None:
                raise ValueError(
                    f"--small: corpus {corpus.name!r} reads files, and no embedded corpus has "
                    f"documents of {corpus.to_document.__name__}; give the stream a corpus that "
                    "does without files"
                )
            other = embedded[number % 2](kind)
            number += 1
            changes.say("input", f"corpus {corpus.name} is {other.name}")
            splitter = None if kind is Kind.QUESTIONS else corpus.splitter
            entry.corpus = other.set(name=corpus.name, splitter=splitter)
    if getattr(cfg.tokenizer, "model_path", None) is not None:
        changes.say("input", "the tokenizer is the one that ships with the package")
        cfg.tokenizer = Tokenizer.default_config()


def _reduce_packing(changes: _Changes, cfg: Any, max_images: int) -> None:
    """Reduces what only an input of packed rows has, which had `max_images` before."""
    changes.set("input", cfg, snapshot=None)
    packing = Packing.default_config().set(max_examples=cfg.packing.max_examples)
    changes.reset("input.packing", cfg.packing, packing)
    changes.at_most("input", cfg, {"image_group_rows": GROUP_ROWS})
    if cfg.images_per_row is not None:
        # A whole number: any number of rows then has a whole number of slots.
        slots = -(-cfg.images_per_row * cfg.max_images // max_images)
        changes.set("input", cfg, images_per_row=float(slots))


def _reduce_training(changes: _Changes, cfg: Any) -> None:
    trainer, optimizer = cfg.trainer, cfg.trainer.optimizer
    for stage in cfg.input.stages:
        step = stage.from_step * min(MAX_STEPS, trainer.max_steps) // trainer.max_steps
        changes.set("input.stages", stage, from_step=step)
    if optimizer.decay_steps is not None:
        changes.at_most("trainer.optimizer", optimizer, {"decay_steps": MAX_STEPS})
    changes.at_most("trainer", trainer, {"max_steps": MAX_STEPS})
    steps = {"warmup_steps": WARMUP_STEPS, "stable_steps": MAX_STEPS // 2}
    changes.at_most("trainer.optimizer", optimizer, steps)
    changes.at_most("trainer.loss", trainer.loss, {"chunk_length": CHUNK_LENGTH})
    changes.at_most("trainer.checkpointer", trainer.checkpointer, {"every_n_steps": EVERY_N_STEPS})
    changes.set("trainer", trainer, initial_weights={}, initial_adapters=None, mesh_rules=[])
    changes.reset("trainer.parallelism", trainer.parallelism, Parallelism.default_config())
    for name, evaluator in list(cfg.evals.items()):
        if _reads_files(evaluator):
            changes.say("evals", f"{name} reads files and is switched off")
            del cfg.evals[name]
        else:
            if "num_examples" in evaluator and evaluator.num_examples is None:
                changes.set(f"evals.{name}", evaluator, num_examples=EVALUATOR["num_examples"])
            changes.at_most(f"evals.{name}", evaluator, EVALUATOR)
            changes.at_most(f"evals.{name}", evaluator.run, {"n": EVERY_N_STEPS})


def _reads_files(cfg: Any) -> bool:
    """Returns whether a config has a part that looks for files below `input.data_dir`."""
    found: list[str] = []

    def enter(path: str, value: Any, children: list | None) -> list | None:
        if isinstance(value, ConfigBase) and "data_dir" in value:
            found.append(path)
        return children

    cfg.visit(lambda path, value: None, enter)
    return bool(found)


def _brief(value: Any) -> str:
    if isinstance(value, ConfigBase):
        return class_name(type(value))
    if isinstance(value, list | dict) and value:
        return f"{len(value)} entries" if len(value) > 1 else "1 entry"
    return "none" if value in ([], {}) else str(value)

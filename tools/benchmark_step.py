"""Benchmarks the train step of an MM1 beside torch's.

    python tools/benchmark_step.py --shapes=9m --rounds=5 --breakdown
    python tools/benchmark_step.py --shapes=1b --platform=gpu --rounds=5

Both sides train the same model from the same weights, on the same random rows in memory, with AdamW
of the same options and clipping by the same norm, without the z-loss. A row is one document that
fills it, with its pictures at its start. Torch runs text by transformers' `LlamaForCausalLM`, and
pictures by the code that `export` writes beside the weights of an MM1; its attention is
`scaled_dot_product_attention`. Each side has its own process, which reports its peak memory, and
the sides take turns. The pictures of torch are normalized before the steps, ours within each.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from step_benchmark.sides import CompiledStep, TorchStep, torch_pixels
from step_benchmark.turns import (
    MIB,
    OURS,
    ROOT,
    add_turn_options,
    answer,
    breakdown_lines,
    measure,
    ratio_lines,
)

from mm1_jax.command import command
from mm1_jax.launch.config_options import split_overrides

PEER = "torch"
# Side of the square matrices whose product is taken for the peak, and products of a turn.
_GEMM, _GEMM_TIMES = {"cpu": 2048, "gpu": 8192}, 4
_PIECES = 32_000


class Shapes(NamedTuple):
    """A model and its rows.

    Attributes:
        model: Makes an `MM1.Config`.
        rows, length: Rows of a step, and positions of each.
        images: Pictures of a row.
        pieces: Pieces of the vocabulary.
    """

    model: Callable[[], Any]
    rows: int
    length: int
    images: int = 0
    pieces: int = _PIECES


def _text(size: str) -> Callable[[], Any]:
    def make() -> Any:
        from experiments import sizes

        return sizes.language_model(sizes.decoder(size)).set(dtype="float32")

    return make


def _tiny() -> Any:
    from experiments import sizes

    return sizes.tiny()


def _with_images() -> Any:
    """85M with an encoder of 12 layers of 384."""
    from experiments import sizes, vision_encoders

    encoder: Any = vision_encoders.vit_l14(224)
    encoder.set(patch_size=16, model_dim=384, num_layers=12, num_heads=6, hidden_dim=1536)
    model = sizes.mm1(sizes.decoder("85m"), encoder).set(dtype="float32")
    model.connector.set(num_image_tokens=64, hidden_dim=384)
    return model


def _1b() -> Any:
    """MM1's base for ablations, on text and pictures of 336 px, in bfloat16."""
    from experiments import sizes, vision_encoders

    return sizes.mm1(sizes.decoder("1b"), vision_encoders.vit_l14(336))


SHAPES = {
    "mm1_tiny": Shapes(_tiny, 8, 256, images=16, pieces=512),
    "9m": Shapes(_text("9m"), 8, 256, pieces=512),
    "9m_32k": Shapes(_text("9m"), 8, 256),
    "85m": Shapes(_text("85m"), 4, 512),
    "85m_images": Shapes(_with_images, 4, 512, images=2),
    "1b": Shapes(_1b, 4, 4096, images=8),
}

EPILOG = """\
shapes:
  mm1_tiny    the README's model: 8 rows of 256 positions with 16 pictures of 32 px
  9m, 9m_32k  the decoder of 9M parameters, with 512 or 32,000 pieces: 8 rows of 256
  85m         the decoder of 85M parameters: 4 rows of 512
  85m_images  the same with a ViT of 12 x 384 and a C-Abstractor: 2 pictures of 224 px in a row
  1b          MM1's base for ablations in bfloat16: 4 rows of 4096 with 8 pictures of 336 px

--config.PATH=VALUE changes our step, and where that changes the model, torch's as well:

  python tools/benchmark_step.py --shapes=85m --config.model.decoder.stack.remat=full
  python tools/benchmark_step.py --shapes=1b --config.input.batch_size=8

columns:
  tokens/s  positions of a step over the median of its seconds
  CPU s     CPU time of a step on all threads; least disturbed by other load on the machine
  peak MiB  largest resident memory of the process, with all that it imports and compiles
  of peak   FLOPs of the model over those of a large matrix product in the same time, which is
            measured by torch before the turns and after them
"""


def config(shapes: Shapes, overrides: Mapping[str, str] | None = None) -> Any:
    """Returns the resolved config of a run with these shapes and a constant learning rate."""
    from experiments.pretrain import mm1_tiny
    from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
    from mm1_jax.experiment import Experiment
    from mm1_jax.overrides import apply_overrides
    from mm1_jax.train.optimizers.learning_rate import Schedule

    cfg: Any = mm1_tiny().set(model=shapes.model())
    cfg.input.set(
        batch_size=shapes.rows,
        max_sequence_length=shapes.length,
        max_images=shapes.images,
        image_group_rows=1,
        images_per_row=None,
        tokenizer=Tokenizer.default_config().set(
            model_path="tokenizer.model", num_pieces=shapes.pieces
        ),
    )
    cfg.evals = {}
    cfg.trainer.loss.z_loss = 0.0
    cfg.trainer.optimizer.set(warmup_steps=0, schedule=Schedule.CONSTANT)
    return Experiment.resolve(apply_overrides(cfg, overrides or {}, types_from=cfg))


class Rows(NamedTuple):
    """Random rows: pictures first, each as its image tokens, then text, which is scored."""

    tokens: Any
    images: Any

    @classmethod
    def draw(cls, cfg: Any) -> "Rows":
        import numpy as np

        shape = (cfg.input.batch_size, cfg.input.max_sequence_length)
        image_tokens, size = cfg.input.max_images * (cfg.input.num_image_tokens or 0), 0
        if image_tokens:
            size = cfg.model.vision_encoder.image_size
        if image_tokens >= shape[1] - 1:
            raise ValueError(
                f"{cfg.input.max_images} pictures take {image_tokens} of {shape[1]} positions; set "
                "--config.input.max_sequence_length or --config.input.max_images"
            )
        generator = np.random.default_rng(0)
        tokens = generator.integers(0, cfg.model.decoder.vocab_size, shape, np.int32)
        # Where an image token is drawn as text, another one takes its place.
        tokens[tokens == cfg.model.image_token] = cfg.model.image_token - 1
        tokens[:, :image_tokens] = cfg.model.image_token
        num_images = shape[0] * cfg.input.max_images
        images = generator.integers(0, 256, (num_images, size, size, 3), np.uint8)
        return cls(tokens, images)

    def batch(self, image_token: int) -> Any:
        import numpy as np

        from mm1_jax.batch import Batch

        tokens, num_rows = self.tokens, len(self.tokens)
        targets = np.roll(tokens, -1, axis=1)
        scored = targets != image_token
        scored[:, -1] = False
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        slots = np.arange(len(self.images), dtype=np.int32).reshape(num_rows, -1)
        return Batch(
            tokens=tokens,
            targets=np.where(scored, targets, 0),
            loss_mask=scored,
            positions=positions.copy(),
            segment_ids=np.ones_like(tokens),
            corpus_ids=np.zeros_like(tokens),
            images=self.images,
            image_index=slots,
        )


def draw_params(cfg: Any) -> dict[str, Any]:
    """Draws parameters by path: scales are 1, all others small and random."""
    import jax
    import numpy as np

    from mm1_jax.experiment import Experiment
    from mm1_jax.layers.parameter_paths import map_with_paths

    generator, drawn = np.random.default_rng(0), {}

    def draw(path: str, x: Any) -> None:
        value = 0.02 * generator.standard_normal(x.shape, np.float32)
        drawn[path] = np.ones_like(value) if path.endswith("scale") else value

    program = Experiment.program(cfg, jax.devices("cpu")[:1])
    map_with_paths(draw, program.abstract_state.params)
    return drawn


def write_weights(cfg: Any, folder: Path) -> None:
    """Writes the same weights as files for each side."""
    import shutil

    import numpy as np
    from safetensors.numpy import save_file

    from mm1_jax.interop import hf_model
    from mm1_jax.interop.convert import export_params
    from mm1_jax.interop.mm1 import mm1_config, mm1_entries, model_parts
    from mm1_jax.interop.native import native_model

    params, parts = draw_params(cfg), model_parts(cfg.model)
    if "connector" in parts:
        content = mm1_config(parts, image_token=cfg.model.image_token, dtype="float32")
        entries = mm1_entries(parts)
    else:
        native = native_model(parts)
        if isinstance(native, str):
            raise ValueError(f"model.decoder: {native}")
        content, entries = native.config, native.entries

    def read(path: str, index: tuple[int | slice, ...] = ()) -> Any:
        return params[path][index]

    theirs = folder / PEER
    theirs.mkdir()
    (theirs / "config.json").write_text(json.dumps({**content, "dtype": "float32"}))
    if "connector" in parts:
        for name in ("configuration_mm1.py", "modeling_mm1.py"):
            shutil.copyfile(Path(hf_model.__path__[0]) / name, theirs / name)
    export_params(entries, read, theirs, dtype=np.dtype(np.float32))
    save_file(params, folder / f"{OURS}.safetensors")


def ours(cfg: Any, folder: Path) -> CompiledStep:
    """Returns our side, with the weights in `folder`."""
    import jax
    from safetensors.numpy import load_file

    from mm1_jax.experiment import Experiment

    params = load_file(folder / f"{OURS}.safetensors")
    batch = Rows.draw(cfg).batch(cfg.model.image_token)
    program = Experiment.program(cfg, jax.devices()[:1])
    return CompiledStep(program, params.pop, batch, "mm1_jax/models/cross_entropy.py")


class Torch(TorchStep):
    """Torch's side, with the weights in `folder`; computes in the dtype of the config's model."""

    def __init__(self, cfg: Any, folder: Path, *, platform: str = "cpu", compiled: bool = False):
        import torch
        from transformers import AutoModelForCausalLM

        device = "cuda" if platform == "gpu" else "cpu"
        model = AutoModelForCausalLM.from_pretrained(
            folder / PEER, trust_remote_code=cfg.model.connector is not None, dtype=torch.float32
        )
        model = model.to(device).train()
        # Ours decays all parameters.
        super().__init__(model, cfg.trainer.optimizer, [True] * len(list(model.parameters())))
        self._forward = torch.compile(model) if compiled else model
        self._cast = contextlib.nullcontext()
        if cfg.model.dtype == "bfloat16":
            self._cast = torch.autocast(device, torch.bfloat16)
        rows = Rows.draw(cfg)
        tokens = torch.from_numpy(rows.tokens).long()
        labels = tokens.masked_fill(tokens == cfg.model.image_token, -100)
        self._batch = {"input_ids": tokens.to(device), "labels": labels.to(device)}
        if len(rows.images):
            pixels = torch_pixels(rows.images, cfg.model.vision_encoder)
            self._batch["pixel_values"] = pixels.to(device)

    def loss(self) -> Any:
        with self._cast:
            return self._forward(**self._batch, use_cache=False).loss


def peak_flops(platform: str, dtype: str) -> float:
    """Measures FLOPs a second of a large matrix product."""
    import torch

    device, size = ("cuda" if platform == "gpu" else "cpu"), _GEMM[platform]
    left, right = torch.randn(2, size, size, dtype=getattr(torch, dtype), device=device)
    best = float("inf")
    for _ in range(_GEMM_TIMES):
        start = time.perf_counter()
        float((left @ right)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def lines(flags: argparse.Namespace, cfg: Any, found: Mapping[str, Any]) -> list[str]:
    from mm1_jax.models.flops import forward_flops

    rows, length = cfg.input.batch_size, cfg.input.max_sequence_length
    flops = forward_flops(cfg.model, length).of_training(rows, rows * cfg.input.max_images)
    peak = max(found["peak_flops"])
    versions = [f"{package} {version(package)}" for package in ("jax", "torch", "transformers")]
    shown = [
        f"{flags.shapes}: {rows} rows of {length} positions, {cfg.input.max_images} pictures a "
        f"row, {cfg.model.dtype}, {flags.platform}, {len(os.sched_getaffinity(0))} cores, "
        + ", ".join(versions),
        f"a step has {flops / 1e9:,.1f} GFLOPs; a large product runs at {peak / 1e9:,.0f} GFLOP/s",
        "",
        "| side | tokens/s | step s | CPU s | of peak | peak MiB | losses |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name in (OURS, PEER):
        side = found[name]
        seconds, losses = median(side["seconds"]), " ".join(f"{x:.4f}" for x in side["losses"])
        shown.append(
            f"| {name} | {rows * length / seconds:,.0f} | {seconds:.3f} "
            f"| {median(side['cpu_seconds']):.2f} | {flops / seconds / peak:.0%} "
            f"| {side['peak_bytes'] / MIB:,.0f} | {losses} |"
        )
    shown += ["", *ratio_lines(found, PEER, "tokens")]
    if flags.breakdown:
        shown += ["", *breakdown_lines(found, PEER)]
    return shown


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    rest, overrides = split_overrides(arguments)
    parser = argparse.ArgumentParser(
        prog="tools/benchmark_step.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", choices=SHAPES, default="9m", help="default: %(default)s")
    parser.add_argument(
        "--platform", choices=("cpu", "gpu"), default="cpu", help="default: %(default)s"
    )
    parser.add_argument(
        "--torch_compile", action="store_true", help="compile torch's model by torch.compile"
    )
    add_turn_options(parser, steps=2)
    flags = parser.parse_args(rest)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if flags.platform == "cpu":
        # Both sides start a thread for each core that they may run on.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    elif flags.arm == OURS:
        os.environ["JAX_PLATFORMS"] = "cuda"
        # Memory for torch, whose process holds its own while it waits.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    cfg = config(SHAPES[flags.shapes], overrides)
    if flags.arm == "weights":
        write_weights(cfg, flags.folder)
        return 0
    if flags.arm == "peak":
        print(peak_flops(flags.platform, cfg.model.dtype))
        return 0
    if flags.arm is not None:
        options = {"platform": flags.platform, "compiled": flags.torch_compile}
        is_ours = flags.arm == OURS
        answer(ours(cfg, flags.folder) if is_ours else Torch(cfg, flags.folder, **options))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options = [*arguments, f"--folder={folder}"]
        # Not in this process: the peak memory of a process counts from that of its parent.
        _run("weights", options)
        peaks = [float(_run("peak", options))]
        found: dict[str, Any] = measure((OURS, PEER), __file__, options, flags)
        found["peak_flops"] = [*peaks, float(_run("peak", options))]
    print("\n".join(lines(flags, cfg, found)))
    if flags.json is not None:
        from mm1_jax.storage import write_whole

        write_whole(flags.json, json.dumps(found, indent=1) + "\n")
    return 0


def _run(arm: str, options: Sequence[str]) -> str:
    done = subprocess.run(
        [sys.executable, __file__, f"--arm={arm}", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"the process of {arm} ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())

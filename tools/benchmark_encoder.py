"""Benchmarks the train step of a CLIP beside torch's, on the CPU.

    pip install --no-deps open_clip_torch
    python tools/benchmark_encoder.py --rounds=5

The CLIP has the shapes of open_clip's ViT-S-16, and both sides train it in float32 from the same
weights, on the same random pairs in memory, with AdamW of the same options. Each side has its own
process, which reports its peak memory, and the sides take turns. open_clip's model and ClipLoss are
loaded from its modules by themselves, with a stub for torchvision if that is not installed; only
ResNets and reading pictures need it. The images of the peer are normalized before the steps, ours
within each.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
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
from mm1_jax.flags import whole
from mm1_jax.launch.config_options import split_overrides

PEERS = ("open_clip", "transformers")

EPILOG = """\
--config.PATH=VALUE changes our step, and where that changes the model, the peer's as well:

  python tools/benchmark_encoder.py --config.model.vision_encoder.stack.remat=none

columns:
  images/s  pairs of a step over the median of its seconds
  CPU s     CPU time of a step on all threads; least disturbed by other load on the machine
  peak MiB  largest resident memory of the process, with all that it imports and compiles
"""


def config(batch_size: int, overrides: Mapping[str, str] | None = None) -> Any:
    """Returns the resolved recipe of `clip_vit_l14` for the towers of ViT-S-16.

    Towers save matrix products for the backward pass, which is faster here than to save all.
    """
    from experiments import encoders
    from mm1_jax.experiment import Experiment
    from mm1_jax.layers.feed_forward import Activation
    from mm1_jax.overrides import apply_overrides
    from mm1_jax.parallel.rematerialisation import Remat
    from mm1_jax.train.optimizers.learning_rate import Schedule

    cfg: Any = encoders.clip_vit_l14()
    sizes = {"model_dim": 384, "num_layers": 12, "num_heads": 6, "hidden_dim": 1536}
    cfg.model.set(features_dim=384, dtype="float32")
    cfg.model.vision_encoder.set(patch_size=16, **sizes)
    cfg.model.text_encoder.set(**sizes)
    for tower in (cfg.model.vision_encoder, cfg.model.text_encoder):
        tower.stack.remat = Remat.DOTS
        tower.stack.layer.feed_forward.activation = Activation.GELU
    cfg.input.set(batch_size=batch_size)
    cfg.trainer.loss.chunk_size = None
    cfg.trainer.mesh_rules = []
    cfg.trainer.optimizer.set(warmup_steps=0, schedule=Schedule.CONSTANT)
    return Experiment.resolve(apply_overrides(cfg, overrides or {}, types_from=cfg))


class Pairs(NamedTuple):
    """Random pictures and captions; a caption ends with the largest id, behind which are zeros."""

    images: Any
    tokens: Any
    lengths: Any

    @classmethod
    def draw(cls, cfg: Any) -> "Pairs":
        import numpy as np

        size, rows = cfg.model.vision_encoder.image_size, cfg.input.batch_size
        width, eos = cfg.input.max_sequence_length, cfg.model.text_encoder.vocab_size - 1
        generator = np.random.default_rng(0)
        lengths = generator.integers(2, width, rows, np.int32, endpoint=True)
        tokens = generator.integers(1, eos, (rows, width), np.int32)
        tokens[np.arange(width)[None] >= lengths[:, None]] = 0
        tokens[np.arange(rows), lengths - 1] = eos
        images = generator.integers(0, 256, (rows, size, size, 3), np.uint8)
        return cls(images, tokens, lengths)


def torch_model(cfg: Any, peer: str) -> Any:
    """Returns the peer's model of the same shapes, with its own random weights."""
    from mm1_jax.interop import clip

    parts = clip.parts_of_clip(cfg.model)
    if peer == "transformers":
        from transformers import CLIPConfig, CLIPModel

        eos = cfg.model.text_encoder.vocab_size - 1
        return CLIPModel(CLIPConfig(**clip.hf_config(parts, eos=eos)))
    fields = clip.open_clip_export(parts, has_bias=False)["model_cfg"]
    return open_clip_module("model").CLIP(**fields)


def open_clip_module(name: str) -> Any:
    """Imports a module of open_clip without the package's `__init__`, which needs torchvision."""
    if "open_clip" not in sys.modules:
        spec = importlib.util.find_spec("open_clip")
        if spec is None:
            raise ValueError(
                "--peer=open_clip: open_clip is not installed; pip install --no-deps "
                "open_clip_torch, or use --peer=transformers"
            )
        package: Any = types.ModuleType("open_clip")
        package.__path__ = spec.submodule_search_locations
        sys.modules["open_clip"] = package
        _import_with_stub("open_clip.utils", "torchvision.ops.misc", FrozenBatchNorm2d=object)
    return importlib.import_module(f"open_clip.{name}")


def _import_with_stub(name: str, missing: str, **content: Any) -> None:
    """Imports a module, for which a package that is not installed has only this content.

    The stub is removed afterwards, as transformers would take it for the package.
    """
    parts = missing.split(".")
    if importlib.util.find_spec(parts[0]) is None:
        names = [".".join(parts[: i + 1]) for i in range(len(parts))]
        sys.modules.update({each: types.ModuleType(each) for each in names})
        vars(sys.modules[missing]).update(content)
        importlib.import_module(name)
        for each in names:
            del sys.modules[each]


def write_weights(cfg: Any, peer: str, folder: Path) -> None:
    """Writes random weights of the peer's model, and their import as users make it."""
    import torch
    from safetensors.torch import save_file

    from mm1_jax.interop import clip
    from mm1_jax.interop.importer import import_checkpoint

    torch.manual_seed(0)
    model, source = torch_model(cfg, peer), folder / peer
    if peer == "transformers":
        model.save_pretrained(source)
    else:
        source.mkdir()
        written = clip.open_clip_export(clip.parts_of_clip(cfg.model), has_bias=False)
        (source / "open_clip_config.json").write_text(json.dumps(written))
        save_file(model.state_dict(), source / "open_clip_model.safetensors")
    import_checkpoint(source, folder / OURS, skip_comparison=True)


def ours(cfg: Any, folder: Path) -> CompiledStep:
    """Returns our side, with the imported weights in `folder`."""
    import jax
    import numpy as np

    from mm1_jax.batch import ImageTextBatch
    from mm1_jax.checkpoints.weights_folder import StoredParams
    from mm1_jax.experiment import Experiment

    stored, pairs = StoredParams(folder / OURS), Pairs.draw(cfg)
    rows = np.zeros(cfg.input.batch_size, np.int32)
    return CompiledStep(
        Experiment.program(cfg, jax.devices()[:1]),
        stored.read,
        ImageTextBatch(pairs.images, pairs.tokens, pairs.lengths, rows.astype(np.uint32), rows),
        "mm1_jax/train/pair_losses.py",
    )


class Torch(TorchStep):
    """The peer's step, which clamps the scale after the update."""

    def __init__(self, cfg: Any, folder: Path, peer: str):
        import torch
        from safetensors.torch import load_file

        model = torch_model(cfg, peer).train()
        (path,) = (folder / peer).glob("*.safetensors")
        model.load_state_dict(load_file(path))
        # open_clip's rule for parameters that do not decay.
        is_vector = [
            p.ndim < 2 or "bias" in name or "ln" in name for name, p in model.named_parameters()
        ]
        super().__init__(model, cfg.trainer.optimizer, [not each for each in is_vector])
        self._max_log_scale = math.log(cfg.model.max_scale)
        pairs = Pairs.draw(cfg)
        self._pixels = torch_pixels(pairs.images, cfg.model.vision_encoder)
        self._tokens = torch.from_numpy(pairs.tokens).long()
        self._contrast = open_clip_module("loss").ClipLoss() if peer == "open_clip" else None

    def loss(self) -> Any:
        if self._contrast is None:
            return self.model(self._tokens, self._pixels, return_loss=True).loss
        return self._contrast(*self.model(self._pixels, self._tokens))

    def after_update(self) -> None:
        self.model.logit_scale.clamp_(0, self._max_log_scale)


def lines(flags: argparse.Namespace, found: Mapping[str, Any]) -> list[str]:
    rows = flags.batch_size
    packages = ("jax", "torch", "open_clip_torch" if flags.peer == "open_clip" else flags.peer)
    shown = [
        f"{rows} pairs a step on {len(os.sched_getaffinity(0))} cores, "
        + ", ".join(f"{package} {version(package)}" for package in packages),
        "",
        "| side | images/s | CPU s | peak MiB | losses |",
        "|---|---:|---:|---:|---|",
    ]
    for name, side in found.items():
        losses = " ".join(f"{x:.4f}" for x in side["losses"])
        shown.append(
            f"| {name} | {rows / median(side['seconds']):.2f} | {median(side['cpu_seconds']):.2f} "
            f"| {side['peak_bytes'] / MIB:,.0f} | {losses} |"
        )
    shown += ratio_lines(found, flags.peer, "images")
    if flags.breakdown:
        shown += breakdown_lines(found, flags.peer)
    return shown


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    rest, overrides = split_overrides(arguments)
    parser = argparse.ArgumentParser(
        prog="tools/benchmark_encoder.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peer", choices=PEERS, default="open_clip", help="default: %(default)s")
    parser.add_argument(
        "--batch_size",
        type=whole(),
        default=16,
        metavar="N",
        help="pairs of a step; default: %(default)s",
    )
    add_turn_options(parser, steps=1)
    flags = parser.parse_args(rest)
    # Both sides start a thread for each core that they may run on.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    if flags.arm is not None:
        cfg = config(flags.batch_size, overrides)
        if flags.arm == "weights":
            write_weights(cfg, flags.peer, flags.folder)
        elif flags.arm == OURS:
            answer(ours(cfg, flags.folder))
        else:
            answer(Torch(cfg, flags.folder, flags.arm))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options = [*arguments, f"--folder={folder}"]
        # Not in this process: the peak memory of a process counts from that of its parent.
        done = subprocess.run([sys.executable, __file__, "--arm=weights", *options], cwd=ROOT)
        if done.returncode:
            return done.returncode
        found = measure((OURS, flags.peer), __file__, options, flags)
    print("\n".join(lines(flags, found)))
    if flags.json is not None:
        from mm1_jax.storage import write_whole

        write_whole(flags.json, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
import time
import types
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from mm1_jax.command import command
from mm1_jax.flags import local_path, whole
from mm1_jax.launch.config_options import split_overrides

ROOT = Path(__file__).parent.parent
OURS = "ours"
PEERS = ("open_clip", "transformers")
LENGTH, VOCAB_SIZE = 77, 49_408
_MIB = 2**20

# Kinds of operations: those of linear layers with their biases, and all that no table below names.
_LINEAR, _REST = "linear layers", "sums, copies, rest"
# Where our operations of a kind come from; see `Parts`.
_FILES = {
    _LINEAR: "mm1_jax/layers/linear.py",
    "attention": "mm1_jax/layers/attention",
    "activation": "mm1_jax/layers/feed_forward.py",
    "norms": "mm1_jax/layers/norm.py",
    "tokens": "mm1_jax/layers/embedding.py",
    "loss": "mm1_jax/train/pair_losses.py",
    "optimizer": "mm1_jax/train/optimizers/",
}
# Parts of the names of torch's operations, of which the first counts.
_OPERATIONS = {
    "attention": ("scaled_dot_product",),
    "activation": ("gelu", "sigmoid"),
    "norms": ("layer_norm",),
    "tokens": ("embedding", "index_select"),
    "loss": ("softmax", "nll_loss"),
    "optimizer": ("adam", "Adam"),
    _LINEAR: ("mm", "linear", "conv", "aten::sum"),
}

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


class Ours:
    """Our compiled train step, with its state and a batch on the device."""

    def __init__(self, cfg: Any, folder: Path):
        import jax
        import numpy as np

        from mm1_jax.batch import ImageTextBatch
        from mm1_jax.checkpoints.weights_folder import StoredParams
        from mm1_jax.experiment import Experiment
        from mm1_jax.layers.parameter_paths import map_with_paths

        program = Experiment.program(cfg, jax.devices()[:1])
        self._step = program.compile()
        stored, shapes = StoredParams(folder / OURS), program.abstract_state

        def place(shape: Any, values: Any) -> Any:
            return jax.device_put(values, shape.sharding)

        state = jax.tree.map(lambda x: place(x, np.zeros(x.shape, x.dtype)), shapes)
        self._state = state._replace(
            params=map_with_paths(lambda path, x: place(x, stored.read(path)), shapes.params)
        )
        pairs, rows = Pairs.draw(cfg), np.zeros(cfg.input.batch_size, np.int32)
        batch = ImageTextBatch(
            pairs.images, pairs.tokens, pairs.lengths, rows.astype(np.uint32), rows
        )
        self._batch = jax.device_put(batch, program.batch_shardings)

    def step(self) -> float:
        """Trains for a step; returns its loss."""
        import jax

        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready(self._state)
        return float(metrics["loss"].ratio())

    def breakdown(self) -> dict[str, float]:
        """Returns the seconds of a step by kind of operation."""
        import jax

        from mm1_jax.rehearse import hlo
        from mm1_jax.rehearse.parts import OTHER, Parts

        text = self._step.as_text()
        module = hlo.parse(text)
        parts = Parts(text, module, _FILES)
        kinds = {
            each.name: parts.of(each)
            for computation in module.computations.values()
            for each in computation.instructions
            # Their time is that of the operations in them.
            if each.opcode not in ("while", "call", "conditional")
        }
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                self.step()
            (path,) = Path(folder).glob("**/*.xplane.pb")
            data = jax.profiler.ProfileData.from_file(str(path))
        seconds: dict[str, float] = {}
        for plane in data.planes:
            for line in plane.lines:
                for event in line.events:
                    kind = kinds.get(dict(event.stats).get("hlo_op", ""))
                    if kind is not None:
                        kind = _REST if kind == OTHER else kind
                        seconds[kind] = seconds.get(kind, 0.0) + event.duration_ns / 1e9
        return seconds


class Torch:
    """The peer's train step: forward, loss, backward, AdamW, and the clamp of the scale."""

    def __init__(self, cfg: Any, folder: Path, peer: str):
        import torch
        from safetensors.torch import load_file

        self._model = torch_model(cfg, peer).train()
        (path,) = (folder / peer).glob("*.safetensors")
        self._model.load_state_dict(load_file(path))
        # open_clip's rule for parameters that do not decay.
        named = list(self._model.named_parameters())
        is_vector = [p.ndim < 2 or "bias" in name or "ln" in name for name, p in named]
        options = cfg.trainer.optimizer
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for (_, p), is_it in zip(named, is_vector, strict=True) if is_it]},
                {
                    "params": [
                        p for (_, p), is_it in zip(named, is_vector, strict=True) if not is_it
                    ],
                    "weight_decay": options.weight_decay,
                },
            ],
            lr=options.learning_rate,
            betas=(options.b1, options.b2),
            eps=options.eps,
            weight_decay=0.0,
            # The fastest of torch's implementations on a CPU.
            fused=True,
        )
        self._max_log_scale = math.log(cfg.model.max_scale)
        encoder, pairs = cfg.model.vision_encoder, Pairs.draw(cfg)
        colors = (torch.tensor(x) for x in (encoder.pixel_mean, encoder.pixel_std))
        mean, std = colors
        pixels = (torch.from_numpy(pairs.images).float() / 255 - mean) / std
        self._pixels = pixels.permute(0, 3, 1, 2).contiguous()
        self._tokens = torch.from_numpy(pairs.tokens).long()
        self._loss = self._transformers_loss
        if peer == "open_clip":
            loss = open_clip_module("loss").ClipLoss()
            self._loss = lambda: loss(*self._model(self._pixels, self._tokens))

    def _transformers_loss(self) -> Any:
        return self._model(self._tokens, self._pixels, return_loss=True).loss

    def step(self) -> float:
        """Trains for a step; returns its loss."""
        import torch

        self._optimizer.zero_grad()
        loss = self._loss()
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            self._model.logit_scale.clamp_(0, self._max_log_scale)
        return float(loss.detach())

    def breakdown(self) -> dict[str, float]:
        """Returns the seconds of a step by kind of operation."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            self.step()
        seconds: dict[str, float] = {}
        for each in profiler.key_averages():
            kind = next(
                (kind for kind, names in _OPERATIONS.items() if any(n in each.key for n in names)),
                _REST,
            )
            seconds[kind] = seconds.get(kind, 0.0) + each.self_cpu_time_total / 1e6
        return seconds


class Arm:
    """A side in a process of its own, which waits while the other one trains."""

    def __init__(self, name: str, options: Sequence[str]):
        command = [sys.executable, __file__, f"--arm={name}", *options]
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def ask(self, request: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"the process of {self.name} ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def run_arm(name: str, cfg: Any, folder: Path) -> None:
    """Answers each line of stdin: a number of steps, or `breakdown`."""
    from mm1_jax.host_memory import peak_bytes

    side = Ours(cfg, folder) if name == OURS else Torch(cfg, folder, name)
    for line in sys.stdin:
        if line.strip() == "breakdown":
            print(json.dumps(side.breakdown()), flush=True)
            continue
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            loss = side.step()
        found = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
            "peak_bytes": peak_bytes(),
            "loss": loss,
        }
        print(json.dumps(found), flush=True)


def measure(flags: argparse.Namespace, options: Sequence[str]) -> dict[str, Any]:
    """Returns the figures of each side: losses and seconds by turn, and peak memory."""
    arms = [Arm(name, options) for name in (OURS, flags.peer)]
    try:
        # The first step of a side prepares the others.
        found = {arm.name: {"losses": [arm.ask("1")["loss"]]} for arm in arms}
        for _ in range(flags.rounds):
            for arm in arms:
                turn, figures = arm.ask(str(flags.steps)), found[arm.name]
                figures["losses"].append(turn["loss"])
                figures["peak_bytes"] = turn["peak_bytes"]
                for key in ("seconds", "cpu_seconds"):
                    figures.setdefault(key, []).append(turn[key] / flags.steps)
        if flags.breakdown:
            for arm in arms:
                found[arm.name]["breakdown"] = arm.ask("breakdown")
        return found
    finally:
        for arm in arms:
            arm.close()


def lines(flags: argparse.Namespace, found: Mapping[str, Any]) -> list[str]:
    rows, (ours, theirs) = flags.batch_size, (found[OURS], found[flags.peer])
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
            f"| {side['peak_bytes'] / _MIB:,.0f} | {losses} |"
        )
    for what, key in (("images/s", "seconds"), ("images per CPU s", "cpu_seconds")):
        ratios = [other / own for own, other in zip(ours[key], theirs[key], strict=True)]
        shown.append(
            f"{what} of ours over {flags.peer}'s: {median(ratios):.2f}, in rounds "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )
    shown.append(f"peak memory: {ours['peak_bytes'] / theirs['peak_bytes']:.2f} of {flags.peer}'s")
    if flags.breakdown:
        both = [ours["breakdown"], theirs["breakdown"]]
        both = [{**side, "all": sum(side.values())} for side in both]
        kinds = sorted(both[0].keys() | both[1].keys(), key=lambda kind: -both[0].get(kind, 0))
        shown += [f"| seconds of a step | ours | {flags.peer} | ratio |", "|---|---:|---:|---:|"]
        for kind in kinds:
            own, other = (side.get(kind, 0.0) for side in both)
            ratio = f"{own / other:.2f}" if other else ""
            shown.append(f"| {kind} | {own:.3f} | {other:.3f} | {ratio} |")
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
    for name, default, text in (
        ("batch_size", 16, "pairs of a step"),
        ("rounds", 5, "turns of each side"),
        ("steps", 1, "steps of a turn"),
        ("threads", 2, "threads of each side, at most as many as the process has cores"),
    ):
        help = f"{text}; default: %(default)s"
        parser.add_argument(f"--{name}", type=whole(), default=default, metavar="N", help=help)
    parser.add_argument(
        "--breakdown",
        action="store_true",
        help="also profile a step of each side by kind of operation; with one thread, the times "
        "add up to a step",
    )
    parser.add_argument(
        "--json", type=local_path, metavar="FILE", help="also write the figures to this file"
    )
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=local_path, help=argparse.SUPPRESS)
    flags = parser.parse_args(rest)
    # Both sides start a thread for each core that they may run on.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    if flags.arm is not None:
        cfg = config(flags.batch_size, overrides)
        if flags.arm == "weights":
            write_weights(cfg, flags.peer, flags.folder)
        else:
            run_arm(flags.arm, cfg, flags.folder)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options = [*arguments, f"--folder={folder}"]
        # Not in this process: the peak memory of a process counts from that of its parent.
        done = subprocess.run([sys.executable, __file__, "--arm=weights", *options], cwd=ROOT)
        if done.returncode:
            return done.returncode
        found = measure(flags, options)
    print("\n".join(lines(flags, found)))
    if flags.json is not None:
        from mm1_jax.storage import write_whole

        write_whole(flags.json, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

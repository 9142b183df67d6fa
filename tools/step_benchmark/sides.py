"""Our compiled step and torch's, with the time of each by kind of operation."""

import abc
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Kinds of operations: those of linear layers with their biases, and all that no table below names.
LINEAR, REST = "linear layers", "sums, copies, rest"
# Where our operations of a kind come from; see `Parts`.
_FILES = {
    LINEAR: "mm1_jax/layers/linear.py",
    "attention": "mm1_jax/layers/attention",
    "activation": "mm1_jax/layers/feed_forward.py",
    "norms": "mm1_jax/layers/norm.py",
    "positions": "mm1_jax/layers/rotary.py",
    "tokens": "mm1_jax/layers/embedding.py",
    "optimizer": "mm1_jax/train/optimizers/",
}
# Parts of the names of torch's operations, of which the first counts.
_OPERATIONS = {
    "attention": ("scaled_dot_product",),
    "activation": ("gelu", "sigmoid", "silu"),
    "norms": ("layer_norm", "rsqrt"),
    "tokens": ("embedding", "index_select"),
    "loss": ("softmax", "nll_loss"),
    "optimizer": ("adam", "Adam"),
    LINEAR: ("mm", "linear", "conv", "aten::sum"),
}


class CompiledStep:
    """Our compiled train step, with its state and a batch on the device."""

    def __init__(self, program: Any, read: Callable[[str], Any], batch: Any, loss_file: str):
        """Places parameters and batch.

        Args:
            read: Returns the NumPy array of the parameter at a path.
            batch: A batch of NumPy arrays.
            loss_file: File of the loss, whose operations are a kind of their own.
        """
        import jax
        import numpy as np

        from mm1_jax.layers.parameter_paths import map_with_paths

        self._step, shapes = program.compile(), program.abstract_state

        def place(shape: Any, values: Any) -> Any:
            return jax.device_put(values, shape.sharding)

        state = jax.tree.map(lambda x: place(x, np.zeros(x.shape, x.dtype)), shapes)
        self._state = state._replace(
            params=map_with_paths(lambda path, x: place(x, read(path)), shapes.params)
        )
        self._batch = jax.device_put(batch, program.batch_shardings)
        self._files = {**_FILES, "loss": loss_file}

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
        parts = Parts(text, module, self._files)
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
                        kind = REST if kind == OTHER else kind
                        seconds[kind] = seconds.get(kind, 0.0) + event.duration_ns / 1e9
        return seconds


def torch_pixels(images: Any, encoder: Any) -> Any:
    """Returns uint8 images [J, h, w, 3] as torch's [J, 3, h, w], normalized as `encoder` does."""
    import torch

    mean, std = (torch.tensor(x) for x in (encoder.pixel_mean, encoder.pixel_std))
    pixels = (torch.from_numpy(images).float() / 255 - mean) / std
    return pixels.permute(0, 3, 1, 2).contiguous()


class TorchStep(abc.ABC):
    """A train step of torch: forward, loss, backward and AdamW."""

    def __init__(self, model: Any, options: Any, is_decayed: Sequence[bool]):
        """Creates the optimizer.

        Args:
            options: Our `AdamW.Config`, whose rate must be constant.
            is_decayed: For each parameter of the model, whether weight decay applies.
        """
        import torch

        self.model, self._clip = model, options.clip
        parameters = list(model.parameters())
        chosen: dict[bool, list[Any]] = {True: [], False: []}
        for parameter, decays in zip(parameters, is_decayed, strict=True):
            chosen[decays].append(parameter)
        self._optimizer = torch.optim.AdamW(
            [
                {"params": chosen[False]},
                {"params": chosen[True], "weight_decay": options.weight_decay},
            ],
            lr=options.learning_rate,
            betas=(options.b1, options.b2),
            eps=options.eps,
            weight_decay=0.0,
            # The fastest of torch's implementations.
            fused=True,
        )

    @abc.abstractmethod
    def loss(self) -> Any:
        """Returns the loss of the batch."""

    def after_update(self) -> None:  # noqa: B027
        """Restricts parameters after an update, if the peer does."""

    def step(self) -> float:
        """Trains for a step; returns its loss."""
        import torch

        self._optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self._optimizer.step()
        with torch.no_grad():
            self.after_update()
        return float(loss.detach())

    def breakdown(self) -> dict[str, float]:
        """Returns the seconds of a step by kind of operation."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        on_gpu = next(self.model.parameters()).is_cuda
        activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
        with profile(activities=[activity]) as profiler:
            self.step()
            if on_gpu:
                torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for each in profiler.key_averages():
            kind = next(
                (kind for kind, names in _OPERATIONS.items() if any(n in each.key for n in names)),
                REST,
            )
            own = each.self_device_time_total if on_gpu else each.self_cpu_time_total
            seconds[kind] = seconds.get(kind, 0.0) + own / 1e6
        return seconds

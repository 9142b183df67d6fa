"""Use of the devices by a step: model FLOPs utilisation, and memory."""

from collections.abc import Sequence
from typing import Any

from mm1_jax.host_memory import peak_bytes
from mm1_jax.models.flops import ForwardFlops
from mm1_jax.parallel.chips import CHIPS
from mm1_jax.parallel.parallelism import device_kind


class Utilisation:
    """The utilisation of devices by steps on so many rows.

    MFU is the model FLOPs of a step, by the rule of `models/flops.py`, over what the devices could
    do in its time in bfloat16, by their data sheets. It has no number where the peak of the devices
    is not known, a CPU's say, or the FLOPs of the model are not.
    """

    def __init__(self, flops: ForwardFlops | None, *, num_rows: int, devices: Sequence[Any]):
        chip = CHIPS.get(device_kind(devices[0]))
        self._flops = flops
        self._num_rows = num_rows
        self._peak = None
        if chip is not None:
            self._peak = len(devices) * chip.peak_flops / chip.devices_per_chip
        self._local = [each for each in devices if each.process_index == _own_process(each)]

    def of_step(self, num_images: int, seconds: float) -> dict[str, float]:
        """Numbers for the record of a step."""
        if self._flops is None or self._peak is None:
            return {}
        flops = self._flops.of_training(self._num_rows, num_images)
        return {"mfu": flops / (seconds * self._peak)}

    def memory(self) -> dict[str, float]:
        """Bytes in use, the most of all devices of this process, and what the process itself had.

        The peaks are of the whole process.
        """
        values = {"host_memory_peak_bytes": float(peak_bytes())}
        stats = [each.memory_stats() or {} for each in self._local]
        for name in ("bytes_in_use", "peak_bytes_in_use"):
            known = [each[name] for each in stats if name in each]
            if known:
                values[f"device_{name}"] = float(max(known))
        return values


def _own_process(device: Any) -> int:
    return device.client.process_index()

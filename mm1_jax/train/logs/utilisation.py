"""Device utilization per step: model FLOPs utilization (MFU) and memory."""

from collections.abc import Sequence
from typing import Any

from mm1_jax.host_memory import peak_bytes
from mm1_jax.models.flops import ForwardFlops
from mm1_jax.parallel.chips import CHIPS
from mm1_jax.parallel.parallelism import device_kind


class Utilisation:
    """Computes the utilization of devices by steps of `num_rows` rows.

    MFU is the model FLOPs of a step, counted by the rules of `models/flops.py`, divided by the peak
    bfloat16 FLOPs of the devices in the same time. It is omitted if the peak of the devices is
    unknown, as on CPUs, or the FLOPs of the model are.
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
        """Returns the MFU for the record of a step, if it is known."""
        if self._flops is None or self._peak is None:
            return {}
        flops = self._flops.of_training(self._num_rows, num_images)
        return {"mfu": flops / (seconds * self._peak)}

    def memory(self) -> dict[str, float]:
        """Returns current and peak bytes in use of the fullest local device, and peak host memory.

        The peaks are over the lifetime of the process.
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

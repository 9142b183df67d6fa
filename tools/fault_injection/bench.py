"""Launches runs of several processes on this machine, into which faults are injected."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEARTBEAT_SECONDS = 15
# Seconds within which all processes must end after a fault; allows for a slow machine.
END_SECONDS = 90
# Configs of `fault_injection.small_encoders`.
ENCODERS = ("small_clip", "small_aim")


class Broken(AssertionError):
    """A run did not handle a fault as it should."""


@dataclass
class Launch:
    """Processes of one launch; their output goes to files."""

    processes: list[subprocess.Popen]
    outputs: list[Path]
    start: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float = END_SECONDS) -> list[int]:
        """Waits for all to end, and returns the exit codes; raises Broken after `seconds`."""
        deadline = time.monotonic() + seconds
        try:
            return [each.wait(max(0.1, deadline - time.monotonic())) for each in self.processes]
        except subprocess.TimeoutExpired:
            running = [i for i, each in enumerate(self.processes) if each.poll() is None]
            self.end()
            raise Broken(
                f"processes {running} did not end within {seconds} s:\n{self.text[-3000:]}"
            ) from None

    def end(self) -> None:
        for each in self.processes:
            each.kill()
            each.wait()

    @property
    def text(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.outputs)

    def until(self, is_so: Callable[[], bool], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline or all(p.poll() is not None for p in self.processes):
                self.end()
                raise Broken(f"waited for {what}, which did not come:\n{self.text[-3000:]}")
            time.sleep(0.005)


@dataclass(frozen=True)
class ProcessOptions:
    """Arguments and environment variables of one process only."""

    arguments: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Bench:
    """A run to inject a fault into: its folder and its launches."""

    workspace: Path
    num_processes: int
    rng: random.Random = field(default_factory=random.Random)
    folder: Path = Path()
    # One of `small_run`, or of ENCODERS.
    config: str = "small_run"
    launches: list[Launch] = field(default_factory=list)

    def launch(
        self,
        *overrides: str,
        fault: str = "",
        absent: Sequence[int] = (),
        timeout: int = 60,
        own: Mapping[int, "ProcessOptions"] | None = None,
    ) -> Launch:
        """Starts all processes except the absent ones, in the folder of the run.

        Args:
            own: Process -> its additional arguments and variables.
        """
        environment = os.environ | {
            "FAULT": fault,
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT / "tools"),
            "XLA_FLAGS": "--xla_backend_optimization_level=0 "
            "--xla_llvm_disable_expensive_passes=true "
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1",
        }
        # Buffering keeps lines that cannot be written for now.
        environment.pop("PYTHONUNBUFFERED", None)
        is_encoder = self.config in ENCODERS
        module = "fault_injection.small_encoders" if is_encoder else "small_run"
        port, processes, outputs = free_port(), [], []
        for process in range(self.num_processes):
            if process in absent:
                continue
            output = self.workspace / f"{self.folder.name}.{len(self.launches)}.{process}.txt"
            cluster = (
                f"--coordinator_address=127.0.0.1:{port}",
                f"--num_processes={self.num_processes}",
                f"--process_id={process}",
                f"--heartbeat_timeout={HEARTBEAT_SECONDS}",
                f"--initialization_timeout={timeout}",
            )
            command = [
                *(sys.executable, "-m", "mm1_jax.launch"),
                *(f"--module={module}", f"--config={self.config}", f"--output_dir={self.folder}"),
                f"--compilation_cache={self.workspace / f'programs_{self.num_processes}'}",
                *(cluster if self.num_processes > 1 else ("--num_processes=1",)),
                *overrides,
            ]
            more = (own or {}).get(process, ProcessOptions())
            command += more.arguments
            variables = environment | more.variables
            with output.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT
                    )
                )
            outputs.append(output)
        self.launches.append(Launch(processes, outputs))
        return self.launches[-1]

    def finish(self, *overrides: str) -> None:
        """Launches the run again, to its end; raises Broken if a process fails."""
        codes = self.launch(*overrides).wait(180)
        if any(codes):
            raise Broken(f"exit codes {codes} of a launch without a fault:\n{self.text[-3000:]}")

    def steps_logged(self) -> int:
        path = self.folder / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def is_saving(self) -> bool:
        return any(self.folder.glob("checkpoints/*orbax-checkpoint-tmp*"))

    @property
    def text(self) -> str:
        return "\n".join(launch.text for launch in self.launches)

    def some_process(self) -> int:
        return self.rng.randrange(self.num_processes)

    def result(self) -> dict:
        """Returns the losses of all steps, and digests of the final parameters."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        report = json.loads((self.folder / "report.json").read_text())
        return {
            "steps": [(each["step"], each["loss"], each["grad_norm"]) for each in records],
            "digests": {k: v for k, v in report.items() if k.startswith("digest")},
        }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]

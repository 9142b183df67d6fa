"""Finds the processes of a run from the command line or the environment.

    explicit    --coordinator_address --num_processes --process_id, or JAX's own variables
                JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
    Kubernetes  the first two of these variables, and the index that an indexed Job gives each pod
    GKE         TPU_WORKER_HOSTNAMES and TPU_WORKER_ID, which its TPU device plugin sets
    Slurm       SLURM_* of a step with several tasks
    Open MPI    OMPI_* of mpirun
    Cloud TPU   the metadata server of a TPU VM

MEGASCALE_* describes several TPU slices. Nothing here imports jax, so a launch that cannot find its
peers has not touched a device.
"""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Ports of the coordinator service in process 0: JAX's port on TPUs, and the size of JAX's range of
# ports for Slurm and Open MPI, from which the job number selects one.
_TPU_PORT = 8482
_NUM_JOB_PORTS = 2**12

_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_METADATA_SECONDS = 5

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Cluster:
    """The processes of a run, seen from one of them.

    Attributes:
        coordinator_address: "host:port" at which process 0 serves the others.
        source: Origin of this information, for messages.
        local_device_ids: GPUs of this process if several processes share a host; None for all.
    """

    coordinator_address: str
    num_processes: int
    process_id: int
    source: str
    local_device_ids: tuple[int, ...] | None = None

    @property
    def port(self) -> int:
        return int(self.coordinator_address.rpartition(":")[2])

    @property
    def bind_host(self) -> str | None:
        """Host at which process 0 listens: loopback for local runs, None for all interfaces."""
        host = self.coordinator_address.rpartition(":")[0]
        return host if host == "localhost" or host.startswith("127.") else None

    def __post_init__(self) -> None:
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"process {self.process_id} of {self.num_processes} ({self.source}): expected a "
                f"number from 0 to {self.num_processes - 1}"
            )
        host, _, port = self.coordinator_address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(
                f"coordinator address {self.coordinator_address!r} ({self.source}): expected "
                f"HOST:PORT of process 0, PORT a number from 1 to {2**16 - 1}"
            )


def find_cluster(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Environment | None = None,
) -> Cluster | None:
    """Returns the cluster from the arguments or else the environment; None for a single process.

    Raises:
        ValueError: The description of a cluster is incomplete or wrong.
    """
    env = os.environ if environment is None else environment
    given = (coordinator_address, num_processes, process_id)
    if num_processes == 1 and coordinator_address is None:
        return None
    if any(value is not None for value in given):
        if None in given:
            raise ValueError(
                "--coordinator_address, --num_processes and --process_id go together; --process_id "
                "is the only one that differs between the processes (--num_processes=1 alone "
                "starts a single process)"
            )
        assert coordinator_address is not None and num_processes is not None
        assert process_id is not None
        return Cluster(coordinator_address, num_processes, process_id, "the command line")
    for find in (_from_jax, _from_gke, _from_slurm, _from_open_mpi, _from_tpu_metadata):
        cluster = find(env)
        if cluster is not None:
            return cluster if cluster.num_processes > 1 else None
    return None


def _from_jax(env: Environment) -> Cluster | None:
    address, number = env.get("JAX_COORDINATOR_ADDRESS"), env.get("JAX_NUM_PROCESSES")
    # GKE sets the address alone, and describes the cluster by other variables.
    if not address or not number:
        return None
    index = env.get("JAX_PROCESS_ID") or env.get("JOB_COMPLETION_INDEX")
    if index is None:
        raise ValueError(
            "JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES are set, but neither JAX_PROCESS_ID nor "
            "JOB_COMPLETION_INDEX is; set one of them for each process"
        )
    source = "JAX_* in the environment"
    return Cluster(address, _number(number, source), _number(index, source), source)


def _from_gke(env: Environment) -> Cluster | None:
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    if not hosts or "TPU_WORKER_ID" not in env:
        return None
    workers = [host.split(":")[0] for host in hosts.split(",")]
    source = "TPU_* in the environment"
    return _tpu_cluster(workers, _number(env["TPU_WORKER_ID"], source), env.get, source)


def _from_slurm(env: Environment) -> Cluster | None:
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if any(name not in env for name in names):
        return None
    job, nodes, tasks, task = (env[name] for name in names)
    source = "Slurm"
    return Cluster(
        f"{first_node(nodes)}:{_job_port(_number(job, source))}",
        _number(tasks, source),
        _number(task, source),
        source,
        # JAX's own detection would give the only task of a node just one of its GPUs.
        _own_gpu(env.get("SLURM_LOCALID"), env.get("SLURM_STEP_TASKS_PER_NODE", tasks)),
    )


def _from_open_mpi(env: Environment) -> Cluster | None:
    if "OMPI_COMM_WORLD_SIZE" not in env or "OMPI_COMM_WORLD_RANK" not in env:
        return None
    uri = env.get("OMPI_MCA_orte_hnp_uri", "")
    found = re.match(r"(\d+)\..*?(?:tcp://(.+?)[,:]|tcp6://\[(.+?)[,\]])", uri)
    if found is None:
        raise ValueError(
            "Open MPI started this process, but gives no address of process 0 "
            f"(OMPI_MCA_orte_hnp_uri={uri!r}); give --coordinator_address, --num_processes and "
            "--process_id"
        )
    # Open MPI's job numbers are multiples of this.
    port = _job_port(int(found[1]) // _NUM_JOB_PORTS)
    source = "Open MPI"
    return Cluster(
        f"{found[2] or found[3]}:{port}",
        _number(env["OMPI_COMM_WORLD_SIZE"], source),
        _number(env["OMPI_COMM_WORLD_RANK"], source),
        source,
        _own_gpu(env.get("OMPI_COMM_WORLD_LOCAL_RANK"), env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")),
    )


def _from_tpu_metadata(env: Environment) -> Cluster | None:
    platforms = env.get("JAX_PLATFORMS", "")
    if "TPU_SKIP_MDS_QUERY" in env or (platforms and "tpu" not in platforms):
        return None
    if not any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0")):
        return None
    number, endpoints = _metadata("agent-worker-number"), _metadata("worker-network-endpoints")
    if number is None or not endpoints:
        return None
    # Each endpoint is a host, or name:id:address.
    workers = [endpoint.split(":")[-1] for endpoint in endpoints.split(",")]
    stated = tpu_environment(_metadata("tpu-env") or "")
    source = "the metadata of the TPU VM"
    return _tpu_cluster(workers, _number(number, source), stated.get, source)


def _tpu_cluster(
    workers: list[str], worker: int, get: Callable[[str], str | None], source: str
) -> Cluster:
    """Returns the cluster of one or more slices with equally many workers."""
    first = (get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]).split(":")[0]
    num_slices, slice_id = (
        _number(get(f"MEGASCALE_{name}") or default, source)
        for name, default in (("NUM_SLICES", "1"), ("SLICE_ID", "0"))
    )
    port = get("JAX_COORDINATOR_PORT") or _TPU_PORT
    return Cluster(
        f"{first}:{port}", len(workers) * num_slices, worker + slice_id * len(workers), source
    )


def tpu_environment(text: str) -> dict[str, str]:
    """Parses the metadata value `tpu-env`: lines such as `MEGASCALE_NUM_SLICES: '2'`."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip().strip("'") for name, _, value in pairs}


def first_node(nodes: str) -> str:
    """Returns the first node of a Slurm node list.

    >>> first_node("tpu[003-010,12],other1")
    'tpu003'
    """
    name, bracket, rest = re.split(r"([,\[]|$)", nodes, maxsplit=1)
    return name + re.split(r"[,\-\]]", rest)[0] if bracket == "[" else name


def _number(text: str, source: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(f"{text!r} ({source}): expected a number of processes or the index of one")
    return int(text)


def _own_gpu(local_rank: str | None, tasks_per_node: str) -> tuple[int, ...] | None:
    # Slurm abbreviates counts per node, as in 4(x2),3.
    shared = int(re.split(r"\D", tasks_per_node)[0]) > 1
    return (int(local_rank),) if shared and local_rank is not None else None


def _job_port(job: int) -> int:
    return job % _NUM_JOB_PORTS + 2**16 - _NUM_JOB_PORTS


def _metadata(key: str) -> str | None:
    request = urllib.request.Request(_METADATA + key, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=_METADATA_SECONDS) as reply:
            return reply.read().decode()
    except (urllib.error.URLError, OSError):
        return None

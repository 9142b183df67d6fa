import pytest

from mm1_jax.multihost.cluster import Cluster, find_cluster, first_node, tpu_environment

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[007-010]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "TPU_SKIP_MDS_QUERY": "1",
}
GKE = {"TPU_WORKER_HOSTNAMES": "w-0.svc,w-1.svc", "TPU_WORKER_ID": "1"}


def place(cluster):
    return cluster.coordinator_address, cluster.num_processes, cluster.process_id


def test_a_single_launch_has_no_cluster():
    assert find_cluster(environment={"TPU_SKIP_MDS_QUERY": "1"}) is None
    assert find_cluster(num_processes=1, environment=SLURM) is None
    assert find_cluster(environment=SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None


def test_the_command_line_comes_before_the_environment():
    cluster = find_cluster("a:1", 2, 1, environment=SLURM)
    assert cluster == Cluster("a:1", 2, 1, "the command line")


@pytest.mark.parametrize("given", [("a:1", None, None), (None, 2, 0), ("a:1", 2, None)])
def test_cluster_flags_must_be_given_together(given):
    with pytest.raises(ValueError, match="--coordinator_address, --num_processes and --process_id"):
        find_cluster(*given, environment={})


@pytest.mark.parametrize(("process", "address"), [(2, "a:1"), (-1, "a:1"), (0, "a")])
def test_an_invalid_process_number_is_rejected(process, address):
    with pytest.raises(ValueError, match="expected"):
        Cluster(address, 2, process, "a test")


def test_slurm_gives_nodes_and_tasks():
    cluster = find_cluster(environment=SLURM)
    # JAX itself uses this port for the job: 61440 plus the job's number modulo 4096.
    assert place(cluster) == ("gpu007:61441", 4, 2)
    assert cluster.local_device_ids is None


def test_tasks_on_a_node_get_one_gpu_each():
    shared = {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    assert find_cluster(environment=SLURM | shared).local_device_ids == (1,)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[002,007-015],host2", "node002"),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_open_mpi_gives_ranks_and_the_address_of_the_first():
    env = {
        "OMPI_COMM_WORLD_SIZE": "8",
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_LOCAL_RANK": "3",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    }
    cluster = find_cluster(environment=env)
    port = 1531576320 // 4096 % 4096 + 61440
    assert place(cluster) == (f"10.96.0.1:{port}", 8, 3)
    assert cluster.local_device_ids == (3,)


def test_gke_gives_the_workers_of_a_slice_and_the_slices():
    assert place(find_cluster(environment=GKE)) == ("w-0.svc:8482", 2, 1)
    slices = {
        "MEGASCALE_COORDINATOR_ADDRESS": "first:1234",
        "MEGASCALE_NUM_SLICES": "3",
        "MEGASCALE_SLICE_ID": "2",
    }
    assert place(find_cluster(environment=GKE | slices)) == ("first:8482", 6, 5)


def test_an_indexed_job_gives_the_pod_number():
    env = {
        "JAX_COORDINATOR_ADDRESS": "job-0.job:9000",
        "JAX_NUM_PROCESSES": "4",
        "JOB_COMPLETION_INDEX": "3",
    }
    assert place(find_cluster(environment=env)) == ("job-0.job:9000", 4, 3)
    del env["JOB_COMPLETION_INDEX"]
    with pytest.raises(ValueError, match="JAX_PROCESS_ID"):
        find_cluster(environment=env)


def test_slices_are_read_from_the_metadata_server():
    text = "ZONE: 'us-east5-a'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
    assert tpu_environment(text)["MEGASCALE_NUM_SLICES"] == "2"


@pytest.mark.parametrize(
    ("address", "host"),
    [("127.0.0.1:9000", "127.0.0.1"), ("localhost:9000", "localhost"), ("10.0.0.2:9000", None)],
)
def test_a_coordinator_on_one_machine_listens_locally(address, host):
    cluster = Cluster(address, 2, 0, "a test")
    assert (cluster.bind_host, cluster.port) == (host, 9000)


def test_an_invalid_number_is_named():
    env = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}
    with pytest.raises(ValueError, match=r"'two' \(JAX_\* in the environment\)"):
        find_cluster(environment=env)
    env = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "x"}
    with pytest.raises(ValueError, match=r"'x' \(TPU_\* in the environment\)"):
        find_cluster(environment=env)

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mm1_jax.multihost.cluster import Cluster
from mm1_jax.multihost.rendezvous import Unreachable, decline, meet


@pytest.fixture
def address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


def all_meet(address, processes, number, timeout):
    """Returns the error of each process; None if it met the others."""

    def one(process):
        try:
            meet(Cluster(address, number, process, "a test"), timeout)
        except Unreachable as error:
            return str(error)

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, processes))


def test_all_processes_continue_when_the_last_arrives(address):
    start = time.monotonic()
    assert all_meet(address, range(4), 4, 30) == [None] * 4
    assert time.monotonic() - start < 10


def test_the_port_is_free_afterwards(address):
    all_meet(address, range(2), 2, 30)
    host, port = address.split(":")
    socket.create_server((host, int(port))).close()


def test_every_process_learns_which_are_missing(address):
    start = time.monotonic()
    told = all_meet(address, [0, 2], 4, 1.5)
    assert time.monotonic() - start < 10
    for text in told:
        assert "processes 1, 3 of 4 were not there within 1.5 s" in text


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_declines_ends_the_wait_of_the_others(address, failing):
    def one(process):
        cluster = Cluster(address, 3, process, "a test")
        if process == failing:
            decline(cluster, "--config=x: there is no\nsuch config", 20)
            return None
        with pytest.raises(Unreachable) as error:
            meet(cluster, 60)
        return str(error.value)

    start = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        told = [text for text in pool.map(one, range(3)) if text is not None]
    assert time.monotonic() - start < 15
    assert told == [f"process {failing} cannot run: --config=x: there is no such config"] * 2


def test_without_process_0_the_others_name_its_address(address):
    (text,) = all_meet(address, [1], 2, 1)
    assert f"process 1 cannot reach process 0 at {address}" in text and "within 1 s" in text


def test_another_number_of_processes_is_reported(address):
    def other(number):
        with pytest.raises(Unreachable) as error:
            meet(Cluster(address, number, 1 if number == 3 else 0, "a test"), 3)
        return str(error.value)

    with ThreadPoolExecutor(2) as pool:
        _, text = pool.map(other, (2, 3))
    assert "told that there are 3 processes, and process 0 that there are 2" in text


def test_a_port_in_use_is_reported(address):
    host, port = address.split(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(Unreachable, match=f"cannot listen at port {port}"),
    ):
        meet(Cluster(address, 2, 0, "a test"), 1)


def test_unrelated_connections_are_ignored(address):
    host, port = address.split(":")

    def stranger():
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                with socket.create_connection((host, int(port)), timeout=1) as peer:
                    peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return True
            except OSError:
                time.sleep(0.02)
        return False

    with ThreadPoolExecutor(2) as pool:
        host_told = pool.submit(all_meet, address, [0], 2, 20)
        assert stranger()
        assert all_meet(address, [1], 2, 20) == [None]
        assert host_told.result() == [None]

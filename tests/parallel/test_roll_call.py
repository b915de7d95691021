"""Hosts that are missing, too many or told otherwise are named, on all hosts alike."""

import concurrent.futures
import socket

import pytest

from launch.hosts import free_port
from mossjax.errors import InputError
from mossjax.parallel.roll_call import known, roll_call


def outcome(port, count, index, timeout):
    try:
        return roll_call(f'localhost:{port}', count, index, timeout)
    except InputError as error:
        return str(error)


def outcomes(hosts, timeout):
    """What each of [(number, hosts it was told of)] learns."""
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(len(hosts)) as pool:
        futures = [pool.submit(outcome, port, told, i, timeout) for i, told in hosts]
        return [future.result() for future in futures]


def test_all_have_come_whoever_is_first():
    for order in ([0, 1, 2], [2, 1, 0]):
        assert outcomes([(i, 3) for i in order], 60) == [None] * 3
    assert roll_call('localhost:1', 1, 0, 60) is None


def test_the_missing_are_named_on_all_hosts():
    said = outcomes([(0, 4), (2, 4)], 1)
    assert said[0] == said[1] and 'of 4 hosts 1, 3 did not come within 1 s' in said[0]


@pytest.mark.parametrize('hosts, named', [
    ([(0, 2), (1, 3)], 'host 1 was told of 3 hosts, host 0 of 2'),
    ([(0, 3), (5, 3)], 'host 5 of 3 came twice, or is one too many'),
    ([(0, 3), (1, 3), (1, 3)], 'host 1 of 3 came twice, or is one too many'),
])  # fmt: skip
def test_hosts_of_another_job_are_named(hosts, named):
    """To all that came, both of a pair."""
    assert all(named in said for said in outcomes(hosts, 3))


def test_a_host_0_that_is_not_there_and_a_port_that_is_taken(monkeypatch):
    monkeypatch.setattr('mossjax.parallel.roll_call.WORD_S', 0.3)
    port = free_port()
    assert f'host 0 at localhost:{port} was not reached within 0.1 s' in outcome(port, 2, 1, 0.1)
    with socket.create_server(('', 0)) as other:
        taken = other.getsockname()[1]
        assert f'port {taken}, where the hosts are to meet, cannot' in outcome(taken, 2, 0, 1)


def test_who_one_is_stands_in_the_environment():
    jax = {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '2'}
    tpu = {'TPU_WORKER_HOSTNAMES': 'x,y', 'TPU_WORKER_ID': '1', 'JAX_COORDINATOR_PORT': '7'}
    assert known(jax) == ('a:1', 4, 2) and known(tpu) == ('x:7', 2, 1)
    assert known({}) is known(tpu | {'MEGASCALE_NUM_SLICES': '2'}) is None
    assert known(tpu | {'TPU_WORKER_ID': ''}) is None

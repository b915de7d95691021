"""The table of slices against libtpu, which knows how many hosts a topology has."""

import pytest

from launch.slices import SLICES, find
from mossjax.errors import InputError

# Read from the documentation of GKE and Cloud TPU: name -> shape, hosts, machine, label.
DOCUMENTED = {
    'v5p-8': ('2x2x1', 1, 'ct5p-hightpu-4t', 'tpu-v5p-slice'),
    'v5p-16': ('2x2x2', 2, 'ct5p-hightpu-4t', 'tpu-v5p-slice'),
    'v5p-128': ('4x4x4', 16, 'ct5p-hightpu-4t', 'tpu-v5p-slice'),
    'v5e-8': ('2x4', 1, 'ct5lp-hightpu-8t', 'tpu-v5-lite-podslice'),
    'v5e-16': ('4x4', 4, 'ct5lp-hightpu-4t', 'tpu-v5-lite-podslice'),
    'v5e-256': ('16x16', 64, 'ct5lp-hightpu-4t', 'tpu-v5-lite-podslice'),
    'v6e-1': ('1x1', 1, 'ct6e-standard-1t', 'tpu-v6e-slice'),
    'v6e-8': ('2x4', 1, 'ct6e-standard-8t', 'tpu-v6e-slice'),
    'v6e-256': ('16x16', 64, 'ct6e-standard-4t', 'tpu-v6e-slice'),
}
# Chips of a host along the axes of the slice.
BOUNDS = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 4, 1)}


def test_slices_are_as_documented():
    for name, (shape, hosts, machine, label) in DOCUMENTED.items():
        one = SLICES[name]
        assert (one.shape, one.hosts, one.machine, one.accelerator) == (
            shape, hosts, machine, label,
        )  # fmt: skip


def test_libtpu_counts_the_same_chips_and_hosts(monkeypatch):
    from jax.experimental import topologies

    for name, value in {
        'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for one in SLICES.values():
        devices = topologies.get_topology_desc(
            platform='tpu', topology_name=one.topology,
            chips_per_host_bounds=BOUNDS[one.chips_per_host],
        ).devices
        assert len(devices) == one.chips, one
        assert len({device.process_index for device in devices}) == one.hosts, one


def test_names_count_cores_on_v5p_and_chips_elsewhere():
    for name, one in SLICES.items():
        generation, size = name.split('-')
        assert int(size) == one.chips * (2 if generation == 'v5p' else 1)
    assert SLICES['v5e-256'].accelerator_type == 'v5litepod-256'
    assert find('v5litepod-256') is find('v5e-256')


def test_another_name_is_refused_with_those_near_it():
    with pytest.raises(InputError, match='--slice v5p-129: no such slice; there are .*v5p-128'):
        find('v5p-129')
    with pytest.raises(InputError, match='v5e-1, .*v6e-256'):
        find('nonsense')

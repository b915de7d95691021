"""Which rows each process reads: on real TPU topologies, on slices, on devices in any order."""

import jax
import numpy as np
import pytest

from mossjax.data.pipeline import Whole
from mossjax.errors import InputError
from mossjax.parallel import rules
from mossjax.parallel.mesh import MeshConfig, make_mesh
from mossjax.parallel.rows import Rows
from mossjax.plan import compile as plan

# What the order of processes along the rows is not on any of these.
TOPOLOGIES = [
    ('v5p:2x2x2', 1, MeshConfig()),
    ('v5p:4x4x4', 1, MeshConfig()),
    ('v5p:4x4x4', 1, MeshConfig(tensor=4)),
    ('v5p:4x4x4', 1, MeshConfig(tensor=8)),  # cuts an axis of the torus; two hosts hold a row
    ('v5p:4x4x4', 1, MeshConfig(data=4)),
    ('v6e:4x4', 1, MeshConfig()),
    ('v6e:8x8', 1, MeshConfig()),
    ('v6e:16x16', 1, MeshConfig()),
    ('v5e:4x8', 1, MeshConfig()),
    ('v5e:16x16', 1, MeshConfig()),
    ('v5e:16x16', 1, MeshConfig(tensor=2)),
    ('v6e:8x8', 2, MeshConfig(data=2, slices=2)),
    ('v6e:8x8', 2, MeshConfig(data=4, tensor=4, slices=2)),
    ('v6e:16x16', 2, MeshConfig(data=2, tensor=4, slices=2)),
]


def preset(config):
    return rules.preset('fsdp_tensor' if config.tensor > 1 else 'fsdp')


@pytest.mark.parametrize(
    'topology, slices, config', TOPOLOGIES,
    ids=[f'{t}x{n}-{c.data},{c.fsdp},{c.tensor}' for t, n, c in TOPOLOGIES],
)
def test_every_process_of_a_slice_reads_the_rows_its_devices_hold(topology, slices, config):
    """Against the mesh itself: row r of 2 n lies on the devices at place r // 2 of data x fsdp."""
    mesh = make_mesh(config, plan.devices(topology, slices))
    places = mesh.devices.reshape(-1, mesh.shape['tensor'])
    size = 2 * len(places)
    wanted = [{device.process_index for device in places[row // 2]} for row in range(size)]
    made = Whole(lambda step: {'row': np.arange(size)})
    readers = [set() for _ in range(size)]
    for process in range(len({device.process_index for device in mesh.devices.flat})):
        held = Rows.of(mesh, preset(config), process).held(made.size(0))
        assert len(held) and (np.diff(held) > 0).all()
        for row in made.batch(0, held)['row']:
            readers[row].add(process)
    assert readers == wanted
    # The four chips of a host are a square, four along a link belong to two hosts.
    assert (max(map(len, wanted)) > 1) == (config.tensor > 2)


@pytest.mark.parametrize('config', [MeshConfig(data=2), MeshConfig(data=4, tensor=2)])
def test_slices_follow_each_other_along_data(config):
    config = MeshConfig(data=config.data, tensor=config.tensor, slices=2)
    mesh = make_mesh(config, plan.devices('v6e:8x8', 2))
    half = config.data // 2
    for number in range(2):
        part = mesh.devices[number * half : (number + 1) * half].flat
        assert {device.slice_index for device in part} == {number}


def test_a_mesh_that_does_not_fit_the_slices_is_refused_with_both_numbers():
    two, one = plan.devices('v6e:8x8', 2), plan.devices('v6e:8x8')
    with pytest.raises(InputError, match='slices is 1, the 128 devices are of 2 slices; set'):
        make_mesh(MeshConfig(), two)
    with pytest.raises(InputError, match='slices is 4, the 128 devices are of 2 slices'):
        make_mesh(MeshConfig(data=4, slices=4), two)
    with pytest.raises(InputError, match='slices is 2, the 64 devices are of 1 slices'):
        make_mesh(MeshConfig(data=2, slices=2), one)
    with pytest.raises(InputError, match='data=1 is not a multiple of slices=2'):
        make_mesh(MeshConfig(slices=2), two)
    uneven = [d for d in two if d.slice_index == 1 or d.process_index != 0]
    with pytest.raises(InputError, match=r'different numbers of devices, \{0: 60, 1: 64\}'):
        make_mesh(MeshConfig(data=2, slices=2), uneven)
    with pytest.raises(InputError, match='slices is 2, the 8 devices are of 1 slices'):
        make_mesh(MeshConfig(data=2, slices=2))  # CPUs have no slices


@pytest.mark.parametrize('order', [range(8), [5, 2, 7, 0, 1, 6, 3, 4]])
@pytest.mark.parametrize('config', [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)])
def test_global_arrays_hold_each_row_where_the_sharding_says(config, order):
    mesh = make_mesh(config, [jax.devices()[i] for i in order])
    rows = Rows.of(mesh, preset(config))
    x = np.arange(32, dtype=np.int32).reshape(16, 2)
    assert rows.held(16).tolist() == list(range(16))  # one process holds all
    put = rows.put({'x': x, 'y': x[:, 0]}, 16)
    np.testing.assert_array_equal(put['x'], x)
    np.testing.assert_array_equal(put['y'], x[:, 0])
    each = 16 // (8 // config.tensor)
    places = mesh.devices.reshape(-1, config.tensor)
    at = {device: i for i, place in enumerate(places) for device in place}
    for shard in put['x'].addressable_shards:
        first = each * at[shard.device]
        np.testing.assert_array_equal(shard.data, x[first : first + each])


def test_batches_that_do_not_fit_are_refused():
    config = MeshConfig(data=2, fsdp=2, tensor=2)
    rows = Rows.of(make_mesh(config), preset(config))
    assert rows.parts == 4 and rows.mine == (0, 1, 2, 3)
    rows.check([4, 8, 400])
    for size in (0, 2, 6):
        with pytest.raises(InputError, match=f'batch of {size} rows .* 4 row-holding .*multiple'):
            rows.check([4, size])
    with pytest.raises(InputError, match=r"'y' of shape \(\): its first axis must be the 8 rows"):
        rows.put({'x': np.zeros((8, 2)), 'y': np.float32(3)}, 8)
    with pytest.raises(InputError, match=r"'x' of shape \(4, 2\)"):
        rows.put({'x': np.zeros((4, 2))}, 8)

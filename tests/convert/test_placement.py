"""Weights opened onto meshes: the same arrays everywhere, and only the bytes that are needed."""

import json
import os
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from mossjax.convert import kinds
from mossjax.convert.directories import save_lm
from mossjax.convert.placement import on_devices, on_host, open_lm
from mossjax.convert.transfer import convert
from mossjax.models.lm.model import network
from mossjax.parallel import rules, sharding
from mossjax.parallel.mesh import MeshConfig, make_mesh
from tests.tiny_lm import tiny_config, tiny_params
from tests.train.test_two_processes import ROOT, finish, free_port

CONFIG = tiny_config(num_attention_heads=8, num_key_value_heads=2)
NET = network(CONFIG)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """The same weights in both forms, and what they are."""
    root = tmp_path_factory.mktemp('model')
    params = tiny_params(CONFIG)
    save_lm(root / 'hf', CONFIG, params, shard_bytes=30_000)
    convert(kinds.open_source(root / 'hf'), root / 'orbax')
    return root, params


def placed(mesh_config, preset, devices=None):
    mesh = make_mesh(mesh_config, devices)
    return sharding.shard(NET.shapes, NET.axes, mesh, rules.preset(preset))


def assert_equal(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), got, want)


@pytest.mark.parametrize('form', ['hf', 'orbax'])
@pytest.mark.parametrize(
    'mesh, preset', [(MeshConfig(), 'fsdp'), (MeshConfig(fsdp=4, tensor=2), 'fsdp_tensor')]
)
def test_eight_devices_hold_the_arrays_of_one(model, form, mesh, preset):
    root, want = model
    where = placed(mesh, preset)
    config, params = open_lm(root / form, on_devices(where))
    assert config == CONFIG
    assert_equal(params, want)
    jax.tree.map(lambda x, p: x.sharding.is_equivalent_to(p.sharding, x.ndim) or 1 / 0,
                 params, where)
    one = placed(MeshConfig(), preset, jax.devices()[:1])
    assert_equal(open_lm(root / form, on_devices(one))[1], want)


@pytest.mark.parametrize('form', ['hf', 'orbax'])
def test_devices_with_the_same_slice_read_it_once(model, form):
    """Eight devices in two copies: each byte of the model is taken once by this one process."""
    root, want = model
    taken = []
    open_lm(root / form, on_devices(placed(MeshConfig(data=2, fsdp=4), 'fsdp'), read=taken.append))
    assert sum(taken) == sum(x.nbytes for x in jax.tree.leaves(want))


def test_any_dtype(model):
    root, want = model
    half = ml_dtypes.bfloat16
    _, params = open_lm(root / 'orbax', on_devices(placed(MeshConfig(), 'fsdp'), half))
    assert_equal(params, jax.tree.map(lambda x: x.astype(half), want))
    assert_equal(open_lm(root / 'hf', on_host(half))[1], params)


SCRIPT = """
import json, sys
import jax, numpy as np
import tests.conftest
jax.distributed.initialize(f'localhost:{sys.argv[1]}', 2, int(sys.argv[2]))
from tests.convert.test_placement import NET, placed
from mossjax.convert.placement import on_devices, open_lm
from mossjax.parallel.mesh import MeshConfig
out = {}
for form in ('hf', 'orbax'):
    taken, where = [], placed(MeshConfig(), 'fsdp')
    _, params = open_lm(f'{sys.argv[3]}/{form}', on_devices(where, read=taken.append))
    own = [s for x in jax.tree.leaves(params) for s in x.addressable_shards]
    out[form] = [sum(taken), sum(s.data.nbytes for s in own)]
    norm = np.asarray(params['trunk']['attn']['q'].addressable_shards[0].data)
    out[form + ' q'] = norm.tolist()
json.dump(out, open(f'{sys.argv[3]}/read-{sys.argv[2]}.json', 'w'))
"""


def test_two_processes_read_their_own_part(model):
    """Every sharded parameter is halved between two hosts; what is whole both read."""
    root, want = model
    port = free_port()
    environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
    codes, errors = finish([
        subprocess.Popen(
            [sys.executable, '-c', SCRIPT, str(port), str(i), str(root)], cwd=ROOT,
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ])
    assert codes == [0, 0], errors
    specs = placed(MeshConfig(fsdp=2), 'fsdp', jax.devices()[:2])
    halved = jax.tree.map(lambda x, p: x.nbytes // (2 if 'fsdp' in p.sharding.spec else 1),
                          want, specs)
    share = sum(jax.tree.leaves(halved))
    assert share < 0.51 * sum(x.nbytes for x in jax.tree.leaves(want))
    for i in range(2):
        found = json.loads((root / f'read-{i}.json').read_text())
        for form in ('hf', 'orbax'):
            assert found[form] == [share, share]
            np.testing.assert_array_equal(
                found[f'{form} q'], want['trunk']['attn']['q'][:, 16 * i : 16 * (i + 1)]
            )

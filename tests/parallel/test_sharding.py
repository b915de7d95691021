"""Meshes, rules and where they put the 9.1 B parameters."""

import logging

import jax
import pytest

from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network
from mossjax.parallel import rules, sharding
from mossjax.parallel.mesh import AXES, MeshConfig, make_mesh


def spec(*axes, preset='fsdp_tensor'):
    return tuple(rules.spec(axes, rules.preset(preset)))


def test_mesh_shapes():
    assert MeshConfig().shape(8) == (1, 8, 1)
    assert MeshConfig(data=2, tensor=2).shape(16) == (2, 4, 2)
    assert MeshConfig(data=4, fsdp=-1, slices=2).shape(8) == (4, 2, 1)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    # Neighbours share the innermost axis.
    assert [d.id for d in mesh.devices[0, 0]] == [0, 1]


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (MeshConfig(data=3), '3 x 2 x 1 is not the number of devices, 8'),
        (MeshConfig(data=-1), 'at most one is -1'),
        (MeshConfig(tensor=0), '1 or more'),
        (MeshConfig(data=1, slices=2), 'data=1 is not a multiple of slices=2'),
    ],
)
def test_meshes_that_cannot_be_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        config.shape(8)


def test_presets():
    query = ('layers', 'embed', 'heads', 'head_dim')
    assert spec(*query) == (None, 'fsdp', 'tensor', None)
    assert spec(*query, preset='fsdp') == (None, 'fsdp', None, None)
    assert spec('vocab', 'embed') == ('tensor', 'fsdp')
    assert spec('batch', 'time', 'vocab') == (('data', 'fsdp'), None, 'tensor')
    assert spec('batch', 'time', None) == (('data', 'fsdp'), None, None)


def test_two_axes_on_one_mesh_axis_are_refused():
    with pytest.raises(InputError, match=r"\('batch', 'embed'\).*mesh axis fsdp"):
        spec('batch', 'embed')
    with pytest.raises(InputError, match='mesh axis tensor'):
        spec('heads', 'mlp')


def test_a_name_without_a_rule_is_refused():
    with pytest.raises(InputError, match="no rule for the logical axis 'hedas'"):
        spec('embed', 'hedas')
    with pytest.raises(InputError, match='choose one of fsdp, fsdp_tensor'):
        rules.preset('fdsp')


def test_an_axis_that_does_not_divide_is_kept_whole_and_said(caplog):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    with caplog.at_level(logging.WARNING):
        found = sharding.place(
            'a/k', (6, 3, 4), ('embed', 'kv_heads', 'head_dim'), mesh, rules.preset('fsdp_tensor')
        )
    assert tuple(found.spec) == (None, None, None)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 2 and 'a/k: axis kv_heads of size 3 is not divisible by 2' in said[1]


def test_every_parameter_of_the_9b_model_is_divided_by_both_presets():
    """Bytes on each device against arithmetic: only the norms are whole."""
    net = network(LMConfig.released())
    total = sum(x.size for x in jax.tree.leaves(net.shapes))
    norms = 40 * (2 * 4096 + 2 * 128) + 2 * 4096
    for preset, config in (('fsdp', MeshConfig()), ('fsdp_tensor', MeshConfig(tensor=4))):
        placed = sharding.shard(net.shapes, net.axes, make_mesh(config), rules.preset(preset))
        assert sharding.bytes_per_device(placed) == 4 * ((total - norms) // 8 + norms)
    table = sharding.report(placed).splitlines()
    assert len(table) == len(jax.tree.leaves(net.shapes)) + 1
    assert table[-1].endswith(f'{sharding.bytes_per_device(placed):,}')
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    assert total == 40 * layer + 2 * 4096 * (151680 + 16512) + 2 * 4096

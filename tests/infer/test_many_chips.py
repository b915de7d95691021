"""A model divided over eight (virtual) devices says what it says on one."""

import dataclasses

import jax
import numpy as np
import pytest

from mossjax.convert.directories import save_lm
from mossjax.convert.placement import open_lm
from mossjax.infer import many_chips
from mossjax.infer.engine import Engine, Programs
from mossjax.infer.generate import Session
from mossjax.infer.sampling import row_keys
from mossjax.models.lm.cache import int8_rows
from mossjax.models.lm.grid import concatenate
from mossjax.models.lm.model import network
from mossjax.ops.quant import Int8
from tests.infer.test_generate import CONFIG, GREEDY, IDS, SAMPLED, prompts, random_params

WIDE = dataclasses.replace(
    CONFIG, num_attention_heads=16, num_key_value_heads=8, head_dim=4, intermediate_size=48
)
NET = network(WIDE)


@pytest.fixture(scope='module')
def params():
    return random_params(NET, 0.5, seed=3)


def replies(programs, params):
    """Two turns each of two dialogues, greedy and drawn."""
    found = []
    for settings in (GREEDY, SAMPLED):
        session = Session(Engine(programs, params, 2), 2)
        asked = prompts(5)[3:]
        for turn in range(2):
            made = session(asked, settings, row_keys(turn, 2))
            found += [reply.grid for reply in made]
            asked = [concatenate([p, m.grid, p]) for p, m in zip(asked, made, strict=True)]
    return found, session.engine


@pytest.fixture(scope='module')
def single(params):
    return replies(Programs(NET, WIDE, IDS), params)


def test_divided_equals_single(params, single, tmp_path):
    """Weights and cache lie on all devices, an eighth of the heads on each."""
    mesh = many_chips.mesh_for(WIDE, jax.devices())
    assert mesh.devices.size == 8
    save_lm(tmp_path / 'model', WIDE, jax.tree.map(np.asarray, params))
    _, divided = open_lm(tmp_path / 'model', many_chips.put(WIDE, mesh))
    got, engine = replies(Programs(NET, WIDE, IDS, mesh=mesh), divided)
    for ours, theirs in zip(got, single[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    query = divided['trunk']['attn']['q']
    assert query.addressable_shards[0].data.shape == (2, 16, 2, 4)
    for stack in (engine._state.cache.trunk, engine._state.cache.text):
        for buffer in stack.pair:
            assert len({shard.device for shard in buffer.addressable_shards}) == 8
            assert buffer.addressable_shards[0].data.shape[2] == 1


def test_int8_weights_are_divided_as_they_are_quantised(params, tmp_path):
    mesh = many_chips.mesh_for(WIDE, jax.devices())
    save_lm(tmp_path / 'model', WIDE, jax.tree.map(np.asarray, params))
    _, divided = open_lm(tmp_path / 'model', many_chips.put(WIDE, mesh, quantised=True))
    down = divided['trunk']['mlp']['down']
    assert isinstance(down, Int8) and down.values.dtype == np.int8
    assert down.values.addressable_shards[0].data.shape == (2, 6, 16)
    whole = np.asarray(params['trunk']['mlp']['down'])
    dequantised = np.asarray(down.values, np.float32) * np.asarray(down.scale)
    bound = np.abs(whole).max(axis=1, keepdims=True) / 254 * 1.001
    assert (np.abs(dequantised - whole) <= bound).all()


def test_as_many_devices_as_divide_the_heads():
    assert many_chips.mesh_for(WIDE, jax.devices()[:6]).devices.size == 4
    assert many_chips.mesh_for(CONFIG, jax.devices()) is None  # of one kv head
    assert many_chips.mesh_for(WIDE) is None  # a CPU's devices are one machine


def test_int8_keys_and_values_say_nearly_the_same(params, single):
    """The cache takes 8 instead of 16 bytes for each 4 numbers: one scale a row of a head."""
    want, plain = single
    got, small = replies(Programs(NET, WIDE, IDS, store=int8_rows), params)

    def size(engine):
        return sum(x.nbytes for x in jax.tree.leaves(engine._state.cache.trunk.pair))

    assert size(small) * 16 == size(plain) * 8
    same = [np.mean(a[: len(b)] == b[: len(a)]) for a, b in zip(got, want, strict=True)]
    assert np.mean(same) > 0.5

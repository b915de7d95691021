"""Embedding rows on a mesh against numpy's own indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.nn.lookup import lookup
from mossjax.nn.shard import sharding_scope
from mossjax.parallel import rules
from mossjax.parallel.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize('width', [8, 6])
@pytest.mark.parametrize(
    ('preset', 'sizes'),
    [('fsdp', MeshConfig(data=2, fsdp=4)), ('fsdp_tensor', MeshConfig(data=2, fsdp=2, tensor=2))],
)
def test_rows_and_their_gradient(rng, preset, sizes, width):
    """6 columns do not divide by 4; the gradient of a row looked up often does not stall as a
    bfloat16 sum would; ids outside are clipped."""
    mesh, vocab = make_mesh(sizes), 12
    table = jnp.asarray(rng.normal(size=(vocab, width)), jnp.bfloat16)
    ids = rng.integers(0, vocab, (8, 300))
    ids[:, :200] = 5
    ids[0, :2] = -3, vocab + 4
    slopes = jnp.asarray(1 + rng.random((8, 300, width)), jnp.bfloat16)

    @jax.jit
    def run(table, ids, slopes):
        with sharding_scope(mesh, rules.resolver(rules.preset(preset))):
            rows, back = jax.vjp(lambda table: lookup(table, ids), table)
            return rows, *back(slopes)

    rows, gradient = run(table, ids, slopes)
    ids = np.clip(ids, 0, vocab - 1)
    np.testing.assert_array_equal(rows, np.asarray(table)[ids])
    want = np.zeros((vocab, width))
    np.add.at(want, ids.reshape(-1), np.asarray(slopes, np.float64).reshape(-1, width))
    np.testing.assert_allclose(np.asarray(gradient, np.float64), want, rtol=2**-8)
    assert not rows.sharding.is_fully_replicated


def test_few_positions_of_devices_that_share_them_do_not_move_the_table(rng):
    vocab, mesh = 64, make_mesh(MeshConfig(data=2, fsdp=1, tensor=4))
    table = jnp.asarray(rng.normal(size=(vocab, 8)), jnp.bfloat16)
    ids = rng.integers(0, vocab, (2, 5))
    ids[0, :2] = -3, vocab + 4
    where = jax.NamedSharding(mesh, jax.P('tensor'))

    @jax.jit
    def run(table, ids):
        with sharding_scope(mesh, rules.resolver(rules.preset('fsdp_tensor'))):
            return lookup(table, ids)

    compiled = run.lower(jax.device_put(table, where), ids).compile()
    assert 'all-gather' not in compiled.as_text()
    rows = compiled(jax.device_put(table, where), ids)
    np.testing.assert_array_equal(rows, np.asarray(table)[np.clip(ids, 0, vocab - 1)])

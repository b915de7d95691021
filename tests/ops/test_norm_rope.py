"""Norm and rotation in one kernel, interpreted, against float64 formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.nn import heads
from mossjax.nn.shard import sharding_scope
from mossjax.ops import norm_rope, rope
from mossjax.parallel import rules
from mossjax.parallel.mesh import MeshConfig, make_mesh

EPS = 1e-3  # large, so that a kernel without it is noticed
LARGEST = {'float32': 1e-6, 'bfloat16': 5e-3}  # of ||difference|| / ||reference||


def exact(x, scale, positions, weights):
    """(out, gradients of sum(weights * out) by x and by the scale), float64."""
    x, scale, weights = (np.asarray(v, np.float64) for v in (x, scale, weights))
    half = x.shape[-1] // 2
    angles = positions[..., None, None] / 1e4 ** (np.arange(half) / half)
    turn = np.exp(1j * angles)
    inverse = (np.mean(x**2, -1, keepdims=True) + EPS) ** -0.5
    u = x * inverse

    def turned(v, by):  # pairs (j, j + half) are complex numbers
        z = (v[..., :half] + 1j * v[..., half:]) * by
        return np.concatenate([z.real, z.imag], -1)

    d_y = turned(weights, turn.conj())
    d_u = d_y * scale
    d_x = inverse * (d_u - u * np.mean(d_u * u, -1, keepdims=True))
    return turned(u * scale, turn), d_x, (d_y * u).sum((0, 1, 2))


def inputs(rng, dtype, shape):
    x, weights = (jnp.asarray(3 * rng.normal(size=shape), dtype) for _ in range(2))
    return x, jnp.asarray(rng.normal(size=shape[-1]), 'float32'), weights


def off(got, want):
    return [
        np.linalg.norm(np.asarray(g, np.float64) - w) / np.linalg.norm(w)
        for g, w in zip(got, want, strict=True)
    ]


@pytest.mark.parametrize(
    ('dtype', 'shape'),
    [('float32', (2, 48, 3, 128)), ('bfloat16', (1, 512, 16, 128))],
)
def test_values_and_gradients(rng, dtype, shape):
    x, scale, weights = inputs(rng, dtype, shape)
    positions = np.arange(shape[1]) + 70 * np.arange(shape[0])[:, None]
    table = rope.rotation(jnp.asarray(positions), rope.frequencies(128, 1e4), x.dtype)

    def run(x, scale):
        return heads.interpreted(x, scale, table, eps=EPS)

    out, back = jax.jit(lambda x, s, w: (lambda out, f: (out, f(w)))(*jax.vjp(run, x, s)))(
        x, scale, weights
    )
    assert max(off((out, *back), exact(x, scale, positions, weights))) <= LARGEST[dtype]
    assert out.dtype == x.dtype
    plain = rope.rotate(x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + EPS) * scale, *table)
    assert off([out], [np.asarray(plain, np.float64)])[0] < 2 * LARGEST[dtype]


def test_devices_work_on_their_own_rows_and_heads(rng):
    x, scale, weights = inputs(rng, 'float32', (4, 16, 4, 128))
    positions = np.tile(np.arange(16), (4, 1))
    table = rope.rotation(jnp.asarray(positions), rope.frequencies(128, 1e4), x.dtype)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    @jax.jit
    def run(x, scale, weights):
        with sharding_scope(mesh, rules.resolver(rules.preset('fsdp_tensor'))):
            out, back = jax.vjp(
                lambda x, scale: heads.interpreted(x, scale, table, eps=EPS), x, scale
            )
            return out, *back(weights)

    assert max(off(run(x, scale, weights), exact(x, scale, positions, weights))) <= 1e-6


@pytest.mark.parametrize(
    ('shape', 'taken'),
    [((1, 16, 4, 128), True), ((1, 1, 4, 128), False), ((1, 24, 4, 128), False),
     ((1, 16, 4, 64), False)],
)  # fmt: skip
def test_what_the_kernels_take(shape, taken):
    assert norm_rope.takes(jax.ShapeDtypeStruct(shape, 'bfloat16')) is taken

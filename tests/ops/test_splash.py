"""The Pallas kernel, interpreted step by step, against the reference attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.nn import splash as nn_splash
from mossjax.nn.shard import sharding_scope
from mossjax.ops.attention import Mask, attention
from mossjax.ops.splash import splash
from mossjax.parallel import rules
from mossjax.parallel.mesh import MeshConfig, make_mesh


def inputs(rng, b=2, t=256, n=4, k=2, h=32):
    shapes = (b, t, n, h), (b, t, k, h), (b, t, k, h), (b, t, n, h)
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def packed(b, t):
    """Segments of unequal lengths, cut inside the kernel's blocks, padding at the end."""
    at = np.arange(t)[None] + 9 * np.arange(b)[:, None]
    segments = np.where(at < 70, 1, np.where(at < 150, 2, np.where(at < 230, 3, 0)))
    return jnp.asarray(segments, jnp.int32)


def value_and_grads(attend, q, k, v, mask, weights):
    """Output, and gradients of a weighted sum of it."""
    out, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask), q, k, v)
    return out, *back(weights)


@pytest.mark.parametrize('segments', [False, True])
def test_equals_reference_forward_and_backward(rng, segments):
    q, k, v, weights = inputs(rng)
    ids = packed(*q.shape[:2]) if segments else None
    mask = Mask(causal=True, q_segments=ids, kv_segments=ids)

    def interpreted(*args):
        return splash(*args, block=128, interpret=True)

    got = value_and_grads(interpreted, q, k, v, mask, weights)
    want = value_and_grads(attention, q, k, v, mask, weights)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=2e-5 * float(jnp.abs(w).max()))


def test_packed_rows_do_not_see_each_other(rng):
    q, k, v, _ = inputs(rng, b=1)
    ids = packed(1, 256)
    packed_out = splash(q, k, v, Mask(True, None, ids, ids), block=128, interpret=True)
    alone = attention(q[:, 70:150], k[:, 70:150], v[:, 70:150], Mask(causal=True))
    np.testing.assert_allclose(packed_out[:, 70:150], alone, atol=1e-5)


def test_on_a_mesh_equals_reference(rng):
    q, k, v, _ = inputs(rng, b=4, t=128)
    ids = packed(4, 128)
    mask = Mask(causal=True, q_segments=ids, kv_segments=ids)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def run(q, k, v):
        with sharding_scope(mesh, rules.resolver(rules.preset('fsdp_tensor'))):
            return nn_splash.interpreted(q, k, v, mask)

    out = jax.jit(run)(q, k, v)
    assert not out.sharding.is_fully_replicated
    np.testing.assert_allclose(out, attention(q, k, v, mask), atol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'bias': jnp.zeros((1, 1, 128, 128))}, 'a bias'),
        ({'mask': Mask(causal=True, chunk=4)}, 'chunked'),
        ({'mask': Mask()}, 'not causal'),
        ({'mask': Mask(causal=True, q_offset=3)}, 'offset'),
        ({'t': 100}, 'multiple of 128'),
    ],
)
def test_refuses_what_it_cannot_do(rng, changes, named):
    q, k, v, _ = inputs(rng, b=1, t=changes.get('t', 128))
    mask = changes.get('mask', Mask(causal=True))
    with pytest.raises(InputError, match=f'{named}.*use ops.attention.attention'):
        splash(q, k, v, mask, bias=changes.get('bias'), interpret=True)

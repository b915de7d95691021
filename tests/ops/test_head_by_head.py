"""Attention head by head against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.ops import head_by_head as ours
from mossjax.ops.attention import Mask

LONG, SHORT = np.arange(41) < 41, np.arange(41) < 20
CASES = {
    'causal': (41, 41, 4, Mask(causal=True)),
    'one block sees nothing behind its chunk': (41, 41, 4, Mask(chunk=7)),
    'rows of unequal length': (41, 41, 2, Mask(kv_valid=np.stack([LONG, SHORT]))),
    'after cached keys': (20, 41, 2, Mask(causal=True, q_offset=21)),
    'an offset that is data': (20, 41, 4, Mask(causal=True, q_offset=np.int32(21))),
    'nothing to see': (9, 41, 4, Mask(kv_valid=np.stack([~LONG, LONG]))),
}


@pytest.mark.parametrize('biased', [False, True])
@pytest.mark.parametrize('case', CASES)
def test_it_is_the_formula(case, biased, monkeypatch):
    monkeypatch.setattr(ours, 'QUERIES', 16)  # three blocks
    monkeypatch.setattr(ours, 'SCORES', 2 * 14 * 41)  # two heads of four at once, or one of two
    monkeypatch.setattr(ours, 'FEW', 0)
    t, s, heads, mask = CASES[case]
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, t, 4, 8))
    k, v = rng.normal(size=(2, 2, s, heads, 8))
    bias = rng.normal(size=(1, 4, t, s)) if biased else 0.0
    keys, values = (np.repeat(x, 4 // heads, axis=2) for x in (k, v))
    scores = np.einsum('btnh,bsnh->bnts', q, keys) * 8**-0.5 + bias
    seen = np.asarray(mask.visible(t, s))[:, None]
    weights = np.where(seen, np.exp(scores), 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    wanted = np.einsum('bnts,bsnh->btnh', weights, values)
    given = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    bias = jnp.asarray(bias, jnp.float32) if biased else None
    found = jax.jit(lambda q, k, v: ours.on_cpu(q, k, v, mask, bias=bias))(*given)
    np.testing.assert_allclose(found, wanted, atol=2e-6)

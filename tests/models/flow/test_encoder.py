"""The conformer's own formulas, written out in float64."""

import jax
import numpy as np

from mossjax.models.flow.encoder import ConformerBlock, RelativeAttention, by_distance
from mossjax.nn.param import describe
from mossjax.ops.attention import Mask, attention

T, D, N = 7, 16, 2


def drawn(net, rng):
    return jax.tree.map(lambda x: np.float32(0.5 * rng.normal(size=x.shape)), net.shapes)


def test_scores_by_distance_are_put_under_their_keys(rng):
    scores = rng.normal(size=(2, 3, T, 2 * T - 1)).astype(np.float32)
    found = np.asarray(by_distance(scores))
    for i in range(T):
        for j in range(T):
            np.testing.assert_array_equal(found[:, :, i, j], scores[:, :, i, T - 1 - (i - j)])


def test_relative_attention_position_by_position(rng):
    """((q + u) k + (q + v) p(i - j)) / sqrt(h), softmax over the keys in the block-causal mask."""
    net = describe(lambda rngs: RelativeAttention(D, N, attend=attention, rngs=rngs))
    params = drawn(net, rng)
    x = rng.normal(size=(1, T, D)).astype(np.float32)
    found = net.bind(params)(x, Mask(chunk=3))

    p = {name: value.astype(np.float64) for name, value in params.items()}
    h, x = D // N, x[0].astype(np.float64)
    q, k, v = (np.einsum('td,dnh->tnh', x, p[c]) + p[f'{c}_bias'] for c in 'qkv')
    rates = 10000.0 ** (-np.arange(0, D, 2) / D)
    expected = np.zeros((T, D))
    for i in range(T):
        keys = range(min(T, (i // 3 + 1) * 3))
        for n in range(N):
            scores = []
            for j in keys:
                wave = np.stack([np.sin((i - j) * rates), np.cos((i - j) * rates)], 1).reshape(-1)
                place = wave @ p['position'][:, n]
                content = (q[i, n] + p['content_bias'][n]) @ k[j, n]
                scores.append((content + (q[i, n] + p['position_bias'][n]) @ place) / np.sqrt(h))
            weights = np.exp(np.array(scores) - max(scores))
            expected[i] += (weights / weights.sum()) @ v[list(keys), n] @ p['o'][n]
    np.testing.assert_allclose(found[0], expected + p['o_bias'], rtol=0, atol=1e-5)


def test_norms_of_a_block_have_no_epsilon_to_speak_of(rng, flow_config):
    """Upstream's is 1e-12: quiet frames, with a variance of 1e-8, come out at full size."""
    net = describe(lambda rngs: ConformerBlock(flow_config, attend=attention, rngs=rngs))
    block = net.bind(jax.tree.map(lambda x: np.ones(x.shape, np.float32), net.shapes))
    x = 1e-4 * rng.normal(size=(1, 3, flow_config.width))
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    for norm in (block.attention_norm, block.ff_norm):
        # 1e-12 itself is worth 5e-5 of a value of one.
        found = norm(x.astype(np.float32))  # scale and bias are one
        np.testing.assert_allclose(found, expected + 1, rtol=0, atol=5e-4)

"""Weight norm as a change of parameters: closed form, and a start that computes the same."""

from flax import nnx
import jax
import numpy as np

from mossjax.nn.convnet import Conv1d, ConvTranspose1d
from mossjax.nn.param import describe
from mossjax.nn.weight_norm import fold, normed


class Pair(nnx.Module):
    def __init__(self, rngs):
        self.up = ConvTranspose1d(3, 4, 6, stride=2, rngs=rngs)
        self.conv = Conv1d(4, 5, 3, rngs=rngs)

    def __call__(self, x):
        return self.conv(self.up(x))


PLAIN = describe(Pair)
NORMED = normed(PLAIN, {'up/kernel': 1, 'conv/kernel': 2})


def test_the_length_is_of_all_axes_but_one(rng):
    g, v = rng.uniform(1, 2, (1, 1, 5)), rng.normal(size=(3, 4, 5))
    found = fold({'conv': {'kernel': {'g': g, 'v': v}, 'bias': v[0, 0]}})['conv']
    expected = np.stack([g[0, 0, i] * v[..., i] / np.linalg.norm(v[..., i]) for i in range(5)], -1)
    np.testing.assert_allclose(found['kernel'], expected, rtol=1e-6)
    assert found['bias'] is not None and set(found) == {'kernel', 'bias'}


def test_it_starts_as_the_plain_network(rng):
    params, key = NORMED.init(jax.random.key(0)), jax.random.key(0)
    x = rng.normal(size=(1, 7, 3)).astype(np.float32)
    expected = PLAIN.bind(PLAIN.init(key))(x)
    np.testing.assert_allclose(NORMED.bind(params)(x), expected, rtol=0, atol=1e-5)
    doubled = jax.tree.map(lambda x: x, params)
    doubled['conv']['kernel']['v'] = 2 * doubled['conv']['kernel']['v']  # direction alone counts
    np.testing.assert_allclose(NORMED.bind(doubled)(x), expected, rtol=0, atol=1e-5)


def test_shapes_and_axes_of_what_is_stored():
    kernel, axes = NORMED.shapes['up']['kernel'], NORMED.axes['up']['kernel']
    assert kernel['g'].shape == (1, 3, 1) and axes['g'] == (None, 'conv_in', None)
    assert kernel['v'].shape == (6, 3, 4) and axes['v'] == ('kernel', 'conv_in', 'conv_out')
    assert PLAIN.shapes['up']['kernel'].shape == (6, 3, 4)  # untouched

"""What each remat policy computes again, counted in matmuls, and that gradients do not change."""

from flax import nnx
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.nn.param import describe, scan_layers, stack
from mossjax.nn.remat import remat
from mossjax.nn.transformer import Block
from mossjax.ops import rope
from mossjax.ops.attention import Mask, attention

D, T = 32, 24  # more rows than `ops.contract.FEW_ROWS`: each product stands there once
# Of a layer's products again: scores and weighted values; the gated MLP's wide two; the heads'
# four. The last one, down, nobody needs twice.
AGAIN = {'none': 0, 'projections': 2, 'heads': 2 + 2, 'attention': 2 + 2 + 4, 'full': 2 + 2 + 4}


class Layers(nnx.Module):
    def __init__(self, attend, wrap, rngs):
        self.attend, self.wrap = attend, wrap
        self.layers = stack(
            lambda rngs: Block(D, 48, 4, 2, 8, eps=1e-6, init_std=0.2, rngs=rngs), 3, rngs
        )

    def __call__(self, x):
        turned = rope.rotation(jnp.arange(T)[None], rope.frequencies(8, 1e4), x.dtype)

        def body(layer, x, _):
            return layer(x, turned, lambda *qkv: self.attend(*qkv, Mask(causal=True)))[0], None

        return scan_layers(self.layers, x, body, remat=self.wrap)[0]


def gradient(policy, attend=attention):
    """(function of weights and input, such weights, such input)."""
    net = describe(lambda rngs: Layers(attend, remat(policy), rngs))
    x = jax.random.normal(jax.random.key(1), (2, T, D))
    return jax.grad(lambda w, x: net.bind(w)(x).sum()), net.init(jax.random.key(0)), x


def count(jaxpr, wanted: str) -> int:
    found = 0
    for equation in jaxpr.eqns:
        found += equation.primitive.name == wanted
        found += sum(count(j, wanted) for j in jax.extend.core.jaxprs_in_params(equation.params))
    return found


@pytest.mark.parametrize('policy', AGAIN)
def test_what_is_computed_again(policy):
    f, *args = gradient(policy)
    plain, *_ = gradient('none')
    matmuls = [count(jax.make_jaxpr(g)(*args).jaxpr, 'dot_general') for g in (f, plain)]
    assert matmuls[0] - matmuls[1] == AGAIN[policy]
    for got, want in zip(*(jax.tree.leaves(jax.jit(g)(*args)) for g in (f, plain)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

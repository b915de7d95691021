"""One contraction for every way a weight is held, against float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.nn.lora import Adapted
from mossjax.ops.contract import contract, product
from mossjax.ops.quant import Int8, quantise

# spec, shape of x, shape of w, summed axes of w
SPECS = [
    ('btd,df->btf', (2, 3, 5), (5, 7), (0,)),
    ('btd,dnh->btnh', (1, 1, 5), (5, 2, 4), (0,)),
    ('btnh,nhd->btd', (1, 3, 2, 4), (2, 4, 5), (0, 1)),
    ('...d,de->...e', (6, 5), (5, 7), (0,)),
    ('...d,de->...e', (5,), (5, 7), (0,)),
]


@pytest.mark.parametrize('spec, x_shape, w_shape, summed', SPECS)
def test_every_kind_of_weight(rng, spec, x_shape, w_shape, summed):
    x = rng.normal(size=x_shape).astype(np.float32)
    w = rng.normal(size=w_shape).astype(np.float32)
    want = np.einsum(spec, x.astype(np.float64), w.astype(np.float64))
    np.testing.assert_allclose(contract(x, jnp.asarray(w), spec), want, rtol=1e-5, atol=1e-5)

    values, scale = quantise(w, summed)
    held = Int8(jnp.asarray(values), jnp.asarray(scale), 'float32')
    exact = np.einsum(spec, x.astype(np.float64), values * scale.astype(np.float64))
    np.testing.assert_allclose(contract(x, held, spec), exact, rtol=1e-5, atol=1e-5)

    inputs, outputs = w_shape[: len(summed)], w_shape[len(summed) :]
    down = rng.normal(size=(*inputs, 3)).astype(np.float32)
    up = rng.normal(size=(3, *outputs)).astype(np.float32)
    dense = values * scale.astype(np.float64) + 0.5 * np.tensordot(down, up.astype(np.float64), 1)
    adapted = Adapted(held, jnp.asarray(down), jnp.asarray(up), 0.5)
    np.testing.assert_allclose(
        contract(x, adapted, spec), np.einsum(spec, x.astype(np.float64), dense),
        rtol=2e-5, atol=2e-5,
    )  # fmt: skip


def test_int8_in_bfloat16_is_rounded_once(rng):
    """The integers are exact in bfloat16, so only x and the result are rounded."""
    x = jnp.asarray(rng.normal(size=(9, 256)), jnp.bfloat16)
    values, scale = quantise(rng.normal(size=(256, 40)), (0,))
    y = contract(x, Int8(jnp.asarray(values), jnp.asarray(scale)), '...d,de->...e')
    exact = np.asarray(x, np.float64) @ (values * scale.astype(np.float64))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8)


@pytest.mark.parametrize('rows, dots', [(1, '8x16'), (7, '8x16'), (8, '8x16'), (11, '11x16')])
def test_a_tpu_multiplies_eight_rows_at_least_and_a_cpu_the_real_ones(rows, dots):
    x, w = jnp.zeros((rows, 16)), jnp.zeros((16, 24))
    traced = jax.jit(lambda x, w: contract(x, w, '...d,de->...e')).trace(x, w)
    for platform, shape in (('tpu', dots), ('cpu', f'{rows}x16')):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert re.findall(r'dot_general.* : \(tensor<(\d+x\d+)xf32>', text) == [shape]


def test_on_a_tpu_products_of_few_rows_stay_apart():
    """Nothing moves into them or out of them; those of many are the compiler's to fuse."""
    for rows, barriers in ((1, 1), (16, 1), (33, 0)):
        x, w = jnp.zeros((rows, 16)), jnp.zeros((16, 24))
        traced = jax.jit(lambda x, w: contract(x, w, '...d,de->...e')).trace(x, w)
        for platform, count in (('tpu', barriers), ('cpu', 0)):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert text.count('optimization_barrier') == count


@pytest.mark.parametrize('spec, x_shape, w_shape, summed', SPECS)
def test_padding_changes_no_number(rng, monkeypatch, spec, x_shape, w_shape, summed):
    """What is compiled for a TPU, run here."""
    x, w = rng.normal(size=x_shape), rng.normal(size=w_shape)
    monkeypatch.setattr(
        jax.lax, 'platform_dependent', lambda *args, tpu, default: tpu(*args)
    )
    y = product(jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32), spec)
    np.testing.assert_allclose(y, np.einsum(spec, x, w), rtol=1e-5, atol=1e-5)
    assert y.shape == np.einsum(spec, x, w).shape

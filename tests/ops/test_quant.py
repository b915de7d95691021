"""int8 weights: against the definition in float64, and inside the whole model."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.convert import int8, kinds
from mossjax.convert.directories import save_lm
from mossjax.convert.placement import open_lm
from mossjax.convert.transfer import convert
from mossjax.models.lm.model import network
from mossjax.ops.attention import Mask
from mossjax.ops.quant import Int8, quantise, take_rows
from tests.tiny_lm import tiny_config, tiny_grid, tiny_params

CONFIG = tiny_config()
NET = network(CONFIG)


@pytest.mark.parametrize('shape, summed', [((7, 5), (0,)), ((3, 4, 6), (0, 1)), ((9, 4), (1,))])
def test_nearest_of_255_levels(rng, shape, summed):
    weight = rng.normal(size=shape).astype(np.float32)
    weight[..., -1] = 0 if summed != (1,) else weight[..., -1]
    values, scale = quantise(weight, summed)
    largest = np.abs(weight.astype(np.float64)).max(axis=summed, keepdims=True)
    step = np.where(largest > 0, largest / 127, 1)
    np.testing.assert_allclose(scale, step, rtol=1e-6)
    assert np.abs(values).max() == 127 and values.min() >= -127
    assert np.abs(values * step - weight).max() <= 0.5001 * step.max()
    got = Int8(jnp.asarray(values), jnp.asarray(scale)).astype(jnp.float32)
    np.testing.assert_allclose(got, values * step, rtol=1e-6)


def test_rows_are_those_of_the_whole_table(rng):
    values, scale = quantise(rng.normal(size=(11, 4)), (1,))
    table = Int8(jnp.asarray(values), jnp.asarray(scale), 'float32')
    ids = jnp.array([[3, 10], [0, 99]])
    want = np.asarray(table.astype(jnp.float32))[np.array([[3, 10], [0, 10]])]
    np.testing.assert_array_equal(take_rows(table, ids), want)


@pytest.mark.parametrize('shape', [(1, 1), (7,), (8,), (3, 4)])
def test_a_tpu_fetches_eight_rows_at_least(rng, monkeypatch, shape):
    """And they are the same: what is compiled for a TPU, run here."""
    table = rng.normal(size=(11, 4)).astype(np.float32)
    ids = rng.integers(0, 11, shape)
    traced = jax.jit(take_rows).trace(jnp.asarray(table), jnp.asarray(ids))
    for platform, rows in (('tpu', max(8, ids.size)), ('cpu', ids.size)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        (found,) = re.findall(r'stablehlo.gather.* -> tensor<([\dx]+)x4xf32>', text)
        assert np.prod([int(n) for n in found.split('x')]) == rows
    monkeypatch.setattr(jax.lax, 'platform_dependent', lambda *args, tpu, default: tpu(*args))
    np.testing.assert_array_equal(take_rows(jnp.asarray(table), jnp.asarray(ids)), table[ids])


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp('int8')
    save_lm(root / 'hf', CONFIG, tiny_params(CONFIG))
    convert(kinds.open_source(root / 'hf'), root / 'orbax')
    return root


def dequantised(params):
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if isinstance(x, Int8) else x, params,
        is_leaf=lambda x: isinstance(x, Int8),
    )  # fmt: skip


@pytest.mark.parametrize('form', ['hf', 'orbax'])
def test_read_in_slabs_is_quantised_as_a_whole(model, form, monkeypatch):
    """The same integers whatever the size of a slab, in the shapes that are promised."""
    monkeypatch.setattr(int8, 'SLAB_BYTES', 1000)
    _, params = open_lm(model / form, int8.int8('float32'))
    promised = int8.abstract(NET.shapes, np.float32)
    jax.tree.map(lambda x, p: (x.shape, x.dtype) == (p.shape, p.dtype) or 1 / 0, params, promised)
    whole = tiny_params(CONFIG)
    for path, axes in (
        (('trunk', 'attn', 'q'), (0,)), (('audio_branch', 'attn', 'o'), (0, 1)),
        (('text_branch', 'mlp', 'down'), (0,)),
    ):  # fmt: skip
        stack, got = whole, params
        for key in path:
            stack, got = stack[key], got[key]
        for layer, weight in enumerate(stack):
            values, scale = quantise(weight, axes)
            np.testing.assert_array_equal(got.values[layer], values)
            np.testing.assert_array_equal(got.scale[layer], scale)
    values, scale = quantise(whole['text_embed']['table'], (1,))
    np.testing.assert_array_equal(params['text_embed']['table'].values, values)
    np.testing.assert_array_equal(params['trunk']['attn_norm']['scale'],
                                  whole['trunk']['attn_norm']['scale'])


def test_the_model_computes_with_the_values_it_holds(model):
    """int8 weights give the logits of the same weights written out in float32; close to exact."""
    _, params = open_lm(model / 'hf', int8.int8('float32'))
    tokens = tiny_grid(CONFIG, 2, 12)
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    run = jax.jit(lambda params: NET.bind(params)(tokens, positions, Mask(causal=True)))
    got, want = run(params), run(dequantised(params))
    exact = run(tiny_params(CONFIG))
    for a, b, c in zip(got, want, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
        assert 0 < np.abs(np.asarray(a) - c).max() < 0.1 * np.abs(c).max()

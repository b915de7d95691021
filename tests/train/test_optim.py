"""Schedule against its formula, decay and freezing by path, and a step against plain numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.train import optim
from mossjax.train.optim import OptimConfig

AXES = {
    'trunk': {'q': ('layers', 'embed', 'heads', 'head_dim'), 'norm': {'scale': ('layers', 'norm')}},
    'head': {'kernel': ('embed', 'vocab'), 'bias': ('vocab',), 'o_bias': ('heads', 'head_dim')},
}


def shapes():
    sizes = {'layers': 2, 'embed': 4, 'heads': 3, 'head_dim': 2, 'norm': 4, 'vocab': 5}
    return jax.tree.map(
        lambda axes: jnp.ones([sizes[a] for a in axes]), AXES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def test_schedule_values():
    config = OptimConfig(peak_lr=2.0, final_lr=0.5, warmup_steps=4)
    got = [float(optim.learning_rate(config, 12)(step)) for step in range(14)]
    warm = [2.0 * (i + 1) / 4 for i in range(4)]
    cosine = [0.5 + 1.5 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    np.testing.assert_allclose(got, [*warm, *cosine, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize('steps', [1, 3, 10])
def test_schedule_of_a_run_shorter_than_its_warm_up_reaches_the_peak(steps):
    config = OptimConfig(peak_lr=3.0, warmup_steps=10)
    got = [float(optim.learning_rate(config, steps)(i)) for i in range(steps)]
    np.testing.assert_allclose(got, [3.0 * (i + 1) / steps for i in range(steps)], rtol=1e-6)


def test_no_warm_up_starts_at_the_peak():
    assert float(optim.learning_rate(OptimConfig(peak_lr=3.0, warmup_steps=0), 5)(0)) == 3.0


def test_only_matrices_decay():
    got = optim.decays(AXES, OptimConfig())
    assert got == {
        'trunk': {'q': True, 'norm': {'scale': False}},
        'head': {'kernel': True, 'bias': False, 'o_bias': False},
    }
    assert not optim.decays(AXES, OptimConfig(no_decay=('head/.*',)))['head']['kernel']
    # One axis is enough to be spared, whatever the name.
    axes = {'gain': ('embed',), 'stacked': ('layers', 'embed'), 'table': ('vocab', 'embed')}
    got = optim.decays(axes, OptimConfig(no_decay=()))
    assert got == {'gain': False, 'stacked': False, 'table': True}


def test_split_and_join_are_inverse():
    params = shapes()
    trainable, frozen = optim.split(params, ('trunk/.*', 'head/bias'))
    assert set(trainable) == {'head'} and set(trainable['head']) == {'kernel', 'o_bias'}
    assert set(frozen) == {'trunk', 'head'} and set(frozen['head']) == {'bias'}
    back = optim.join(trainable, frozen)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (back, params)), strict=True))


@pytest.mark.parametrize(
    ('patterns', 'message'),
    [(('trunk',), "'trunk' matches no parameter.*whole path"), (('.*',), 'nothing is left'),
     (('trunk/(',), 'is no regular expression')],
)
def test_bad_patterns_are_refused(patterns, message):
    with pytest.raises(InputError, match=message):
        optim.split(shapes(), patterns)


def test_two_updates_equal_adamw_written_out(rng):
    config = OptimConfig(peak_lr=0.1, warmup_steps=0, clip_norm=1.0, weight_decay=0.3)
    axes = {'kernel': ('embed', 'vocab'), 'bias': ('vocab',)}
    weights = {'kernel': rng.normal(size=(3, 2)), 'bias': rng.normal(size=2)}
    grads = [{k: rng.normal(size=w.shape) for k, w in weights.items()} for _ in range(2)]
    tx = optim.optimizer(config, axes, 5)
    params = jax.tree.map(jnp.float32, weights)
    state = tx.init(params)
    m, v = ({k: np.zeros_like(w) for k, w in weights.items()} for _ in range(2))
    for step, g in enumerate(grads):
        updates, state = tx.update(jax.tree.map(jnp.float32, g), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        norm = math.sqrt(sum((x**2).sum() for x in g.values()))
        rate = float(optim.learning_rate(config, 5)(step))
        for k, w in weights.items():
            x = g[k] / max(norm, 1.0)
            m[k] = config.b1 * m[k] + (1 - config.b1) * x
            v[k] = config.b2 * v[k] + (1 - config.b2) * x**2
            hat = (m[k] / (1 - config.b1 ** (step + 1)),
                   v[k] / (1 - config.b2 ** (step + 1)))
            decay = config.weight_decay * w if k == 'kernel' else 0
            weights[k] = w - rate * (hat[0] / (np.sqrt(hat[1]) + config.eps) + decay)
    for k, w in weights.items():
        np.testing.assert_allclose(params[k], w, rtol=1e-5)

"""A loss that adds up: parts of a batch, one denominator, channels that are not built, layers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.data.pipeline import Whole
from mossjax.errors import InputError
from mossjax.models.lm.loss import joint, loss, per_channel
from mossjax.models.lm.model import AUDIO, TEXT
from mossjax.nn.linear import Linear
from mossjax.nn.lora import Lora
from mossjax.nn.param import describe, stack
from mossjax.ops.attention import Mask
from mossjax.parallel import rules
from mossjax.parallel.mesh import MeshConfig, make_mesh
from mossjax.parallel.rows import Rows
from mossjax.train import optim, state, step
from mossjax.train.loop import fit
from mossjax.train.optim import OptimConfig
from tests.tiny_lm import close, tiny_params
from tests.train.tiny_task import tiny_run, tiny_task
from tests.train.toy_task import ToyTask, toy_config

ONE = jax.devices()[:1]


def one_step(task, parts, devices=ONE, config=None):
    """(metrics, first moments: a tenth of the gradient) of the first step."""
    config = config or OptimConfig(clip_norm=1e9, warmup_steps=0)
    mesh = make_mesh(MeshConfig(), devices)
    layout = state.layout(task, config, 10, mesh, rules.preset('fsdp'))
    now = state.init(task, layout, jax.random.key(0))
    batch = Rows.of(mesh, layout.rules).put(task.batch(0), task.size(0))
    run = step.compiled_step(task, layout, jnp.float32, batch, parts)
    now, metrics = run(now, batch, jax.random.key(1))
    (moments,) = (
        x.mu for x in jax.tree.leaves(now.opt_state, is_leaf=lambda x: hasattr(x, 'mu'))
        if hasattr(x, 'mu')
    )  # fmt: skip
    return jax.tree.map(np.float64, (metrics, moments))


def uneven(task):
    """The task with very different numbers of targets in its rows; the last one has none."""
    batch = task.batch(0)
    for row in range(8):
        batch['labels'][row, row:] = -100
    return tiny_task(**{name: getattr(task, name) for name in ('mean', 'z_weight', 'reply')},
                     batches=Whole(lambda step: batch))  # fmt: skip


@pytest.fixture(scope='module')
def whole():
    """A task with a mean for each channel, so that both counts matter; its step in one go."""
    task = uneven(tiny_task(mean=per_channel, z_weight=0.1, reply=(7, 8)))
    return task, *one_step(task, 1)


def test_parts_of_a_batch_add_up_to_it(whole):
    """1 x 8, 2 x 4 and 8 x 1 rows."""
    task, metrics, gradient = whole
    largest = max(np.abs(x).max() for x in jax.tree.leaves(gradient))
    for parts in (2, 8):
        numbers, sums = one_step(task, parts)
        for name, want in metrics.items():
            np.testing.assert_allclose(numbers[name], want, rtol=1e-6)
        for got, want in zip(*map(jax.tree.leaves, (sums, gradient)), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * largest)


def test_parts_on_several_devices_are_those_of_one(whole):
    task, metrics, moments = whole
    there = one_step(task, 2, jax.devices()[:2])
    np.testing.assert_allclose(there[0]['loss'], metrics['loss'], rtol=1e-6)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), there[1], moments)


def test_what_cannot_be_taken_in_parts_is_refused(tmp_path):
    with pytest.raises(InputError, match='accumulate is 2: only batches of the language model'):
        fit(ToyTask(), toy_config(accumulate=2), tmp_path / 'run', devices=ONE)
    with pytest.raises(InputError, match='batch of 8 rows .* 4 row-holding .* multiple of 12'):
        fit(tiny_task(), tiny_run(accumulate=3), tmp_path / 'run', devices=jax.devices()[:4])
    assert not (tmp_path / 'run').exists()


def by_hand(task, params, batch):
    """Per channel (sum of losses, sum of squares of log-sum-exp, count) in float64."""
    segments = batch['segments']
    mask = Mask(causal=True, q_segments=segments, kv_segments=segments)
    logits = task.network.bind(params)(batch['tokens'], batch['positions'], mask)
    found = []
    for channel in (TEXT, AUDIO):
        x, labels = np.asarray(logits[channel], np.float64), batch['labels'][..., channel]
        at = labels != -100
        log_z = np.log(np.exp(x).sum(-1))
        chosen = np.take_along_axis(x, np.where(at, labels, 0)[..., None], -1)[..., 0]
        found.append(((log_z - chosen)[at].sum(), (log_z[at] ** 2).sum(), at.sum()))
    return found


def test_one_denominator_weights_and_z_loss_against_closed_forms():
    task = uneven(tiny_task())
    params, batch = tiny_params(task.config), task.batch(0)
    (text, text_z, n), (audio, audio_z, m) = by_hand(task, params, batch)
    model = task.network.bind(params)
    cases = [
        (dict(text=1.0, audio=1.0), joint, 0.0, (text + audio) / (n + m)),
        (dict(text=3.0, audio=0.5), joint, 0.0, (3 * text + 0.5 * audio) / (n + m)),
        (dict(text=3.0, audio=0.5), per_channel, 0.0, 3 * text / n + 0.5 * audio / m),
        (dict(audio=2.0), joint, 0.0, 2 * audio / m),  # the other leaves the denominator
        (dict(text=2.0, audio=1.0), joint, 0.3,
         (2 * (text + 0.3 * text_z) + audio + 0.3 * audio_z) / (n + m)),
    ]
    for weights, mean, z_weight, want in cases:
        got, metrics = loss(model, batch, weights=weights, mean=mean, z_weight=z_weight)
        assert float(got) == pytest.approx(want, rel=1e-5), weights
        assert float(metrics['audio_loss']) == pytest.approx(audio / m, rel=1e-5)
    assert float(metrics['z_loss']) == pytest.approx(
        0.3 * (2 * text_z + audio_z) / (n + m), rel=1e-5
    )


@pytest.mark.parametrize('gone, kept', [('text', 'audio'), ('audio', 'text')])
def test_a_channel_of_weight_0_is_not_built(gone, kept):
    task = tiny_task(**{f'{gone}_weight': 0.0})
    params, batch = tiny_params(task.config), task.batch(0)

    def built(params):  # with a weight of 0, as a mean of its own leaves the other as it is
        return loss(task.network.bind(params), batch, weights={kept: 1.0, gone: 0.0},
                    mean=per_channel)[0]  # fmt: skip

    def not_built(params):
        return task.loss(params, {}, batch, None)[0]

    full, ours = (jax.jit(jax.value_and_grad(f)) for f in (built, not_built))
    (want, slope), (got, same) = full(params), ours(params)
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max()),
        same, slope,
    )  # fmt: skip
    # In the lowered programs: what is not used is no argument, and its matmuls are not there.
    sizes = {'text': task.config.vocab_size, 'audio': task.config.audio_vocab_size}
    programs = [jax.jit(f).lower(params).as_text() for f in (not_built, built)]
    signature = [re.search(r'func.func public @main\((.*?)\) ->', text)[1] for text in programs]
    leaves = {name: len(jax.tree.leaves(x)) for name, x in params.items()}
    idle = sum(leaves[f'{gone}_{part}'] for part in ('branch', 'norm', 'head'))
    whole = sum(leaves.values())
    assert [text.count('%arg') for text in signature] == [whole - idle, whole]
    head = rf'dot_general.*tensor<\d+x{sizes[gone]}xf32>'
    assert [len(re.findall(head, text)) > 0 for text in programs] == [False, True]
    trainable, _ = optim.split(params, task.frozen)
    assert {name for name in trainable if name.startswith(gone)} == {f'{gone}_embed'}


def test_a_channel_that_is_not_built_is_not_trained_under_adapters_either():
    task = tiny_task(text_weight=0.0, lora=Lora(rank=2, alpha=4.0, targets=('.*/attn/q',)))
    trainable, _ = optim.split(task.network.shapes, task.frozen)
    assert set(trainable) == {'lora'} and set(trainable['lora']) == {'trunk', 'audio_branch'}
    with pytest.raises(InputError, match='are both 0'):
        tiny_task(text_weight=0.0, audio_weight=0.0)


class Stacked:
    """Four layers of a loss that is linear in their kernels, so that gradients are data."""

    network = describe(lambda rngs: stack(lambda r: Linear(3, 2, rngs=r), 4, rngs))

    def init_extra(self, params):
        return {}

    def loss(self, params, extra, batch, key):
        total = jnp.sum(params['kernel'] * batch['c'][0]) + jnp.sum(params['bias'] * 0.1)
        return total, ({}, extra)


def test_layers_are_frozen_and_thaw_from_the_back(rng):
    """Against AdamW written out, in which a frozen layer has no gradient and no decay."""
    config = OptimConfig(peak_lr=0.1, warmup_steps=0, clip_norm=1.0, weight_decay=0.3,
                         frozen=('kernel@0:3',), thaw_every=2)  # fmt: skip
    task, mesh = Stacked(), make_mesh(MeshConfig(), ONE)
    layout = state.layout(task, config, 8, mesh, rules.preset('fsdp'))
    now = state.init(task, layout, jax.random.key(0))
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), now.params)
    start = np.asarray(now.params['kernel'])
    m, v = (jax.tree.map(np.zeros_like, weights) for _ in range(2))
    for i in range(6):
        grads = {'kernel': rng.normal(size=(4, 3, 2)), 'bias': np.full((4, 2), 0.1)}
        batch = {'c': jnp.float32(grads['kernel'])[None]}
        run = step.compiled_step(task, layout, jnp.float32, batch)
        now, metrics = run(now, batch, jax.random.key(0))
        live = np.arange(4) >= 3 - i // 2
        grads['kernel'] *= live[:, None, None]
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert float(metrics['grad_norm']) == pytest.approx(norm, rel=1e-5)
        rate = float(optim.learning_rate(config, 8)(i))
        for name, g in grads.items():
            g = g / max(norm, 1.0)
            m[name] = config.b1 * m[name] + (1 - config.b1) * g
            v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
            move = m[name] / (1 - config.b1 ** (i + 1)) / (
                np.sqrt(v[name] / (1 - config.b2 ** (i + 1))) + config.eps
            )  # fmt: skip
            if name == 'kernel':
                move = (move + config.weight_decay * weights[name]) * live[:, None, None]
            weights[name] = weights[name] - rate * move
    for name, want in weights.items():
        np.testing.assert_allclose(now.params[name], want, rtol=1e-4, atol=1e-6)
    moved = (np.asarray(now.params['kernel']) != start).any(axis=(1, 2))
    assert moved.tolist() == [False, True, True, True]  # layer 1 since step 4


@pytest.mark.parametrize('pattern, said', [
    ('kernel@0:5', "'kernel@0:5' ends with layers that kernel does not have.*END <= 4"),
    ('kernel@2:2', 'does not have'), ('kernel@:2', 'does not have'), ('kernel@x', 'does not have'),
    ('nothing@0:2', "'nothing' matches no parameter"),
])  # fmt: skip
def test_layers_that_are_not_there_are_refused(pattern, said):
    with pytest.raises(InputError, match=said):
        state.layout(Stacked(), OptimConfig(frozen=(pattern,)), 8,
                     make_mesh(MeshConfig(), ONE), rules.preset('fsdp'))  # fmt: skip

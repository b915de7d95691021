"""One step on one device against the same step on eight, and what freezing leaves alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from mossjax.models.lm import loss
from mossjax.nn import lookup
from mossjax.nn.remat import remat
from mossjax.nn.shard import sharding_scope
from mossjax.ops import attention, losses, norms
from mossjax.ops.attention import Mask
from mossjax.parallel import rules, sharding
from mossjax.parallel.mesh import MeshConfig, make_mesh
from mossjax.parallel.rows import Rows
from mossjax.train import optim, state, step
from mossjax.train.optim import OptimConfig
from tests.tiny_lm import tiny_params
from tests.train.tiny_task import tiny_task
from tests.train.toy_task import ToyTask

MESHES = {
    'fsdp': MeshConfig(data=2, fsdp=4),
    'fsdp_tensor': MeshConfig(data=2, fsdp=2, tensor=2),
}
STEPS = 10


def train(preset: str, mesh, steps: int, config: OptimConfig, dtype=jnp.float32):
    """(layout, losses, gradient norms, states before and after)."""
    task = tiny_task()
    layout = state.layout(task, config, STEPS, mesh, rules.preset(preset))
    now = state.init(task, layout, jax.random.key(0), tiny_params(task.config))
    first = jax.device_get(now.params)
    run = step.compiled_step(task, layout, dtype, task.batch(0))
    losses, norms = [], []
    for i in range(steps):
        batch = Rows.of(mesh, layout.rules).put(task.batch(i % 2), task.size(i % 2))
        now, metrics = run(now, batch, jax.random.key(1))
        losses.append(float(metrics['loss']))
        norms.append(float(metrics['grad_norm']))
    return layout, np.array(losses), np.array(norms), first, now


@pytest.fixture(scope='module')
def alone():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return train('fsdp', mesh, STEPS, OptimConfig(peak_lr=1e-2, warmup_steps=2))


@pytest.mark.parametrize('preset', sorted(MESHES))
def test_eight_devices_equal_one(alone, preset):
    config = OptimConfig(peak_lr=1e-2, warmup_steps=2)
    layout, losses, norms, _, now = train(preset, make_mesh(MESHES[preset]), STEPS, config)
    np.testing.assert_allclose(losses, alone[1], atol=1e-5)
    np.testing.assert_allclose(norms, alone[2], rtol=1e-4)
    assert losses[-1] < losses[0] - 0.1
    for got, want in zip(*map(jax.tree.leaves, (now.opt_state, alone[4].opt_state)), strict=True):
        # The first moment is a mean of gradients, so this compares gradients leaf by leaf.
        np.testing.assert_allclose(got, want, atol=1e-4 * max(float(jnp.abs(want).max()), 1e-12))
    spec = now.params['trunk']['mlp']['gate'].sharding.spec
    assert spec[1] == 'fsdp' and (spec[2] == 'tensor') == (preset == 'fsdp_tensor')
    assert sharding.bytes_per_device(layout.abstract.params) < 4 * optim.count(now.params) / 3


def written_out(task, params, batch):
    """The loss of both channels from whole logits: no chunks, no mesh, nothing computed again."""
    segments = batch['segments']
    logits = task.network.bind(params)(
        batch['tokens'], batch['positions'],
        Mask(causal=True, q_segments=segments, kv_segments=segments),
    )  # fmt: skip
    total = count = 0.0
    for channel, of_channel in enumerate(logits):
        labels = batch['labels'][..., channel]
        found = jnp.take_along_axis(
            jax.nn.log_softmax(of_channel), jnp.maximum(labels, 0)[..., None], -1
        )[..., 0]
        total -= jnp.sum(jnp.where(labels >= 0, found, 0.0))
        count += jnp.sum(labels >= 0)
    return total / count


class _Wide:
    """jax.numpy, but what asks for float32 gets float64."""

    float32 = jnp.float64

    def __getattr__(self, name):
        return getattr(jnp, name)


def test_the_steps_loss_and_gradients_are_those_of_whole_logits(monkeypatch):
    """Chunks of the loss and lookups on each device's own positions, and remat, change nothing.

    In float64: in float32 this step and the written out one are both some 1e-6 off, by rounding.
    """
    for module in (norms, attention, losses, loss, lookup):
        monkeypatch.setattr(module, 'jnp', _Wide())
    task = dataclasses.replace(tiny_task(), chunk=8, remat=remat('projections'))
    batch = task.batch(0)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), tiny_params(task.config))
        want = jax.jit(jax.value_and_grad(functools.partial(written_out, task)))(params, batch)
        for preset, config in MESHES.items():
            mesh = make_mesh(config)

            def run(params, batch, preset=preset, mesh=mesh):
                def of(params):
                    return task.loss(params, {}, batch, jax.random.key(0))[0]

                with sharding_scope(mesh, rules.resolver(rules.preset(preset))):
                    return jax.value_and_grad(of)(params)

            layout = state.layout(task, OptimConfig(), STEPS, mesh, rules.preset(preset))
            got = jax.jit(run)(
                jax.device_put(params, layout.shardings.params),
                Rows.of(mesh, layout.rules).put(batch, task.size(0)),
            )
            off = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), got, want)
            assert abs(off[0]) <= 1e-13 and want[0].dtype == 'float64'
            assert float(optax.tree.norm(off[1]) / optax.tree.norm(want[1])) <= 1e-13


def test_frozen_parameters_stay_bit_identical_and_have_no_optimiser_state():
    config = OptimConfig(peak_lr=1e-2, warmup_steps=0, frozen=('trunk/.*', 'text_.*'))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    _, _, _, first, now = train('fsdp', mesh, 2, config)
    _, frozen_before = optim.split(first, config.frozen)
    trained_before, _ = optim.split(first, config.frozen)
    trained, frozen = optim.split(jax.device_get(now.params), config.frozen)
    for a, b in zip(*map(jax.tree.leaves, (frozen, frozen_before)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (trained, trained_before)), strict=True):
        assert (a != b).any()
    counters = sum(x.size for x in jax.tree.leaves(now.opt_state) if x.ndim == 0)
    assert optim.count(now.opt_state) - counters == 2 * optim.count(trained)
    assert set(trained) == {'audio_embed', 'audio_branch', 'audio_norm', 'audio_head'}


def test_bfloat16_compute_keeps_float32_state():
    """One step of the toy task against its formula on weights rounded by numpy."""
    task, mesh = ToyTask(), make_mesh(MeshConfig(), jax.devices()[:1])
    layout = state.layout(task, OptimConfig(), 5, mesh, rules.preset('fsdp'))
    now = state.init(task, layout, jax.random.key(0))
    first = jax.device_get(now.params)
    key, batch = jax.random.key(1), task.batch(0)
    run = step.compiled_step(task, layout, jnp.bfloat16, batch)
    now, metrics = run(now, Rows.of(mesh, layout.rules).put(batch, task.size(0)), key)
    noise = jax.random.normal(jax.random.fold_in(key, 0), batch['x'].shape)
    x, kernel = (
        np.asarray(v).astype(ml_dtypes.bfloat16).astype(np.float64)
        for v in (batch['x'] + 0.1 * noise, first['kernel'])
    )
    want = np.mean((x @ kernel + first['bias'] - batch['y']) ** 2)
    np.testing.assert_allclose(metrics['loss'], want, rtol=2e-3)  # y is rounded to bfloat16 too
    assert {v.dtype for v in jax.tree.leaves(now.params)} == {jnp.dtype('float32')}
    moved = np.abs(np.asarray(now.params['kernel']) - first['kernel'])
    assert 0 < moved.max() < 5e-4  # smaller than bfloat16 could hold

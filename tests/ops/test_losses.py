"""Chunked cross-entropy against closed forms in float64."""

import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.nn import losses as nn_losses
from mossjax.nn.lora import Adapted
from mossjax.nn.shard import sharding_scope
from mossjax.ops.losses import cross_entropy
from mossjax.parallel import rules
from mossjax.parallel.mesh import MeshConfig, make_mesh
from tests.tiny_lm import close


def closed_form(hidden, head, labels, weights):
    """(sums of CrossEntropy, d loss / d hidden and d head, the same of its square), float64."""
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    counted = labels != -100
    safe = np.where(counted, labels, 0)
    weights = weights * counted
    logits = hidden @ head
    top = logits.max(-1, keepdims=True)
    log_z = (top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))[:, 0]
    index = np.arange(len(labels))
    nll = log_z - logits[index, safe]
    chance = np.exp(logits - log_z[:, None])
    slope = chance.copy()
    slope[index, safe] -= 1
    slope, bend = slope * weights[:, None], 2 * (log_z * weights)[:, None] * chance
    correct = (logits.argmax(-1) == safe) * weights
    sums = (nll * weights).sum(), weights.sum(), correct.sum(), (log_z**2 * weights).sum()
    return sums, (slope @ head.T, hidden.T @ slope), (bend @ head.T, hidden.T @ bend)


def draw(rng, n, d, v):
    labels = rng.integers(0, v, n)
    labels[rng.random(n) < 0.3] = -100
    return rng.normal(size=(n, d)), rng.normal(size=(d, v)), labels


@pytest.mark.parametrize(('n', 'chunk'), [(50, 7), (50, 50), (50, 999), (48, 16), (1, 4)])
def test_sums_and_gradients_for_any_chunk(n, chunk, rng):
    hidden, head, labels = draw(rng, n, 6, 9)
    labels[0] = 3
    weights = rng.random(n)
    args = jnp.float32(hidden), jnp.float32(head)
    sums, *slopes = closed_form(*args, labels, weights)
    for z in (0.0, 0.1):

        def loss(hidden, head, z=z):
            return cross_entropy(hidden, head, labels, weights, z_weight=z, chunk=chunk).loss

        got = cross_entropy(*args, labels, weights, z_weight=z, chunk=chunk)
        want = sums[0] + z * sums[3], *sums[1:], sums[0]
        np.testing.assert_allclose([float(x) for x in got[:5]], want, rtol=1e-5)
        assert float(got.each @ weights) == pytest.approx(sums[0], rel=1e-5)
        exact = [nll + z * square for nll, square in zip(*slopes, strict=True)]
        jax.tree.map(close, list(jax.grad(loss, (0, 1))(*args)), exact)


@pytest.mark.parametrize('scale', [1.0, 10.0, 100.0])
def test_bfloat16_inputs_against_a_float32_oracle(scale, rng):
    """The error does not grow with the logits, nor with the number of chunks."""
    n, d, v = 1024, 16, 24
    hidden, head, labels = draw(rng, n, d, v)
    # A common direction: the head's gradient grows steadily, which a bfloat16 sum would stall on.
    hidden[:, 0] = 1.0
    hidden, head = jnp.bfloat16(hidden), jnp.bfloat16(head * scale / 4)
    exact = closed_form(hidden, head, labels, np.ones(n))

    def total(hidden, head):
        return cross_entropy(hidden, head, labels, chunk=8).loss

    got, (d_hidden, d_head) = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, head)
    assert got.dtype == jnp.float32 and d_head.dtype == jnp.bfloat16
    assert float(got) == pytest.approx(exact[0][0], rel=1e-5)
    close(d_hidden, exact[1][0], 2**-8)
    close(d_head, exact[1][1], 2**-8)


def test_ignored_rows_may_hold_anything(rng):
    hidden, head, labels = draw(rng, 20, 5, 7)
    dirty = np.where((labels == -100)[:, None], np.inf, hidden)
    clean = cross_entropy(jnp.float32(hidden), jnp.float32(head), labels, chunk=6)
    got = cross_entropy(jnp.float32(dirty), jnp.float32(head), labels, chunk=6)
    assert float(got.loss) == float(clean.loss) and float(got.count) == (labels != -100).sum()


@pytest.mark.parametrize('label', [7, -1, -101])
def test_labels_outside_the_vocabulary_stop_the_run(label, rng):
    hidden, head, labels = draw(rng, 20, 5, 7)
    labels[4] = label
    got = cross_entropy(jnp.float32(hidden), jnp.float32(head), labels, chunk=6)
    assert np.isnan(float(got.loss))


def test_no_supervised_row_gives_zero_and_zero_gradient(rng):
    hidden, head, _ = draw(rng, 20, 5, 7)
    labels = np.full(20, -100)
    grad = jax.grad(lambda h: cross_entropy(h, jnp.float32(head), labels, chunk=6).loss)
    np.testing.assert_array_equal(grad(jnp.float32(hidden)), 0.0)


def test_logits_of_all_rows_never_exist(rng):
    """No value in the gradient's program is as large as the logits of all rows."""
    n, d, v, chunk = 2048, 4, 64, 32
    labels = jnp.zeros(n, jnp.int32)

    def total(hidden, head):
        return cross_entropy(hidden, head, labels, chunk=chunk).loss

    args = jnp.zeros((n, d)), jnp.zeros((d, v))
    text = jax.jit(jax.grad(total, (0, 1))).lower(*args).compile().as_text()
    shapes = re.findall(r'[a-z]+\d+\[([\d,]+)\]', text)
    sizes = [int(np.prod([int(x) for x in s.split(',')])) for s in shapes]
    assert chunk * v <= max(sizes) < n * v / 4  # gradients of a few chunks' logits do


@pytest.mark.parametrize('t', [12, 13])
@pytest.mark.parametrize(
    ('preset', 'mesh'),
    [('fsdp', MeshConfig(data=2, fsdp=4)), ('fsdp_tensor', MeshConfig(data=2, fsdp=2, tensor=2))],
)
def test_on_a_mesh_equals_one_device(rng, preset, mesh, t):
    """Hidden states, head and vocabulary divided in every way; 13 positions do not divide."""
    b, d, v = 8, 8, 24
    hidden, head, labels = draw(rng, b * t, d, v)
    sums, (d_hidden, d_head), _ = closed_form(hidden, head, labels, np.ones(b * t))
    hidden, labels = jnp.float32(hidden).reshape(b, t, d), jnp.int32(labels).reshape(b, t)
    mesh = make_mesh(mesh)

    @jax.jit
    def run(hidden, head):
        with sharding_scope(mesh, rules.resolver(rules.preset(preset))):

            def total(hidden, head):
                got = nn_losses.cross_entropy(hidden, head, labels, chunk=3)
                return got.loss, got

            slopes, got = jax.grad(total, (0, 1), has_aux=True)(hidden, head)
            return slopes, got, nn_losses.cross_entropy(hidden, head, labels, chunk=5)

    slopes, got, again = run(hidden, jnp.float32(head))
    for found in (got, again):
        np.testing.assert_allclose([float(x) for x in found[:4]], sums, rtol=1e-6)
        assert float(found.each.sum()) == pytest.approx(sums[0], rel=1e-6)
    close(slopes[0].reshape(-1, d), d_hidden)
    close(slopes[1], d_head)
    assert not got.each.sharding.is_fully_replicated
    assert not slopes[1].sharding.is_fully_replicated


def test_adapters_of_a_head_on_a_mesh(rng):
    """Head 1.5 down up; a rank of 3 and 21 words divide over nothing."""
    b, t, d, v, rank = 8, 12, 8, 21, 3
    hidden, base, labels = draw(rng, b * t, d, v)
    down, up = rng.normal(size=(d, rank)), rng.normal(size=(rank, v))
    sums, (_, d_head), _ = closed_form(hidden, base + 1.5 * down @ up, labels, np.ones(b * t))
    hidden, labels = jnp.float32(hidden).reshape(b, t, d), jnp.int32(labels).reshape(b, t)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    @jax.jit
    def run(down, up):
        with sharding_scope(mesh, rules.resolver(rules.preset('fsdp_tensor'))):
            head = Adapted(jnp.float32(base), down, up, 1.5)
            return nn_losses.cross_entropy(hidden, head, labels, chunk=3).loss

    loss, (d_down, d_up) = jax.value_and_grad(run, (0, 1))(jnp.float32(down), jnp.float32(up))
    assert float(loss) == pytest.approx(sums[0], rel=1e-6)
    close(d_down, 1.5 * d_head @ up.T)
    close(d_up, 1.5 * down.T @ d_head)


def test_the_head_is_gathered_and_its_gradient_reduced_once_whatever_the_chunks():
    """No collective inside a loop."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    labels = jnp.zeros((8, 64), jnp.int32)

    def total(hidden, head):
        with sharding_scope(mesh, rules.resolver(rules.preset('fsdp'))):
            return nn_losses.cross_entropy(hidden, head, labels, chunk=4).loss

    program = jax.make_jaxpr(jax.grad(total, (0, 1)))(jnp.zeros((8, 64, 8)), jnp.zeros((8, 16)))
    inside, outside = operations(program.jaxpr), operations(program.jaxpr, into_loops=False)
    assert 'scan' in outside
    for collective in ('all_gather', 'reduce_scatter'):
        assert inside.count(collective) == outside.count(collective) == 1


def operations(jaxpr, into_loops: bool = True) -> list[str]:
    """Names of all operations, those of inner programs included."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation.primitive.name)
        if into_loops or equation.primitive.name != 'scan':
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                found += operations(inner, into_loops)
    return found

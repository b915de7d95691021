"""Chunked cross-entropy against closed forms in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.ops.losses import cross_entropy
from tests.tiny_lm import close


def closed_form(hidden, head, labels, weights):
    """(loss sum, count, correct, d loss / d hidden, d loss / d head), float64."""
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    counted = labels != -100
    safe = np.where(counted, labels, 0)
    weights = weights * counted
    logits = hidden @ head
    top = logits.max(-1, keepdims=True)
    log_z = (top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))[:, 0]
    index = np.arange(len(labels))
    nll = log_z - logits[index, safe]
    slope = np.exp(logits - log_z[:, None])
    slope[index, safe] -= 1
    slope *= weights[:, None]
    correct = (logits.argmax(-1) == safe) * weights
    return (nll * weights).sum(), weights.sum(), correct.sum(), slope @ head.T, hidden.T @ slope


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
    *sums, d_hidden, d_head = closed_form(*args, labels, weights)
    got = cross_entropy(*args, labels, weights, chunk=chunk)
    np.testing.assert_allclose([float(x) for x in got[:3]], sums, rtol=1e-5)
    assert float(got.each @ weights) == pytest.approx(sums[0], rel=1e-5)
    grads = jax.grad(lambda h, w: cross_entropy(h, w, labels, weights, chunk=chunk).loss, (0, 1))
    for ours, exact in zip(grads(*args), (d_hidden, d_head), strict=True):
        close(ours, exact)


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
    assert float(got) == pytest.approx(exact[0], rel=1e-5)
    close(d_hidden, exact[3], 2**-8)
    close(d_head, exact[4], 2**-8)


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

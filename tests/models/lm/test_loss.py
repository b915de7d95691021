"""The two-channel loss on packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.models.lm.loss import loss, per_channel
from mossjax.models.lm.model import network
from mossjax.ops.attention import Mask
from tests.tiny_lm import SPEECH, close, tiny_config, tiny_grid, tiny_params

CONFIG = tiny_config()
PARAMS = tiny_params(CONFIG)
NET = network(CONFIG)
IGNORE = -100


def example(t, seed):
    """tokens, labels of one example: text targets before text rows, codes before speech rows."""
    tokens = tiny_grid(CONFIG, 1, t, seed=seed)[0]
    following = np.roll(tokens, -1, axis=0)
    speech = following[:, 0] == SPEECH
    labels = np.stack(
        [np.where(speech, IGNORE, following[:, 0]), np.where(speech, following[:, 1], IGNORE)], -1
    )
    labels[-1] = IGNORE
    return tokens, labels.astype(np.int32)


def rows(*groups, shape=(3, 16)):
    """Packs lists of examples, one list a row, into a batch of this shape."""
    batch = {
        'tokens': np.full((*shape, 2), 5, np.int32),
        'labels': np.full((*shape, 2), IGNORE, np.int32),
        'segments': np.zeros(shape, np.int32),
        'positions': np.zeros(shape, np.int32),
    }
    for r, group in enumerate(groups):
        start = 0
        for i, (tokens, labels) in enumerate(group):
            place = r, slice(start, start + len(tokens))
            batch['tokens'][place], batch['labels'][place] = tokens, labels
            batch['segments'][place], batch['positions'][place] = i + 1, np.arange(len(tokens))
            start += len(tokens)
    return batch


@jax.jit
def run(params, batch, text_weight=1.0, audio_weight=1.0):
    """((loss, metrics), gradients)."""

    def total(params):
        weights = {'text': text_weight, 'audio': audio_weight}
        return loss(NET.bind(params), batch, weights=weights, mean=per_channel, chunk=16)

    return jax.value_and_grad(total, has_aux=True)(params)


@jax.jit
def logits_of(tokens):
    t = tokens.shape[1]
    return NET.bind(PARAMS)(tokens, jnp.arange(t)[None], Mask(causal=True))


EXAMPLES = [example(9, 1), example(5, 2), example(7, 3)]


def by_hand(examples, text_weight=1.0, audio_weight=1.0):
    """Means in float64 from the unpacked logits, one example at a time."""
    nll, right = ([], []), ([], [])
    for tokens, labels in examples:
        # The model is causal: rows after the end change nothing and save compilations.
        padded = np.concatenate([tokens, np.zeros((16 - len(tokens), 2), np.int32)])
        logits = logits_of(padded[None])
        for channel in (0, 1):
            x = np.asarray(logits[channel][0], np.float64)
            log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
            for i, label in enumerate(labels[:, channel]):
                if label != IGNORE:
                    nll[channel].append(-log_p[i, label])
                    right[channel].append(x[i].argmax() == label)
    text, audio = (np.mean(n) for n in nll)
    return {
        'loss': text_weight * text + audio_weight * audio,
        'text_loss': text, 'audio_loss': audio,
        'text_accuracy': np.mean(right[0]), 'audio_accuracy': np.mean(right[1]),
        'text_count': len(nll[0]), 'audio_count': len(nll[1]),
    }  # fmt: skip


def test_packed_rows_equal_examples_one_by_one():
    want = by_hand(EXAMPLES)
    (total, metrics), _ = run(PARAMS, rows([EXAMPLES[0], EXAMPLES[1]], [EXAMPLES[2]]))
    got = {'loss': total, **metrics}
    assert set(got) == set(want)
    for name, value in want.items():
        assert float(got[name]) == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_packed_gradients_equal_unpacked_gradients():
    _, packed = run(PARAMS, rows([EXAMPLES[0], EXAMPLES[1]], [EXAMPLES[2]]))
    _, apart = run(PARAMS, rows(*[[e] for e in EXAMPLES]))
    jax.tree.map(close, packed, apart)


def test_weights_scale_the_channels():
    want = by_hand(EXAMPLES[:1], 0.25, 2.0)['loss']
    (got, _), _ = run(PARAMS, rows([EXAMPLES[0]]), 0.25, 2.0)
    assert float(got) == pytest.approx(want, rel=1e-5)


def test_a_batch_without_speech_has_no_audio_loss():
    tokens, labels = EXAMPLES[0]
    batch = rows([(tokens, np.where([True, False], labels, IGNORE))])
    (_, metrics), grads = run(PARAMS, batch)
    assert float(metrics['audio_loss']) == 0.0 == float(metrics['audio_count'])
    assert float(metrics['text_loss']) > 0.1
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.abs(grads['audio_head']['kernel']).max() == 0.0
    assert np.abs(grads['text_head']['kernel']).max() > 1e-3


def test_means_are_global_over_data_parallel_devices():
    """Rows with very different numbers of targets on each of eight devices."""
    examples = [example(3 + i, i) for i in range(8)]
    batch = rows(*[[e] for e in examples], shape=(8, 16))
    batch['labels'][3] = IGNORE
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    forward = jax.jit(
        lambda params, batch: loss(NET.bind(params), batch, mean=per_channel, chunk=16)
    )  # fmt: skip
    total, metrics = forward(PARAMS, jax.device_put(batch, place))
    want = by_hand(examples[:3] + examples[4:])
    assert float(total) == pytest.approx(want['loss'], rel=1e-5)
    assert float(metrics['text_count']) == want['text_count']


def test_gradient_descent_learns_a_row_by_heart():
    """The gradient points downhill: a few steps take the loss near zero."""
    batch, params, losses = rows([EXAMPLES[1]]), jax.jit(NET.init)(jax.random.key(0)), []

    @jax.jit
    def descend(params, grads):
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        return jax.tree.map(lambda p, g: p - 0.3 * g / (norm + 1e-6), params, grads)

    for _ in range(40):
        (value, _), grads = run(params, batch)
        losses.append(float(value))
        params = descend(params, grads)
    assert losses[0] == pytest.approx(np.log(64) + np.log(40), rel=0.05)
    assert losses[-1] < 0.1 * losses[0]

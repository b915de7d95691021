"""Chunked cross-entropy: the logits of all rows never exist at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

IGNORE = -100  # label of a row that is not supervised


class CrossEntropy(NamedTuple):
    """Sums over the supervised rows, float32 scalars; divide loss by count for the mean.

    Attributes:
      loss: sum of weighted negative log likelihoods, in nats.
      count: sum of weights (number of supervised rows if there are none).
      correct: sum of weights of rows whose label has the largest logit.
      square: sum of weighted squares of the logits' log-sum-exp, for a z-loss.
    """

    loss: jax.Array
    count: jax.Array
    correct: jax.Array
    square: jax.Array


def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    chunk: int = 2048,
) -> CrossEntropy:
    """Softmax cross-entropy of hidden @ head against labels, about `chunk` rows at a time.

    Logits, log-sum-exp and all sums are float32 whatever the inputs are, and so is the
    accumulation of the head's gradient over chunks (in bfloat16 it would lose small updates).
    The backward pass recomputes each chunk's logits.

    Args:
      hidden: (N, d). head: (d, v).
      labels: (N,) int32 in [0, v), or -100 for rows that do not count. Any other label makes the
        loss NaN, so that a corrupt data set stops the run.
      weights: (N,) non-negative, 1 by default.
      chunk: upper bound of rows per step.
    """
    n, d = hidden.shape
    weights = jnp.ones((n,), jnp.float32) if weights is None else weights.astype(jnp.float32)
    steps = max(1, -(-n // chunk))
    rows = -(-n // steps)

    def split(x, fill):
        # Chunk i takes rows i, i + steps, ...: the major axis stays the one the batch is sharded
        # on, so every device works on its own rows in every step.
        padded = jnp.pad(x, [(0, rows * steps - n)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
        return jnp.swapaxes(padded.reshape(rows, steps, *x.shape[1:]), 0, 1)

    head32 = head.astype(jnp.float32)  # its cotangent, summed over the scan, is float32 too

    @jax.checkpoint
    def body(sums, xs):
        new = _sums(*xs, head32)
        return jax.tree.map(jnp.add, sums, new), None

    zero = CrossEntropy(*[jnp.zeros((), jnp.float32)] * len(CrossEntropy._fields))
    xs = split(hidden, 0), split(labels, IGNORE), split(weights, 0)
    return jax.lax.scan(body, zero, xs)[0]


def _sums(hidden, labels, weights, head32) -> CrossEntropy:
    """The sums of one chunk."""
    head = head32.astype(hidden.dtype)
    logits = jnp.einsum('nd,dv->nv', hidden, head, preferred_element_type=jnp.float32)
    counted = labels != IGNORE
    vocab = logits.shape[-1]
    labels = jnp.where(counted, labels, 0)
    labels = jnp.where(labels < 0, vocab, labels)  # out of range, not counted from the end
    at_label = jnp.take_along_axis(
        logits, labels[:, None], axis=-1, mode='fill', fill_value=jnp.nan
    )[:, 0]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    loss = log_z - at_label
    weights = jnp.where(counted, weights, 0.0)
    right = jnp.argmax(logits, axis=-1) == labels
    # `where` and not a product: an ignored row must not turn the sum into NaN.
    return CrossEntropy(
        loss=jnp.sum(jnp.where(counted, loss, 0.0) * weights),
        count=jnp.sum(weights),
        correct=jnp.sum(weights * right),
        square=jnp.sum(jnp.where(counted, jnp.square(log_z), 0.0) * weights),
    )

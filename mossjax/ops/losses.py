"""Chunked cross-entropy: the logits of all positions never exist at once."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

IGNORE = -100  # label of a position that is not supervised
# Chunks whose gradients of logits, in the type of the hidden states, exist together: the head's
# gradient is one product over them, and is read and written again only once in so many chunks.
KEPT = 8


class CrossEntropy(NamedTuple):
    """Sums over the supervised positions, float32 scalars; divide loss by count for the mean.

    Attributes:
      loss: nll + z_weight * square, the only one that has a gradient.
      count: sum of weights (number of supervised positions if there are none).
      correct: sum of weights of positions whose label has the largest logit.
      square: sum of weighted squares of the logits' log-sum-exp, for a z-loss.
      nll: sum of weighted negative log likelihoods, in nats.
      each: like the labels, float32: negative log likelihood of each position, 0 where it is not
        supervised.
    """

    loss: jax.Array
    count: jax.Array
    correct: jax.Array
    square: jax.Array
    nll: jax.Array
    each: jax.Array


def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    z_weight: float = 0.0,
    chunk: int = 2048,
    run: Callable | None = None,
) -> CrossEntropy:
    """Softmax cross-entropy of hidden @ head against labels, about `chunk` positions at a time.

    Logits, log-sum-exp and all sums are float32 whatever the inputs are, and so is the head's
    gradient until it is whole. Where a gradient is asked for, it is made beside the loss: logits
    are computed once. The gradient of the logits is rounded to the type of the hidden states,
    which multiply it.

    Args:
      hidden: (..., d). head: (d, v), an array or what stands for one (`ops.contract.Weight`).
      labels: (...) int32 in [0, v), or -100 for positions that do not count. Any other label makes
        the loss NaN, so that a corrupt data set stops the run.
      weights: (...) non-negative, 1 by default; no gradient flows to them.
      z_weight: of the squares in the loss.
      chunk: upper bound of the positions whose logits exist at a time.
      run: what computes, `local` by default; `nn.losses` has the one for a mesh.
    """
    weights = jnp.ones(labels.shape) if weights is None else weights
    weights = jax.lax.stop_gradient(jnp.asarray(weights, jnp.float32))
    if hasattr(head, 'contract'):  # written out once; the gradient goes back to what it is made of
        head = head.astype(jnp.float32)
    return _cross_entropy(
        run or local, (z_weight, chunk), hidden, head, jnp.asarray(labels), weights
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(run, static, hidden, head, labels, weights):
    return run(hidden, head, labels, weights, *static, gradients=False)[0]


def _forward(run, static, hidden, head, labels, weights):
    sums, *slopes = run(hidden, head, labels, weights, *static, gradients=True)
    return sums, tuple(slopes)


def _backward(run, static, slopes, cotangents):
    del run, static
    return *((x * cotangents.loss).astype(x.dtype) for x in slopes), None, None


_cross_entropy.defvjp(_forward, _backward)


def local(
    hidden: jax.Array, head: jax.Array, labels: jax.Array, weights: jax.Array, z_weight: float,
    chunk: int, *, gradients: bool,
) -> tuple:
    """`cross_entropy` of the positions at hand: (sums,), or with the gradients of the loss
    (sums, like hidden, like head)."""
    sums, *slopes = partial_sums(
        hidden, head, labels, weights, z_weight, chunk, gradients=gradients
    )
    return sums, *(x.astype(like.dtype) for x, like in zip(slopes, (hidden, head), strict=False))


def partial_sums(
    hidden, head, labels, weights, z_weight, chunk, *, gradients: bool
) -> tuple:
    """`local`, the head's gradient still float32: to be summed over devices first."""
    shape, n = labels.shape, labels.size
    groups, steps, rows = _division(n, chunk)

    def split(x, fill):
        x = x.reshape(n, *x.shape[len(shape) :])
        padding = [(0, groups * steps * rows - n)] + [(0, 0)] * (x.ndim - 1)
        x = jnp.pad(x, padding, constant_values=fill)
        return x.reshape(groups, steps, rows, *x.shape[1:])

    def joined(x):
        return x.reshape(-1, *x.shape[3:])[:n].reshape(*shape, *x.shape[3:])

    head = head.astype(hidden.dtype)

    def one(_, xs):
        return None, _positions(*xs, head, z_weight, slopes=gradients)

    def group(d_head, xs):
        *seen, slopes = jax.lax.scan(one, None, xs)[1]
        if not gradients:
            return d_head, (*seen, ())
        d_hidden = jnp.einsum('snv,dv->snd', slopes, head)
        more = jnp.einsum('snd,snv->dv', xs[0], slopes, preferred_element_type=jnp.float32)
        return d_head + more, (*seen, d_hidden)

    xs = split(hidden, 0), split(labels, IGNORE), split(weights, 0)
    nothing = jnp.zeros(head.shape if gradients else (), jnp.float32)
    d_head, (*seen, d_hidden) = jax.lax.scan(group, nothing, xs)
    losses, correct, squares = map(joined, seen)
    counted = jnp.where(labels == IGNORE, 0.0, weights)
    nll = jnp.sum(losses * counted)  # NaN where a label is wrong, were its weight 0
    square = jnp.sum(squares * counted)
    sums = CrossEntropy(
        nll + z_weight * square, jnp.sum(counted), jnp.sum(counted * correct), square, nll, losses
    )
    return (sums, joined(d_hidden), d_head) if gradients else (sums,)


def _division(n: int, chunk: int) -> tuple[int, int, int]:
    """(groups, steps of a group, positions of a step): each at most as large as it may be, all
    alike."""
    steps = max(1, -(-n // chunk))
    groups = -(-steps // KEPT)
    steps = -(-steps // groups)
    return groups, steps, -(-n // (groups * steps))


def _positions(hidden, labels, weights, head, z_weight, *, slopes: bool) -> tuple:
    """Of one chunk, (rows,) float32: loss and squared log-sum-exp, 0 where there is no label, and
    between them whether the label has the largest logit; (rows, v): the gradient of the
    weighted loss to the logits, () if it is not wanted."""
    logits = jnp.einsum('nd,dv->nv', hidden, head, preferred_element_type=jnp.float32)
    at = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == labels[:, None]
    largest = jnp.max(logits, axis=-1)
    at_label = jnp.sum(jnp.where(at, logits, 0.0), axis=-1)
    log_sum = jnp.log(jnp.sum(jnp.exp(logits - largest[:, None]), axis=-1)) + largest
    counted = labels != IGNORE
    known = (labels >= 0) & (labels < logits.shape[-1])
    loss = jnp.where(counted, jnp.where(known, log_sum - at_label, jnp.nan), 0.0)
    correct = (known & (at_label >= largest)).astype(jnp.float32)
    square = jnp.where(counted, jnp.square(log_sum), 0.0)
    if not slopes:
        return loss, correct, square, ()
    chances = jnp.exp(logits - log_sum[:, None])
    slope = chances * (1 + 2 * z_weight * log_sum[:, None]) - jnp.where(at, 1.0, 0.0)
    slope = jnp.where(counted[:, None], slope * weights[:, None], 0.0)
    return loss, correct, square, slope.astype(hidden.dtype)

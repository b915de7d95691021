"""The two-modality training loss on packed rows: sums over positions, divided once."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from mossjax.models.lm.model import AUDIO, TEXT, LanguageModel
from mossjax.nn.losses import cross_entropy
from mossjax.ops.attention import Mask
from mossjax.ops.losses import IGNORE

CHANNELS = {'text': TEXT, 'audio': AUDIO}
Counts = Mapping[str, jax.Array]
Mean = Callable[[Counts], Counts]


def joint(counts: Counts) -> Counts:
    """One denominator: every supervised position weighs the same, whichever its channel."""
    return dict.fromkeys(counts, sum(counts.values()))


def per_channel(counts: Counts) -> Counts:
    """A mean for each channel: the few text targets of a batch of speech weigh as much as it."""
    return counts


def count(
    batch: Mapping[str, jax.Array], channels: Mapping[str, float],
    watch: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:  # fmt: skip
    """Supervised positions of each channel, float32 scalars; for each watched name NAME_CHANNEL.

    Args: as those of `loss`, of which this is the `counts`.
    """
    found = {}
    for channel in channels:
        supervised = batch['labels'][..., CHANNELS[channel]] != IGNORE
        found[channel] = jnp.sum(supervised, dtype=jnp.float32)
        for name, where in (watch or {}).items():
            found[f'{name}_{channel}'] = jnp.sum(supervised & where, dtype=jnp.float32)
    return found


def loss(
    model: LanguageModel,
    batch: Mapping[str, jax.Array],
    *,
    weights: Mapping[str, float] | None = None,
    mean: Mean = joint,
    z_weight: float = 0.0,
    chunk: int = 2048,
    watch: Mapping[str, jax.Array] | None = None,
    counts: Counts | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the channels' losses, in nats per supervised position.

    Everything returned is a sum over positions divided by a count of the whole (global) batch. So
    the results of parts of a batch add up to its own, given its counts.

    Args:
      batch: int32 arrays `tokens` (r, t, 2), `labels` (r, t, 2) (the target predicted at t, -100
        where not supervised), `segments` (r, t), `positions` (r, t); see `data.rows`.
      weights: 'text' and 'audio' -> factor of its loss, 1 by default; a channel that is not named
        is not built.
      mean: what each channel's sum is divided by, `joint` or `per_channel`.
      z_weight: of the z-loss, the mean square of the logits' log-sum-exp, which keeps it near 0.
      chunk: positions of one device whose logits exist at a time.
      watch: name -> (r, t) bool, positions whose loss is reported by itself and trains nothing.
      counts: `count` of the whole batch, where `batch` is a part of it; its own by default.

    Returns:
      (loss, metrics): CHANNEL_loss (its own mean, 0 if it has no position), CHANNEL_accuracy and
      CHANNEL_count for each channel, float32 scalars; for each watched name NAME_CHANNEL_loss; with
      z_weight also z_loss, as it is part of the loss.
    """
    weights = dict.fromkeys(CHANNELS, 1.0) if weights is None else weights
    counts = count(batch, weights, watch) if counts is None else counts
    divisors = mean({channel: counts[channel] for channel in weights})
    segments = batch['segments']
    mask = Mask(causal=True, q_segments=segments, kv_segments=segments)
    built = tuple(CHANNELS[channel] for channel in weights)
    hidden = model.hidden(batch['tokens'], batch['positions'], mask, built)

    total, square, metrics = 0.0, 0.0, {}
    for channel, weight in weights.items():
        labels = batch['labels'][..., CHANNELS[channel]]
        head = model.text_head if channel == 'text' else model.audio_head
        found = cross_entropy(
            hidden[CHANNELS[channel]], head.kernel[...], labels, z_weight=z_weight, chunk=chunk
        )
        total += weight * _over(found.loss, divisors[channel])
        square += weight * _over(found.square, divisors[channel])
        metrics[f'{channel}_loss'] = _over(found.nll, counts[channel])
        metrics[f'{channel}_accuracy'] = _over(found.correct, counts[channel])
        metrics[f'{channel}_count'] = found.count
        for name, where in (watch or {}).items():
            seen = jnp.sum(jnp.where(where, found.each, 0.0))
            metrics[f'{name}_{channel}_loss'] = _over(seen, counts[f'{name}_{channel}'])
    if z_weight:
        metrics['z_loss'] = z_weight * square
    return total, metrics


def _over(total: jax.Array, count: jax.Array) -> jax.Array:
    """total / count, 0 where nothing is counted."""
    return total / jnp.maximum(count, 1.0)

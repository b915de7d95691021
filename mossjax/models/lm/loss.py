"""The two-modality training loss on packed rows."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mossjax.models.lm.model import AUDIO, TEXT, LanguageModel
from mossjax.ops.attention import Mask
from mossjax.ops.losses import CrossEntropy, cross_entropy


def loss(
    model: LanguageModel,
    batch: Mapping[str, jax.Array],
    *,
    text_weight: float = 1.0,
    audio_weight: float = 1.0,
    chunk: int = 2048,
    watch: Mapping[str, jax.Array] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """text_weight * text mean + audio_weight * audio mean, in nats per supervised position.

    Each mean is over its own supervised positions in the whole (global) batch; a channel that
    has none contributes 0.

    Args:
      batch: int32 arrays `tokens` (r, t, 2), `labels` (r, t, 2) (the target predicted at t, -100
        where not supervised), `segments` (r, t), `positions` (r, t); see `data.rows`.
      chunk: positions whose logits exist at a time.
      watch: name -> (r, t) bool, positions whose loss is reported by itself and trains nothing
        (another pass through both heads each).

    Returns:
      (loss, metrics): text_loss, audio_loss, text_accuracy, audio_accuracy, text_count and
      audio_count, float32 scalars; for each watched name NAME_text_loss and NAME_audio_loss.
    """
    segments = batch['segments']
    mask = Mask(causal=True, q_segments=segments, kv_segments=segments)
    hidden = model.hidden(batch['tokens'], batch['positions'], mask)

    def channel(x, head, index, weights=None) -> CrossEntropy:
        labels = batch['labels'][..., index].reshape(-1)
        rows = x.reshape(-1, x.shape[-1])
        return cross_entropy(rows, head.kernel[...], labels, weights, chunk=chunk)

    text = channel(hidden.text, model.text_head, TEXT)
    audio = channel(hidden.audio, model.audio_head, AUDIO)
    text_loss, audio_loss = _mean(text.loss, text.count), _mean(audio.loss, audio.count)
    metrics = {
        'text_loss': text_loss,
        'audio_loss': audio_loss,
        'text_accuracy': _mean(text.correct, text.count),
        'audio_accuracy': _mean(audio.correct, audio.count),
        'text_count': text.count,
        'audio_count': audio.count,
    }
    still = jax.lax.stop_gradient(hidden)
    for name, where in (watch or {}).items():
        weights = where.reshape(-1)
        for kind, x, head, index in (
            ('text', still.text, model.text_head, TEXT),
            ('audio', still.audio, model.audio_head, AUDIO),
        ):
            sums = channel(x, head, index, weights)
            metrics[f'{name}_{kind}_loss'] = jax.lax.stop_gradient(_mean(sums.loss, sums.count))
    return text_weight * text_loss + audio_weight * audio_loss, metrics


def _mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """total / count, 0 for an empty channel."""
    return total / jnp.maximum(count, 1.0)

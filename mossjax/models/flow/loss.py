"""Training loss of the flow decoder: conditional flow matching on batches of padded utterances.

A path leads from noise z at t = 0 to the mel x at t = 1, y(t) = (1 - (1 - s) t) z + t x with s the
small `sigma_min`; the estimator learns its velocity x - (1 - s) z. All random numbers are drawn
first (`draw`), so that the rest is a plain formula.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mossjax.models.flow.config import Context, FlowConfig
from mossjax.models.flow.model import FlowDecoder

PREFIX_SHARE = 0.3  # a prefix of known frames is at most this part of the utterance ...
PREFIX_CHANCE = 0.5  # ... and given this often


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['t', 'noise', 'keep', 'known'], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Draws:
    """The random part of one step: t (b,) in [0, 1], noise (b, t, m), keep (b,) bool: conditions
    stay, known (b,) int: clean frames given at the start."""

    t: jax.Array
    noise: jax.Array
    keep: jax.Array
    known: jax.Array


def draw(key: jax.Array, mel: jax.Array, frames: jax.Array, config: FlowConfig) -> Draws:
    """Draws for a batch of mels (b, t, m) with (b,) frames each.

    Times follow the sampler's cosine grid: early times, where all is noise, are drawn more often.
    """
    b = mel.shape[0]
    time_key, noise_key, keep_key, chance_key, length_key = jax.random.split(key, 5)
    t = 1 - jnp.cos(jax.random.uniform(time_key, (b,)) * (jnp.pi / 2))
    longest = jnp.floor(PREFIX_SHARE * frames).astype(jnp.int32)
    known = jax.random.randint(length_key, (b,), 0, longest + 1)
    known = jnp.where(jax.random.uniform(chance_key, (b,)) < PREFIX_CHANCE, known, 0)
    keep = jax.random.uniform(keep_key, (b,)) >= config.condition_dropout
    return Draws(t, jax.random.normal(noise_key, mel.shape, mel.dtype), keep, known)


def masked_mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of (b, t, m) over all bins of the valid frames (b, t), in float32."""
    weight = valid[..., None].astype(jnp.float32)
    count = jnp.maximum(jnp.sum(weight), 1) * values.shape[-1]
    return jnp.sum(values.astype(jnp.float32) * weight) / count


def matching_loss(
    velocity, mel: jax.Array, valid: jax.Array, mu: jax.Array, speaker: jax.Array, draws: Draws,
    *, sigma_min: float,
) -> jax.Array:  # fmt: skip
    """Mean squared error of the velocity; an item without conditions loses all three.

    Args:
      velocity: `FlowDecoder.velocity(context)`.
      mel, mu: (b, t, m). valid: (b, t). speaker: (b, m).
    """
    keep = draws.keep.astype(mu.dtype)
    known = (jnp.arange(mel.shape[1]) < draws.known[:, None]) & draws.keep[:, None]
    t = draws.t[:, None, None]
    path = (1 - (1 - sigma_min) * t) * draws.noise + t * mel
    goal = mel - (1 - sigma_min) * draws.noise
    cond = jnp.where(known[..., None], mel, 0)
    found = velocity(
        path, valid, mu * keep[:, None, None], draws.t, speaker * keep[:, None], cond
    )
    return masked_mean(jnp.square(found.astype(jnp.float32) - goal), valid)


def flow_loss(
    model: FlowDecoder, batch: dict, key: jax.Array, *, context: Context, mu_weight: float = 0.0
) -> tuple[jax.Array, dict]:
    """Upstream's loss, and optionally mu's distance from the mel.

    Args:
      batch: codes (b, n) int32, code_lengths (b,), mel (b, ratio * n, m), xvector (b, x),
        optionally prompt_lengths (b,) int32: how many of a row's codes are a voice's prompt, whose
        frames are then the known ones. Rows with none draw theirs.
      context: the masks to train under; `held` must be 0.
      mu_weight: 0 upstream. A small network learns much faster when mu itself is pulled to the mel.

    Returns:
      (loss, {'flow_loss', 'mu_l1'}).
    """
    config = model.config
    draw_key, dropout_key = jax.random.split(key)
    frames = config.ratio * batch['code_lengths']
    mu, l1 = _mu(model, batch, dropout_key, context)
    valid = model.valid(batch['codes'], batch['code_lengths'], context)
    # Padding may hold anything; a mask times infinity would not be zero.
    mel = jnp.where(valid[..., None], batch['mel'], 0)
    draws = draw(draw_key, mel, frames, config)
    if 'prompt_lengths' in batch:
        prompt = config.ratio * batch['prompt_lengths']
        draws = dataclasses.replace(draws, known=jnp.where(prompt > 0, prompt, draws.known))
    matching = matching_loss(
        model.velocity(context), mel, valid, mu, model.speaker(batch['xvector']), draws,
        sigma_min=config.sigma_min,
    )  # fmt: skip
    return matching + mu_weight * l1, {'flow_loss': matching, 'mu_l1': l1}


def mu_loss(
    model: FlowDecoder, batch: dict, key: jax.Array, *, context: Context
) -> tuple[jax.Array, dict]:
    """mu's distance from the mel alone: the encoder's warm start; the estimator does not run."""
    _, l1 = _mu(model, batch, key, context)
    return l1, {'mu_l1': l1}


def _mu(model: FlowDecoder, batch: dict, key: jax.Array, context: Context):
    """mu (b, t, m) and its mean absolute distance from the mel."""
    dropout_key = key if model.config.dropout else None
    mu = model.mu(batch['codes'], batch['code_lengths'], context, dropout_key)
    valid = model.valid(batch['codes'], batch['code_lengths'], context)
    # Padding may hold anything: what is masked only afterwards would still reach the gradient.
    mel = jnp.where(valid[..., None], batch['mel'], 0)
    distance = jnp.where(valid[..., None], jnp.abs(mu - mel), 0)
    return mu, masked_mean(distance, valid)

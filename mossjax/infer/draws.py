"""Drawing one id for every lane, each with settings of its own: (b, v) scores -> (b,) ids.

`narrow` looks at the 64 largest scores only, which is all that a top-k of up to 64 leaves: the
vocabulary is neither sorted nor summed. `wide` takes any settings. Both give the draw of
`sampling.sample` (or `sampling.greedy`) with the lane's key, up to the rounding of a sum; where
more than 64 ids tie with the k-th largest, `narrow` keeps those with the lowest index.
"""

from collections.abc import Callable, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.infer import sampling
from mossjax.infer.sampling import Settings

WIDTH = 64
BLOCK = 64  # ids


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LaneChannel:
    """`sampling.Channel` of every lane, (b,) each; top_k 0 is off."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    repetition_penalty: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LaneSettings:
    """`sampling.Settings` of every lane.

    Attributes:
      text, audio: how each channel is drawn.
      greedy: (b,) bool. longest, shortest: (b,) int32 rows of a reply.
      keys: (b,) random keys. speak: (b,) bool, start of speech may be drawn.
    """

    text: LaneChannel
    audio: LaneChannel
    greedy: jax.Array
    longest: jax.Array
    shortest: jax.Array
    keys: jax.Array
    speak: jax.Array

    @classmethod
    def of(
        cls, settings: Sequence[Settings], keys: jax.Array, speak: Sequence[bool]
    ) -> 'LaneSettings':
        def channel(name):
            own = [getattr(s, name) for s in settings]
            return LaneChannel(
                np.array([c.temperature for c in own], np.float32),
                np.array([c.top_k for c in own], np.int32),
                np.array([c.top_p for c in own], np.float32),
                np.array([c.repetition_penalty for c in own], np.float32),
            )

        return cls(
            channel('text'), channel('audio'),
            np.array([s.draw is sampling.greedy for s in settings]),
            np.array([s.max_new_tokens for s in settings], np.int32),
            np.array([s.min_new_tokens for s in settings], np.int32),
            keys, np.asarray(speak, bool),
        )  # fmt: skip


# (scores (b, v), channel, greedy (b,), keys (b,)) -> ids (b,) int32
Draw = Callable[[jax.Array, LaneChannel, jax.Array, jax.Array], jax.Array]


def fits_narrow(settings: Settings) -> bool:
    """Whether `narrow` draws as these settings say."""
    return settings.draw is sampling.greedy or all(
        1 <= channel.top_k <= WIDTH for channel in (settings.text, settings.audio)
    )


def fitting(settings: Sequence[Settings]) -> Draw:
    """The draw for lanes with these settings, on the first device."""
    if not all(map(fits_narrow, settings)):
        return wide
    return narrow_on_cpu if jax.devices()[0].platform == 'cpu' else narrow


def narrow(scores, channel: LaneChannel, greedy, keys) -> jax.Array:
    """For lanes with top-k from 1 to WIDTH, or greedy."""
    values, ids = largest(scores, min(WIDTH, scores.shape[-1]))
    chosen = _draw(values, ids, scores.shape[-1], channel, keys)
    return jnp.where(greedy, ids[:, 0], chosen).astype(jnp.int32)


def narrow_on_cpu(scores, channel: LaneChannel, greedy, keys) -> jax.Array:
    """The same for a CPU, which for the top_k of several rows at once sorts all of them.

    Where nobody draws by chance nothing is sorted, and no noise is made.
    """
    count = min(WIDTH, scores.shape[-1])

    def chance():
        values, ids = jax.lax.map(
            lambda row: tuple(x[0] for x in largest(row[None], count)), scores
        )
        chosen = _draw(values, ids, scores.shape[-1], channel, keys)
        return jnp.where(greedy, ids[:, 0], chosen)

    found = jax.lax.cond(jnp.any(~greedy), chance, lambda: jnp.argmax(scores, axis=-1))
    return found.astype(jnp.int32)


def largest(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of (b, v), which on a TPU is a sort, without sorting the vocabulary.

    Of blocks of ids the `count` with the largest maxima hold all that is wanted: every other block
    has `count` ids before its own, one at least in each of these. As in top_k, among equals the
    lower id comes first.
    """
    size = scores.shape[-1]
    blocks = -(-size // BLOCK)
    if blocks <= count:
        return jax.lax.top_k(scores, count)
    padding = ((0, 0), (0, blocks * BLOCK - size))
    scores = jnp.pad(scores, padding, constant_values=-jnp.inf).reshape(-1, blocks, BLOCK)
    chosen = jnp.sort(jax.lax.top_k(jnp.max(scores, axis=-1), count)[1], axis=-1)
    held = jnp.take_along_axis(scores, chosen[..., None], axis=1).reshape(-1, count * BLOCK)
    values, at = jax.lax.top_k(held, count)
    ids = jnp.take_along_axis(chosen, at // BLOCK, axis=-1) * BLOCK + at % BLOCK
    return values, jnp.minimum(ids, size - 1)  # padding is drawn by nobody


def wide(scores, channel: LaneChannel, greedy, keys) -> jax.Array:
    """For any settings; sorts the vocabulary."""
    size = scores.shape[-1]
    values, ids = jax.lax.top_k(scores, size)
    every = dataclasses.replace(
        channel, top_k=jnp.where(channel.top_k == 0, size, jnp.minimum(channel.top_k, size))
    )
    chosen = _draw(values, ids, size, every, keys)
    return jnp.where(greedy, ids[:, 0], chosen).astype(jnp.int32)


def _draw(values, ids, vocab: int, channel: LaneChannel, keys) -> jax.Array:
    """One of the candidates: values (b, c), largest first, and their ids."""
    values = values / channel.temperature[:, None]
    last = jnp.clip(channel.top_k - 1, 0, values.shape[1] - 1)
    border = jnp.take_along_axis(values, last[:, None], axis=1)
    values = jnp.where(values < border, -jnp.inf, values)
    # Smallest first, the lower id first among equals: the order in which top-p drops.
    values, ids = jax.lax.sort((values, ids), dimension=1, num_keys=2)
    mass = jnp.cumsum(jax.nn.softmax(values, axis=-1), axis=-1)
    likeliest = jnp.arange(values.shape[1]) == values.shape[1] - 1
    kept = (mass > 1 - channel.top_p[:, None]) | likeliest
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (vocab,), values.dtype))(keys)
    total = jnp.where(kept, values + jnp.take_along_axis(noise, ids, axis=1), -jnp.inf)
    return jnp.take_along_axis(ids, jnp.argmax(total, axis=1)[:, None], axis=1)[:, 0]

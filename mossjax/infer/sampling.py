"""From scores to ids: the processors of Transformers, in its order, on (b, v) float32 scores.

    repetition penalty -> min-new-tokens -> temperature -> top-k -> top-p -> draw

Each grid channel has its own settings, its own history and its own key. With greedy decoding the
last four do not exist, the first two still do. Source: transformers, generation/logits_process.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp

from mossjax import values
from mossjax.errors import InputError


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['temperature', 'top_p', 'repetition_penalty'],
    meta_fields=['top_k'],
)
@dataclasses.dataclass(frozen=True)
class Channel:
    """How one channel is sampled. Only another top_k compiles anew."""

    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def check(self, where: str = '') -> 'Channel':
        """Returns itself; raises InputError naming a value out of range."""
        for name, accepted in RANGES.items():
            if hasattr(self, name):
                remedy = 'for the likeliest id use greedy' * (name == 'temperature')
                values.number(getattr(self, name), where + name, accepted, remedy)
        return self


# What float32 scores can be divided by and stay numbers.
_DIVISOR = values.Range(1e-6, 1e6)
RANGES = {
    'temperature': _DIVISOR, 'top_k': values.COUNT, 'top_p': values.Range(0, 1, above=True),
    'repetition_penalty': _DIVISOR, 'max_new_tokens': values.SIZE, 'min_new_tokens': values.COUNT,
}  # fmt: skip


# --- processors: (b, v) scores -> (b, v) scores -----------------------------------------------


def repetition_penalty(scores: jax.Array, seen: jax.Array, penalty) -> jax.Array:
    """Ids with seen (b, v) True lose: negative scores times the penalty, others divided by it."""
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def min_new_tokens(
    scores: jax.Array, made: jax.Array, minimum: jax.Array, enders: tuple[int, ...]
) -> jax.Array:
    """No ending id while fewer than `minimum` rows are made before this one."""
    ending = jnp.isin(jnp.arange(scores.shape[-1]), jnp.array(enders))
    return jnp.where(ending & (made < minimum), -jnp.inf, scores)


def top_k(scores: jax.Array, k: int) -> jax.Array:
    """Keeps scores >= the k-th largest, so ties at the border all stay. 0 keeps everything."""
    if k == 0:
        return scores
    border = jax.lax.top_k(scores, min(k, scores.shape[-1]))[0][..., -1:]
    return jnp.where(scores < border, -jnp.inf, scores)


def top_p(scores: jax.Array, p) -> jax.Array:
    """Drops ids whose probability, summed from the least likely up, is <= 1 - p; never the last.

    p = 1 keeps everything. Among equal scores the lower index is dropped first.
    """
    order = jnp.argsort(scores, axis=-1, stable=True)
    ascending = jnp.take_along_axis(scores, order, axis=-1)
    mass = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    dropped = (mass <= 1 - p) & (jnp.arange(scores.shape[-1]) < scores.shape[-1] - 1)
    ascending = jnp.where(dropped, -jnp.inf, ascending)
    return jnp.put_along_axis(jnp.zeros_like(scores), order, ascending, axis=-1, inplace=False)


def warp(scores: jax.Array, channel: Channel) -> jax.Array:
    """The distribution that is sampled from, as scores."""
    return top_p(top_k(scores / channel.temperature, channel.top_k), channel.top_p)


# --- draws: (scores (b, v), channel, keys (b,)) -> ids (b,) -----------------------------------

Draw = Callable[[jax.Array, Channel, jax.Array], jax.Array]


def greedy(scores: jax.Array, channel: Channel, keys: jax.Array) -> jax.Array:
    """The likeliest id, the lowest one among equals."""
    del channel, keys
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def sample(scores: jax.Array, channel: Channel, keys: jax.Array) -> jax.Array:
    """One draw a row, row i with keys[i]: its neighbours in the batch do not matter."""
    return jax.vmap(jax.random.categorical)(keys, warp(scores, channel)).astype(jnp.int32)


def row_keys(seed: int, rows: int) -> jax.Array:
    """One key a row of a batch; row i is the same whatever the size of the batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(rows))


# --- settings of a reply ----------------------------------------------------------------------


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['text', 'audio', 'max_new_tokens', 'min_new_tokens'],
    meta_fields=['draw'],
)
@dataclasses.dataclass(frozen=True)
class Settings:
    """How a reply is drawn; lengths count grid rows (12.5 a second of speech).

    The defaults are those of upstream's demo.
    """

    text: Channel = Channel(0.6, 20, 0.95, 1.1)
    audio: Channel = Channel(0.6, 20, 0.95, 1.1)
    max_new_tokens: int = 500
    min_new_tokens: int = 0
    draw: Draw = sample

    def check(self, where: str = '') -> 'Settings':
        """Returns itself; raises InputError naming a value out of range."""
        self.text.check(where)
        self.audio.check(where)
        for name in LENGTHS:
            values.number(getattr(self, name), where + name, RANGES[name])
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                f'{where}min_new_tokens is {self.min_new_tokens}, more than max_new_tokens '
                f'{self.max_new_tokens}; lower it'
            )
        return self

    def greedy(self) -> 'Settings':
        """The same without chance."""
        return dataclasses.replace(self, draw=greedy)

    def at_most(self, rows: int) -> 'Settings':
        """The same with another limit, and no longer a minimum than that."""
        shortest = max(0, min(self.min_new_tokens, rows))
        return dataclasses.replace(self, max_new_tokens=rows, min_new_tokens=shortest).check()

    @classmethod
    def of(cls, generation_config: dict) -> 'Settings':
        """From a generation_config.json; `layers` holds (text, audio) entries of their own.

        Keys that are absent keep the defaults above; an entry of `layers` wins over the rest.
        """
        where, content = 'generation_config.json: ', generation_config
        layers = content.get('layers') or [{}, {}]
        if not isinstance(layers, list) or [type(entry) for entry in layers] != [dict, dict]:
            raise InputError(f'{where}layers is {values.shown(layers)}, expected two objects')
        draws = content.get('do_sample')
        if not isinstance(draws, bool | None):
            raise InputError(f'{where}do_sample is {values.shown(draws)}, expected true or false')
        defaults = cls(draw=greedy if draws is False else sample)

        def channel(default: Channel, own: dict) -> Channel:
            given = _given({**content, **own}, CHANNEL)
            if draws is False and given.get('temperature') == 0:
                del given['temperature']  # how some say greedy; it has no effect there
            return dataclasses.replace(default, **given)

        return dataclasses.replace(
            defaults, text=channel(defaults.text, layers[0]),
            audio=channel(defaults.audio, layers[1]), **_given(content, LENGTHS),
        ).check(where)


CHANNEL = tuple(field.name for field in dataclasses.fields(Channel))
LENGTHS = ('max_new_tokens', 'min_new_tokens')


def _given(content: dict, names: tuple[str, ...]) -> dict:
    """Of a JSON object, the keys that are set; null sets nothing."""
    return {name: content[name] for name in names if content.get(name) is not None}

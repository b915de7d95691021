"""Decoding in lanes, as pure functions of a state: rows read, rows drawn, a lane cut.

A lane is one dialogue in one row of the batch. All lanes take part in every program; those that
are not running stand still, bit for bit. `infer.engine` is the host's side.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp

from mossjax.infer import sampling
from mossjax.infer.draws import Draw, LaneSettings
from mossjax.models.lm import waiting
from mossjax.models.lm.cache import Cache, Stack
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.machine import LENGTH, RUNNING, STOP, Rules, channels, constrain_audio
from mossjax.models.lm.model import AUDIO, TEXT, Hidden, LanguageModel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What one step hands to the next, for b lanes.

    Attributes:
      made: (b,) int32, rows of the reply so far.
      mode, reason: (b,) int32, see `models.lm.machine`; a lane runs while its reason is RUNNING.
      row: (b, 2) int32, the last row of each lane.
      hidden: branch outputs (b, 1, d) at that row, of the branch that speaks next at least.
      seen_text, seen_audio: bool (b, v) and (b, va), ids the repetition penalty counts. It does
        not ask how often, so a bit an id is the whole history.
      cache: keys and values of all rows so far.
    """

    made: jax.Array
    mode: jax.Array
    reason: jax.Array
    row: jax.Array
    hidden: Hidden
    seen_text: jax.Array
    seen_audio: jax.Array
    cache: Cache

    @classmethod
    def empty(cls, config: LMConfig, ids: GridIds, lanes: int, cache: Cache, dtype) -> 'State':
        """Lanes that have read nothing and do not run."""
        hidden = jnp.zeros((lanes, 1, config.hidden_size), dtype)
        zeros = jnp.zeros((lanes,), jnp.int32)
        return cls(
            zeros, zeros, jnp.full((lanes,), STOP, jnp.int32), jnp.zeros((lanes, 2), jnp.int32),
            Hidden(hidden, hidden), jnp.zeros((lanes, ids.vocab), bool),
            jnp.zeros((lanes, ids.audio_vocab), bool), cache,
        )  # fmt: skip


def extend(
    model: LanguageModel, state: State, tokens: jax.Array, count: jax.Array, first: jax.Array,
    rules: Rules, ids: GridIds,
) -> State:
    """Reads rows into lanes first to first + n - 1; they then stand before a reply.

    Args:
      tokens: (n, t, 2) int32, real rows first. count: (n,) int32, 1 to t of them are real.
    """
    n, t = tokens.shape[:2]
    cache = waiting.catch_up(model, state.cache)
    hidden, cache = model.extend(tokens, count, cache, first)
    last = jnp.maximum(count - 1, 0)[:, None, None]
    row = jnp.take_along_axis(tokens, last, axis=1)[:, 0]
    real = jnp.arange(t) < count[:, None]
    new = dict(
        made=jnp.zeros((n,), jnp.int32), mode=rules.start(row, ids).astype(jnp.int32),
        reason=jnp.full((n,), STOP, jnp.int32), row=row,
        hidden=jax.tree.map(lambda x: jnp.take_along_axis(x, last, axis=1), hidden),
    )  # fmt: skip
    kept = {name: getattr(state, name) for name in new}
    # A lane that got no rows is as it was.
    put = functools.partial(_put, first=first, where=count > 0)

    def seen(history, channel):
        if rules.counts_prompt:
            return _see(history, channel, real, first)
        return put(history, jnp.zeros((n, history.shape[1]), bool))  # a reply starts afresh

    return State(
        **{name: jax.tree.map(put, kept[name], new[name]) for name in new},
        seen_text=seen(state.seen_text, tokens[..., TEXT]),
        seen_audio=seen(state.seen_audio, tokens[..., AUDIO]),
        cache=cache,
    )


def advance(
    model: LanguageModel, state: State, settings: LaneSettings, rules: Rules, ids: GridIds,
    draw: Draw,
) -> State:
    """One grid row for every running lane.

    Args:
      draw: see `draws.fitting`.
    """
    k = state.made + 1
    running = state.reason == RUNNING
    mode = rules.switch(state.mode, state.row, ids)
    drawn = _draw_both(model, state, mode, settings, rules, ids, draw)
    row = rules.write(drawn, mode, k, settings.longest, ids).astype(jnp.int32)
    row = jnp.where(running[:, None], row, state.row)
    reason = jnp.where(running, rules.finish(state.reason, row, ids), state.reason)
    reason = jnp.where((reason == RUNNING) & (k >= settings.longest), LENGTH, reason)
    mode = jnp.where(running, mode, state.mode)
    counted = rules.remember(row, mode, ids) & running[:, None]
    wanted = channels(rules, rules.switch(mode, row, ids))
    hidden, cache = waiting.step(model, row, running, wanted, state.cache)
    hidden = jax.tree.map(
        lambda new, old: jnp.where(running[:, None, None], new, old), hidden, state.hidden
    )
    return State(
        made=jnp.where(running, k, state.made), mode=mode, reason=reason, row=row, hidden=hidden,
        seen_text=_see(state.seen_text, row[:, :1], counted[:, :1]),
        seen_audio=_see(state.seen_audio, row[:, 1:], counted[:, 1:]),
        cache=cache,
    )


def cut(state: State, lengths: jax.Array) -> State:
    """Forgets what each lane has read behind lengths (b,) rows; those that lose some are stopped.

    They lose what the repetition penalty counted too, and their last row that stays must be read
    again (`extend`) before a reply: its outputs are gone.
    """
    kept = lengths >= state.cache.trunk.length

    def shorter(stack: Stack) -> Stack:
        return dataclasses.replace(stack, length=jnp.minimum(stack.length, lengths))

    cache = state.cache
    cache = dataclasses.replace(
        cache, trunk=shorter(cache.trunk), text=shorter(cache.text), audio=shorter(cache.audio)
    )
    return dataclasses.replace(
        state, cache=cache, reason=jnp.where(kept, state.reason, STOP),
        seen_text=state.seen_text & kept[:, None], seen_audio=state.seen_audio & kept[:, None],
    )


def grown(state: State, larger: State) -> State:
    """The same lanes with the room of `larger`, an empty state."""

    def put(empty: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(empty, x, (0,) * x.ndim)

    def stack(empty: Stack, own: Stack) -> Stack:
        return Stack(jax.tree.map(put, empty.pair, own.pair), own.length)

    cache, own = larger.cache, state.cache
    return dataclasses.replace(state, cache=dataclasses.replace(
        own, trunk=stack(cache.trunk, own.trunk), text=stack(cache.text, own.text),
        audio=stack(cache.audio, own.audio),
    ))  # fmt: skip


def _draw_both(model, state, mode, settings, rules, ids, draw) -> jax.Array:
    """(b, 2) ids; a channel that no running lane needs is neither computed nor drawn."""
    k = state.made + 1
    running = (state.reason == RUNNING)[:, None]
    needed = jnp.any(channels(rules, mode) & running, axis=0)
    keys = jax.vmap(jax.random.fold_in)(settings.keys, k)
    keys = jax.vmap(functools.partial(jax.random.split, num=2))(keys)

    def channel(index: int, scores: Callable):
        own = (settings.text, settings.audio)[index]
        seen = (state.seen_text, state.seen_audio)[index]

        def drawn():
            penalty = own.repetition_penalty[:, None]
            found = sampling.repetition_penalty(scores(), seen, penalty)
            if index == TEXT:
                made, shortest = state.made[:, None], settings.shortest[:, None]
                found = sampling.min_new_tokens(found, made, shortest, rules.enders(ids))
            return draw(found, own, settings.greedy, keys[:, index])

        return jax.lax.cond(needed[index], drawn, lambda: jnp.zeros(k.shape, jnp.int32))

    def text():
        scores = model.text_head(state.hidden.text)[:, 0].astype(jnp.float32)
        return rules.constrain_text(scores, mode, settings.speak, ids)

    def audio():
        scores = model.audio_head(state.hidden.audio)[:, 0].astype(jnp.float32)
        return constrain_audio(scores, k, settings.shortest, ids)

    return jnp.stack([channel(TEXT, text), channel(AUDIO, audio)], axis=1)


def _put(old: jax.Array, new: jax.Array, first, where: jax.Array) -> jax.Array:
    """New (n, ...) into old (b, ...) at lanes from `first` on, where (n,) says so."""
    before = jax.lax.dynamic_slice_in_dim(old, first, len(new))
    where = where.reshape(-1, *[1] * (new.ndim - 1))
    return jax.lax.dynamic_update_slice_in_dim(
        old, jnp.where(where, new, before).astype(old.dtype), first, 0
    )


def _see(seen: jax.Array, ids: jax.Array, counted: jax.Array, first=0) -> jax.Array:
    """Marks ids (n, t) where counted (n, t) in seen (b, v), lanes from `first` on."""
    return seen.at[first + jnp.arange(len(ids))[:, None], ids].max(counted)

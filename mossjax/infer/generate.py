"""Batched generation: one prefill, then one compiled loop over grid rows.

`advance` is one step as a pure function of a `State`; `Generator` loops over it on the device. All
samples share the step counter and the cache slots; each has its own mode, key and end. A row's
reply depends on its own prompt and key only, not on the batch it stands in (CLEAN rules).
"""

from collections.abc import Sequence
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.errors import InputError
from mossjax.infer import sampling
from mossjax.infer.sampling import Settings
from mossjax.models.lm import grid as grid_lib
from mossjax.models.lm.cache import Cache
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.machine import CLEAN, LENGTH, REASONS, RUNNING, Rules
from mossjax.models.lm.model import Hidden, LanguageModel
from mossjax.nn.param import Network

SMALLEST_BUCKET = 64  # rows
POLL_SECONDS = 0.005


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """One finished reply.

    Attributes:
      grid: int32 (n, 2), the generated rows with the stopping row.
      reason: 'stop' (a stop id), 'length' (max_new_tokens), or 'batch' (UPSTREAM rules only: the
        first sample of the batch stopped).
    """

    grid: np.ndarray
    reason: str


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What one step hands to the next.

    Attributes:
      made: () int32, rows generated so far.
      mode, reason: (b,) int32, see `models.lm.machine`.
      row: (b, 2) int32, the last row of each sample.
      hidden: branch outputs (b, 1, d) at that row.
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


def bucket(n: int) -> int:
    """The next power of two, at least SMALLEST_BUCKET: few shapes, so few compilations."""
    return max(SMALLEST_BUCKET, 1 << (n - 1).bit_length())


def room(prompt: int, wanted: int, positions: int) -> int:
    """Rows that a reply may have: `wanted`, or what a prompt leaves of the model's positions.

    What is left counts from the end of the prompt's last SMALLEST_BUCKET rows, unless nothing were
    left then: prompts of about one length make the same shapes.

    Raises:
      InputError: the prompt leaves nothing.
    """
    if prompt + wanted <= positions:
        return wanted
    if prompt >= positions:
        raise InputError(
            f'a prompt of {prompt} rows (12.5 a second of speech) leaves no room for a reply in '
            f'the {positions} positions of the model; shorten it'
        )
    rounded = -(-prompt // SMALLEST_BUCKET) * SMALLEST_BUCKET
    return positions - (rounded if rounded < positions else prompt)


def computed(arrays: Any) -> Any:
    """The same arrays, computed. Waits in Python, where Ctrl-C ends a reply that takes long.

    Once begun, the loop on the device runs to its end all the same; nobody waits for it.
    """
    while not all(array.is_ready() for array in jax.tree.leaves(arrays)):
        time.sleep(POLL_SECONDS)
    return arrays


def start(
    model: LanguageModel, tokens: jax.Array, valid: jax.Array, slots: int, rules: Rules,
    ids: GridIds,
) -> State:
    """Reads left-padded prompts, tokens (b, t, 2) and valid (b, t), into a cache of `slots`."""
    b, t = valid.shape
    dtype = jax.eval_shape(model.embed, tokens).dtype
    cache = Cache.empty(model.config, b, slots, dtype)
    hidden, cache = model.extend(tokens, valid, cache)
    counted = rules.remember_prompt(tokens, valid, ids)
    return State(
        made=jnp.zeros((), jnp.int32),
        mode=rules.start(tokens[:, -1], ids).astype(jnp.int32),
        reason=jnp.full((b,), RUNNING, jnp.int32),
        row=tokens[:, -1],
        hidden=jax.tree.map(lambda x: x[:, -1:], hidden),
        seen_text=_see(jnp.zeros((b, ids.vocab), bool), tokens[..., 0], counted[..., 0]),
        seen_audio=_see(jnp.zeros((b, ids.audio_vocab), bool), tokens[..., 1], counted[..., 1]),
        cache=cache,
    )


def advance(
    model: LanguageModel, state: State, settings: Settings, keys: jax.Array,
    speech_allowed: jax.Array, rules: Rules, ids: GridIds,
) -> State:
    """One grid row for every sample; finished ones get padding rows.

    Args:
      keys: (b,) one key a sample; the step and the channel are folded in.
      speech_allowed: (b,) bool, False keeps CLEAN rules from opening speech.
    """
    k = state.made + 1
    mode = rules.switch(state.mode, state.row, ids)
    drawn = draw(model, state, mode, settings, keys, speech_allowed, rules, ids)
    running = state.reason == RUNNING
    row = rules.write(drawn, mode, k, settings.max_new_tokens, ids)
    row = jnp.where(running[:, None], row, jnp.array([ids.pad, ids.filler])).astype(jnp.int32)
    reason = rules.finish(state.reason, row, ids)
    reason = jnp.where((reason == RUNNING) & (k >= settings.max_new_tokens), LENGTH, reason)
    counted = rules.remember(row, mode, ids) & running[:, None]
    hidden, cache = model.extend(row[:, None], running[:, None], state.cache)
    return State(
        made=k,
        mode=mode,
        reason=reason,
        row=row,
        hidden=hidden,
        seen_text=_see(state.seen_text, row[:, :1], counted[:, :1]),
        seen_audio=_see(state.seen_audio, row[:, 1:], counted[:, 1:]),
        cache=cache,
    )


def draw(
    model: LanguageModel, state: State, mode: jax.Array, settings: Settings, keys: jax.Array,
    speech_allowed: jax.Array, rules: Rules, ids: GridIds,
) -> jax.Array:
    """Constrained, processed and drawn: (b, 2) ids, both channels in every mode."""
    k, minimum = state.made + 1, settings.min_new_tokens
    text, audio = (x[:, 0].astype(jnp.float32) for x in model.logits(state.hidden))
    text, audio = rules.constrain(text, audio, mode, k, minimum, speech_allowed, ids)
    text = sampling.repetition_penalty(text, state.seen_text, settings.text.repetition_penalty)
    audio = sampling.repetition_penalty(audio, state.seen_audio, settings.audio.repetition_penalty)
    text = sampling.min_new_tokens(text, state.made, minimum, rules.enders(ids))
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
    keys = jax.vmap(functools.partial(jax.random.split, num=2))(keys)
    return jnp.stack(
        [
            settings.draw(text, settings.text, keys[:, 0]),
            settings.draw(audio, settings.audio, keys[:, 1]),
        ],
        axis=1,
    )


class Generator:
    """Generates replies with one model; compiles once for each pair of length buckets.

    Args:
      network: the language model, see `models.lm.model.network`.
      ids: special ids of the checkpoint.
      rules: machine.CLEAN or machine.UPSTREAM.
    """

    def __init__(self, network: Network, config: LMConfig, ids: GridIds, rules: Rules = CLEAN):
        self.config = config
        self.ids = ids
        self.rules = rules
        self.network = network
        self._run = jax.jit(self._loop, static_argnames='rows')

    def __call__(
        self,
        params: dict,
        prompts: Sequence[np.ndarray],
        settings: Settings,
        keys: jax.Array,
        speech_allowed: Sequence[bool] | None = None,
    ) -> list[Generation]:
        """Replies to prompts, one each.

        Args:
          params: of the network, any dtype.
          prompts: grids int32 (t_i, 2), see `models.lm.dialogue.build_prompt`.
          settings: how to draw, how long.
          keys: (b,) random keys, see `sampling.row_keys`.
          speech_allowed: per prompt, whether start-of-speech may be drawn (CLEAN rules); all by
            default.

        Raises:
          InputError: no prompts, an empty one, settings out of range, or more rows than the model
            has positions.
        """
        settings.check()
        if len(prompts) == 0 or min(map(len, prompts)) == 0:
            raise InputError('every prompt needs at least one row, and there must be a prompt')
        if len(keys) != len(prompts):
            raise InputError(f'{len(prompts)} prompts need as many keys, got {len(keys)}')
        length, rows = self._buckets(max(map(len, prompts)), settings.max_new_tokens)
        tokens, valid = grid_lib.collate(prompts, self.ids, length)
        allowed = np.ones(len(prompts), bool) if speech_allowed is None else speech_allowed
        running = self._run(params, tokens, valid, settings, keys, jnp.asarray(allowed), rows=rows)
        made, reasons, grids = jax.device_get(computed(running))
        return [
            Generation(grids[i, : made[i]], REASONS[reasons[i]]) for i in range(len(prompts))
        ]

    def _buckets(self, prompt: int, new: int) -> tuple[int, int]:
        """Padded prompt length and room for new rows, within the model's positions."""
        limit = self.config.max_position_embeddings
        if prompt + new > limit:
            raise InputError(
                f'a prompt of {prompt} rows and max_new_tokens = {new} exceed the '
                f'{limit} positions of the model; shorten the dialogue or lower max_new_tokens'
            )
        length = min(bucket(prompt), limit - new)
        return length, min(bucket(new), limit - length)

    def _loop(self, params, tokens, valid, settings, keys, speech_allowed, *, rows):
        model = self.network.bind(params)
        b, t = valid.shape
        state = start(model, tokens, valid, t + rows, self.rules, self.ids)
        padding = jnp.array([self.ids.pad, self.ids.filler], jnp.int32)
        grid = jnp.broadcast_to(padding, (b, rows, 2))

        def step(carry):
            state, grid, made = carry
            made = made + (state.reason == RUNNING)
            after = advance(
                model, state, settings, keys, speech_allowed, self.rules, self.ids
            )
            grid = jax.lax.dynamic_update_slice_in_dim(grid, after.row[:, None], state.made, 1)
            return after, grid, made

        def unfinished(carry):
            return jnp.any(carry[0].reason == RUNNING)

        made = jnp.zeros((b,), jnp.int32)
        state, grid, made = jax.lax.while_loop(unfinished, step, (state, grid, made))
        return made, state.reason, grid


def _see(seen: jax.Array, ids: jax.Array, counted: jax.Array) -> jax.Array:
    """Marks ids (b, t) where counted (b, t) in seen (b, v)."""
    return seen.at[jnp.arange(len(seen))[:, None], ids].max(counted)

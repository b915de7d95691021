"""Batched generation: prompts in, finished replies out, one compiled program.

A few lines over `infer.lanes`. A reply depends on its own prompt and key only, not on the batch it
stands in (CLEAN rules).
"""

from collections.abc import Sequence
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.errors import InputError
from mossjax.infer import draws, lanes
from mossjax.infer.draws import LaneSettings
from mossjax.infer.lanes import State
from mossjax.infer.sampling import Settings
from mossjax.models.lm.cache import Cache
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.machine import CLEAN, REASONS, RUNNING, Rules
from mossjax.nn.param import Network

SMALLEST_BUCKET = 64  # rows
POLL_SECONDS = 0.005
PIECE = 256  # rows of a prompt that are read at once: bounds the scores in memory
WAIT = 64  # rows that the idle branch may stay behind


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
        self._run = jax.jit(self._loop, static_argnames=('rows', 'draw'))

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
        longest = max(map(len, prompts))
        self._check_positions(longest, settings.max_new_tokens)
        tokens = np.zeros((len(prompts), bucket(longest), 2), np.int32)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)] = prompt
        counts = np.array([len(prompt) for prompt in prompts], np.int32)
        allowed = np.ones(len(prompts), bool) if speech_allowed is None else speech_allowed
        lane_settings = LaneSettings.of([settings] * len(prompts), keys, allowed)
        draw = draws.narrow if draws.fits_narrow(settings) else draws.wide
        rows = bucket(settings.max_new_tokens)
        running = self._run(params, tokens, counts, lane_settings, rows=rows, draw=draw)
        made, reasons, grids = jax.device_get(computed(running))
        return [
            Generation(grids[i, : made[i]], REASONS[reasons[i]]) for i in range(len(prompts))
        ]

    def _check_positions(self, prompt: int, new: int) -> None:
        limit = self.config.max_position_embeddings
        if prompt + new > limit:
            raise InputError(
                f'a prompt of {prompt} rows and max_new_tokens = {new} exceed the '
                f'{limit} positions of the model; shorten the dialogue or lower max_new_tokens'
            )

    def _loop(self, params, tokens, counts, settings, *, rows, draw):
        model = self.network.bind(params)
        b, t = tokens.shape[:2]
        dtype = jax.eval_shape(model.embed, tokens).dtype
        # Under upstream's rules both branches speak at every step, so neither waits.
        wait = 0 if self.rules.both else WAIT
        piece = min(t, PIECE)
        longest = min(t + rows, self.config.max_position_embeddings)
        cache = Cache.empty(self.config, b, longest, dtype, spare=piece, wait=wait)
        state = State.empty(self.config, self.ids, b, cache, dtype)

        def read(i, state):
            part = jax.lax.dynamic_slice_in_dim(tokens, i * piece, piece, axis=1)
            count = jnp.clip(counts - i * piece, 0, piece)
            return lanes.extend(model, state, part, count, 0, self.rules, self.ids)

        state = jax.lax.fori_loop(0, t // piece, read, state)
        state = dataclasses.replace(state, reason=jnp.full((b,), RUNNING, jnp.int32))
        grid = jnp.zeros((b, rows, 2), jnp.int32)

        def step(carry):
            state, grid, i = carry
            state = lanes.advance(model, state, settings, self.rules, self.ids, draw)
            grid = jax.lax.dynamic_update_slice_in_dim(grid, state.row[:, None], i, 1)
            return state, grid, i + 1

        def unfinished(carry):
            return jnp.any(carry[0].reason == RUNNING)

        state, grid, _ = jax.lax.while_loop(unfinished, step, (state, grid, 0))
        return state.made, state.reason, grid

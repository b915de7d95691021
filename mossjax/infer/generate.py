"""Prompts in, finished replies out: a few lines over `infer.engine`."""

from collections.abc import Sequence
import dataclasses

import jax
import numpy as np

from mossjax.errors import InputError
from mossjax.infer.engine import Engine, Programs
from mossjax.infer.sampling import Settings
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.machine import CLEAN, Rules
from mossjax.nn.param import Network


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


class Session:
    """Dialogues that stay in their lanes: prompt i goes on where prompt i of the call before ended.

    A prompt that begins as the lane's past does, prompt and reply, is read from there on only; the
    reply is that to the whole prompt.
    """

    def __init__(self, engine: Engine, dialogues: int = 1):
        self.engine = engine
        self.lanes = [engine.open() for _ in range(dialogues)]

    def __call__(
        self,
        prompts: Sequence[np.ndarray],
        settings: Settings,
        keys: jax.Array,
        speech_allowed: Sequence[bool] | None = None,
    ) -> list[Generation]:
        """As `Generator`."""
        self.begin(prompts, settings, keys, speech_allowed)
        reasons = {}
        for said in self.engine.run():
            reasons[said.lane] = said.reason
        return [
            Generation(lane.rows[len(prompt) :], reasons[lane])
            for lane, prompt in zip(self.lanes, prompts, strict=True)
        ]

    def begin(
        self,
        prompts: Sequence[np.ndarray],
        settings: Settings,
        keys: jax.Array,
        speech_allowed: Sequence[bool] | None = None,
    ) -> None:
        """The same, and the replies are left to whoever asks `engine.run` for their rows."""
        settings.check()
        if len(prompts) == 0 or min(map(len, prompts)) == 0:
            raise InputError('every prompt needs at least one row, and there must be a prompt')
        if len(prompts) != len(self.lanes):
            raise InputError(f'{len(prompts)} prompts for a session of {len(self.lanes)} dialogues')
        if len(keys) != len(prompts):
            raise InputError(f'{len(prompts)} prompts need as many keys, got {len(keys)}')
        self._check_positions(max(map(len, prompts)), settings.max_new_tokens)
        allowed = [True] * len(prompts) if speech_allowed is None else speech_allowed
        for lane, prompt in zip(self.lanes, prompts, strict=True):
            self.engine.follow(lane, prompt)
        for lane, key, speak in zip(self.lanes, keys, allowed, strict=True):
            self.engine.speak(lane, settings, key, speak)

    def _check_positions(self, prompt: int, new: int) -> None:
        limit = self.engine.positions
        if prompt + new > limit:
            raise InputError(
                f'a prompt of {prompt} rows and max_new_tokens = {new} exceed the '
                f'{limit} positions of the model; shorten the dialogue or lower max_new_tokens'
            )


class Generator:
    """Generates replies with one model.

    Args:
      network: the language model, see `models.lm.model.network`.
      ids: special ids of the checkpoint.
      rules: machine.CLEAN or machine.UPSTREAM.
      options: see `Programs`.
    """

    def __init__(
        self, network: Network, config: LMConfig, ids: GridIds, rules: Rules = CLEAN, **options
    ):
        self.config = config
        self.ids = ids
        self.rules = rules
        self.network = network
        self.programs = Programs(network, config, ids, rules, **options)

    def session(self, params: dict, dialogues: int = 1) -> Session:
        """Dialogues that are to go on over several calls, with parameters of any dtype."""
        return Session(Engine(self.programs, params, max(dialogues, 1)), dialogues)

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
        return self.session(params, len(prompts))(prompts, settings, keys, speech_allowed)

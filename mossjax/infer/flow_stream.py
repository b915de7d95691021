"""Streaming flow decoding on the host: voices to prompts, compiled steps, growing hops."""

from collections.abc import Sequence

import jax
import numpy as np

from mossjax.convert.codec_flow import flow_network
from mossjax.errors import InputError
from mossjax.infer import voice as voices
from mossjax.infer.streaming import Rung, Sessions
from mossjax.infer.voice import Voice
from mossjax.models.flow import solver
from mossjax.models.flow.config import FlowConfig, Window
from mossjax.models.flow.stream import FlowStream, Prompt, State
from mossjax.models.stream import Piece

HOPS = (5, 10, 25)  # codes: of the first step, of the second, of all others
PAST, VOICE = 25, 50  # codes that a window keeps: 2 s of speech, 4 s of the voice's prompt


class FlowSteps:
    """A flow decoder's start and its steps, compiled once for all sessions."""

    def __init__(
        self, config: FlowConfig, params: dict, *, window: Window | None = None,
        hops: Sequence[int] = HOPS, steps: int = solver.STEPS, guidance: float | None = None,
    ):  # fmt: skip
        """Args:
          params: of `codec_flow.flow_network`.
          window: what a block sees, by default the config's chunk with PAST and VOICE.
          hops: codes that become frames in the first step, the second, ... and all others.

        Raises:
          InputError: hops that are no whole chunks.
        """
        self.config, self.params = config, params
        self.window = window or Window(config.chunk, PAST, VOICE)
        if wrong := [hop for hop in hops if hop < 1 or hop % self.window.chunk]:
            raise InputError(
                f'a hop of {wrong[0]} codes: it must be a multiple of the chunk, '
                f'{self.window.chunk}'
            )
        self.hops = tuple(hops)
        self._network = flow_network(config)
        self._options = {'steps': steps, 'guidance': guidance}
        self._start = jax.jit(self._run_start, static_argnums=0)
        self._step = jax.jit(self._run_step, static_argnums=0, donate_argnums=2)

    def start(self, sessions: int = 1, voice: Voice | None = None) -> State:
        """The state of new sessions with one voice, by default the decoder's own.

        Of a long prompt the last `window.voice` codes are used, in whole chunks.

        Raises:
          InputError: a voice that does not fit the decoder.
        """
        config = self.config
        voice = voices.nobody(config) if voice is None else voices.check(voice, config)
        return self._start(sessions, self.params, prompt(voice, config, self.window))

    def step(self, state: State, piece: Piece) -> tuple[State, Piece]:
        """One step of sessions; `state` is used up. Where none ends, a cheaper program runs."""
        known = isinstance(piece.last, np.ndarray)  # else only the shapes are asked for
        return self._step(not known or bool(piece.last.any()), self.params, state, piece)

    def sessions(self, state: State, names: Sequence[str] | None = None) -> Sessions:
        """Sessions that take codes of any number and give mel, (frames, m).

        The first step waits for the look-ahead beyond its hop; the others have it already.
        """
        first, *others = self.hops
        sizes = (first + self.config.lookahead, *(others or [first]))
        ladder = [Rung(size, self.step) for size in sizes]
        return Sessions(ladder, state, dtype=np.int32, names=names)

    def _stream(self, params, ends: bool) -> FlowStream:
        return FlowStream(self._network.bind(params), self.window, ends=ends, **self._options)

    def _run_start(self, sessions, params, given):
        with jax.default_matmul_precision('highest'):  # float32 on every device, as upstream
            return self._stream(params, True).start(sessions, given)

    def _run_step(self, ends, params, state, piece):
        with jax.default_matmul_precision('highest'):
            return self._stream(params, ends).step(state, piece)


def prompt(voice: Voice, config: FlowConfig, window: Window) -> Prompt:
    """What a window keeps of a voice: its last whole chunks, padded."""
    count = min(len(voice.codes), window.voice) // window.chunk * window.chunk
    codes = np.zeros(window.voice, np.int32)
    mel = np.zeros((config.ratio * window.voice, config.mels), np.float32)
    if count:
        codes[:count] = voice.codes[-count:]
        mel[: config.ratio * count] = voice.mel[-config.ratio * count :]
    return Prompt(codes, mel, np.int32(count), np.asarray(voice.xvector, np.float32))

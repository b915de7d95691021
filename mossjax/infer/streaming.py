"""Sessions on the host: pieces of any length in, whole blocks to the device, results back."""

from collections.abc import Callable, Collection, Mapping, Sequence
import functools
from typing import NamedTuple

import jax
import numpy as np

from mossjax.errors import InputError
from mossjax.models.stream import Piece, State


class Rung(NamedTuple):
    """A compiled step and its piece.

    Attributes:
      places: of a piece, a whole number of the stream's blocks.
      step: (state, piece) -> (state, out).
    """

    places: int
    step: Callable[[State, Piece], tuple[State, Piece]]


class Sessions:
    """b sessions of one stream, side by side in one state.

    A session's steps are a function of how much it has sent, never of how that arrived: its first
    step takes the first rung, its second the second, and all after the ladder's end the last one.
    """

    def __init__(
        self, ladder: Sequence[Rung], state: State, *, shape: tuple[int, ...] = (),
        dtype=np.float32, bulk: Rung | None = None, names: Sequence[str] | None = None,
    ):  # fmt: skip
        """Args:
          state: of the stream's `start`; its first axis says how many sessions there are.
          shape, dtype: of one place.
          bulk: a longer piece of the last rung's blocks, for sessions that have that much waiting.
          names: of the sessions, for messages; by default 'session 0', ...
        """
        self.state = state
        self._rungs = [*ladder, bulk or ladder[-1]]
        count = len(jax.tree.leaves(state)[0])
        self.names = list(names or (f'session {i}' for i in range(count)))
        self._waiting = [np.zeros((0, *shape), dtype) for _ in range(count)]
        self._steps = [0] * count
        self._over = [False] * count

    @property
    def bytes_each(self) -> int:
        """Device memory of one session's state; it never changes."""
        return sum(x.nbytes for x in jax.tree.leaves(self.state)) // len(self.names)

    def feed(
        self, pieces: Mapping[int, np.ndarray], *, ending: Collection[int] = ()
    ) -> dict[int, np.ndarray]:
        """Takes what some sessions send and gives what can be said of it.

        Args:
          pieces: {session: (any length, ...)}.
          ending: sessions that end with it, or with nothing more.

        Returns:
          {session: (any length, ...)} of all that were named.

        Raises:
          InputError: a session that has ended, or a piece of another shape or type, or of numbers
            that are not finite; no session has then taken anything.
        """
        named = list(dict.fromkeys([*pieces, *ending]))
        for i in named:
            if self._over[i]:
                raise InputError(
                    f'{self.names[i]} has ended and takes nothing more; start another for what '
                    'follows'
                )
        taken = {i: self._checked(i, piece) for i, piece in pieces.items()}
        for i, piece in taken.items():
            self._waiting[i] = np.concatenate([self._waiting[i], piece])
        outs: dict[int, list[np.ndarray]] = {i: [self._nothing] for i in named}
        while ready := {i: rung for i in named if (rung := self._rung(i, i in ending)) is not None}:
            rung = min(ready.values())  # sessions on one rung step together
            together = [i for i in ready if ready[i] == rung]
            for i, out in self._step(self._rungs[rung], together, ending).items():
                outs[i].append(out)
        return {i: np.concatenate(parts) for i, parts in outs.items()}

    def _checked(self, i: int, piece) -> np.ndarray:
        piece, like = np.asarray(piece), self._waiting[i]
        if piece.shape == (0,):
            return like[:0]
        kind = np.floating if np.issubdtype(like.dtype, np.floating) else np.integer
        if piece.shape[1:] != like.shape[1:] or not np.issubdtype(piece.dtype, kind):
            raise InputError(
                f'{self.names[i]}: a piece of {piece.dtype} and shape {piece.shape}, but it takes '
                f'{like.dtype} and shape {("any", *like.shape[1:])}'
            )
        if kind is np.floating and not np.isfinite(piece).all():
            raise InputError(f'{self.names[i]}: a piece holds numbers that are not finite')
        return piece.astype(like.dtype)

    def _rung(self, i: int, ends: bool) -> int | None:
        """The next step of a session, None where it has to wait."""
        bulk, waiting = len(self._rungs) - 1, len(self._waiting[i])
        rung = min(self._steps[i], bulk - 1)
        if rung == bulk - 1 and waiting >= self._rungs[bulk].places:
            return bulk
        if waiting >= self._rungs[rung].places or (ends and not self._over[i]):
            return rung
        return None

    def _step(self, rung: Rung, together: list[int], ending) -> dict[int, np.ndarray]:
        piece = self._empty(rung.places)
        for i in together:
            part, self._waiting[i] = np.split(self._waiting[i], [rung.places])
            piece.values[i, : len(part)], piece.count[i] = part, len(part)
            piece.last[i] = self._over[i] = i in ending and not len(self._waiting[i])
            self._steps[i] += 1
        self.state, out = rung.step(self.state, piece)
        made, counts = np.asarray(out.values), np.asarray(out.count)
        return {i: made[i, : counts[i]] for i in together}

    @functools.cached_property
    def _nothing(self) -> np.ndarray:
        """An output of no places."""
        places, step = self._rungs[0]
        piece = self._empty(places)
        out = jax.eval_shape(lambda state: step(state, piece)[1].values, self.state)
        return np.zeros((0, *out.shape[2:]), out.dtype)

    def _empty(self, places: int) -> Piece:
        """A piece in which all sessions wait."""
        b, like = len(self.names), self._waiting[0]
        values = np.zeros((b, places, *like.shape[1:]), like.dtype)
        return Piece(values, np.zeros(b, np.int32), np.zeros(b, bool))


class Pipeline:
    """Parts one behind the other, each fed what the one before gives: `Sessions` of the chain."""

    def __init__(self, *parts: 'Sessions | Pipeline'):
        self.parts = parts

    @property
    def names(self) -> list[str]:
        return self.parts[0].names

    @property
    def bytes_each(self) -> int:
        """Device memory of one session's state; it never changes."""
        return sum(part.bytes_each for part in self.parts)

    def feed(
        self, pieces: Mapping[int, np.ndarray], *, ending: Collection[int] = ()
    ) -> dict[int, np.ndarray]:
        """As `Sessions.feed`."""
        for part in self.parts:
            pieces = part.feed(pieces, ending=ending)
        return dict(pieces)


class Session:
    """One of the sessions, or the only one."""

    def __init__(self, sessions: Sessions | Pipeline, row: int = 0):
        self.sessions, self.row = sessions, row

    def feed(self, piece: np.ndarray) -> np.ndarray:
        """(any length, ...) in -> (any length, ...) out, as much as is known by now.

        Raises:
          InputError: it has ended, or the piece has another shape or type.
        """
        return self.sessions.feed({self.row: piece})[self.row]

    def finish(self) -> np.ndarray:
        """Ends it: what was held back.

        Raises:
          InputError: it has ended already.
        """
        return self.sessions.feed({}, ending=[self.row])[self.row]

"""Lanes on the host: dialogues are read, answered and cut short, each in one row of a batch.

    engine = Engine(Programs(network, config, ids), params, lanes=2)
    lane = engine.open()
    engine.extend(lane, prompt)
    engine.speak(lane, settings, key)
    for said in engine.run():       # rows of every lane that runs, as they are made
        ...
    engine.extend(lane, more)       # the next turn; what came before is not read again

Lanes join and leave between the rows that `run` yields. A lane's rows depend on its own past,
settings and key only (CLEAN rules).
"""

import collections
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.errors import InputError
from mossjax.infer import buckets, draws, lanes, many_chips
from mossjax.infer.draws import LaneSettings
from mossjax.infer.sampling import Settings
from mossjax.models.lm.cache import Cache
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.machine import CLEAN, REASONS, RUNNING, STOP, Rules
from mossjax.nn.param import Network
from mossjax.parallel import options

POLL_SECONDS = 0.005
AS_IT_IS = -1  # beside RUNNING and STOP, what a lane is told


class Programs:
    """What engines run, compiled once for each number of lanes and of slots.

    Args:
      network: the language model, see `models.lm.model.network`.
      ids: special ids of the checkpoint.
      rules: machine.CLEAN or machine.UPSTREAM.
      mesh: of several devices, see `infer.many_chips`; the parameters lie on it then.
      store: how keys and values are held, `jnp.zeros` as computed or `cache.int8_rows`.
    """

    def __init__(
        self, network: Network, config: LMConfig, ids: GridIds, rules: Rules = CLEAN, *,
        mesh: jax.sharding.Mesh | None = None, store: Callable = jnp.zeros,
    ):  # fmt: skip
        self.network, self.config, self.ids, self.rules = network, config, ids, rules
        self.mesh, self._store = mesh, store
        self._placed = many_chips.cache_placed(mesh)
        # Under upstream's rules both branches speak at every step, so neither waits.
        self.wait = 0 if rules.both else buckets.WAIT
        self.read = jax.jit(self._read, donate_argnums=1)
        self.advance = jax.jit(
            self._advance, static_argnames='draw', donate_argnums=1,
            compiler_options=options.of_device(jax.devices()[0], options.SPEAK) or None,
        )
        # Compiled, so that no two of its arrays are one, which could not be used up.
        self.new = jax.jit(self.fresh, static_argnums=(0, 1, 2))
        self.grow = jax.jit(lambda *two: self._home(lanes.grown(*two)), donate_argnums=1)

    def empty(self, params: dict, count: int, rows: int) -> lanes.State:
        """`count` lanes for `rows` rows each, which have read nothing."""
        return self.new(count, rows, self.dtype(params))

    def dtype(self, params: dict):
        """What the network computes in."""
        row = jax.ShapeDtypeStruct((1, 1, 2), jnp.int32)
        return jax.eval_shape(lambda p, x: self.network.bind(p).embed(x), params, row).dtype

    def fresh(self, count: int, rows: int, dtype) -> lanes.State:
        cache = Cache.empty(
            self.config, count, rows, dtype, spare=buckets.PIECES[-1], wait=self.wait,
            store=self._store,
        )  # fmt: skip
        return self._home(lanes.State.empty(self.config, self.ids, count, cache, dtype))

    def _home(self, state: lanes.State) -> lanes.State:
        """The state where all programs want it."""
        return dataclasses.replace(state, cache=self._placed(state.cache))

    def _read(self, params, state, tokens, count, first, lengths):
        """Pieces (n, t, 2), count (n,) rows real, for lanes from `first` on.

        Before that every lane is cut to lengths (b,).
        """
        with many_chips.scope(self.mesh):
            state = lanes.cut(state, lengths)
            model = self.network.bind(params)
            state = lanes.extend(model, state, tokens, count, first, self.rules, self.ids)
            return self._home(state)

    def _advance(self, params, state, settings, told, *, draw):
        """(state, (rows (b, STEPS, 2), how many of them are real (b,), reasons (b,)))."""
        model = self.network.bind(params)
        state = dataclasses.replace(state, reason=jnp.where(told < 0, state.reason, told))
        before, steps = state.made, buckets.STEPS
        grid = jnp.zeros((len(told), steps, 2), jnp.int32)

        def step(carry):
            state, grid, i = carry
            with many_chips.scope(self.mesh):
                state = lanes.advance(model, state, settings, self.rules, self.ids, draw)
            grid = jax.lax.dynamic_update_slice_in_dim(grid, state.row[:, None], i, 1)
            return state, grid, i + 1

        def unfinished(carry):
            state, _, i = carry
            return (i < steps) & jnp.any(state.reason == RUNNING)

        state, grid, _ = jax.lax.while_loop(unfinished, step, (state, grid, 0))
        return self._home(state), (grid, state.made - before, state.reason)


@dataclasses.dataclass(eq=False)
class Lane:
    """One dialogue in one row of the batch.

    Attributes:
      index: of the row.
      rows: int32 (n, 2), what it was given and what it said.
      read: how many of them lie in the cache; the rest is read before a reply.
      ready: whether it stands before a reply: the last thing it did was to read.
      running: whether a reply is being made.
    """

    index: int
    rows: np.ndarray
    read: int = 0
    ready: bool = False
    running: bool = False
    settings: Settings = Settings()
    key: Any = None
    speak: bool = True
    told: int = STOP
    end: int = 0  # rows it may have when its reply ends
    reply: int = 0  # number of it, so that rows made for one before are known


@dataclasses.dataclass(frozen=True, eq=False)
class Said:
    """Rows int32 (n, 2) that a lane has said, and why the reply ended, or 'running'."""

    lane: Lane
    rows: np.ndarray
    reason: str


class Engine:
    """The state of a batch of lanes."""

    def __init__(self, programs: Programs, params: dict, lanes: int = 1):
        self.programs, self.params = programs, params
        self._lanes: list[Lane | None] = [None] * lanes
        self._state = None
        self._rows = 0  # that a lane has room for
        self._making = collections.deque()  # ({lane: number of its reply}, rows), oldest first
        self._said = collections.deque()  # rows that are made, each with the number of its reply

    @property
    def positions(self) -> int:
        """Rows that a lane may have in all."""
        return self.programs.config.max_position_embeddings

    def open(self) -> Lane:
        """A lane that is free, empty.

        Raises:
          InputError: all are taken.
        """
        if None not in self._lanes:
            raise InputError(f'all {len(self._lanes)} lanes are taken; close one')
        index = self._lanes.index(None)
        self._lanes[index] = Lane(index, np.zeros((0, 2), np.int32))
        return self._lanes[index]

    def close(self, lane: Lane) -> None:
        """The lane is free again; what it was saying is stopped."""
        self.cut(lane, 0)
        self._lanes[lane.index] = None

    def extend(self, lane: Lane, rows: np.ndarray) -> None:
        """Gives a lane rows int32 (n, 2) to read; it listens then, whatever it was doing.

        They are read by `read`, or before the next rows are made.

        Raises:
          InputError: more rows than the model has positions.
        """
        total = len(lane.rows) + len(rows)
        if total > self.positions:
            raise InputError(
                f'a dialogue of {total} rows exceeds the {self.positions} positions of the model; '
                'shorten it'
            )
        self._stop(lane)
        lane.rows = np.concatenate([lane.rows, np.asarray(rows, np.int32).reshape(-1, 2)])

    def cut(self, lane: Lane, length: int) -> None:
        """Forgets what a lane has read and said behind `length` rows, as if it had not been.

        Raises:
          InputError: it has fewer rows.
        """
        if not 0 <= length <= len(lane.rows):
            raise InputError(f'a lane of {len(lane.rows)} rows cannot be cut to {length}')
        self._stop(lane)
        if length == len(lane.rows):
            return
        lane.rows = lane.rows[:length]
        # The outputs at its last row are gone, so that one is read again. Upstream's penalty
        # counts the whole past, of which a cut leaves no account.
        again = 0 if self.programs.rules.counts_prompt else max(length - 1, 0)
        lane.read = min(lane.read, again)

    def follow(self, lane: Lane, rows: np.ndarray) -> None:
        """Makes `rows` (n, 2) the past of a lane; what it has of them already is not read again."""
        most = min(len(lane.rows), len(rows))
        differs = np.flatnonzero((lane.rows[:most] != rows[:most]).any(axis=1))
        same = int(differs[0]) if differs.size else most
        self.cut(lane, same)
        self.extend(lane, rows[same:])

    def speak(self, lane: Lane, settings: Settings, key: jax.Array, speak: bool = True) -> None:
        """Lets a lane reply to what it has read, from the next rows of `run` on.

        A reply that fills the lane ends there, with reason 'length'.

        Args:
          speak: whether start of speech may be drawn (CLEAN rules).

        Raises:
          InputError: settings out of range, nothing to reply to, or no room for a row.
        """
        settings.check()
        if not len(lane.rows):
            raise InputError('there is nothing to reply to; extend the lane first')
        left = self.positions - len(lane.rows)
        if left < 1:
            raise InputError(
                f'a dialogue of {len(lane.rows)} rows fills the {self.positions} positions of the '
                'model; cut it'
            )
        lane.settings = settings.at_most(min(settings.max_new_tokens, left))
        lane.end = len(lane.rows) + lane.settings.max_new_tokens
        lane.key, lane.speak = key, speak
        if not lane.ready:
            lane.read = min(lane.read, len(lane.rows) - 1)
        lane.running, lane.told = True, RUNNING
        lane.reply += 1

    def read(self) -> None:
        """Reads what lanes have been given and have not read, piece by piece, several together."""
        self._grow()
        while behind := [lane for lane in self._open() if lane.read < len(lane.rows)]:
            self._read_pieces(behind)

    def run(self) -> Iterator[Said]:
        """The rows of all lanes that run, until none does; the next are made meanwhile.

        One may stop to listen at any time, Ctrl-C included; a later call goes on from there. The
        first rows of a reply are given before more are begun, since somebody waits for them.
        """
        while True:
            while self._said:
                said, reply = self._said.popleft()
                if said.lane.reply == reply:  # or it was interrupted since
                    yield said
            if not any(lane.running for lane in self._open()):
                return
            starts = any(lane.running and lane.told == RUNNING for lane in self._open())
            self._begin()
            while len(self._making) > (0 if starts else 1):
                self._collect()

    def _begin(self) -> None:
        """Starts making rows for all lanes that run."""
        self.read()
        told = np.full(len(self._lanes), STOP, np.int32)
        for lane in self._open():
            told[lane.index] = lane.told
        speakers = {lane: lane.reply for lane in self._open() if lane.running}
        running = [lane.settings for lane in speakers]
        draw = draws.fitting(running)
        settings = self._settings()
        with self._taken() as state:
            self._state, made = self.programs.advance(
                self.params, state, settings, told, draw=draw
            )
        self._making.append((speakers, made))
        for lane in speakers:
            lane.ready, lane.told = False, AS_IT_IS

    def _collect(self) -> None:
        """Waits for the oldest rows that are being made; who interrupts that finds them here."""
        speakers, made = self._making[0]
        grid, counts, reasons = jax.device_get(computed(made))
        self._making.popleft()
        for lane, reply in speakers.items():
            if not lane.running or lane.reply != reply:
                continue
            rows = grid[lane.index, : counts[lane.index]]
            lane.rows = np.concatenate([lane.rows, rows])
            lane.read = len(lane.rows)
            reason = REASONS[reasons[lane.index]]
            lane.running = reason == REASONS[RUNNING]
            self._said.append((Said(lane, rows, reason), reply))

    def _settings(self) -> LaneSettings:
        some = next(lane.key for lane in self._open() if lane.running)
        asked = [
            (lane.settings, lane.key, lane.speak) if lane is not None and lane.running
            else (Settings(), some, True) for lane in self._lanes
        ]  # fmt: skip
        settings, keys, speak = zip(*asked, strict=True)
        return LaneSettings.of(settings, jnp.stack(keys), speak)

    def _stop(self, lane: Lane) -> None:
        lane.running, lane.told = False, STOP
        lane.reply += 1

    def _read_pieces(self, behind: list[Lane]) -> None:
        """The next piece of each of these lanes, or of the only one."""
        lengths = np.full(len(self._lanes), np.iinfo(np.int32).max, np.int32)
        first, count = (behind[0].index, 1) if len(behind) == 1 else (0, len(self._lanes))
        size = buckets.piece(max(len(lane.rows) - lane.read for lane in behind))
        tokens, counts = np.zeros((count, size, 2), np.int32), np.zeros(count, np.int32)
        for lane in behind:
            rows = lane.rows[lane.read : lane.read + size]
            tokens[lane.index - first, : len(rows)] = rows
            counts[lane.index - first] = len(rows)
            lengths[lane.index] = lane.read
        with self._taken() as state:
            self._state = self.programs.read(
                self.params, state, tokens, counts, np.int32(first), lengths
            )
        for lane in behind:
            lane.read += int(counts[lane.index - first])
            lane.ready = True

    def _grow(self) -> None:
        """Room in every lane for what the longest has read and may say."""
        rows = max(
            (max(len(lane.rows), lane.running * lane.end) for lane in self._open()), default=0
        )
        if self._state is not None and rows <= self._rows:
            return
        self._rows = max(self._rows, buckets.slots(rows, self.positions))
        empty = self.programs.empty(self.params, len(self._lanes), self._rows)
        if self._state is not None:
            self._state = self.programs.grow(self._state, empty)
            return
        self._state = empty
        for lane in self._open():
            lane.read = 0

    def _open(self) -> list[Lane]:
        return [lane for lane in self._lanes if lane is not None]

    @contextlib.contextmanager
    def _taken(self) -> Iterator[lanes.State]:
        """The state for a program to use up; one that was stopped before it did leaves it."""
        state, self._state = self._state, None
        try:
            yield state
        except BaseException:
            if not any(x.is_deleted() for x in jax.tree.leaves(state)):
                self._state = state
            raise


def computed(arrays: Any) -> Any:
    """The same arrays, computed. Waits in Python, where Ctrl-C ends a reply that takes long.

    Once begun, the loop on the device runs to its end all the same; nobody waits for it.
    """
    while not all(array.is_ready() for array in jax.tree.leaves(arrays)):
        time.sleep(POLL_SECONDS)
    return arrays

"""Codes -> mel as the codes come: the same work and memory at every step.

The mask is block-causal as of `Context(chunk)`, and bounded: a block sees the voice's prompt, the
`past` codes before it, and itself. What it sees is not computed again: at each Euler step the
inputs of attentions and convolutions stay. As long as nothing has been forgotten the frames are
those of `FlowDecoder` under the same mask.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.models import stream
from mossjax.models.flow import solver, stream_encoder, stream_estimator
from mossjax.models.flow.config import Window
from mossjax.models.flow.model import FlowDecoder


class Prompt(NamedTuple):
    """A voice's prompt, padded to the window's `voice` codes, and the speaker.

    Attributes:
      codes: (voice,) int32. mel: (ratio * voice, m). count: () int32, codes that exist.
      xvector: (xvector_size,).
    """

    codes: jax.Array
    mel: jax.Array
    count: jax.Array
    xvector: jax.Array


class State(NamedTuple):
    """What b sessions remember.

    Attributes:
      codes: (b,) int32, how many have become frames, the voice's included.
      voice: (b,) int32, how many codes the voice's prompt has.
      speaker: (b, m), projected.
      pending: (b, chunk + lookahead - 1) int32, codes that wait for the rest of their block and its
        look-ahead. waiting: (b,) int32, how many they are.
      cond: (b, ratio * pending, m), their mel where it is known, else zeros.
      encoder: see `stream_encoder.empty`.
      seen, tails: see `stream_estimator.empty`. Frame i of the voice lies in slot i, frame i of the
        speech in slot i of the others, counted modulo their number.
    """

    codes: jax.Array
    voice: jax.Array
    speaker: jax.Array
    pending: jax.Array
    waiting: jax.Array
    cond: jax.Array
    encoder: dict
    seen: jax.Array
    tails: dict


class FlowStream:
    """A stream of `models.stream`: int32 codes (b, n) in, natural-log mel (b, frames, m) out.

    Pieces may have any number of codes. In all there are `ratio` frames a code; a block's come out
    with the piece that completes its look-ahead.
    """

    def __init__(
        self, model: FlowDecoder, window: Window, *, steps: int = solver.STEPS,
        guidance: float | None = None, ends: bool = True,
    ):  # fmt: skip
        """Args:
          window: what a block sees.
          steps: Euler steps. guidance: the config's by default.
          ends: sessions may end in a step. Without, a step has no room for the codes that are
            given back at an end: it is cheaper, and wrong where a session ends.
        """
        self.model, self.config, self.window, self.steps = model, model.config, window, steps
        self.guidance = self.config.guidance if guidance is None else guidance
        self.block, self.ends = window.chunk, ends
        self.held = window.chunk + self.config.lookahead - 1

    def start(self, sessions: int, prompt: Prompt | None = None) -> State:
        """Sessions that speak with one voice; its prompt goes through the network here."""
        c, w = self.config, self.window
        if prompt is None:
            prompt = Prompt(
                jnp.zeros(w.voice, jnp.int32), jnp.zeros((c.ratio * w.voice, c.mels)),
                jnp.int32(0), jnp.zeros(c.xvector_size),
            )  # fmt: skip
        seen, tails = stream_estimator.empty(c, w, self.steps, 1 if self.guidance == 0 else 2)
        one = State(
            jnp.int32(0), jnp.int32(prompt.count), self.model.speaker(prompt.xvector[None])[0],
            jnp.zeros(self.held, jnp.int32), jnp.int32(0), jnp.zeros((c.ratio * self.held, c.mels)),
            stream_encoder.empty(c, w), seen, tails,
        )  # fmt: skip
        one = jax.tree.map(lambda x: x[None], one)
        if w.voice:
            given = stream.Piece(prompt.codes[None], prompt.count[None], jnp.zeros(1, bool))
            one, _ = self._feed(one, given, prompt.mel[None], self._whole(w.voice))
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (sessions, *x.shape[1:])), one)

    def step(self, state: State, piece: stream.Piece) -> tuple[State, stream.Piece]:
        """See `models.stream`."""
        n = piece.values.shape[1]
        known = jnp.zeros((len(piece.count), self.config.ratio * n, self.config.mels))
        room = self._whole(n + self.held * self.ends)
        return self._feed(state, piece, known, room)

    def _whole(self, codes: int) -> int:
        """Rounded up to whole blocks."""
        return -(-codes // self.block) * self.block

    def _feed(self, state: State, piece: stream.Piece, known: jax.Array, room: int):
        """(state, out). known: (b, ratio * n, m) as `State.cond`. room: codes that may be fed."""
        c, ratio = self.config, self.config.ratio
        codes = jnp.clip(stream.cleaned(piece).values, 0, c.vocab_size - 1)
        total = state.waiting + piece.count
        whole = jnp.maximum(total - c.lookahead, 0) // self.block * self.block
        fed = jnp.where(piece.last, total, whole)
        codes = _after(state.pending, codes, state.waiting)
        exists = jnp.arange(known.shape[1]) < ratio * piece.count[:, None]
        cond = _after(state.cond, jnp.where(exists[..., None], known, 0), ratio * state.waiting)
        run = functools.partial(self._session, room)
        encoder, inputs, tails, mel = jax.vmap(run)(
            state, _sized(codes, room + c.lookahead), _sized(cond, ratio * room), fed, total
        )
        new = State(
            state.codes + fed, state.voice, state.speaker, _cut(codes, fed, self.held),
            total - fed, _cut(cond, ratio * fed, ratio * self.held), encoder,
            _write(self.window, state, fed, ratio, inputs), tails,
        )  # fmt: skip
        # The voice's own frames are not said again.
        dropped = ratio * jnp.clip(state.voice - state.codes, 0, fed)
        out = _cut(mel, dropped, mel.shape[1])
        return new, stream.Piece(out, ratio * fed - dropped, piece.last)

    def _session(self, room, state, codes, cond, fed, total):
        """One session: (encoder's state, inputs of attentions, tails, (ratio * room, m) mel)."""
        model, ratio, steps = self.model, self.config.ratio, self.steps
        encoder, mu = self._mu(state, codes, room, fed, total)
        frames = ratio * fed
        exist = jnp.arange(ratio * room) < frames
        visible = _visible(self.window, state, ratio, room, exist)
        x = noise(self.config.mels, ratio * state.codes, ratio * room)

        def euler(x, now):
            number, t, size, tails = now
            given = x[None], exist[None], mu[None], t[None], state.speaker[None], cond[None]
            given = solver.both_sides(*given) if self.guidance != 0 else given
            x2, _, mu2, t2, speaker2, cond2 = given
            v, kept = stream_estimator.velocity(
                model.estimator, tails, lambda layer: _at(state.seen, number, layer), frames,
                visible, x2, mu2, t2, speaker2, cond2,
            )  # fmt: skip
            v = solver.steered(v, self.guidance) if self.guidance != 0 else v
            return x + size * v[0], kept

        times, sizes = solver.visits(solver.time_grid(steps))
        now = jnp.arange(steps), jnp.asarray(times), jnp.asarray(sizes), state.tails
        mel, (inputs, tails) = jax.lax.scan(euler, x, now)
        return encoder, inputs, tails, jnp.where(exist[:, None], mel, 0)

    def _mu(self, state, codes, room, fed, total):
        """(the encoder's state, (ratio * room, m)); the encoder goes block by block."""
        size, look = self.block, self.config.lookahead
        starts = np.arange(0, room, size)
        x = self.model.embed(codes)[starts[:, None] + np.arange(size + look)]

        def block(past, given):
            x, start = given
            return stream_encoder.advance(
                self.model.encoder, past, self.window, x, total - start,
                jnp.clip(fed - start, 0, size), state.codes + jnp.minimum(fed, start), state.voice,
            )  # fmt: skip

        encoder, frames = jax.lax.scan(block, state.encoder, (x, starts))
        return encoder, self.model.mu_proj(frames.reshape(-1, frames.shape[-1]))


def noise(mels: int, start: jax.Array, frames: int) -> jax.Array:
    """(frames, m): the noise of a session's frames from `start` on.

    Frame i, counted from the first of the voice's prompt, has row i of the noise table; after its
    15,000 rows (300 s) the table begins again.
    """
    rows = (start + jnp.arange(frames)) % solver.MAX_FRAMES
    return jnp.asarray(solver.noise_table(mels))[rows]


def _after(old: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
    """(b, p, ..) and (b, n, ..) -> (b, p + n, ..), each row's new ones from its place `at` on."""
    put = jax.vmap(lambda row, x, i: jax.lax.dynamic_update_slice_in_dim(row, x, i, axis=0))
    return put(jnp.concatenate([old, jnp.zeros_like(new)], axis=1), new, at)


def _sized(x: jax.Array, size: int) -> jax.Array:
    """The second axis cut or padded with zeros."""
    short = max(size - x.shape[1], 0)
    return jnp.pad(x, ((0, 0), (0, short)) + ((0, 0),) * (x.ndim - 2))[:, :size]


def _cut(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """(b, n, ..) -> (b, size, ..) from each row's start on, zeros behind."""
    x = _sized(x, x.shape[1] + size)
    cut = jax.vmap(lambda row, i: jax.lax.dynamic_slice_in_dim(row, i, size, axis=0))
    return cut(x, start)


def _at(seen: jax.Array, step: jax.Array, layer: jax.Array) -> jax.Array:
    """(sides, slots, c) of (steps, transformers, sides, slots, c)."""
    place = (step, layer, 0, 0, 0)
    return jax.lax.dynamic_slice(seen, place, (1, 1, *seen.shape[2:]))[0, 0]


def _visible(window: Window, state: State, ratio: int, room: int, exist: jax.Array) -> jax.Array:
    """(t, slots + t) bool: which cached and which new frames the new frames see."""
    past, size = ratio * window.past, ratio * window.chunk
    voice, start = ratio * state.voice, ratio * state.codes
    t = jnp.arange(ratio * room)
    block = start + (t // size * size)[:, None]  # the beginning of each query's
    # The last frame before `start` that was written to a slot, as a place in the whole.
    slot, spoken = jnp.arange(past), start - voice
    place = voice + spoken - 1 - (spoken - 1 - slot) % max(past, 1)
    cached = (place >= voice) & (place >= block - past)
    prompt = jnp.arange(ratio * window.voice) < jnp.minimum(voice, start)
    new = start + t
    own = exist & (new < block + size) & ((new >= block - past) | (new < voice))
    prompt = jnp.broadcast_to(prompt, (len(t), len(prompt)))
    return jnp.concatenate([prompt, cached, own], axis=1)


def _write(window: Window, state: State, fed: jax.Array, ratio: int, new: jax.Array) -> jax.Array:
    """`State.seen` with the new frames, (b, steps, transformers, sides, t, c), in their slots.

    Code after code in place: the rest of the array, which is large, is not touched.
    """
    b, n = new.shape[0], new.shape[4] // ratio
    size = (1, *new.shape[1:4], ratio, new.shape[5])

    def put(i, seen):
        row, code = i // n, i % n
        place = state.codes[row] + code
        spoken = (place - state.voice[row]) % max(window.past, 1)
        slot = ratio * jnp.where(place < state.voice[row], place, window.voice + spoken)
        at = (row, 0, 0, 0, slot, 0)
        frames = jax.lax.dynamic_slice(new, (row, 0, 0, 0, ratio * code, 0), size)
        frames = jnp.where(code < fed[row], frames, jax.lax.dynamic_slice(seen, at, size))
        return jax.lax.dynamic_update_slice(seen, frames, at)

    return jax.lax.fori_loop(0, b * n, put, state.seen)

"""The vocoder's stream against offline runs of every prefix, cross-faded in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.models.stream import Piece
from mossjax.models.vocoder.hift import source
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.models.vocoder.hift.stream import HELD, HiftStream, hamming, raised_cosine, reach
from tests.contract import verify_contract

HOP = 480
BLOCK = 10  # frames
# The pitch's rounding becomes a phase, and these random weights make much of phases: a third of
# what upstream is allowed to differ where both compute their own source.
ATOL = 1e-2


@pytest.fixture(scope='module')
def offline(hift):
    """(b, t, 80), (b,) lengths -> (b, 480 t), as a whole."""

    @jax.jit
    def run(mel, lengths):
        noise = source.noise(hift.config, jax.random.key(0), mel.shape[1])
        return hift(mel, lengths, noise)

    return run


@pytest.fixture(scope='module')
def mel(hift_io):
    """(80, 80): recorded frames, forth and back so that they are enough."""
    frames = np.swapaxes(hift_io['mel'], 1, 2)[0]
    return np.concatenate([frames, frames[::-1]])


def prefixes(offline, mel, ends):
    """{frames: wave} of each prefix, from one run of 6 rows of 60 frames."""
    rows = np.zeros((6, 60, 80), np.float32)
    rows[: len(ends), : len(mel)] = mel
    waves = offline(rows, np.pad(np.array(ends), (0, 6 - len(ends))))
    return {end: np.asarray(wave[: HOP * end]) for end, wave in zip(ends, waves, strict=False)}


def assembled(waves, weights=raised_cosine):
    """What a stream says of prefixes: each from where the one before was held back."""
    rising, falling = weights()
    held, said, at = None, [], 0
    for end, wave in waves.items():
        new = wave[at:].copy()
        if held is not None:
            n = len(rising)
            new[:n] = new[:n] * rising + held[:n] * falling
        split = len(new) if end == max(waves) else len(new) - HELD * HOP
        said.append(new[:split])
        held, at = new[split:], at + split
    return np.concatenate(said)


def test_steps_are_the_prefixes_cross_faded(hift, offline, mel):
    """Pitch, phase and noise of frames long gone are those of the whole."""
    rows = [mel[:57], mel[20:60], mel[40:44]]

    def whole(row):
        ends = [*range(BLOCK, len(row), BLOCK), len(row)]
        return assembled(prefixes(offline, row, ends))

    verify_contract(HiftStream(hift, BLOCK), rows, whole, atol=ATOL)


def test_blocks_may_grow_and_each_fade_is_the_one_asked_for(hift, offline, mel):
    """Upstream's fade too, on one state that goes through blocks of 10, 20 and 20 frames."""
    waves = prefixes(offline, mel[:50], [10, 30, 50])
    for fade in (raised_cosine, hamming):
        streams = {n: HiftStream(hift, n, fade=fade) for n in (10, 20)}
        state, parts, at = streams[10].start(1), [], 0
        for n in (10, 20, 20):
            piece = Piece(mel[None, at : at + n], jnp.array([n]), jnp.array([at + n == 50]))
            state, out = jax.jit(streams[n].step)(state, piece)
            parts.append(out.values[0, : out.count[0]])
            at += n
        assert [len(part) // HOP for part in parts] == [2, 20, 28]
        np.testing.assert_allclose(
            np.concatenate(parts), assembled(waves, fade), rtol=0, atol=ATOL
        )
    np.testing.assert_allclose(np.add(*hamming()), np.full(3840, 1.08), atol=1e-3)
    np.testing.assert_allclose(np.add(*raised_cosine()), np.ones(960), atol=1e-12)


def test_the_stream_stays_near_the_whole_and_ends_as_it_does(hift, offline, mel):
    """Nothing is lost at the joins, and the last 60 ms have no burst."""
    waves = prefixes(offline, mel[:60], [20, 40, 60])
    streamed, whole = assembled(waves), waves[60]
    assert len(streamed) == len(whole)
    assert np.corrcoef(streamed, whole)[0, 1] > 0.99
    assert np.abs(streamed - whole)[-HOP * 3 :].max() < 1e-6


def test_reach_is_as_far_as_a_frame_is_heard(hift, mel):
    """A frame with another mel and another source, in the middle of 50: both sides of it."""
    mels, at = np.stack([mel[:50], mel[:50]]), 25
    sources = np.full((2, 50 * HOP), 0.1, np.float32)
    mels[1, at] += 1
    sources[1, at * HOP : (at + 1) * HOP] = -0.1
    waves = jax.jit(hift.wave)(mels, sources, np.array([50, 50]))
    changed = np.flatnonzero(waves[0] != waves[1]) / HOP
    furthest = max(at - changed.min(), changed.max() - at - 1)
    # Half a frame more is for the sines, which are given here.
    assert reach(hift.config) - 3 < furthest + 0.5 <= reach(hift.config)
    assert reach(hift.config) == reach(HiftConfig())

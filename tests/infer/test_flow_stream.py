"""The flow decoder's steps on the host: prompts cut, hops refused, arrival without a trace."""

import numpy as np
import pytest

from mossjax.convert.codec_flow import flow_network
from mossjax.errors import InputError
from mossjax.infer import fit
from mossjax.infer.flow_stream import FlowSteps, prompt
from mossjax.infer.layout import placed
from mossjax.infer.voice import Voice
from mossjax.models.flow.config import FlowConfig, Window
from tests.tiny_codec import random_params

SMALL = FlowConfig(
    vocab_size=50, input_size=12, mels=8, xvector_size=6, width=16, heads=2, ff_width=24, blocks=1,
    up_blocks=1, channels=8, head_dim=4, estimator_heads=2, transformers=1, mid_blocks=1, chunk=2,
)  # fmt: skip
WINDOW = Window(chunk=2, past=4, voice=5)


@pytest.fixture(scope='module')
def steps():
    params = random_params(flow_network(SMALL).shapes)
    return FlowSteps(SMALL, params, window=WINDOW, hops=(2,), steps=2)


@pytest.fixture
def voice(rng):
    return Voice(
        np.arange(7, dtype=np.int32), np.repeat(np.arange(28, dtype='f')[:, None], 8, axis=1),
        rng.normal(size=6).astype('f'),
    )  # fmt: skip


def test_a_prompt_is_the_last_whole_chunks_of_a_voice(voice):
    cut = prompt(voice, SMALL, WINDOW)
    np.testing.assert_array_equal(cut.codes, [3, 4, 5, 6, 0])
    np.testing.assert_array_equal(cut.mel[:, 0], [*range(12, 28), 0, 0, 0, 0])
    assert cut.count == 4
    assert prompt(voice.vector_alone(), SMALL, WINDOW).count == 0


def test_any_arrival_gives_four_frames_a_code_and_the_same_ones(steps, voice, rng):
    codes = rng.integers(0, 50, 11)
    together = steps.sessions(steps.start(2, voice)).feed({1: codes}, ending=[1])[1]
    assert together.shape == (44, 8)
    sessions = steps.sessions(steps.start(2, voice))
    parts = [sessions.feed({1: codes[i : i + 1]})[1] for i in range(11)]
    # The first chunk waits for the look-ahead of three codes, each other for its own two codes.
    assert [len(part) for part in parts] == [0] * 4 + [8, 0] * 3 + [8]
    parts.append(sessions.feed({}, ending=[1])[1])
    np.testing.assert_allclose(np.concatenate(parts), together, rtol=0, atol=1e-5)


def test_a_session_takes_as_much_memory_as_its_window(steps):
    state = steps.start(2)
    attention = 2 * 3 * 2 * (4 * 9) * 8  # Euler steps, transformers, sides, frames, channels
    assert state.seen.nbytes == 2 * 4 * attention
    assert steps.sessions(state).bytes_each < 2 * 4 * attention


def test_hops_are_whole_chunks():
    with pytest.raises(InputError, match=r'a hop of 3 codes.*multiple of the chunk, 2'):
        FlowSteps(SMALL, {}, window=WINDOW, hops=(2, 3))


def test_layers_held_apart_are_the_same_layers(steps, voice, rng, monkeypatch):
    """As a CPU holds those of a codec of real size."""
    monkeypatch.setattr(fit, 'APART', 0)
    held = placed(steps.params, flow_network(SMALL))
    assert len(held['estimator']['mid']['resnet']['time']['kernel'].layers) == SMALL.mid_blocks
    apart = FlowSteps(SMALL, held, window=WINDOW, hops=(2,), steps=2)
    codes = rng.integers(0, 50, 5)
    ours, theirs = (
        x.sessions(x.start(1, voice)).feed({0: codes}, ending=[0])[0] for x in (apart, steps)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)

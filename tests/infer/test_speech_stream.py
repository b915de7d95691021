"""Codes to sound in steps: lengths, joins that nobody hears, ends, what is refused."""

import jax
import numpy as np
import pytest

from mossjax.convert.codec_flow import flow_network
from mossjax.errors import InputError
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.speech_stream import SpeechSteps, growing
from mossjax.infer.streaming import Session
from mossjax.infer.vocoder import HiftVocoder
from mossjax.models.flow.config import FlowConfig, Window
from mossjax.nn.weight_norm import fold
from tests.joins import at_joins_and_elsewhere
from tests.tiny_codec import HIFT, hift_params, random_params

FLOW = FlowConfig(
    vocab_size=50, input_size=12, xvector_size=6, width=16, heads=2, ff_width=24, blocks=1,
    up_blocks=1, channels=8, head_dim=4, estimator_heads=2, transformers=1, mid_blocks=1,
)  # fmt: skip
WINDOW = Window(chunk=5, past=10, voice=5)
FRAME, HELD = 480, 8


def speech_steps(vocoder, hops):
    params = random_params(flow_network(FLOW).shapes)
    decoder = SpeechDecoder(FLOW, params, vocoder=vocoder, steps=2)
    return SpeechSteps(decoder, hops=hops, window=WINDOW)


@pytest.fixture(scope='module')
def steps(golden):
    """Upper bins 9 dB quieter, one after the other: noise as loud everywhere would hide a click."""
    params = fold(hift_params(golden('decoder/hift.npz')))
    params['post']['bias'][: HIFT.bins] -= np.arange(HIFT.bins)
    return speech_steps(HiftVocoder(HIFT, params), (5, 10))


@pytest.fixture(scope='module')
def codes():
    return np.random.default_rng(0).integers(0, 50, 104)


@pytest.fixture(scope='module')
def wave(steps, codes):
    """104 codes that came one by one."""
    session = Session(steps.sessions(2), row=1)
    parts = [session.feed(codes[i : i + 1]) for i in range(104)]
    # The first hop and its look-ahead make 20 frames, of which 8 are held back; then 40 frames.
    assert [len(part) // FRAME for part in parts[:19]] == [0] * 7 + [12] + [0] * 9 + [40, 0]
    return np.concatenate([*parts, session.finish()])


def test_there_are_1920_samples_a_code_however_they_come(steps, codes, wave):
    """Beside another session, and at once; ended with the codes, and after them."""
    assert wave.shape == (1920 * 104,) and np.isfinite(wave).all() and np.ptp(wave) > 0.1
    sessions = steps.sessions(2)
    found = sessions.feed({0: codes, 1: codes[:9]}, ending=[0])
    np.testing.assert_allclose(found[0], wave, rtol=0, atol=1e-2)
    ended = sessions.feed({}, ending=[1])[1]
    assert len(found[1]) + len(ended) == 1920 * 9
    for n in (0, 1, 3, 15):
        assert steps.sessions(2).feed({1: codes[:n]}, ending=[1])[1].shape == (1920 * n,)


def test_joins_sound_like_the_rest_and_a_click_does_not(wave):
    joins = [FRAME * (20 - HELD), *range(FRAME * (60 - HELD), len(wave) - FRAME, FRAME * 40)]
    assert len(joins) == 11
    near, elsewhere = at_joins_and_elsewhere(wave, joins)
    print(f'flux at joins {near:.3f}, elsewhere {elsewhere:.3f}')
    assert near <= elsewhere
    clicked = wave.copy()
    clicked[joins] += 0.5 * np.abs(wave).max()
    near, elsewhere = at_joins_and_elsewhere(clicked, joins)
    assert near > elsewhere


def test_a_session_goes_on_after_ten_minutes(steps, codes):
    """Nothing but two counters grows, and neither has an end; offline 300 s are refused."""
    sessions = steps.sessions(2)
    flow, vocoder = sessions.parts
    early = sessions.feed({0: codes[:90]})[0]
    before = sessions.bytes_each
    for part, counter, late in ((flow, 'codes', 7500), (vocoder, 'frames', 30000)):
        now = getattr(part.state, counter)
        part.state = part.state._replace(**{counter: now + late * (now > 0)})
    late = sessions.feed({0: codes[90:]}, ending=[0])[0]
    assert len(early) + len(late) == 1920 * 104
    assert np.isfinite(late).all() and 0.1 < np.std(late) / np.std(early) < 10
    assert sessions.bytes_each == before == sum(
        x.nbytes for part in (flow, vocoder) for x in jax.tree.leaves(part.state)
    ) // 2


def test_steps_grow_in_whole_chunks():
    assert growing(5) == (5, 10, 25)
    assert growing(5, 10) == (5, 10)
    assert growing(5, 5) == (5,)
    assert growing(25) == (25,)
    assert growing(7) == (7, 14, 21)


def test_what_a_session_refuses(steps, codes):
    sessions = steps.sessions(2, names=['ann', 'bob'])
    sessions.feed({0: codes[:3]}, ending=[0])
    with pytest.raises(InputError, match='ann has ended'):
        sessions.feed({0: codes[:3]})
    with pytest.raises(InputError, match=r'bob: code 50 is outside 0\.\.49.*tokenizer'):
        sessions.feed({1: [3, 50]})
    with pytest.raises(InputError, match='bob: codes must be a flat list of integers'):
        sessions.feed({1: [0.5]})
    assert sessions.feed({1: []}, ending=[1])[1].shape == (0,)


def test_a_codec_without_a_vocoder_cannot_stream():
    with pytest.raises(InputError, match=r'Griffin-Lim.*all of an utterance.*hift\.pt'):
        speech_steps(None, (5,))

"""On a GPU what was proven on the CPU still holds: the same codes, the same replies, the same mel.

    JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu

The CPU of the same process is the reference, so both platforms are named.
"""

import dataclasses

import jax
import numpy as np
import pytest

from mossjax.convert.placement import on_host
from mossjax.infer.assets import HELDOUT, Assets, shipped
from mossjax.infer.chat import INPUT_RATE, Chat
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.models.lm.dialogue import Turn

pytestmark = pytest.mark.gpu
ASKED = 8


def on_each(compute):
    """compute() on the GPU and on the CPU: (one, other)."""
    gpu = jax.devices()[0]
    assert gpu.platform == 'gpu', f'the first device is {gpu}: set JAX_PLATFORMS=cuda,cpu'
    results = []
    for device in (gpu, jax.devices('cpu')[0]):
        with jax.default_device(device):
            results.append(compute())
    return results


@pytest.fixture(scope='module')
def nano():
    return Assets.open(shipped())


@pytest.fixture(scope='module')
def talked(nano):
    """(codes of questions, spoken rows, written answers) on each device."""

    def talk():
        whole = Chat.open(nano.lm, nano.codec, put=on_host('float32'))
        chat = dataclasses.replace(whole, decode=None)
        clips = nano.questions(HELDOUT)[:ASKED]
        codes = chat.encode([nano.load(clip, INPUT_RATE) for clip in clips])
        settings = chat.settings.greedy().at_most(48)
        asked = [[Turn('user', each)] for each in codes]
        spoken = [reply.grid for reply in chat.replies(asked, 'audio', settings)]
        written = [reply.text for reply in chat.replies(asked, 'text', settings)]
        return codes, spoken, written

    return on_each(talk)


def test_recordings_become_the_same_codes(talked):
    for one, other in zip(talked[0][0], talked[1][0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_replies_are_the_same_rows_and_words(talked):
    for one, other in zip(talked[0][1], talked[1][1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert talked[0][2] == talked[1][2]
    assert all(talked[0][2])


def test_codes_become_the_same_sound(nano, talked):
    """Log-mel of the flow decoder's ten steps, which carry each other's rounding."""
    codes = talked[1][0][0]

    def mel():
        decoder = SpeechDecoder.open(nano.codec)
        return decoder.mel(codes)

    one, other = on_each(mel)
    np.testing.assert_allclose(one, other, atol=1e-3)

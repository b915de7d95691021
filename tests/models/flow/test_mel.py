"""The 24 kHz log-mel against upstream's on real speech."""

import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.models.flow.mel import log_mel


@pytest.fixture(scope='module')
def speech(golden):
    vectors = golden('decoder/mel24.safetensors')
    return vectors['wav24_int16'].astype(np.float32) / 32768, vectors['mel24']


def test_log_mel(speech):
    wave, expected = speech
    np.testing.assert_allclose(log_mel(wave), np.swapaxes(expected, 1, 2), rtol=0, atol=1e-3)


def test_one_frame_every_480_samples_and_silence_is_the_floor():
    mel = log_mel(np.zeros(480 * 7 + 479, np.float32))
    np.testing.assert_allclose(mel, np.full((7, 80), np.log(1e-5)), rtol=1e-3)


def test_a_click_lies_in_its_frame():
    """Frame i is centred on sample 480 i + 240."""
    wave = np.zeros(1920 * 5, np.float32)
    wave[1920 * 3 + 480 + 240] = 0.5  # second quarter of code 3
    energy = np.asarray(log_mel(wave)).sum(axis=1)
    assert energy.argmax() == 4 * 3 + 1


def test_too_short_is_refused():
    with pytest.raises(InputError, match='720 samples.*too few'):
        log_mel(np.zeros(720, np.float32))

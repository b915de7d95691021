"""Kaldi's filter bank against torchaudio's on real speech."""

import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.models.speaker import fbank
from mossjax.ops.resample import resample


@pytest.fixture(scope='module')
def speech(golden):
    wave = golden('decoder/mel24.safetensors')['wav24_int16'][0].astype(np.float32) / 32768
    return resample(wave, 24000, 16000)


def test_filter_bank_of_speech(speech, golden):
    found = np.asarray(fbank.fbank(speech))
    assert found.shape == (398, 80) == (fbank.frame_count(len(speech)), 80)
    expected = golden('decoder/fbank.npz')['fbank']
    np.testing.assert_allclose(found[::16], expected, rtol=0, atol=2e-3)


def test_frames_are_of_their_own_samples_only(speech):
    """So a padded recording can be cut after the fact."""
    whole = fbank.fbank(speech[:8000])
    part = fbank.fbank(np.concatenate([speech[:4000], np.full(4000, 0.3, np.float32)]))
    count = fbank.frame_count(4000)
    np.testing.assert_allclose(part[:count], whole[:count], rtol=0, atol=1e-5)


def test_silence_is_the_floor_and_an_offset_is_not_heard(speech):
    floor = np.log(1.1920929e-07)
    np.testing.assert_allclose(fbank.fbank(np.zeros(800, np.float32)), floor, rtol=1e-6)
    shifted = fbank.fbank(speech[16000:20000] + np.float32(0.25))
    np.testing.assert_allclose(shifted, fbank.fbank(speech[16000:20000]), rtol=0, atol=2e-2)


def test_counts_and_refusal():
    assert [fbank.frame_count(n) for n in (0, 399, 400, 559, 560, 16000)] == [0, 0, 1, 1, 2, 98]
    with pytest.raises(InputError, match='399 samples at 16 kHz are too few'):
        fbank.fbank(np.zeros(399, np.float32))

"""Codes to speech from a codec directory: recorded mels; padding and batches change nothing."""

import logging

import numpy as np
import pytest

from mossjax.convert import rules
from mossjax.convert.codec_flow import flow_network, save_flow
from mossjax.convert.flow_rules import flow_rules
from mossjax.errors import InputError
from mossjax.infer.speech_decoder import SpeechDecoder, bucket
from mossjax.models.flow.config import Context, FlowConfig

CONFIG = FlowConfig(
    vocab_size=97, input_size=64, width=64, heads=4, ff_width=128, blocks=2, up_blocks=2,
    channels=32, head_dim=16, estimator_heads=4, transformers=2, mid_blocks=2,
)  # fmt: skip


@pytest.fixture(scope='module')
def decoder(golden, tmp_path_factory):
    directory = tmp_path_factory.mktemp('codec')
    tensors = golden('decoder/flow_state.safetensors')
    params = rules.to_params(flow_rules(), tensors.__getitem__, flow_network(CONFIG).shapes)
    save_flow(directory, CONFIG, params)
    return SpeechDecoder.open(directory)


@pytest.fixture(scope='module')
def codes(golden):
    return golden('decoder/flow_io.safetensors')['codes'][0]


def test_mel_is_upstream_s_alone_and_padded_in_a_batch(decoder, codes, golden):
    """24 codes fill a bucket exactly; beside 30 codes they are padded to 32."""
    expected = golden('decoder/flow_io.safetensors')['noprompt/mel'][0].T
    alone = decoder.mel(codes)
    np.testing.assert_allclose(alone, expected, rtol=0, atol=5e-4)
    long = np.arange(30)
    several = decoder.mel_many([long, codes, long[:1]])
    assert [len(m) for m in several] == [120, 96, 4]
    np.testing.assert_allclose(several[1], expected, rtol=0, atol=5e-4)


def test_waveforms_have_1920_samples_a_code_and_ignore_their_neighbours(decoder, codes):
    alone = decoder.decode(codes[:9])
    assert alone.shape == (1920 * 9,) and alone.dtype == np.float32
    long, again, empty = decoder.decode_many([codes[:16], codes[:9], []])
    assert long.shape == (1920 * 16,) and empty.shape == (0,)
    np.testing.assert_allclose(again, alone, rtol=0, atol=1e-2 * np.abs(alone).max())


def test_held_back_codes_give_no_frames(decoder, codes):
    mel = decoder.mel(codes[:10], context=Context(chunk=5, held=3))
    changed = decoder.mel([*codes[:5], *codes[10:15]], context=Context(chunk=5, held=3))
    assert mel.shape == changed.shape == (28, 80)
    assert np.abs(mel[20:] - changed[20:]).max() > 1e-2


@pytest.mark.parametrize(
    'codes, message',
    [
        ([1, 97], r'utterance 0: code 97 is outside 0\.\.96'),
        ([-1], 'code -1 is outside'),
        ([0.5], 'flat list of integers'),
        ([[1, 2]], 'flat list of integers'),
        (np.zeros(3751, int), r'3751 codes; the decoder takes 3750 \(300 s\)'),
    ],
)
def test_bad_codes_are_refused_at_once(codes, message, decoder):
    with pytest.raises(InputError, match=message):
        decoder.decode(codes)


def test_buckets():
    assert [bucket(n, 3750) for n in (0, 16, 17, 24, 25, 33, 49, 3073, 3750)] == [
        16, 16, 20, 24, 28, 40, 56, 3584, 3750,
    ]  # fmt: skip


def test_opening_says_that_there_is_no_vocoder(decoder, tmp_path, caplog):
    save_flow(tmp_path, CONFIG, decoder.params)
    with caplog.at_level(logging.INFO, logger='absl'):
        SpeechDecoder.open(tmp_path)
    assert 'no flow/hift.pt or flow/hift.safetensors, so Griffin-Lim makes the sound' in caplog.text
    assert "the voice is the decoder's own (no prompt, zero speaker vector)" in caplog.text
    (tmp_path / 'flow' / 'hift.pt').write_bytes(b'torn')
    with pytest.raises(InputError, match=r'hift\.pt: no zip archive'):
        SpeechDecoder.open(tmp_path)  # a damaged vocoder is not passed over


def test_a_directory_without_decoder_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r'neither flow\.safetensors nor flow\.pt'):
        SpeechDecoder.open(tmp_path)

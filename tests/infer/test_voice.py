"""Voices: upstream's mel of a prompt, each part alone, files, and what is refused."""

import dataclasses
import logging
import shutil
import wave

import jax
import numpy as np
import pytest

from mossjax.convert import safetensors_io
from mossjax.convert.codec_speaker import campp_network, open_campp
from mossjax.convert.codec_vocoder import hift_network
from mossjax.convert.fingerprint import VOICE
from mossjax.convert.weight_files import open_tensors
from mossjax.errors import InputError
from mossjax.infer import audio, voice
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.speech_tokenizer import SpeechTokenizer
from mossjax.infer.voice import Voice
from mossjax.infer.voice_maker import VoiceMaker, read_recording
from mossjax.models.speaker.fbank import fbank
from mossjax.models.vocoder.hift import source
from mossjax.ops.resample import resample
from tests import tiny_codec


@pytest.fixture(scope='module')
def codec(golden, tmp_path_factory):
    return tiny_codec.write(tmp_path_factory.mktemp('codec') / 'codec', golden)


@pytest.fixture(scope='module')
def io(golden):
    return golden('decoder/flow_io.safetensors')


@pytest.fixture(scope='module')
def spoken(io):
    """Upstream's mel with that prompt, (96, 80)."""
    return io['offline/mel_full'][0].T[28:]


@pytest.fixture(scope='module')
def speaker(io):
    """The prompt that upstream was given."""
    return Voice(io['prompt_codes'][0], io['prompt_mel'][0], io['xvector'][0])


@pytest.fixture(scope='module')
def decoder(codec):
    return SpeechDecoder.open(codec)


@pytest.fixture(scope='module')
def maker(codec):
    return VoiceMaker.open(codec)


@pytest.fixture(scope='module')
def recording(golden):
    """Four seconds of a person, 24 kHz."""
    return golden('decoder/mel24.safetensors')['wav24_int16'][0].astype(np.float32) / 32768


# ------------------------------------------------------------------------------- speaking with one


def test_a_voice_gives_upstreams_mel_alone_and_padded(decoder, io, speaker, spoken):
    codes = io['codes'][0]
    alone = decoder.mel(codes, voice=speaker)
    np.testing.assert_allclose(alone, spoken, rtol=0, atol=5e-4)
    several = decoder.mel_many([np.arange(30), codes], voice=speaker)
    np.testing.assert_allclose(several[1], spoken, rtol=0, atol=5e-4)
    assert several[0].shape == (120, 80)
    # A prompt of another length runs in the same program.
    programs = decoder._mel._cache_size()
    shorter = dataclasses.replace(speaker, codes=speaker.codes[1:], mel=speaker.mel[4:])
    assert decoder.mel(codes, voice=shorter).shape == alone.shape
    assert decoder._mel._cache_size() == programs


def test_each_part_alone(decoder, codec, io, speaker):
    """Against the decoder that has it as its own voice; nobody is upstream's call without any."""
    codes = io['codes'][0]
    nobody = speaker.prompt_alone().vector_alone()
    np.testing.assert_allclose(
        decoder.mel(codes, voice=nobody), io['noprompt/mel'][0].T, rtol=0, atol=5e-4
    )
    whole = decoder.mel(codes, voice=speaker)
    for part in (speaker.prompt_alone(), speaker.vector_alone()):
        mel = decoder.mel(codes, voice=part)
        assert mel.shape == whole.shape
        assert min(np.abs(mel - other).max() for other in (whole, decoder.mel(codes))) > 1e-2


def test_the_vocoder_of_the_codec_speaks(codec, io, caplog):
    """The waveform is HiFT's, of the mel and of the noise of the seed; 1920 samples a code."""
    with caplog.at_level(logging.INFO, logger='absl'):
        decoder = SpeechDecoder.open(codec, seed=3)
    assert 'waveforms by HiFT' in caplog.text and 'Griffin-Lim' not in caplog.text
    codes = io['codes'][0][:9]
    found, other = decoder.decode_many([codes, io['codes'][0][:14]])
    assert found.shape == (1920 * 9,) and other.shape == (1920 * 14,)
    mel = decoder.mel_many([codes, io['codes'][0][:14]])[0]
    network = hift_network(tiny_codec.HIFT).bind(decoder.vocoder.params)

    @jax.jit
    def run(mel, key):
        return network(mel, np.array([36]), source.noise(tiny_codec.HIFT, key, 36))

    # Random weights amplify the last bits of the pitch: by up to 0.009 in upstream's own runs.
    same = np.asarray(run(mel[None], jax.random.key(3)))[0]
    np.testing.assert_allclose(same, found, rtol=0, atol=3e-2)
    assert np.corrcoef(same, found)[0, 1] > 0.9999
    other_noise = np.asarray(run(mel[None], jax.random.key(0)))[0]
    assert np.corrcoef(other_noise, found)[0, 1] < 0.999


def test_the_directory_may_carry_a_voice(codec, io, speaker, spoken, tmp_path):
    own = tmp_path / 'codec'
    shutil.copytree(codec, own)
    voice.save(own / VOICE, speaker)
    decoder = SpeechDecoder.open(own)
    assert str(decoder.voice) == 'a prompt of 0.6 s and a speaker vector'
    found = decoder.mel(io['codes'][0])
    np.testing.assert_allclose(found, spoken, rtol=0, atol=5e-4)


def test_a_prompt_takes_its_part_of_the_300_seconds(decoder, speaker):
    with pytest.raises(InputError, match=r'3744 codes; .* 3750 \(300 s\), 7 of them the voice'):
        decoder.decode([0] * 3744, voice=speaker)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'mel': np.zeros((27, 80), np.float32)}, '7 codes need a mel of 28 frames of 80 bins'),
        ({'xvector': np.zeros(8, np.float32)}, r'a speaker vector of \(8,\)'),
        ({'codes': np.full(7, 97, np.int32)}, r'code 97 is outside 0\.\.96'),
    ],
)
def test_a_voice_that_does_not_fit_is_refused(change, message, decoder, speaker):
    parts = {'codes': speaker.codes, 'mel': speaker.mel, 'xvector': speaker.xvector} | change
    with pytest.raises(InputError, match=message):
        decoder.mel([1], voice=Voice(**parts))


# ------------------------------------------------------------------------------------- making one


def test_a_voice_of_a_recording(maker, codec, recording, golden):
    found = maker.make(recording, 24000)
    assert len(found.codes) == 50 and found.mel.shape == (200, 80)
    # Codes as of the recording at 16 kHz, the mel as upstream recorded it.
    heard = resample(recording, 24000, 16000)
    np.testing.assert_array_equal(found.codes, SpeechTokenizer.open(codec).encode([heard])[0])
    expected = golden('decoder/mel24.safetensors')['mel24'][0].T
    np.testing.assert_allclose(found.mel, expected, rtol=0, atol=1e-3)
    # The vector is that of the filter bank at its exact length, its mean taken off.
    config, params = open_campp(codec)
    banks = np.asarray(fbank(heard))
    network = campp_network(config).bind(jax.tree.map(jax.numpy.asarray, params))
    exact = jax.jit(lambda x: network(x, np.array([398])))((banks - banks.mean(axis=0))[None])[0]
    np.testing.assert_allclose(found.xvector, exact, rtol=0, atol=1e-4)


def test_codes_and_mel_end_together(maker, recording):
    """1.25 codes of sound: two codes, of which the mel covers one."""
    found = maker.make(recording[:2400], 24000)
    assert len(found.codes) == 1 and found.mel.shape == (4, 80)


def write_wav(path, samples, rate, channels=1):
    with wave.open(str(path), 'wb') as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples * 32767, '<i2').tobytes())
    return path


def test_any_rate_and_the_first_of_two_channels(maker, recording, tmp_path):
    """A file at 44.1 kHz with music on the right: the voice of the left, as if it were alone."""
    left = resample(recording[:48000], 24000, 44100) * 0.9
    both = np.stack([left, np.sin(np.arange(len(left)) / 7)], axis=1)
    write_wav(tmp_path / 'two.wav', both, 44100, channels=2)
    write_wav(tmp_path / 'one.wav', left, 44100)
    two, one = (
        maker.make(*read_recording(tmp_path / name)) for name in ('two.wav', 'one.wav')
    )
    np.testing.assert_array_equal(two.codes, one.codes)
    np.testing.assert_allclose(two.xvector, one.xvector, rtol=0, atol=1e-5)
    assert len(one.codes) == 25


def test_recordings_that_are_no_voice(maker, recording, tmp_path):
    cases = {
        'short.wav': (recording[:1900], '79 ms long, a code lasts 80 ms'),
        'long.wav': (np.tile(recording, 8)[: 24000 * 31], '31.0 s long; a voice is made of 30 s'),
        'silent.wav': (np.zeros(24000), 'is silent'),
    }
    for name, (samples, message) in cases.items():
        with pytest.raises(InputError, match=f'{name}.*{message}'):
            read_recording(write_wav(tmp_path / name, samples, 24000))
    with pytest.raises(InputError, match='no number'):
        maker.make(np.full(24000, np.nan, np.float32), 24000)
    with pytest.raises(InputError, match='nowhere.wav: no such file'):
        read_recording(tmp_path / 'nowhere.wav')


def test_a_codec_without_speaker_encoder_makes_prompts(codec, recording, tmp_path, caplog):
    own = tmp_path / 'codec'
    shutil.copytree(codec, own)
    (own / 'flow' / 'campplus.safetensors').unlink()
    with caplog.at_level(logging.INFO, logger='absl'):
        found = VoiceMaker.open(own).make(recording[:24000], 24000)
    assert not found.xvector.any() and len(found.codes) == 12
    assert set(found.made_with) == {'codebook'}
    assert 'voices are prompts alone' in caplog.text
    with pytest.raises(InputError, match=r'lacks the speaker encoder \(flow/campplus\.onnx or'):
        VoiceMaker.open(own, prompt=False)


# -------------------------------------------------------------------------------------- in a file


def test_a_file_keeps_the_voice(maker, codec, recording, tmp_path):
    made = maker.make(recording[:24000], 24000)
    voice.save(tmp_path / 'v.safetensors', made)
    found = voice.load(tmp_path / 'v.safetensors', codec)
    for name in ('codes', 'mel', 'xvector'):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    assert found.made_with == made.made_with and set(made.made_with) == {'codebook', 'speaker'}


@pytest.mark.parametrize(
    'file, tensor, what',
    [
        ('model.safetensors', 'codebook.weight', 'speech tokenizer'),
        ('flow/campplus.safetensors', 'xvector.dense.linear.weight', 'speaker encoder'),
    ],
)
def test_a_voice_of_another_codec_is_refused(
    file, tensor, what, maker, codec, recording, tmp_path
):
    voice.save(tmp_path / 'v.safetensors', maker.make(recording[:24000], 24000))
    other = tmp_path / 'codec'
    shutil.copytree(codec, other)
    stored = open_tensors(other / file)
    tensors = {name: np.array(stored.read(name)) for name in stored.shapes}
    name = next(name for name in tensors if name.endswith(tensor))
    tensors[name][0, 0] += 1
    safetensors_io.write(other / file, tensors)
    with pytest.raises(InputError, match=f'made with another {what}'):
        voice.load(tmp_path / 'v.safetensors', other)
    # What a directory does not have cannot be held against a voice.
    (other / file).unlink()
    voice.load(tmp_path / 'v.safetensors', other)


def test_files_that_are_no_voice(codec, tmp_path):
    path = tmp_path / 'v.safetensors'
    with pytest.raises(InputError, match='no such file'):
        voice.load(path, codec)
    path.write_bytes(b'RIFF')
    with pytest.raises(InputError, match='not a whole safetensors file'):
        voice.load(path, codec)
    safetensors_io.write(path, {'codes': np.zeros(3, np.float32)})
    with pytest.raises(InputError, match='no voice: it must hold codes, mel and xvector'):
        voice.load(path, codec)
    bad = Voice(np.zeros(1, np.int32), np.full((4, 80), np.nan, np.float32), np.zeros(192))
    voice.save(path, bad)
    with pytest.raises(InputError, match='not finite'):
        voice.load(path, codec)
    assert audio.SHORTEST_SECONDS < 0.08  # so that the length check is the one that speaks

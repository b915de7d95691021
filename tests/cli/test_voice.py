"""mossjax voice: a recording to a file that stands for it, and what is refused."""

import importlib
import pathlib
import shutil

import numpy as np
import pytest
import soundfile

from mossjax.cli import main as cli
from mossjax.convert.fingerprint import VOICE
from mossjax.infer import voice
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.voice_maker import open_voice
from tests import tiny_codec


@pytest.fixture(scope='module')
def codec(golden, tmp_path_factory):
    return tiny_codec.write(tmp_path_factory.mktemp('codec') / 'codec', golden)


@pytest.fixture(scope='module')
def recording(tmp_path_factory, golden):
    path = tmp_path_factory.mktemp('recordings') / 'ann.flac'
    samples = golden('decoder/mel24.safetensors')['wav24_int16'][0][:24000]
    soundfile.write(path, samples, 24000)
    return path


@pytest.fixture(scope='module')
def made(recording, codec):
    return open_voice(recording, codec)


def run(*args):
    importlib.reload(importlib.import_module('mossjax.cli.voice'))  # flags as a process has
    return cli.main(['voice', *map(str, args)])


def assert_same(found, expected):
    for name in ('codes', 'mel', 'xvector'):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_the_file_stands_for_the_recording(codec, recording, made, tmp_path, capsys):
    out = tmp_path / 'new' / 'ann'
    assert run(recording, '--codec', codec, '--out', out) == 0
    assert capsys.readouterr().out == f'{out}: a prompt of 1.0 s and a speaker vector\n'
    assert_same(open_voice(out, codec), made)


def test_one_part_alone(codec, recording, made, tmp_path):
    for part, expected in (('prompt', made.prompt_alone()), ('vector', made.vector_alone())):
        out = tmp_path / part
        assert run('--wav', recording, '--codec', codec, '--out', out, '--only', part) == 0
        alone = open_voice(out, codec)
        assert_same(alone, expected)
        assert len(alone.made_with) == 1  # the rest of the codec may be another


def test_the_codec_speaks_with_the_voice_in_it(codec, made, tmp_path):
    own = tmp_path / 'codec'
    shutil.copytree(codec, own)
    voice.save(own / VOICE, made)
    assert_same(SpeechDecoder.open(own).voice, made)


def refused(capsys, *args):
    assert run(*args) == 2
    return capsys.readouterr().err


def test_bad_input(codec, recording, tmp_path, capsys):
    """One message; what the file to write held before stays."""
    out = tmp_path / 'v'
    out.write_text('before')
    sounds = {
        'short.wav': (np.ones(1900), '79 ms long'), 'silent.wav': (np.zeros(48000), 'is silent'),
        'long.wav': (np.ones(24000 * 31), '31.0 s long'),
    }
    # No codec is opened: the folder holds none.
    for name, (samples, said) in sounds.items():
        soundfile.write(tmp_path / name, samples * 0.1, 24000)
        assert said in refused(capsys, tmp_path / name, '--codec', tmp_path, '--out', out)
    assert 'takes one recording, got 0' in refused(capsys, '--codec', codec, '--out', out)
    assert 'takes one recording, got 2' in refused(
        capsys, recording, recording, '--codec', codec, '--out', out
    )
    assert 'also the recording' in refused(
        capsys, recording, '--codec', codec, '--out', recording
    )
    assert 'lacks the speech tokenizer' in refused(
        capsys, recording, '--codec', tmp_path, '--out', out
    )
    assert out.read_text() == 'before'
    assert not [p for p in pathlib.Path(tmp_path).iterdir() if p.name.startswith('.')]

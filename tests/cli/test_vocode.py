"""mossjax vocode on recorded codes: upstream's mel becomes the sound; what is refused, and when."""

import importlib
import json
import re
import shutil

import jax
import numpy as np
import pytest
import soundfile

from mossjax.cli import main as cli
from mossjax.convert import codec_flow
from mossjax.convert.codec_flow import flow_network
from mossjax.convert.codec_vocoder import hift_network, open_hift
from mossjax.infer import audio, vocode, voice
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.vocode_stream import streaming_stem
from mossjax.infer.voice import Voice
from mossjax.models.flow.config import FlowConfig
from mossjax.models.vocoder.hift import source
from tests import tiny_codec


@pytest.fixture(scope='module')
def codec(golden, tmp_path_factory):
    return tiny_codec.write(tmp_path_factory.mktemp('codec') / 'codec', golden)


@pytest.fixture
def codes(tmp_path):
    def write(*lines):
        path = tmp_path / 'codes.jsonl'
        path.write_text(''.join(
            line if isinstance(line, str) else json.dumps(line) + '\n' for line in lines
        ))
        return path

    return write


def run(*args):
    importlib.reload(importlib.import_module('mossjax.cli.vocode'))  # flags as a process has
    return cli.main(['vocode', *map(str, args)])


def test_recorded_codes_become_the_sound_of_the_recorded_mel(
    codec, codes, golden, tmp_path, capsys, monkeypatch
):
    """Of upstream's run with that voice; its mel through the vocoder with the noise of the seed."""
    io, ann = golden('decoder/flow_io.safetensors'), tmp_path / 'ann'
    voice.save(ann, Voice(io['prompt_codes'][0], io['prompt_mel'][0], io['xvector'][0]))
    given = io['codes'][0].tolist()
    path = codes({'path': 'x/q.flac', 'codes': given}, {'codes': given[:9]})
    args = ('--codec', codec, '--codes', path, '--out', tmp_path / 'out', '--seed', 3)
    assert run(*args, '--voice', ann) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f'{tmp_path}/out/q.wav: 1.92 s, -')
    assert said[1].startswith(f'{tmp_path}/out/line-2.wav: 0.72 s, -')
    assert said[2].startswith(f'{tmp_path}/out: 2 made, 2.6 s')
    found, rate = soundfile.read(tmp_path / 'out' / 'q.wav', dtype='float32')
    assert rate == 24000 and found.shape == (1920 * 24,)
    config, params = open_hift(codec)
    network = hift_network(config).bind(jax.tree.map(jax.numpy.asarray, params))
    mel = io['offline/mel_full'][0].T[28:]

    @jax.jit
    def sound(mel, key):
        return network(mel[None], np.array([96]), source.noise(config, key, 96))[0]

    expected = np.asarray(sound(mel, jax.random.key(3)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-2)
    assert np.corrcoef(found, expected)[0, 1] > 0.999
    clipped = int(re.search(r', (\d+) samples clipped', said[0])[1])
    assert abs(clipped - (np.abs(expected) >= config.limit).sum()) <= 5 < clipped
    assert '; 2 clipped' in said[2]
    # The same command has nothing left to do, and opens no network to say so.
    monkeypatch.setattr(SpeechDecoder, 'open', None)
    before = [p.stat().st_mtime_ns for p in sorted((tmp_path / 'out').iterdir())]
    assert run(*args, '--voice', ann) == 0
    assert capsys.readouterr().out == (
        f'{tmp_path}/out: nothing left to do, all 2 recordings are there\n'
    )
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / 'out').iterdir())] == before


LINES = {
    'a code too large': ([{'codes': [1]}, {'codes': [96, 97]}], 'line 2: code 97 is not a whole'),
    'a code below 0': ([{'codes': [-1]}], 'line 1: code -1 is not a whole number from 0 up to 96'),
    'half a code': ([{'codes': [0.5]}], 'line 1: code 0.5 is not'),
    'a code that is true': ([{'codes': [True]}], 'code True is not'),
    'no codes': ([{'codes': [1]}, {'codes': []}], 'line 2: no codes'),
    'no list': ([{'codes': 5}], 'line 1: expected {"codes": [...]}'),
    'a list alone': (['[1, 2]\n'], 'line 1: expected {"codes": [...]}'),
    'a torn line': ([{'codes': [1]}, '{"codes": [1, 2'], 'line 2: not JSON'),
    'no text': (['{"codes": [1], "path": 3}\n'], 'line 1: path is 3'),
    'no lines': (['\n \n'], 'has no lines'),
    'ten minutes': ([{'codes': [1]}, {'codes': [1] * 7500}],
                    'line 2: 7500 codes; the decoder takes 3750 in one piece (300 s). Write them'),
}  # fmt: skip


@pytest.mark.parametrize('lines, said', LINES.values(), ids=LINES.keys())
def test_lines_that_cannot_be_spoken(lines, said, codec, codes, tmp_path, capsys):
    """Named before anything is opened that takes long, and nothing is written."""
    path = codes(*lines)
    assert run('--codec', codec, '--codes', path, '--out', tmp_path / 'out') == 2
    shown = capsys.readouterr()
    assert f'{path}' in shown.err and said in shown.err and not shown.out
    assert not (tmp_path / 'out').exists()


def test_all_bad_lines_are_named_together(codec, codes, tmp_path, capsys):
    path = codes({'codes': [99]}, {'codes': [1]}, 'x\n')
    assert run('--codec', codec, '--codes', path, '--out', tmp_path / 'out') == 2
    said = capsys.readouterr().err
    assert '2 of 3 lines cannot be spoken' in said and 'line 1:' in said and 'line 3:' in said


def test_a_prompt_takes_its_part_of_the_300_seconds(codec, codes, golden, tmp_path, capsys):
    io = golden('decoder/flow_io.safetensors')
    voice.save(tmp_path / 'ann', Voice(io['prompt_codes'][0], io['prompt_mel'][0], np.zeros(192)))
    args = ('--codec', codec, '--out', tmp_path / 'out', '--voice', tmp_path / 'ann')
    assert run(*args, '--codes', codes({'codes': [1] * 3744})) == 2
    assert '3744 codes; the decoder takes 3743 in one piece (300 s and a prompt of 7)' in (
        capsys.readouterr().err
    )


def test_a_recording_needs_networks_that_a_voice_file_does_not(
    codec, codes, golden, tmp_path, capsys
):
    mute = tmp_path / 'codec'
    shutil.copytree(codec, mute, ignore=shutil.ignore_patterns('*config.json', 'model*', 'campp*'))
    ann = tmp_path / 'ann.wav'
    soundfile.write(ann, golden('decoder/mel24.safetensors')['wav24_int16'][0][:24000], 24000)
    args = ('--codes', codes({'codes': [1]}), '--out', tmp_path / 'out', '--voice', ann)
    assert run('--codec', mute, *args) == 2
    said = capsys.readouterr().err
    assert f'{mute} lacks the speech tokenizer (config.json, preprocessor_config.json, ' in said
    assert 'and the speaker encoder (flow/campplus.onnx or .safetensors), by which' in said
    assert '(mossjax voice), and give that file as the voice' in said
    speaker = next((codec / 'flow').glob('campp*'))
    shutil.copy(speaker, mute / 'flow')
    assert run('--codec', mute, *args) == 2
    said = capsys.readouterr().err
    assert 'speaker encoder' not in said and 'or --only vector, which needs none' in said
    assert not (tmp_path / 'out').exists()


def test_other_files_stay(codec, codes, tmp_path, capsys):
    """As of someone who speaks codes into the folder that the recordings are in."""
    audio.save(tmp_path / 'q.wav', np.zeros(2400), 24000)
    before = (tmp_path / 'q.wav').read_bytes()
    path = codes({'path': 'q.wav', 'codes': [1]})
    assert run('--codec', codec, '--codes', path, '--out', tmp_path) == 2
    assert 'q.wav was not made by this command' in capsys.readouterr().err
    assert (tmp_path / 'q.wav').read_bytes() == before


def test_a_codec_that_cannot_speak(codec, codes, tmp_path, capsys):
    for name in ('config.json', 'preprocessor_config.json', 'model.safetensors'):
        (tmp_path / 'deaf').mkdir(exist_ok=True)
        (tmp_path / 'deaf' / name).write_bytes((codec / name).read_bytes())
    path = codes({'codes': [1]})
    assert run('--codec', tmp_path / 'deaf', '--codes', path, '--out', tmp_path / 'out') == 2
    assert 'neither flow.safetensors nor flow.pt' in capsys.readouterr().err


@pytest.fixture(scope='module')
def small(codec, tmp_path_factory):
    """The codec with a smaller flow decoder, whose weights are random."""
    root = tmp_path_factory.mktemp('small') / 'codec'
    shutil.copytree(codec, root)
    config = FlowConfig(
        vocab_size=97, input_size=12, width=16, heads=2, ff_width=24, blocks=1, up_blocks=1,
        channels=8, head_dim=4, estimator_heads=2, transformers=1, mid_blocks=1,
    )  # fmt: skip
    for file in (root / 'flow').glob('flow.*'):
        file.unlink()
    params = tiny_codec.random_params(flow_network(config).shapes)
    codec_flow.save_flow(root, config, params)
    return root


def test_a_stream_speaks_and_says_what_it_cost(small, codes, tmp_path, capsys):
    path = codes({'path': 'long', 'codes': [1, 2, 3, 4] * 8})
    args = ('--codec', small, '--codes', path, '--out', tmp_path / 'out', '--stream', '--chunk', 5)
    assert run(*args) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r'first sound after [\d.]+ s \(median of 1\), [\d.]+ s a second of sound, '
        r'\d\.\d MB a session at any length', said[-1]
    )
    assert soundfile.info(tmp_path / 'out/long.wav').frames == 1920 * 32
    # Steps of another length make another sound, so nothing is taken for done.
    made = {
        vocode.made_with(small, b'voice', 0, steps=steps)
        for steps in ((), (5,), (5, 10))
    }
    assert len(made) == 3


def test_what_streaming_refuses(small, codes, tmp_path, capsys):
    args = ('--codec', small, '--codes', codes({'codes': [1]}), '--out', tmp_path / 'out')
    assert run(*args, '--chunk', 5) == 2
    assert '--chunk is the length of the steps of --stream' in capsys.readouterr().err
    assert run(*args, '--stream', '--chunk', 7) == 2
    assert 'steps of 7 codes: this codec speaks in chunks of 5' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_the_checkpoint_that_learned_in_chunks_streams(small, tmp_path):
    config = codec_flow.open_config(small)
    assert streaming_stem(small, config) == 'flow'
    root = shutil.copytree(small, tmp_path / 'codec')
    (root / 'flow/flow-chunk-5.pt').touch()
    assert streaming_stem(root, config) == 'flow-chunk-5'

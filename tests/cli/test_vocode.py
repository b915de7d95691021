"""mossjax vocode on recorded codes: upstream's mel becomes the sound; what is refused, and when."""

import importlib
import json
import re

import jax
import numpy as np
import pytest
import soundfile

from mossjax.cli import main as cli
from mossjax.convert.codec_vocoder import hift_network, open_hift
from mossjax.infer import audio, voice
from mossjax.infer.voice import Voice
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
    codec, codes, golden, tmp_path, capsys
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
    # The same command has nothing left to do.
    before = [p.stat().st_mtime_ns for p in sorted((tmp_path / 'out').iterdir())]
    assert run(*args, '--voice', ann) == 0
    assert capsys.readouterr().out == f'{tmp_path}/out: 0 made, 0.0 s, 2 were there\n'
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

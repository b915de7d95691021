"""mossjax tokenize on recordings, with a small codec directory."""

import json
import os
import shutil
import threading

import numpy as np
import pytest
import soundfile

from mossjax.cli import main as cli
from mossjax.cli.tokenize import GROUP_SECONDS, groups


@pytest.fixture(scope='module')
def codec(tmp_path_factory, golden):
    folder = tmp_path_factory.mktemp('codec')
    source = golden('tokenizer')
    shutil.copy(source / 'small_config.json', folder / 'config.json')
    shutil.copy(source / 'preprocessor_config.json', folder)
    shutil.copy(source / 'small_model.safetensors', folder / 'model.safetensors')
    return folder


def _tokenize(codec, out, *paths):
    return cli.main(['tokenize', '--codec', str(codec), '--out', str(out), *map(str, paths)])


def test_codes_are_those_of_upstream(tmp_path, codec, golden):
    vectors = golden('tokenizer/small_speech_cn.npz')
    mono, stereo = tmp_path / 'mono.wav', tmp_path / 'stéréo.flac'
    pcm = vectors['wav0_i16']
    soundfile.write(mono, pcm, 16000)
    soundfile.write(stereo, np.stack([pcm, -pcm], axis=1), 16000)
    out = tmp_path / 'new' / 'codes.jsonl'
    assert _tokenize(codec, out, mono, stereo) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line['path'] for line in lines] == [str(mono), str(stereo)]
    assert lines[0]['codes'] == lines[1]['codes'] == vectors['tokens0'].tolist()
    assert [line['seconds'] for line in lines] == [6.0, 6.0]


def test_real_speech_at_two_rates(tmp_path, codec, golden):
    files = [golden('audio/prompt_en_1s.flac'), golden('audio/prompt_cn_1s.flac')]
    assert _tokenize(codec, tmp_path / 'codes.jsonl', *files) == 0
    lines = [json.loads(line) for line in (tmp_path / 'codes.jsonl').read_text().splitlines()]
    assert [len(line['codes']) for line in lines] == [13, 13]
    assert lines[0]['codes'] != lines[1]['codes']


def test_all_bad_files_are_named_before_the_codec_is_opened(tmp_path, capsys):
    (tmp_path / 'text.wav').write_text('no audio')
    bad = [tmp_path / 'text.wav', tmp_path / 'missing.wav']
    assert _tokenize(tmp_path, tmp_path / 'codes.jsonl', *bad) == 2  # no codec in that folder
    error = capsys.readouterr().err
    assert '2 of 2 recordings cannot be used' in error
    assert 'text.wav is not audio' in error and 'missing.wav: no such file' in error
    assert not (tmp_path / 'codes.jsonl').exists()


def test_the_good_ones_among_damaged_recordings_are_kept(tmp_path, codec, golden, capsys):
    good, pipe = golden('audio/prompt_en_1s.flac'), golden('audio/question_pipe.flac')
    torn, nan, loop = tmp_path / 'torn.flac', tmp_path / 'nan.wav', tmp_path / 'loop.wav'
    torn.write_bytes(good.read_bytes()[:9000])
    soundfile.write(nan, np.full(400, np.nan), 16000, 'FLOAT')
    loop.symlink_to(loop)
    out = tmp_path / 'codes.jsonl'
    assert _tokenize(codec, out, torn, good, nan, loop, pipe) == 2
    error = capsys.readouterr().err
    assert f'3 of 5 recordings are not in {out}:' in error
    for why in ('torn.flac breaks off', 'nan.wav has a sample that is no', 'loop.wav: a symbolic'):
        assert why in error
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line['path'], line['seconds'], len(line['codes'])) for line in lines] == [
        (str(good), 1.0, 13), (str(pipe), 1.58, 20)
    ]  # fmt: skip


def test_if_none_is_left_nothing_is_written(tmp_path, codec, capsys):
    out = tmp_path / 'codes.jsonl'
    out.write_text('before')
    soundfile.write(tmp_path / 'nan.wav', np.full(400, np.nan), 16000, 'FLOAT')
    assert _tokenize(codec, out, tmp_path / 'nan.wav', tmp_path / 'nan.wav') == 2
    assert 'nan.wav has a sample that is no number' in capsys.readouterr().err
    assert out.read_text() == 'before'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['codes.jsonl', 'nan.wav']


def test_names_of_any_bytes_and_pipes(tmp_path, codec, golden):
    question = golden('audio/question_pipe.flac').read_bytes()
    named, pipe = os.path.join(os.fsencode(tmp_path), b'\xff.raw'), tmp_path / 'pipe'
    with open(named, 'wb') as file:
        file.write(question)
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[question])
    writer.start()
    assert _tokenize(codec, tmp_path / 'codes.jsonl', os.fsdecode(named), pipe) == 0
    writer.join()
    lines = [json.loads(line) for line in (tmp_path / 'codes.jsonl').read_text().splitlines()]
    assert [os.fsencode(line['path']) for line in lines] == [named, os.fsencode(pipe)]
    assert lines[0]['codes'] == lines[1]['codes'] and len(lines[0]['codes']) == 20


@pytest.mark.parametrize('out, args, message', [
    ('codes.jsonl', [], 'no recordings given'),
    ('', ['a.wav'], 'is a folder'),
    ('a.wav', ['a.wav'], 'is also one of the recordings'),
])
def test_refusals_of_the_command_line(tmp_path, out, args, message, capsys):
    paths = [tmp_path / arg for arg in args]
    assert _tokenize(tmp_path, tmp_path / out, *paths) == 2
    assert message in capsys.readouterr().err


def test_groups_keep_the_order_and_the_bound():
    seconds = [200.0, 200.0, 100.0, 1800.0, 1.0, 470.0]
    names = list('abcdef')
    assert list(groups(names, seconds)) == [['a', 'b'], ['c'], ['d'], ['e', 'f']]
    assert GROUP_SECONDS == 480
    assert list(groups([], [])) == []

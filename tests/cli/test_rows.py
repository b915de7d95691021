"""mossjax rows on recordings of the shipped model: rows, what is said of them, what is refused."""

import json
import shutil

import pytest

from experiments.own_voice import recordings
from mossjax.cli import main as cli
from mossjax.cli import rows as command
from mossjax.data.builder import open_rows
from mossjax.infer.assets import Assets, shipped


@pytest.fixture(scope='module')
def nano():
    return shipped()


@pytest.fixture
def folder(tmp_path, nano, monkeypatch):
    """Two questions and their answers, with their words."""
    monkeypatch.setattr(recordings, 'PAIRS', 2)
    recordings.write(tmp_path / 'mine', Assets.open(nano))
    return tmp_path / 'mine'


def run(nano, *args, codec=True):
    for name in command.FLAGS:  # a process runs one command; a test runs many
        command.FLAGS[name].unparse()
    fixed = ['--model', nano / 'lm', *(['--codec', nano / 'codec'] if codec else [])]
    return cli.main(['rows', *map(str, [*fixed, *args])])


def test_a_folder_becomes_rows(nano, folder, tmp_path, capsys):
    out = tmp_path / 'out'
    args = ('--folder', folder, '--recipe', 'sft', '--out', out)
    assert run(nano, *args) == 0
    metadata = open_rows(str(out)).metadata
    tokens = metadata['summary']['tokens']
    said = capsys.readouterr().out
    assert said == (
        f'{out}:\n'
        f'  recordings  4, {metadata["summary"]["hours"]:.3g} hours\n'
        '  examples    8: s2s 2, s2t 2, t2s 2, t2t 2\n'
        f'  tokens      {tokens["text"]} of text, {tokens["speech"]} of speech; to be learnt '
        f'{tokens["text targets"]} and {tokens["speech targets"]}\n'
        f'  rows        {len(open_rows(str(out)))} of 256 positions, '
        f'{100 - 100 * metadata["padding"]:.1f} % full\n'
    )
    config = metadata['config']
    own = json.loads((nano / 'lm' / 'generation_config.json').read_text())['system_prompts']
    assert config['format']['prompts'] == {k: own[k] for k in ('audio', 'text')}
    assert (metadata['length'], config['seed'], config['versions']) == (256, 0, 1)
    # Left alone the second time; its manifest makes the same rows.
    before = sorted((p, p.stat().st_mtime_ns) for p in out.rglob('*') if 'rows' in p.parts)
    assert run(nano, *args) == 0 and capsys.readouterr().out == said
    assert sorted((p, p.stat().st_mtime_ns) for p in out.rglob('*') if 'rows' in p.parts) == before
    again = ('--manifest', out / 'manifest.jsonl', '--recipe', 'sft', '--codes',
             out / 'codes.jsonl')  # fmt: skip
    assert run(nano, *again, '--out', tmp_path / 'again') == 0
    assert open_rows(str(tmp_path / 'again')).metadata['sha256'] == metadata['sha256']
    assert run(nano, *args, '--seed', 1) == 2
    assert 'seed = 0, asked for 1; write to another directory' in capsys.readouterr().err


def test_a_damaged_recording_is_listed_and_the_others_kept(nano, folder, tmp_path, capsys):
    (folder / '002.user.wav').write_bytes(b'RIFF of nothing')
    args = ('--folder', folder, '--recipe', 'asr', '--out', tmp_path / 'out')
    for _ in range(2):  # the same again says the same
        assert run(nano, *args) == 2
        said = capsys.readouterr()
        assert '  examples    3: asr 3\n' in said.out
        assert '1  audio that cannot be read [asr]: 002.user.wav\n' in said.out
        assert '1 recordings cannot be read; the rows hold what the others give' in said.err
        assert '/002.user.wav is not audio' in said.err and 'Traceback' not in said.err
    assert open_rows(str(tmp_path / 'out')).metadata['examples'] == 3


def test_texts_need_no_codec(nano, tmp_path, capsys):
    manifest = tmp_path / 'texts.jsonl'
    manifest.write_text('{"text": "the answer is seven"}\n{"text": ""}\n')
    args = ('--manifest', manifest, '--recipe', 'text', '--out', tmp_path / 'out')
    assert run(nano, *args, codec=False) == 0
    said = capsys.readouterr().out
    assert '  examples    1: text 1\n' in said and "    1  no text [text]: an entry without" in said
    assert not (tmp_path / 'out' / 'codes.jsonl').exists()


def test_what_each_recipe_lacks_is_said(nano, folder, tmp_path, capsys):
    out = tmp_path / 'out'
    assert run(nano, '--folder', folder, '--recipe', 'interleaved', '--out', out) == 2
    assert 'interleaved can make nothing of this:\n  2  no recording with "words"' in (
        capsys.readouterr().err
    )
    for path in folder.glob('*.txt'):
        path.unlink()
    assert run(nano, '--folder', folder, '--recipe', 'sft', '--modes', 't2t', '--out', out) == 2
    assert 'no text of a turn of the user' in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize('args, said', [
    (['--recipe', 'sft'], 'neither --folder nor --manifest'),
    (['--recipe', 'song', '--folder', '.'], '--recipe'),
    (['--folder', '.'], '--recipe is not given'),
    (['--recipe', 'asr', '--folder', 'nowhere'], '--folder nowhere: no such folder'),
    (['--recipe', 'asr', '--folder', 'gone.csv'], '--folder gone.csv: no such file'),
    (['--recipe', 'asr', '--manifest', 'nowhere.jsonl'], '--manifest nowhere.jsonl: no such file'),
    (['--recipe', 'asr', '--manifest', 'm.jsonl', '--length', '1025'], 'the model has 1024'),
    (['--recipe', 'asr', '--manifest', 'm.jsonl', '--length', '2'], '--length'),
    (['--recipe', 'asr', '--manifest', 'm.jsonl', '--versions', '0'], '--versions'),
    (['--recipe', 'asr', '--manifest', 'm.jsonl', '--seed', '9' * 24], '--seed'),
    (['--recipe', 'sft', '--manifest', 'm.jsonl', '--modes', 's2s,x'], "modes ['x']"),
    (['--recipe', 'asr', '--manifest', 'm.jsonl', 'a.wav'], "stray argument 'a.wav'"),
    (['--recipe', 'asr', '--manifest', 'm.jsonl'], '--codec is not given'),
    (['--recipe', 'asr', '--manifest', 'm.jsonl', '--out', 'm.jsonl'], '--out m.jsonl is a file'),
    (['--recipe', 'asr', '--manifest', 'm.jsonl', '--out', 'gs://b/rows'], 'gs://b/rows'),
])  # fmt: skip
def test_bad_calls_end_with_code_2(nano, tmp_path, monkeypatch, capsys, args, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'm.jsonl').write_text('{"audio": "a.wav", "text": "two"}\n')
    out = [] if '--out' in args else ['--out', 'out']
    assert run(nano, *args, *out, codec=False) == 2
    error = capsys.readouterr().err
    assert said in error and 'Traceback' not in error
    assert [path.name for path in tmp_path.iterdir()] == ['m.jsonl']


def test_a_codec_with_more_codes_than_the_model_is_refused(nano, folder, tmp_path, capsys):
    codec = tmp_path / 'codec'
    shutil.copytree(nano / 'codec', codec)
    config = json.loads((codec / 'config.json').read_text())
    (codec / 'config.json').write_text(json.dumps({**config, 'quantize_vocab_size': 513}))
    assert run(nano, '--codec', codec, '--folder', folder, '--recipe', 'speech', '--out',
               tmp_path / 'out', codec=False) == 2  # fmt: skip
    assert 'has 513 codes, the language model 512; take' in capsys.readouterr().err

"""mossjax chat on a tiny random model; the codec is a stand-in."""

import json
import types

import numpy as np
import pytest

from mossjax.cli import chat as command
from mossjax.cli import main as cli
from mossjax.infer import audio
from mossjax.infer import chat as chat_lib
from mossjax.infer.chat import Chat
from mossjax.models.lm.dialogue import Turn
from tests.tiny_chat import decode, encode, write_model


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp('chat') / 'model'
    write_model(directory, do_sample=True, temperature=2.0)
    return directory


@pytest.fixture
def codec(monkeypatch):
    monkeypatch.setattr(chat_lib, 'open_codec', lambda *_: (encode, decode))
    return 'codec'


def run(*args):
    for name in command.FLAGS:  # a process runs one command; a test runs many
        command.FLAGS[name].unparse()
    return cli.main(['chat', *map(str, args)])


def test_a_written_question_answered_in_writing(model, tmp_path, capsys):
    grid = tmp_path / 'grid.json'
    args = ('--model', model, '--text', 'hello you', '--reply', 'text', '--greedy')
    assert run(*args, '--grid', grid) == 0
    content = json.loads(grid.read_text())
    chat = Chat.open(model)
    expected = chat.reply([Turn('user', 'hello you')], 'text', chat.settings.greedy())
    assert content['grid'] == expected.grid.tolist()
    assert content['prompt'] == expected.prompt.tolist()
    assert (content['text'], content['reason']) == (expected.text, expected.reason)
    assert capsys.readouterr().out == expected.text + '\n'


def test_a_spoken_dialogue(model, codec, tmp_path, monkeypatch, capsys):
    question = tmp_path / 'question.wav'
    audio.save(question, np.repeat(np.float32([0.3, 0.7, 0.1]), 1280), 16000)
    typed = iter([str(question), 'be brief', ''])
    monkeypatch.setattr('builtins.input', lambda prompt: next(typed))
    out = tmp_path / 'answer.wav'
    grid = tmp_path / 'grid.json'
    assert run('--model', model, '--codec', codec, '--out', out, '--grid', grid, '--seed', 3) == 0
    first, second = (json.loads((tmp_path / f'grid-{i}.json').read_text()) for i in (1, 2))
    # the second prompt goes on from the first one and its codes
    said = np.array([[12, 5], *([13, c] for c in first['codes']), [13, 10]])
    answered = np.array(second['prompt'])[len(first['prompt']) - 1 :][: len(said)]
    np.testing.assert_array_equal(answered, said)
    heard = np.array(first['prompt'])
    np.testing.assert_array_equal(heard[heard[:, 0] == 13, 1], [3, 7, 1, 10])
    wav = audio.load(tmp_path / 'answer-2.wav', 24000)
    np.testing.assert_allclose(wav, np.clip(decode([second['codes']])[0], -1, 1), atol=1 / 32768)
    assert 'answer-2.wav: ' in capsys.readouterr().out


@pytest.mark.parametrize('terminal', [True, False])
def test_a_slip_ends_a_dialogue_only_where_nobody_types(
    model, codec, tmp_path, monkeypatch, capsys, terminal
):
    typed = iter(['gone.wav', 'be brief', ''])
    monkeypatch.setattr('builtins.input', lambda prompt: next(typed))
    monkeypatch.setattr('sys.stdin', types.SimpleNamespace(isatty=lambda: terminal))
    args = ('--model', model, '--codec', codec, '--out', tmp_path / 'a.wav', '--seed', 3)
    assert run(*args) == (0 if terminal else 2)
    shown = capsys.readouterr()
    assert 'gone.wav does not exist' in (shown.out if terminal else shown.err)
    assert (tmp_path / 'a-2.wav').exists() == terminal


@pytest.mark.parametrize(
    'args, word',
    [
        (['--text', 'x', '--wav', 'y.wav'], 'both given'),
        (['--text', ' ', '--reply', 'text'], '--text is empty'),
        (['--text', 'x', '--out', 'a.wav'], '--codec and --out'),
        (['--text', 'x', '--codec', 'c'], '--codec and --out'),
        (['--wav', 'x.wav', '--reply', 'text'], '--wav needs --codec'),
        (['--wav', 'missing.wav', '--codec', 'c', '--reply', 'text'], 'missing.wav does not exist'),
        (['--text', 'x', '--reply', 'text', '--grid', '.'], '--grid . is a folder'),
        (['--text', 'x', '--reply', 'text'], 'nowhere'),
        (['--text', 'x', '--reply', 'song'], 'song'),
        (['three', '--text', 'x', '--reply', 'text'], 'stray argument'),
    ],
)
def test_bad_calls_end_with_code_2(args, word, capsys):
    assert run('--model', 'nowhere', *args) == 2
    error = capsys.readouterr().err
    assert word in error and 'Traceback' not in error


def test_a_length_out_of_range_is_refused(model, capsys):
    args = ('--model', model, '--text', 'x', '--reply', 'text')
    assert run(*args, '--max_new_tokens', 0) == 2
    assert 'max_new_tokens = 0' in capsys.readouterr().err

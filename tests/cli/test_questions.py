"""mossjax chat --questions on a tiny random model; the codec is a stand-in."""

import json

import numpy as np

from mossjax.errors import InputError
from mossjax.infer import audio
from mossjax.infer import chat as chat_lib
from tests.cli.test_chat import run, stand_in
from tests.tiny_chat import write_model


def test_questions_are_answered_in_a_folder_and_kept(tmp_path, monkeypatch, capsys):
    """What hears is opened where a recording asks."""
    model, hears = tmp_path / 'model', []
    write_model(model, do_sample=True, temperature=2.0)
    audio.save(tmp_path / 'q.wav', np.repeat(np.float32([0.3, 0.7, 0.1]), 1280), 16000)

    def opened(*args):
        hears.append(args[2])
        if not args[2]:
            raise InputError('heard enough')
        return stand_in()

    monkeypatch.setattr(chat_lib, 'open_codec', opened)
    (tmp_path / 'codec').mkdir()
    asked, folder = tmp_path / 'asked.jsonl', tmp_path / 'answers'
    args = ('--model', model, '--codec', tmp_path / 'codec', '--questions', asked)
    asked.write_text('{"text": "hello you"}\n{"audio": "q.wav"}')
    for said in ('2 answered', '0 answered, 2 were there'):
        assert run(*args, '--answers', folder) == 0
        assert capsys.readouterr().out == f'{folder}/answers.jsonl: {said}\n'
    answers = [json.loads(line) for line in (folder / 'answers.jsonl').read_text().splitlines()]
    for answer in answers:
        assert len(audio.load(folder / answer['audio'], 24000)) == 1920 * len(answer['codes'])
    asked.write_text('{"text": "hello you"}')
    assert run(*args, '--answers', tmp_path / 'new') == 2
    assert hears == [True, False] and not (tmp_path / 'new').exists()

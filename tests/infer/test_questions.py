"""Many questions in lanes against one by one; stopped and gone on with. Tiny random model."""

import dataclasses
import json

import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer import audio, questions
from mossjax.infer.chat import Chat
from mossjax.infer.codec import WholeMouth
from mossjax.models.lm.dialogue import Turn
from tests.tiny_chat import decode, encode, write_model

WAVE = np.repeat(np.float32([0.3, 0.7, 0.1]), 1280)
WORDS = ('hello', 'be brief', 'speak hello you', 'you')


@pytest.fixture(scope='module')
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp('questions') / 'model'
    write_model(folder, max_new_tokens=24, do_sample=True, temperature=1.5, top_k=8)
    opened = Chat.open(folder)
    return dataclasses.replace(opened, encode=encode, decode=decode, mouth=WholeMouth(decode))


@pytest.fixture
def file(tmp_path):
    audio.save(tmp_path / 'q.wav', WAVE, 16000)
    lines = [{'text': words} for words in WORDS] + [{'audio': 'q.wav'}]
    path = tmp_path / 'questions.jsonl'
    path.write_text('\n\n'.join(map(json.dumps, lines)))
    return path


def read(folder):
    lines = (folder / questions.ANSWERS).read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda line: line['line'])


def test_lanes_and_interruptions_change_no_answer(chat, file, tmp_path):
    asked = questions.read_questions(file, hears=True)
    assert [question.number for question in asked] == [1, 3, 5, 7, 9]

    def job(name, made_with='x'):
        return questions.Job(asked, tmp_path / name, 'audio', 3, made_with)

    list(job('whole').run(chat, 2))
    whole = read(tmp_path / 'whole')
    for line, content in zip(whole, (*WORDS, encode([WAVE])[0]), strict=True):
        want = chat.reply([Turn('user', content)], 'audio', seed=3)
        assert line['codes'] == want.codes.tolist() and line['reason'] == want.reason
        got = audio.load(tmp_path / 'whole' / line['audio'], 24000)
        np.testing.assert_allclose(got, np.clip(want.wav, -1, 1), atol=1 / 32768)
        assert line['seconds'] == len(want.wav) / 24000
    stopped = job('parts').run(chat, 2)
    next(stopped), next(stopped)
    stopped.close()
    with open(tmp_path / 'parts' / questions.ANSWERS, 'a') as answers:
        answers.write('{"line": 7, "te')  # and in the middle of a line
    again = job('parts')
    assert len(again.kept) == 2 and len(list(again.run(chat, 2))) == 3
    assert read(tmp_path / 'parts') == whole
    assert len(job('parts').kept) == 5 and list(job('parts').run(chat, 2)) == []
    with pytest.raises(InputError, match=r'with other settings \(line 1 for one\)'):
        job('parts', made_with='y')


@pytest.mark.parametrize(
    'line, word',
    [
        ('', 'has no lines'),
        ('{"text": ""}', 'line 1: expected'),
        ('{"text": "a", "audio": "q.wav"}', 'line 1: expected'),
        ('["a"]', 'line 1: expected'),
        ('{"text": 3}', 'line 1: expected'),
        ('{"text": "a"', 'line 1'),
        ('{"audio": "gone.wav"}', 'line 1 gone.wav: no such file'),
        ('{"audio": "questions.jsonl"}', 'questions.jsonl'),
    ],
)
def test_what_cannot_be_asked_is_said_at_once(file, line, word, monkeypatch):
    monkeypatch.chdir(file.parent)
    file.write_text(line)
    with pytest.raises(InputError, match=word.replace('"', '.')):
        questions.read_questions(file.name, hears=True)
    file.write_text('{"text": "a"}\n{"audio": "q.wav"}')
    with pytest.raises(InputError, match='line 2: a recording needs --codec'):
        questions.read_questions(file.name, hears=False)

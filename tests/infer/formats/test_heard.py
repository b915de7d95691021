"""The shipped model answers the question in recordings whose headers are wrong."""

import pathlib

import pytest

import mossjax
from mossjax.infer import audio
from mossjax.infer.chat import Chat
from mossjax.models.lm.dialogue import Turn
from tests import sounds

NANO = pathlib.Path(mossjax.__file__).parent / 'assets' / 'nano'


@pytest.fixture(scope='module')
def chat():
    return Chat.open(NANO / 'lm', NANO / 'codec')


def test_what_is_three_plus_four(chat, golden, tmp_path):
    killed = tmp_path / 'killed.wav'
    killed.write_bytes(sounds.riff(sounds.question().tobytes(), size=0, whole=0))
    for path in (
        golden('audio/question_no_count.mp3'), golden('audio/question_pipe.flac'), killed
    ):  # fmt: skip
        asked = [Turn('user', audio.load(path, 16000))]
        reply = chat.reply(asked, 'text', chat.settings.greedy(), 0)
        assert reply.text == 'the answer is seven'

"""Talks against dialogues that are asked whole; tiny random model, stand-ins for ears and mouth."""

import dataclasses

import jax
import numpy as np
import pytest

from mossjax.convert.codec_flow import flow_network
from mossjax.errors import InputError
from mossjax.infer import buckets
from mossjax.infer.chat import Chat
from mossjax.infer.codec import StreamingMouth, WholeMouth
from mossjax.infer.dialogue import Dialogue
from mossjax.infer.engine import Engine
from mossjax.infer.generate import Session
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.talk import Talk
from mossjax.infer.vocoder import HiftVocoder
from mossjax.models.lm.dialogue import Turn
from mossjax.nn.weight_norm import fold
from tests.infer.test_speech_stream import FLOW
from tests.tiny_chat import decode, encode, write_model
from tests.tiny_codec import HIFT, hift_params, random_params

QUESTIONS = ('hello you', 'be brief', 'speak')


class Ears:
    """A code of 1280 samples, as soon as they are there."""

    def stream(self, names):
        self.waiting = np.zeros(0, np.float32)
        return self

    def feed(self, pieces, *, ending=()):
        self.waiting = np.concatenate([self.waiting, *pieces.values()])
        whole = len(self.waiting) if ending else len(self.waiting) // 1280 * 1280
        ready, self.waiting = self.waiting[:whole], self.waiting[whole:]
        return {0: encode([ready])[0]}


class Mouth:
    """Says every code but the last two, which it holds back, and these in the end."""

    def begin(self, voice=None):
        return Utterance()


class Utterance:
    def __init__(self):
        self.codes, self.said = [], 0

    def feed(self, codes):
        self.codes += list(codes)
        new, self.said = self.codes[self.said : -2], max(len(self.codes) - 2, self.said)
        return decode([new])[0] if new else np.zeros(0, np.float32)

    def finish(self):
        return decode([self.codes[self.said :]])[0]


@pytest.fixture(scope='module')
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp('talk') / 'model'
    settings = {'do_sample': True, 'temperature': 1.5, 'top_k': 8}
    write_model(folder, max_new_tokens=40, min_new_tokens=30, **settings)
    return dataclasses.replace(Chat.open(folder), encode=encode, decode=decode)


def waves(parts):
    return np.concatenate([part.wave for part in parts])


def same_turns(got, want):
    assert [turn.role for turn in got] == [turn.role for turn in want]
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours.content, theirs.content)


def test_a_reply_in_parts_is_the_whole_one(chat):
    for kind in ('audio', 'text'):
        talk, whole = Talk(Dialogue(chat, kind), Mouth()), Dialogue(chat, kind)
        for seed, question in enumerate(QUESTIONS):
            parts = list(talk.reply(question, seed))
            want = whole.ask(question, seed)
            assert len(parts) > 2 and [p.reason for p in parts[:-1]] == ['running'] * (
                len(parts) - 1
            )
            np.testing.assert_array_equal(talk.last.grid, want.grid)
            assert talk.last.reason == parts[-1].reason == want.reason
            assert ''.join(part.text for part in parts) == want.text
            if kind == 'audio':
                assert sum(len(part.wave) > 0 for part in parts) > 1
                np.testing.assert_array_equal(waves(parts), want.wav)
                np.testing.assert_array_equal(talk.last.wav, want.wav)
        same_turns(talk.dialogue.turns, whole.turns)


def test_a_question_is_read_while_it_is_heard(chat):
    rng = np.random.default_rng(0)
    wave = np.repeat(np.float32(rng.integers(0, 10, 90) / 10), 1280)
    talk, whole = Talk(Dialogue(chat), Mouth(), ears=Ears()), Dialogue(chat)
    for turn in range(2):
        at = 0
        while at < len(wave):
            size = int(rng.integers(1, 9000))
            talk.listen(wave[at : at + size])
            at += size
        prompt = chat.prompt([*whole.turns, Turn('user', encode([wave])[0])])
        assert 0 <= len(prompt) - talk.lane.read <= buckets.LISTEN + 16
        np.testing.assert_array_equal(talk.lane.rows, prompt[: talk.lane.read])
        parts, want = list(talk.reply(seed=turn)), whole.ask(wave, turn)
        np.testing.assert_array_equal(talk.last.prompt, prompt)
        np.testing.assert_array_equal(talk.last.grid, want.grid)
        np.testing.assert_array_equal(waves(parts), want.wav)
    with pytest.raises(InputError, match='nothing was heard'):
        list(talk.reply())
    with pytest.raises(InputError, match='no ears'):
        Talk(Dialogue(chat)).listen(wave)


@pytest.mark.parametrize('heard', [1920 * 4, 1920 * 4 + 1, None, 0])
def test_what_nobody_heard_was_not_said(chat, heard):
    """The next turn goes on from there, as if the reply had been no longer."""
    talk = Talk(Dialogue(chat), Mouth())
    said = []
    for part in talk.reply(QUESTIONS[0], 0):
        said.append(part)
        if sum(len(part.wave) for part in said) >= 1920 * 9:
            break
    given = sum(len(part.wave) for part in said)
    kept = talk.interrupt(heard)
    codes = -(-(given if heard is None else heard) // 1920)
    whole = Dialogue(chat)
    first = whole.ask(QUESTIONS[0], 0)
    np.testing.assert_array_equal(kept.codes, first.codes[:codes])
    assert kept.reason == 'cut' and talk.interrupt() is None
    if codes:
        np.testing.assert_array_equal(kept.wav, first.wav[: given if heard is None else heard])
    whole.turns = [Turn('user', QUESTIONS[0]), Turn('assistant', first.codes[:codes])][: 2 * codes]
    parts, want = list(talk.reply(QUESTIONS[1], 1)), whole.ask(QUESTIONS[1], 1)
    np.testing.assert_array_equal(talk.last.grid, want.grid)
    np.testing.assert_array_equal(waves(parts), want.wav)


def test_talks_share_an_engine(chat):
    engine = Engine(chat.generator.programs, chat.params, 2)
    talks = [Talk(Dialogue(chat, session=Session(engine)), Mouth()) for _ in range(2)]
    said = {talk.lane: [] for talk in talks}
    for seed, talk in enumerate(talks):
        talk.begin(QUESTIONS[seed], seed)
    by_lane = {talk.lane: talk for talk in talks}
    for rows in engine.run():
        said[rows.lane].append(by_lane[rows.lane].take(rows))
    for seed, talk in enumerate(talks):
        alone = Dialogue(chat).ask(QUESTIONS[seed], seed)
        np.testing.assert_array_equal(talk.last.grid, alone.grid)
        np.testing.assert_array_equal(waves(said[talk.lane]), alone.wav)


def test_a_mouth_that_needs_all_codes_speaks_in_the_end(chat):
    talk = Talk(Dialogue(chat), WholeMouth(decode))
    parts = list(talk.reply(QUESTIONS[0]))
    assert [len(part.wave) > 0 for part in parts] == [False] * (len(parts) - 1) + [True]
    np.testing.assert_array_equal(waves(parts), decode([talk.last.codes])[0])


def test_turns_after_the_first_compile_nothing(chat, golden, request):
    """A dialogue through the streaming decoder, replies of all lengths; counted by jax itself."""
    vocoder = HiftVocoder(HIFT, fold(hift_params(golden('decoder/hift.npz'))))
    params = random_params(flow_network(FLOW).shapes)
    mouth = StreamingMouth(SpeechDecoder(FLOW, params, vocoder=vocoder, steps=1), (5,))
    mouth.warm()
    compiled = []

    def count(event, seconds, **_):
        if event == '/jax/core/compile/backend_compile_duration':
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)
    request.addfinalizer(lambda: jax.monitoring.unregister_event_duration_listener(count))
    talk, counts = Talk(Dialogue(chat), mouth), []
    for turn, longest in enumerate((40, 1, 4, 7, 12, 17, 30, 40)):
        settings = dataclasses.replace(
            chat.settings, max_new_tokens=longest, min_new_tokens=min(longest, 30)
        )
        talk.dialogue.chat = dataclasses.replace(chat, settings=settings)
        compiled.clear()
        parts = list(talk.reply(QUESTIONS[turn % 3], turn))
        counts.append(len(compiled))
        assert len(waves(parts)) == 1920 * len(talk.last.codes)
    assert counts[1:] == [0] * 7
    jax.jit(lambda x: x + 3.25)(np.zeros(7))  # the count counts
    assert len(compiled) == 1

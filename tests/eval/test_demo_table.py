"""The figures of a tour from answers written by hand."""

import dataclasses

import pytest

from mossjax.eval import demo_table
from mossjax.eval.demo import MODES, Answer
from mossjax.eval.demo_table import MET, NOT_MET, TOO_FEW, Gate

CONTROLS = {
    'source': [
        {'word': 'six', 'seconds': 1.0, 'heard': 'six'},
        {'word': 'seven', 'seconds': 2.0, 'heard': 'eight'},
    ],
    'reconstructed': [
        {'word': 'six', 'codes': [1], 'heard': 'six'},
        {'word': 'seven', 'codes': [2], 'heard': 'seven'},
    ],
    'silence': [{'seconds': 1.0, 'heard': None}],
    'questions': [
        {'question': 'a', 'speaker': 'slt', 'heard': None},
        {'question': 'b', 'speaker': 'slt', 'heard': 'six'},
    ],
}


def answer(mode, expected, said, seconds=1.0, split='heldout', reason='stop'):
    spoken = MODES[mode][1] == 'audio'
    return Answer(
        mode, split, 0, 'what is it', expected, 'slt', 0.91, '' if spoken else said,
        [1] if spoken else [], seconds if spoken else 0.0, said if spoken else None, reason,
        said == expected,
    )  # fmt: skip


ANSWERS = [
    answer('speech to speech', 'six', 'six', 1.4),
    answer('speech to speech', 'seven', 'six', 3.2, reason='length'),  # 1.6 x its recording
    answer('speech to speech', 'six', None, 0.0),
    answer('speech to text', 'six', 'six'),
    answer('speech to text', 'seven', 'six'),
    answer('text to speech', 'seven', 'seven', 2.0),
    answer('text to text', 'seven', 'seven'),
    answer('speech to speech', 'six', 'seven', split='never_spoken'),
]


def test_figures_of_hand_made_answers():
    found = {(x.section, x.row.name): x for x in demo_table.lines(ANSWERS, CONTROLS)}
    expected = {
        ('heldout', 'speech to speech'): (1 / 3, 3),
        ('heldout', 'speech to text'): (1 / 2, 2),
        ('heldout', 'text to speech'): (1, 1),
        ('heldout', 'text to text'): (1, 1),
        # dealt to others: 'six' (of 1st) fits the 3rd, 'six' (of 2nd) fits 1st and 3rd: 3 of 6
        ('heldout', 'shuffled'): (1 / 2, 3),
        ('heldout', 'too long'): (1 / 4, 4),
        ('heldout', 'unfinished'): (1 / 7, 7),
        ('never_spoken', 'speech to speech'): (0, 1),
        ('judge', 'source'): (1 / 2, 2),
        ('judge', 'reconstructed'): (1, 2),
        ('judge', 'silence'): (0, 1),
        ('judge', 'questions'): (1 / 2, 2),
    }
    for key, (score, count) in expected.items():
        assert (found[key].row.score, found[key].row.count) == (pytest.approx(score), count), key
    # ratios of spoken replies: 1.4, 1.6, 0, 1 -> median 1.2
    assert 'median 1.20 x' in found['heldout', 'too long'].row.meaning
    assert found['judge', 'silence'].verdict == MET
    assert found['heldout', 'speech to speech'].verdict == TOO_FEW
    assert found['never_spoken', 'speech to speech'].gate == ''
    assert not demo_table.all_met(list(found.values()))


@pytest.mark.parametrize(
    'sign, bound, score, count, verdict',
    [
        ('>=', 0.9, 0.9, 100, MET),
        ('>=', 0.9, 0.899, 100, NOT_MET),
        ('>=', 0.9, 1.0, 99, TOO_FEW),
        ('<=', 0.02, 0.02, 200, MET),
        ('<=', 0.02, 0.03, 200, NOT_MET),
    ],
)
def test_a_gate(sign, bound, score, count, verdict):
    assert Gate(sign, bound).verdict(score, count) == verdict


def test_all_gates_can_be_met():
    spread = [f'w{i}' for i in range(100)]
    right = [answer(mode, word, word) for mode in MODES for word in spread]
    controls = {
        'source': [{'word': w, 'seconds': 1.0, 'heard': w} for w in spread],
        'reconstructed': [{'word': w, 'codes': [], 'heard': w} for w in spread],
        'silence': CONTROLS['silence'],
        'questions': [{'question': w, 'speaker': 'slt', 'heard': None} for w in spread],
    }
    found = demo_table.lines(right, controls)
    assert demo_table.all_met(found)
    assert sum(bool(x.gate) for x in found) == len(demo_table.GATES) == 9
    wrong = [dataclasses.replace(a, right=False) for a in right[:11]] + right[11:]
    assert not demo_table.all_met(demo_table.lines(wrong, controls))


def test_the_table_shows_every_line_with_its_gate():
    text = demo_table.table(demo_table.lines(ANSWERS, CONTROLS))
    first = next(line for line in text.splitlines() if line.startswith('  speech to speech'))
    assert first.split()[3:9] == ['33.3%', '6.1', '-', '79.2', '3', '>=']
    assert '90% too few' in first and 'the judge hears the right answer' in first
    for title in demo_table.SECTIONS.values():
        assert title in text


def test_stages_as_recorded():
    """A stage begins where the one before it ended; the codec has nothing to do with text."""
    text = demo_table.stages(
        {'stages': {
            'sft': {'text_accuracy': {'all': 0.9942, 'never_spoken': 0.5}, 'steps': 7},
            'text_lm': {'text_accuracy': {'all': 1.0, 'never_spoken': 1.0}, 'steps': 8,
                        'config_sha256': 'abcdef' * 9},
            'stage1': {'text_accuracy': {'all': 0.25, 'never_spoken': 0.75},
                       'text_logits_identical': True},
            'decoder': {'seconds': 1234.5},
            'tokenizer': {'seconds': 3},
            'rows': {'seconds': 4},
        }}
    ).splitlines()  # fmt: skip
    same = 'text logits unchanged to the bit'.split()
    assert [line.split() for line in text[2:]] == [
        ['tokenizer', '-', '-', '-', '-', '0'],
        ['decoder', '-', '-', '-', '-', '21'],
        ['text_lm', '-', '100.0%', '100.0%', '8', '-', 'abcdefabcdef'],
        ['stage1', '100.0%', '25.0%', '75.0%', '-', '-', *same],
        ['sft', '25.0%', '99.4%', '50.0%', '7', '-'],
    ]
    assert demo_table.stages({'stages': {}}) == ''

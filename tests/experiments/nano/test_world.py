from collections import Counter
import dataclasses

import pytest

from experiments.nano import text, world
from mossjax.errors import InputError
from mossjax.models.lm.text import TextTokenizer


@pytest.fixture(scope='module')
def nano():
    return world.build()


def test_size_and_quarter_of_every_family(nano):
    assert len(nano.facts) == 353
    assert len(nano.answers) == 103
    for family, count in Counter(f.family for f in nano.facts).items():
        silent = sum(f.family == family for f in nano.never_spoken)
        assert silent == round(count / 4), family


def test_arithmetic_is_right(nano):
    number = {word: i for i, word in enumerate(world.NUMBERS)}
    signs = {'plus': 1, 'minus': -1}
    checked = 0
    for fact in nano.facts:
        a, sign, b = ['', *fact.question.split()][-3:]
        if sign in signs:
            assert number[a] + signs[sign] * number[b] == number[fact.answer]
            checked += 1
    assert checked == 155


def test_after_and_before_are_inverse(nano):
    answer = {f.question: f.answer for f in nano.facts}
    assert answer['which day comes after sunday'] == 'monday'
    assert answer['which number comes after twelve'] == 'thirteen'
    for question, word in answer.items():
        if question.startswith('which ') and ' comes after ' in question:
            kind, asked = question.split()[1], question.split()[-1]
            assert answer[f'name the {kind} before {word}'] == asked


def test_never_spoken_facts_can_be_answered_by_ear(nano):
    """Counted here by hand, apart from the module's own check."""
    for fact in nano.never_spoken:
        for word in fact.question.split():
            hearing = [f for f in nano.spoken if word in f'{f.question} {f.sentence}'.split()]
            assert len(hearing) >= 2
            assert any(word in f.question.split() for f in hearing)
        assert any(f.answer == fact.answer for f in nano.spoken)


def test_no_word_opens_more_than_a_fifth_of_the_questions(nano):
    first = Counter(f.question.split()[0] for f in nano.facts)
    assert max(first.values()) < len(nano.facts) / 5


def test_same_seed_same_split_and_it_is_stored(nano, tmp_path):
    assert world.build() == nano
    assert world.build(seed=1) != nano
    nano.save(tmp_path / 'world.json')
    assert world.World.load(tmp_path / 'world.json') == nano


def test_a_spoilt_split_is_refused(nano, tmp_path):
    with pytest.raises(InputError, match='withholds 0 of'):
        world.check_split(dataclasses.replace(f, spoken=True) for f in nano.facts)
    # 'madrid' answers one fact only: never speaking it would make the fact unanswerable.
    swap = next(f for f in nano.never_spoken if f.family == 'countries').id
    facts = []
    for fact in nano.facts:
        if fact.id == swap:
            fact = dataclasses.replace(fact, spoken=True)
        if fact.answer == 'madrid':
            fact = dataclasses.replace(fact, spoken=False)
        facts.append(fact)
    with pytest.raises(InputError, match='madrid'):
        world.check_split(facts)
    (tmp_path / 'world.json').write_text('{}')
    with pytest.raises(InputError, match='world.json'):
        world.World.load(tmp_path / 'world.json')


def test_every_word_is_one_token_and_any_text_comes_back(nano, tmp_path):
    text.save(text.train(nano.words), tmp_path)
    tokenizer = TextTokenizer.open(tmp_path)
    for word in nano.words:
        assert len(tokenizer.encode(word)) == len(tokenizer.encode(f' {word}')) == 1
    for fact in nano.facts:
        assert len(tokenizer.encode(fact.question)) == len(fact.question.split())
    assert tokenizer.size < 1000
    wild = 'Gru\u0308ße 你好 \U0001f600\r\n\t  12 <|im_end|>  x\u0000'
    assert tokenizer.decode(tokenizer.encode_plain(wild)) == wild
    assert tokenizer.encode('<|im_start|>user\n')[0] == tokenizer.im_start
    assert len({tokenizer.id(name) for name in text.SPECIALS}) == 5


def test_tokenizer_is_the_same_each_time(nano):
    assert text.train(nano.words).to_str() == text.train(reversed(nano.words)).to_str()

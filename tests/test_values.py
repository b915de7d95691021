"""Numbers and JSON from outside: what is refused, and that the rest comes through unchanged."""

import json
import math

import pytest

from mossjax.errors import InputError
from mossjax.values import (
    COUNT,
    NUMBER,
    POSITIVE,
    SEED,
    SHARE,
    SIZE,
    Range,
    number,
    parse_json,
    plain,
)


@pytest.mark.parametrize('value, accepted', [
    (1, SIZE), (2**31 - 1, SIZE), (0, COUNT), (0, SEED), (2**32 - 1, SEED), (1e-300, POSITIVE),
    (0.0, SHARE), (1, SHARE), (-3.5, NUMBER), (2, Range(1, 3, above=True, below=True)),
])
def test_numbers_in_range_come_back_as_they_are(value, accepted):
    assert number(value, 'x', accepted) is value


@pytest.mark.parametrize('value, accepted', [
    (0, SIZE), (2**31, SIZE), (10**24, SIZE), (1.0, SIZE), (True, SIZE), ('8', SIZE), (None, SIZE),
    (-1, COUNT), (-1, SEED), (2**32, SEED),
    pytest.param(10**5000, SEED, id='5001 digits'),
    (math.nan, NUMBER), (math.inf, NUMBER), (-math.inf, NUMBER), (1e19, NUMBER), (False, NUMBER),
    ([1], NUMBER), (0, POSITIVE), (0.0, POSITIVE), (1.0001, SHARE), (-1e-9, SHARE),
    (1, Range(1, 3, above=True)), (3, Range(1, 3, below=True)),
])
def test_other_values_are_refused_by_name(value, accepted):
    with pytest.raises(InputError, match='^layers is .*, expected a (whole )?number') as refused:
        number(value, 'layers', accepted)
    assert len(str(refused.value)) < 200


def test_a_range_says_what_it_takes():
    assert str(SIZE) == 'a whole number from 1 up to 2147483647'
    assert str(Range(0, 1, above=True)) == 'a number above 0 up to 1'
    assert str(Range(high=0.5, below=True)) == 'a number below 0.5'
    assert str(Range()) == 'a number'


@pytest.mark.parametrize('text', [
    '[]', '3', '"x"', '{"a": [1, -2.5e-7, true, null, "\\u00e9"], "b": {"c": 1234567890123456789}}',
])
def test_json_is_read_as_the_standard_library_reads_it(text):
    assert parse_json(text, 'f') == json.loads(text)


@pytest.mark.parametrize('text, said', [
    ('{"a": NaN}', 'NaN'), ('{"a": Infinity}', 'Infinity'), ('[-Infinity]', '-Infinity'),
    ('{"a": 1e999}', 'too large'), ('[-1e400]', 'too large'),
    ('{"a": 1, "a": 2}', "'a' is given twice"),
    ('{"o": {"b": 1, "c": 2, "b": 3}}', "'b' is given twice"), ('[' * 100_000, 'nested too deep'),
    ('{"a":' * 50_000, 'nested too deep'), ('9' * 5000, '5000 digits'), ('{"a": 1', 'not JSON'),
    ("{'a': 1}", 'not JSON'), ('', 'not JSON'),
])
def test_what_is_no_json_is_refused(text, said):
    with pytest.raises(InputError, match='^here.json: ') as refused:
        parse_json(text, 'here.json')
    assert said in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_tree_that_contains_itself_is_refused():
    tree: dict = {'flow': {'mels': 80}}
    tree['flow']['again'] = tree
    with pytest.raises(InputError, match='config.yaml: flow: again: contains itself'):
        plain(tree, 'config.yaml')
    ring: list = []
    ring.append([ring])
    with pytest.raises(InputError, match='contains itself'):
        plain(ring, 'x')
    with pytest.raises(InputError, match=r'x: a\[1\] is inf'):
        plain({'a': [1, math.inf]}, 'x')
    shared = [1, 2]  # twice is not inside itself
    assert plain({'a': shared, 'b': shared}, 'x') == {'a': [1, 2], 'b': [1, 2]}


def test_a_tree_that_grows_when_it_is_written_out_is_refused():
    for leaf in ({'x': 1}, []):
        for _ in range(40):  # 2^40 leaves
            leaf = [leaf, leaf]
        with pytest.raises(InputError, match='more than 100000 entries'):
            plain(leaf, 'x')

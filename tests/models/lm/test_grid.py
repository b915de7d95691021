"""The grid: what a row means, what is refused, how grids are padded."""

import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.models.lm.grid import (
    GridIds,
    check_codes,
    collate,
    concatenate,
    speech_rows,
    text_rows,
)

IDS = GridIds(
    vocab=60, audio_vocab=40, sosp=50, speech=51, filler=9, eosp=32, pad=47, eos=48, stops=(47, 48)
)


def test_text_rows_carry_the_filler():
    np.testing.assert_array_equal(text_rows([3, 1], IDS), [[3, 9], [1, 9]])
    assert text_rows([], IDS).shape == (0, 2)


def test_speech_rows_open_carry_and_close():
    np.testing.assert_array_equal(
        speech_rows([9, 0, 31], IDS), [[50, 9], [51, 9], [51, 0], [51, 31], [51, 32]]
    )


@pytest.mark.parametrize(
    'codes, word',
    [
        ([], 'no codes'),
        ([0, 32], 'code 32'),
        ([-1], 'code -1'),
        ([[1]], 'flat'),
        ([0.5], 'integer'),
    ],
)
def test_bad_codes_are_refused_by_name(codes, word):
    with pytest.raises(InputError, match='the user turn') as error:
        check_codes(codes, IDS, 'the user turn')
    assert word in str(error.value)


def test_text_id_outside_the_vocabulary_is_refused():
    with pytest.raises(InputError, match='text id 60'):
        text_rows([1, 60], IDS)


def test_collate_pads_left():
    tokens, valid = collate([text_rows([1], IDS), concatenate([speech_rows([7], IDS)])], IDS)
    np.testing.assert_array_equal(tokens[0], [[47, 9], [47, 9], [1, 9]])
    np.testing.assert_array_equal(tokens[1], [[50, 9], [51, 7], [51, 32]])
    np.testing.assert_array_equal(valid, [[False, False, True], [True, True, True]])
    longer, valid = collate([text_rows([1], IDS)], IDS, length=2)
    np.testing.assert_array_equal(longer, [[[47, 9], [1, 9]]])
    with pytest.raises(InputError, match='3 rows'):
        collate([speech_rows([7], IDS)], IDS, length=2)


@pytest.mark.parametrize('change', [{'eosp': 40}, {'sosp': 60}, {'speech': 50}, {'stops': (50,)}])
def test_impossible_special_ids_are_refused(change):
    values = {name: getattr(IDS, name) for name in IDS.__dataclass_fields__}
    with pytest.raises(InputError, match='config.json'):
        GridIds(**{**values, **change})

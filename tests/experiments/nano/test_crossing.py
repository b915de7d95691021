"""The crossing study: the table of its record."""

import pytest

from experiments.nano import crossing
from mossjax.files import read_json


def test_the_table_is_computed_from_the_counts():
    record = {'variants': [
        {'name': 'a', 'change': 'this', 'right': {
            f'{split}/{mode}': [[1, 4], [3, 4]]
            for split in ('heldout', 'never_spoken') for mode in crossing.MODES}},
        {'name': 'b', 'change': 'that', 'right': {
            f'{split}/{mode}': [[4, 4]]
            for split in ('heldout', 'never_spoken') for mode in crossing.MODES}},
    ]}  # fmt: skip
    best, other = crossing.lines(record)
    assert (best.change, best.share) == ('that', 1)
    assert other.share == 0.5 and other.low == pytest.approx(0.215, abs=1e-3)  # Wilson, 4 of 8
    assert '| this | 25 / 75 |' in crossing.table([best, other])


def test_the_record_is_whole():
    record = read_json(crossing.RECORD)
    found = crossing.lines(record)
    assert len(found) == len(record['variants'])
    assert {len(line.shares['never_spoken/s2s']) for line in found} <= {1, 2, 3}
    for variant in record['variants']:
        for split, count in (('heldout', 1056), ('never_spoken', 712)):
            assert {n for _, n in variant['right'][f'{split}/s2s']} == {count}

"""The proof that tests can fail stays applicable: each alteration still fits the tree."""

import pytest

from experiments.proofs.alterations import ALTERATIONS
from experiments.proofs.mutations import Outcome, altered, check, run_tests
from mossjax.errors import InputError


def test_every_old_text_occurs_exactly_once_and_every_test_is_there():
    check(ALTERATIONS)
    assert len(ALTERATIONS) > 20
    assert all(a.old != a.new for a in ALTERATIONS)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'old': 'no such text'}, 'occurs 0 times'),
        ({'old': 'import'}, 'times in mossjax/nn/transformer.py, not once'),
        ({'file': 'mossjax/gone.py'}, 'occurs 0 times in mossjax/gone.py'),
        ({'tests': ('tests/gone.py',)}, 'tests/gone.py is not there'),
        ({'tests': ('tests/conftest.py::test_gone',)}, 'test_gone is not there'),
    ],
)
def test_a_stale_alteration_is_an_error(change, said):
    stale = ALTERATIONS[0]._replace(**change)
    with pytest.raises(InputError, match=said) as caught:
        check([stale])
    assert repr(stale.name) in str(caught.value)


def test_an_alteration_is_made_noticed_and_undone(tmp_path):
    (tmp_path / 'size_code.py').write_text('SIZE = 3\n')
    (tmp_path / 'test_size_code.py').write_text(
        'from size_code import SIZE\n\n\ndef test_size():\n    assert SIZE == 3\n\n\n'
        'def test_kind():\n    assert isinstance(SIZE, int)\n'
    )
    change = ALTERATIONS[0]._replace(
        name='size', file='size_code.py', old='SIZE = 3', new='SIZE = 4',
        tests=('test_size_code.py',),
    )
    with altered(tmp_path, change):
        assert run_tests(tmp_path, change.tests) == Outcome(1, ['test_size_code.py::test_size'], [])
    assert run_tests(tmp_path, change.tests) == Outcome(2, [], [])
    with altered(tmp_path, change._replace(new='SIZE = =')):
        outcome = run_tests(tmp_path, change.tests)
    assert outcome.passed == 0 and not outcome.failed and outcome.broken

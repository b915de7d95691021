"""Five hundred damaged files: each is read rightly, or refused in one line, under limits.

Ten thousand: python -m experiments.proofs.run fuzz
"""

from tests.fuzz import run


def test_damaged_files_are_read_rightly_or_refused():
    found = run.summary(run.run(500, 'make test'))
    assert not found['faults']
    assert found['read'] >= 0.3 and found['outcomes']['refused'] >= 100
    assert found['slowest_seconds'] < 20

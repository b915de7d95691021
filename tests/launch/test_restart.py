"""The restart rule, as a table written by hand."""

import signal

import pytest

from launch.restart import LOST, MAX_RESTARTS, Decision, decision, exit_code, spelled
from mossjax import exits

DONE, FAILED, AGAIN = Decision.DONE, Decision.FAILED, Decision.AGAIN


@pytest.mark.parametrize('codes, what, code', [
    ([0], DONE, 0),
    ([0, 0, 0, 0], DONE, 0),
    ([75], AGAIN, 75),
    ([0, 75, 0], AGAIN, 75),
    ([-9], AGAIN, 75),  # killed, as subprocess says it
    ([137], AGAIN, 75),  # ... and as a container does
    ([134, 134], AGAIN, 75),  # jax aborts the survivors of a lost host
    ([LOST], AGAIN, 75),
    ([0, LOST], AGAIN, 75),
    ([2], FAILED, 2),
    ([3, 3], FAILED, 3),
    ([126], FAILED, 126),
    ([127], FAILED, 127),
    ([75, 3], FAILED, 3),  # what would happen again outweighs
    ([-9, 2], FAILED, 2),
    ([3, 2], FAILED, 2),
    ([1], FAILED, 1),
    ([0, 1], FAILED, 1),
    ([1, -9], AGAIN, 75),  # an exception beside a lost host is its consequence
    ([1, LOST], AGAIN, 75),
])  # fmt: skip
def test_what_becomes_of_a_job(codes, what, code):
    assert decision(codes) is what
    assert decision(reversed(codes)) is what
    assert exit_code(codes) == code


def test_the_codes_are_those_that_users_and_policies_know():
    assert (exits.OK, exits.AGAIN, exits.BAD_INPUT, exits.WENT_WRONG) == (0, 75, 2, 3)
    assert MAX_RESTARTS > 0


def test_codes_for_people():
    assert spelled(75) == 'exit code 75'
    assert spelled(-signal.SIGKILL) == spelled(128 + signal.SIGKILL) == 'signal 9'
    assert spelled(LOST) == 'gone'

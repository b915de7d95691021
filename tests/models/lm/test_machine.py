"""The state machine row by row, expectations written by hand, in both sets of rules.

Ids: text 0..9 words, 10 sosp, 11 modality pad, 12 and 13 stops; audio 0..7 codes (5 is also the
filler), 8 eosp, 9 unused.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.models.lm import machine
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.machine import BATCH, CLEAN, RUNNING, SPEECH, STOP, TEXT, UPSTREAM

IDS = GridIds(
    vocab=14, audio_vocab=10, sosp=10, speech=11, filler=5, eosp=8, pad=12, eos=13, stops=(12, 13)
)
INF = -np.inf


def column(rows, i):
    return jnp.array([row[i] for row in rows], jnp.int32)


# last prompt row -> mode, clean and upstream
STARTS = [
    ((3, 5), TEXT, TEXT),  # a text prompt
    ((10, 5), TEXT, TEXT),  # a spoken reply is about to open: the switch does it
    ((11, 2), SPEECH, SPEECH),  # cut inside speech
    ((11, 8), SPEECH, SPEECH),  # cut after eosp: the switch closes it
    ((11, 5), SPEECH, TEXT),  # code 5 is also the filler: upstream takes it for text
]


@pytest.mark.parametrize('which, rules', [(1, CLEAN), (2, UPSTREAM)], ids=['clean', 'upstream'])
def test_start(which, rules):
    modes = rules.start(jnp.array([s[0] for s in STARTS]), IDS)
    np.testing.assert_array_equal(modes, column(STARTS, which))


# (mode, last row) -> next mode, clean and upstream
SWITCHES = [
    (TEXT, (3, 5), TEXT, TEXT),
    (TEXT, (10, 5), SPEECH, SPEECH),  # sosp opens
    (TEXT, (10, 2), SPEECH, SPEECH),  # whatever stands beside it
    (SPEECH, (11, 2), SPEECH, SPEECH),
    (SPEECH, (11, 5), SPEECH, SPEECH),  # the filler's id is a code here
    (SPEECH, (11, 8), TEXT, TEXT),  # eosp closes
    (TEXT, (3, 8), TEXT, TEXT),  # an ignored audio draw
    (TEXT, (10, 8), SPEECH, TEXT),  # two switches in one step: upstream falls back to text
]


@pytest.mark.parametrize('which, rules', [(2, CLEAN), (3, UPSTREAM)], ids=['clean', 'upstream'])
def test_switch(which, rules):
    modes = rules.switch(column(SWITCHES, 0), jnp.array([s[1] for s in SWITCHES]), IDS)
    np.testing.assert_array_equal(modes, column(SWITCHES, which))


def constrained(rules, k, min_new=0, allowed=True):
    """Scores of zeros for a text row and a speech row."""
    modes = jnp.array([TEXT, SPEECH])
    text = rules.constrain_text(jnp.zeros((2, 14)), modes, jnp.full((2,), allowed), IDS)
    return text, machine.constrain_audio(jnp.zeros((2, 10)), k, min_new, IDS)


def test_unused_audio_ids_are_forbidden_in_every_mode():
    _, audio = constrained(CLEAN, k=1)
    np.testing.assert_array_equal(audio, [[0] * 9 + [INF]] * 2)


@pytest.mark.parametrize('k, open_', [(1, False), (3, False), (4, True), (5, True)])
def test_eosp_waits_for_min_new_tokens_minus_one_steps(k, open_):
    _, audio = constrained(CLEAN, k=k, min_new=4)
    np.testing.assert_array_equal(audio[:, 8], [0 if open_ else INF] * 2)
    np.testing.assert_array_equal(audio[:, :8], 0)


def test_each_row_has_its_own_step_and_minimum():
    audio = machine.constrain_audio(
        jnp.zeros((3, 10)), jnp.array([3, 4, 1]), jnp.array([4, 4, 0]), IDS
    )
    np.testing.assert_array_equal(audio[:, 8], [INF, 0, 0])


@pytest.mark.parametrize(
    'mode, clean, upstream',
    [(TEXT, (True, False), (True, True)), (SPEECH, (False, True), (True, True))],
)
def test_channels_whose_draw_gets_into_a_row(mode, clean, upstream):
    """Upstream keeps the audio draw of text rows, and draws text in speech rows too."""
    for rules, wanted in ((CLEAN, clean), (UPSTREAM, upstream)):
        np.testing.assert_array_equal(machine.channels(rules, jnp.array([mode])), [wanted])


def test_text_constraints():
    text, _ = constrained(UPSTREAM, k=1, allowed=False)
    np.testing.assert_array_equal(text, 0)  # nothing masks the modality pad upstream
    text, _ = constrained(CLEAN, k=1)
    expected = np.zeros((2, 14))
    expected[0, 11] = INF
    np.testing.assert_array_equal(text, expected)
    text, _ = constrained(CLEAN, k=1, allowed=False)
    expected[:, 10] = INF
    np.testing.assert_array_equal(text, expected)


# (mode, drawn) -> row, clean and upstream; then at the cap
WRITES = [
    (TEXT, (3, 7), (3, 5), (3, 7), (3, 5)),  # upstream keeps the junk
    (SPEECH, (3, 7), (11, 7), (11, 7), (11, 8)),  # clean closes speech at the cap
    (SPEECH, (13, 8), (11, 8), (11, 8), (11, 8)),  # a stop drawn in speech is overwritten
]


def test_write():
    modes, drawn = column(WRITES, 0), jnp.array([w[1] for w in WRITES])
    np.testing.assert_array_equal(CLEAN.write(drawn, modes, 3, 4, IDS), [w[2] for w in WRITES])
    np.testing.assert_array_equal(CLEAN.write(drawn, modes, 4, 4, IDS), [w[4] for w in WRITES])
    for k in (3, 4):
        rows = UPSTREAM.write(drawn, modes, k, 4, IDS)
        np.testing.assert_array_equal(rows, [w[3] for w in WRITES])


@pytest.mark.parametrize(
    'text, clean, upstream',
    [
        ((3, 13, 12), (RUNNING, STOP, STOP), (RUNNING,) * 3),  # sample 0 goes on: all go on
        ((13, 3, 12), (STOP, RUNNING, STOP), (STOP, BATCH, STOP)),  # sample 0 ends: all end
        ((11, 11, 10), (RUNNING,) * 3, (RUNNING,) * 3),  # eosp and sosp end nothing
    ],
)
def test_finish(text, clean, upstream):
    rows = jnp.array([(t, 8) for t in text])
    running = jnp.zeros(3, jnp.int32)
    np.testing.assert_array_equal(CLEAN.finish(running, rows, IDS), clean)
    np.testing.assert_array_equal(UPSTREAM.finish(running, rows, IDS), upstream)


def test_a_finished_row_keeps_its_reason():
    rows = jnp.array([(3, 5), (13, 5)])
    np.testing.assert_array_equal(CLEAN.finish(jnp.array([STOP, RUNNING]), rows, IDS), [STOP, STOP])


def test_history():
    assert UPSTREAM.counts_prompt and not CLEAN.counts_prompt
    rows = jnp.array([(3, 5), (10, 5), (13, 5), (11, 5), (11, 8)])
    modes = jnp.array([TEXT, TEXT, TEXT, SPEECH, SPEECH])
    np.testing.assert_array_equal(
        CLEAN.remember(rows, modes, IDS), [(1, 0), (0, 0), (0, 0), (0, 1), (0, 0)]
    )
    np.testing.assert_array_equal(UPSTREAM.remember(rows, modes, IDS), np.ones((5, 2)))


def test_ids_held_back_by_min_new_tokens():
    assert CLEAN.enders(IDS) == (12, 13) and UPSTREAM.enders(IDS) == (13,)


class Letters:
    """Ids as letters; 13 is a special token, 11 and 10 are spelt as upstream renames them."""

    names = {10: '<|end_empty|>', 11: '<|empty|>', 12: '', 13: ''}

    def decode(self, ids):
        return ''.join(self.names.get(int(i), chr(97 + int(i))) for i in ids)

    def decode_complete(self, ids):
        return self.decode(ids)


REPLIES = [
    # speech, ended by a stop: both see the same codes; upstream prints the placeholders
    ([(11, 1), (11, 5), (11, 8), (13, 3)], ('', [1, 5]), ('...', [1, 5])),
    # speech cut by the length limit: upstream loses a good code
    ([(11, 1), (11, 2), (11, 3)], ('', [1, 2, 3]), ('..', [1, 2])),
    # clean at the cap: the forced eosp is no code
    ([(11, 1), (11, 2), (11, 8)], ('', [1, 2]), ('..', [1, 2])),
    # text, ended by a stop: upstream also returns its junk
    ([(0, 5), (1, 5), (12, 5)], ('ab', []), ('ab', [5, 5])),
    # text cut by the limit
    ([(0, 5), (1, 5)], ('ab', []), ('a', [5])),
    # words, then speech
    ([(0, 5), (10, 5), (11, 4), (11, 8), (1, 5), (13, 5)], ('ab', [4]), ('a:..b', [5, 5, 4])),
    ([], ('', []), ('', [])),
]


@pytest.mark.parametrize('grid, clean, upstream', REPLIES)
def test_decode(grid, clean, upstream):
    grid = np.array(grid, np.int32).reshape(-1, 2)
    for rules, (text, codes) in ((CLEAN, clean), (UPSTREAM, upstream)):
        found = rules.decode(grid, IDS, Letters())
        assert found[0] == text
        np.testing.assert_array_equal(found[1], codes)


def test_clean_decode_refuses_what_is_no_code():
    with pytest.raises(InputError, match='code 9'):
        CLEAN.decode(np.array([(11, 9), (13, 5)]), IDS, Letters())


def test_reasons_have_names():
    assert [machine.REASONS[i] for i in (RUNNING, STOP, machine.LENGTH, BATCH)] == [
        'running', 'stop', 'length', 'batch',
    ]  # fmt: skip

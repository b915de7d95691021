"""Lanes against fresh readings of the same rows: what a lane remembers changes no reply."""

import contextlib
import copy
import dataclasses

import jax
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer import buckets, fit
from mossjax.infer import engine as lane_engine
from mossjax.infer.engine import Engine, Programs
from mossjax.infer.generate import Generator, Session
from mossjax.infer.sampling import row_keys
from mossjax.models.lm.grid import concatenate, speech_rows, text_rows
from tests.infer.test_generate import CONFIG, GREEDY, IDS, NET, SAMPLED, prompts, random_params

LANES = 3
DRAWS = pytest.mark.parametrize('settings', [GREEDY, SAMPLED], ids=['greedy', 'seeded'])


@pytest.fixture(scope='module')
def params():
    return random_params(NET, 0.6, seed=7)


@pytest.fixture(scope='module')
def generator():
    return Generator(NET, CONFIG, IDS)


def fresh(generator, params, prompt, settings, key):
    """The reply of lanes that have read nothing before, the others idle."""
    engine = Engine(generator.programs, params, LANES)
    lane = engine.open()
    engine.extend(lane, prompt)
    engine.speak(lane, settings, key)
    return spoken(engine)[lane]


def spoken(engine):
    """Runs to the end: {lane: (rows (n, 2), reason)}."""
    found = {}
    for said in engine.run():
        rows, _ = found.get(said.lane, (np.zeros((0, 2), np.int32), ''))
        found[said.lane] = np.concatenate([rows, said.rows]), said.reason
    return found


def same(got, want):
    np.testing.assert_array_equal(got[0], want[0])
    assert got[1] == want[1]


@DRAWS
def test_the_batch_changes_no_lane(generator, params, settings):
    """Lanes with settings of their own that join late, leave early and are used again."""
    asked, keys = prompts(5), row_keys(3, 5)
    own = [dataclasses.replace(settings, max_new_tokens=n) for n in (40, 17, 9, 30, 12)]
    engine, found = Engine(generator.programs, params, LANES), {}
    numbers, waiting = {}, [1, 2, 3, 4]

    def join(number):
        lane = engine.open()
        numbers[lane] = number
        engine.extend(lane, asked[number])
        engine.speak(lane, own[number], keys[number])

    join(0)
    while numbers:
        for said in engine.run():
            number = numbers[said.lane]
            rows, _ = found.get(number, (np.zeros((0, 2), np.int32), ''))
            found[number] = np.concatenate([rows, said.rows]), said.reason
            if said.reason != 'running':
                del numbers[said.lane]
                engine.close(said.lane)
            if waiting and len(numbers) < LANES:
                join(waiting.pop(0))
    assert len(found) == 5
    for number, got in found.items():
        same(got, fresh(generator, params, asked[number], own[number], keys[number]))


def test_a_lane_that_joins_late_is_served_within_two_steps(generator, params):
    """Of the engine, a few rows each: counted by what another lane says meanwhile."""
    long = dataclasses.replace(GREEDY, max_new_tokens=64, min_new_tokens=64)
    (first, second), (key, other) = prompts(2), row_keys(0, 2)
    engine = Engine(generator.programs, params, LANES)
    early = engine.open()
    engine.extend(early, first)
    engine.speak(early, long, key)
    late, between = None, 0
    for said in engine.run():
        if said.lane == late:
            break
        between += len(said.rows) * (late is not None)
        if late is None and said.lane == early:
            late = engine.open()
            engine.extend(late, second)
            engine.speak(late, long, other)
    assert said.lane == late and len(said.rows) == buckets.STEPS
    assert between <= 2 * buckets.STEPS


class Counting(Engine):
    """Notes the rows it reads."""

    def __init__(self, programs, *args):
        super().__init__(copy.copy(programs), *args)
        self.pieces = []

        def read(params, state, tokens, count, *at):
            self.pieces.append(int(count.sum()))
            return programs.read(params, state, tokens, count, *at)

        self.programs.read = read


@DRAWS
def test_eight_turns_in_a_lane_are_those_read_whole(generator, params, settings):
    """Each turn reads its own rows only, in pieces; replies switch between words and speech."""
    rng = np.random.default_rng(0)
    session = Session(Counting(generator.programs, params, LANES))
    settings = dataclasses.replace(settings, max_new_tokens=10)
    prompt, switches = prompts(3)[2], 0
    for turn in range(8):
        (key,) = row_keys(turn, 1)
        session.engine.pieces.clear()
        new = len(prompt) - len(session.lanes[0].rows)
        (made,) = session([prompt], settings, [key])
        assert sum(session.engine.pieces) == new
        same((made.grid, made.reason), fresh(generator, params, prompt, settings, key))
        spoke = (made.grid[:, 0] == IDS.speech).astype(int)
        switches += int(np.abs(np.diff(spoke)).sum())
        question = [text_rows(rng.integers(0, 11, 3), IDS)]
        if turn % 2:
            question += [speech_rows(rng.integers(0, 10, 4), IDS), text_rows([IDS.sosp], IDS)]
        prompt = concatenate([prompt, made.grid, *question])
    assert switches


@pytest.fixture(scope='module')
def both():
    """Programs in which no branch waits."""
    programs = Programs(NET, CONFIG, IDS)
    programs.wait = 0
    return programs


@DRAWS
def test_a_branch_that_waits_changes_no_row(generator, both, params, settings):
    """Against both branches at every step, over replies that go from words to speech and back."""
    long, keys = dataclasses.replace(settings, max_new_tokens=40), row_keys(5, 12)
    found = [], []
    for programs, replies in zip((generator.programs, both), found, strict=True):
        session = Session(Engine(programs, params, LANES), LANES)
        for i in range(0, 12, LANES):
            made = session(prompts()[i : i + LANES], long, keys[i : i + LANES])
            replies += [(reply.grid, reply.reason) for reply in made]
    for got, want in zip(*found, strict=True):
        same(got, want)
    spoke = [np.diff((grid[:, 0] == IDS.speech).astype(int)) for grid, _ in found[0]]
    spoke = np.concatenate(spoke)
    assert (spoke == 1).any() and (spoke == -1).any()


def test_an_interrupted_reply_is_cut_to_what_was_heard(generator, params):
    settings = dataclasses.replace(GREEDY, max_new_tokens=60, min_new_tokens=60)
    prompt, (key,) = prompts(3)[1], row_keys(0, 1)
    engine = Engine(generator.programs, params, LANES)
    lane = engine.open()
    engine.extend(lane, prompt)
    engine.speak(lane, settings, key)
    run = engine.run()
    first, second = next(run), next(run)
    assert len(first.rows) == len(second.rows) == buckets.STEPS
    heard = np.concatenate([prompt, first.rows, second.rows[:3]])
    engine.cut(lane, len(heard))
    assert list(run) == []  # nothing more is heard of it
    again = text_rows([3, 1], IDS)
    for more in (again, again[:0]):  # with something said in between, and without
        engine.cut(lane, len(heard))
        engine.extend(lane, more)
        engine.speak(lane, GREEDY, key)
        got = spoken(engine)[lane]
        whole = np.concatenate([heard, more])
        same(got, fresh(generator, params, whole, GREEDY, key))
        np.testing.assert_array_equal(lane.rows, np.concatenate([whole, got[0]]))


@pytest.mark.parametrize('where', ['computed', 'advance', 'read'])
def test_an_interrupt_anywhere_loses_no_row(generator, params, monkeypatch, where):
    """Ctrl-C may come while rows are waited for, made or read; who listens on misses nothing."""
    settings = dataclasses.replace(GREEDY, max_new_tokens=40, min_new_tokens=40)
    asked, keys, calls = prompts(2), row_keys(0, 2), []
    engine = Engine(copy.copy(generator.programs), params, LANES)
    place = lane_engine if where == 'computed' else engine.programs
    real = getattr(place, where)

    def interrupted(*args, **options):
        calls.append(where)
        if len(calls) % 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(place, where, interrupted)
    lanes = [engine.open() for _ in asked]
    for lane, prompt, key in zip(lanes, asked, keys, strict=True):
        engine.extend(lane, prompt)
        engine.speak(lane, settings, key)
    found, over = {lane: [] for lane in lanes}, False
    while not over:
        with contextlib.suppress(KeyboardInterrupt):
            for said in engine.run():
                found[said.lane].append(said.rows)
            over = True
    monkeypatch.setattr(place, where, real)
    assert len(calls) > 1
    for lane, prompt, key in zip(lanes, asked, keys, strict=True):
        want = fresh(generator, params, prompt, settings, key)
        np.testing.assert_array_equal(np.concatenate(found[lane]), want[0])
        np.testing.assert_array_equal(lane.rows, np.concatenate([prompt, want[0]]))


def test_a_lane_grows_and_long_prompts_are_read_in_pieces(monkeypatch, params):
    wide = dataclasses.replace(CONFIG, max_position_embeddings=1024)
    (key,) = row_keys(0, 1)
    prompt = text_rows(np.random.default_rng(1).integers(0, 11, 50), IDS)
    want = Session(Engine(Programs(NET, wide, IDS), params))([prompt], GREEDY, [key])[0]
    monkeypatch.setattr(buckets, 'LANE', 32)
    monkeypatch.setattr(buckets, 'PIECES', (8, 32))
    programs = Programs(NET, wide, IDS)
    programs.wait = 3  # the branch that waits has to catch up again and again
    session = Session(Counting(programs, params))
    for rows, slots in ((20, 32), (50, 64)):
        (made,) = session([prompt[:rows]], GREEDY, [key])
        assert session.engine._state.cache.slots == slots + 32
    # What was said in between is not in the second prompt.
    assert session.engine.pieces == [20, 31]
    same((made.grid, made.reason), (want.grid, want.reason))


def test_a_full_lane_ends_its_reply_and_stays_usable(generator, params):
    (key,) = row_keys(0, 1)
    engine = Engine(generator.programs, params, LANES)
    lane, other = engine.open(), engine.open()
    long = dataclasses.replace(GREEDY, max_new_tokens=100, min_new_tokens=100)
    engine.extend(lane, text_rows([1] * 195, IDS))
    engine.extend(other, text_rows([1, 2], IDS))
    engine.speak(lane, long, key)
    with pytest.raises(InputError, match='temperature'):
        bad = dataclasses.replace(SAMPLED.text, temperature=0.0)
        engine.speak(other, dataclasses.replace(SAMPLED, text=bad), key)
    found = spoken(engine)
    assert list(found) == [lane] and found[lane][1] == 'length' and len(found[lane][0]) == 5
    with pytest.raises(InputError, match='200 rows fills the 200 positions'):
        engine.speak(lane, long, key)
    with pytest.raises(InputError, match='201 rows exceeds the 200 positions'):
        engine.extend(lane, text_rows([1], IDS))
    engine.cut(lane, 4)
    engine.speak(lane, GREEDY, key)
    same(
        spoken(engine)[lane],
        fresh(generator, params, text_rows([1] * 4, IDS), GREEDY, key),
    )


def test_what_a_lane_refuses(generator, params):
    engine = Engine(generator.programs, params, 1)
    lane = engine.open()
    with pytest.raises(InputError, match='all 1 lanes are taken'):
        engine.open()
    with pytest.raises(InputError, match='nothing to reply to'):
        engine.speak(lane, GREEDY, jax.random.key(0))
    for length in (-1, 1):
        with pytest.raises(InputError, match=f'lane of 0 rows cannot be cut to {length}'):
            engine.cut(lane, length)
    engine.close(lane)
    assert engine.open() is not lane


def test_a_cpu_s_way_says_the_same(generator, params, monkeypatch):
    """Layers held one by one (`placed` uses up what it gets), the cache read in blocks."""
    monkeypatch.setattr(fit, 'APART', 0)
    apart = fit.placed(copy.deepcopy(params))
    own = Generator(fit.lm(CONFIG), CONFIG, IDS)
    prompt, key = prompts(1)[0], row_keys(3, 1)[0]
    for settings in (GREEDY, SAMPLED):
        got = fresh(own, apart, prompt, settings, key)
        same(got, fresh(generator, params, prompt, settings, key))

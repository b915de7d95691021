"""What a run survives, and how it ends when it does not: bad numbers, bad rows, other jobs."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.checkpoint import read_meta
from mossjax.data.pipeline import RowBatches
from mossjax.data.rows import IGNORE
from mossjax.data.speech import Schedule
from mossjax.errors import InputError
from mossjax.files import locked
from mossjax.train import metrics
from mossjax.train.loop import fit
from mossjax.train.skips import Skips
from tests.train.test_loop import ROOT, apart, assert_same, loaded
from tests.train.toy_task import ToyTask, toy_config

LENIENT = {'max_skip_share': 1.0}


def saved(workdir):
    return sorted(int(p.name) for p in (workdir / 'checkpoints').glob('[0-9]*'))


class RowTask(ToyTask):
    """Learns the mean of the first ids of rows of a data set 'a'; an id below 0 makes it NaN."""

    def __init__(self, ids, batch_size=8, **kwargs):
        super().__init__()
        self.batches = RowBatches({'a': rows(ids)}, batch_size, 0, **kwargs)
        self.seen = []

    def loss(self, params, extra, batch, key):
        mean = jnp.mean(jnp.sqrt(batch['tokens'][:, 0, 0].astype(jnp.float32)))
        loss = jnp.sum(jnp.square(params['bias'] - mean)) + jnp.sum(params['kernel'])
        return loss, ({'mean': mean}, extra)

    def size(self, step):
        return self.batches.size(step)

    def batch(self, step, rows=None):
        batch = self.batches.batch(step, rows)
        self.seen.append(step)
        return {'tokens': batch['tokens']}

    def names(self, step):
        return self.batches.names(step)

    def consumed(self, step):
        return self.batches.consumed(step)

    def at(self, step, rows):
        self.batches = self.batches.at(step, rows)
        return self


def rows(ids):
    def row(i):
        return {
            'tokens': np.full((4, 2), i, np.int32), 'labels': np.full((4, 2), IGNORE, np.int32),
            'segments': np.ones(4, np.int32), 'positions': np.arange(4, dtype=np.int32),
        }  # fmt: skip

    return [row(i) for i in ids]


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path, caplog):
    config = toy_config(6, save_every=1, keep=9, **LENIENT)
    fit(ToyTask(poison={2, 3}), config, tmp_path)
    assert_same(loaded(tmp_path, 2), loaded(tmp_path, 4))
    moved = [loaded(tmp_path, step)['params']['kernel'] for step in (2, 5, 6)]
    assert len({np.asarray(x).tobytes() for x in moved}) == 3
    lines = metrics.read(tmp_path / 'metrics.jsonl')
    assert [line['skipped'] for line in lines] == [0, 0, 1, 2, 2, 2]
    assert ['loss' in line for line in lines] == [True, True, False, False, True, True]
    assert read_meta(tmp_path / 'checkpoints')['skipped'] == [3, 4]
    assert 'step 4 skipped: ' in caplog.text and 'row 0, row 1, row 2' in caplog.text


def test_skips_in_a_row_end_the_run_and_are_counted_over_restarts(tmp_path):
    config = toy_config(12, max_skips=3, **LENIENT)
    with pytest.raises(FloatingPointError, match='at steps 6, 7, 8 .3 in a row.*step 7: row 0'):
        fit(ToyTask(poison={5, 6, 7}), config, tmp_path)
    assert saved(tmp_path) == [4, 6] and read_meta(tmp_path / 'checkpoints')['skipped'] == [6]
    # Steps 6 and 7 are in a row although a restart lies between them.
    with pytest.raises(FloatingPointError, match='at steps 6, 7 .2 in a row'):
        fit(ToyTask(poison={5, 6}), toy_config(12, max_skips=2, **LENIENT), tmp_path)
    done = fit(ToyTask(), config, tmp_path)
    assert int(done.step) == 12


def test_a_share_of_skipped_steps_ends_the_run():
    def names(step):
        return [f'a[{step}]']

    skips = Skips(3, 0.1, names)
    for step in range(1, 41):  # 4 of 40 are a tenth
        if step < 40:
            skips.add(step, finite=step % 12 != 0)
    with pytest.raises(FloatingPointError, match=r'12, 24, 36, 40 .4 of 40, .*36: a\[35\]; step'):
        skips.add(40, finite=False)


def test_rows_that_make_it_not_finite_are_named_and_jumped_over(tmp_path):
    ids = np.arange(1, 41)
    names = RowTask(ids).names(4)  # of the fifth step
    bad = [int(name[2:-1]) for name in names[:2]]
    ids[bad] = -1
    config = toy_config(5, max_skips=1)
    with pytest.raises(FloatingPointError) as caught:
        fit(RowTask(ids), config, tmp_path)
    assert 'at steps 5 (1 in a row' in str(caught.value) and 'data.skip_rows' in str(caught.value)
    assert ', '.join(names) in str(caught.value) and names[0] == f'a[{bad[0]}]'
    assert saved(tmp_path) == [2, 4]
    fit(RowTask(ids, skip_rows={'a': bad}), config, tmp_path)
    line = metrics.read(tmp_path / 'metrics.jsonl')[-1]
    others = [float(ids[int(name[2:-1])]) for name in names[2:]]
    assert line['step'] == 5 and line['skipped'] == 0
    assert line['mean'] == pytest.approx(np.sum(np.sqrt(others)) / 8, rel=1e-6)


def test_another_batch_size_neither_repeats_nor_skips_rows(tmp_path):
    ids, batches = np.arange(1, 65), RowTask(np.arange(1, 65)).batches
    fit(RowTask(ids), toy_config(4), tmp_path)
    assert read_meta(tmp_path / 'checkpoints')['rows'] == 32
    task = RowTask(ids, batch_size=16)
    fit(task, toy_config(8), tmp_path)
    assert read_meta(tmp_path / 'checkpoints')['rows'] == 32 + 4 * 16
    sequence = [name for step in range(12) for name in batches.names(step)]
    assert [name for step in range(4, 8) for name in task.names(step)] == sequence[32:]
    assert sorted(sequence[:64]) == sorted(f'a[{i}]' for i in range(64))  # one epoch


@pytest.mark.parametrize('skip', [False, True])
def test_rows_that_cannot_be_read_are_named_or_skipped(skip, caplog):
    class Torn(list):
        def __getitem__(self, index):
            if index == 3:
                raise RuntimeError('chunk header hash mismatch; at byte 7')
            return super().__getitem__(index)

    def fault(row):
        return 'is odd' if row['tokens'][0, 0] == 7 else None

    batches = RowBatches({'a': Torn(rows(range(8)))}, 8, 0, fault=fault, skip_corrupt=skip)
    faults = [r"data set 'a', row 3: cannot be read \(chunk header hash mismatch\)",
              "data set 'a', row 7: is odd"]  # fmt: skip
    if not skip:
        for i, said in zip((3, 7), faults, strict=True):
            place = batches.names(0).index(f'a[{i}]')
            with pytest.raises(InputError, match=said + ".*data.corrupt='skip'"):
                batches.batch(0, [place])
        return
    found = batches.batch(0)
    ids = [int(name[2:-1]) for name in batches.names(0)]
    np.testing.assert_array_equal(found['segments'][:, 0], [i not in (3, 7) for i in ids])
    np.testing.assert_array_equal(
        found['tokens'][:, 1, 1], [0 if i in (3, 7) else i for i in ids]
    )
    assert 'row 3' in caplog.text and 'row 7: is odd: skipped' in caplog.text


def test_rows_to_skip_that_are_not_there_are_refused():
    with pytest.raises(InputError, match="'a' has 8 rows; rows to skip that it lacks: 8, -1"):
        RowTask(range(8), skip_rows={'a': (0, 8, -1)})
    with pytest.raises(InputError, match="rows to skip are of 'b', the data sets are"):
        RowTask(range(8), skip_rows={'b': (0,)})


def test_a_recording_that_is_skipped_is_replaced_and_nothing_else_moves():
    lengths, ones = [10] * 12, [1] * 12
    plain = Schedule(lengths, ones, budget=40, seed=0, buckets=1)
    without = Schedule(lengths, ones, budget=40, seed=0, buckets=1, skip=[3, 5])
    for at in range(6):
        before, after = plain.batch(at)[1], without.batch(at)[1]
        others = [i for i in before if i not in (3, 5)]
        assert after.tolist() == [others[0] if i in (3, 5) else i for i in before]
    nothing = Schedule(lengths, ones, budget=40, seed=0, buckets=1, skip=range(12))
    with pytest.raises(InputError, match='all recordings of batch 2 are to be skipped'):
        nothing.batch(2)


def test_one_run_at_a_time_has_a_workdir(tmp_path):
    fit(ToyTask(), toy_config(2), tmp_path)
    before = loaded(tmp_path)
    with locked(tmp_path / 'lock', 'it'), pytest.raises(InputError, match='in use by process'):
        fit(ToyTask(), toy_config(4), tmp_path)
    assert saved(tmp_path) == [2]
    assert_same(loaded(tmp_path), before)
    holder = 'import sys; from mossjax.files import locked\nwith locked(sys.argv[1], "it"):\n' \
             '    print("held", flush=True); sys.stdin.read()'  # fmt: skip
    with subprocess.Popen(
        [sys.executable, '-c', holder, str(tmp_path / 'lock')], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == 'held\n'
        with pytest.raises(InputError, match=f'in use by process {process.pid} on .*end that'):
            fit(ToyTask(), toy_config(4), tmp_path)
        process.kill()  # a lock does not outlive its process
    fit(ToyTask(), toy_config(4), tmp_path)
    assert saved(tmp_path) == [2, 4]


def test_milestones_stay(tmp_path):
    fit(ToyTask(), toy_config(8, save_every=2, keep=1, milestone_every=3), tmp_path)
    assert saved(tmp_path) == [3, 6, 8]


def test_a_step_that_never_finishes_ends_the_process_with_its_stacks(tmp_path):
    done = apart(tmp_path, 6, 'hang=3', 'stall_after=4.0', 'save_every=1')
    assert done.returncode == 75
    assert 'no step has finished for 4 s (config.stall_after): ending with 75' in done.stderr
    assert 'most recent call first' in done.stderr and 'loop.py' in done.stderr


def test_compiled_programs_are_kept(tmp_path, monkeypatch):
    folder = tmp_path / 'programs'
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    try:
        config = toy_config(2, compilation_cache=str(folder))
        first = fit(ToyTask(), config, tmp_path / 'a')
        kept = sorted(p.name for p in folder.iterdir() if 'train_step' in p.name)
        assert kept
        jax.clear_caches()
        again = fit(ToyTask(), config, tmp_path / 'b')
        assert sorted(p.name for p in folder.iterdir() if 'train_step' in p.name) == kept
        assert_same(first, again)
    finally:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', before)
        jax.config.update('jax_compilation_cache_dir', None)

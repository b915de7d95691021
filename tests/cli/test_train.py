"""`mossjax train` as a user meets it: configs, workdirs and checkpoints, good and bad."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from mossjax.checkpoint import Checkpoints
from mossjax.train import starts, tasks
from tests.cli.test_bad_input import listing, mossjax, refused, room_for_files_of
from tests.train.toy_task import ToyTask

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'experiments/nano/configs').glob('[a-z]*.py'))
CONFIGS = [path for path in CONFIGS if 'def get_config' in path.read_text()]
TOY = (
    'from mossjax.train.config import defaults\n\n\ndef get_config():\n'
    '    config = defaults()\n    config.task = "toy"\n    config.optim.warmup_steps = 1\n'
    '    config.steps = config.save_every = 2\n    return config\n'
)


class Heavy(ToyTask):
    """With 1 MB of state that does not compress: more than a full disk takes."""

    def init_extra(self, params):
        load = jax.random.normal(jax.random.key(0), (2**18,))
        return {**super().init_extra(params), 'load': load}

    def loss(self, params, extra, batch, key):
        loss, (metrics, new) = super().loss(params, extra, batch, key)
        return loss, (metrics, {**new, 'load': extra['load']})


@pytest.fixture(scope='module', autouse=True)
def _toy():
    """`mossjax train` knows a task that compiles in a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.FACTORIES, 'toy', lambda config, fresh: starts.Run(
            Heavy(), config, starts.from_workdir(config.init_from if fresh else '')
        ))
        yield


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp('trained')
    (root / 'mine.py').write_text(TOY)
    assert mossjax('train', '--config', root / 'mine.py', '--workdir', root / 'work') == 0
    return root


@pytest.fixture
def run(trained, tmp_path):
    """(config file, workdir with the checkpoint of step 2): a copy."""
    shutil.copytree(trained, tmp_path / 'run')
    return tmp_path / 'run/mine.py', tmp_path / 'run/work'


def lines(work):
    return [json.loads(x)['step'] for x in (work / 'metrics.jsonl').read_text().splitlines()]


# --- configs


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_unknown_key_on_the_command_line(path, tmp_path, capsys):
    workdir = tmp_path / 'run'
    for key, near in (
        ('typo', 'known: accumulate, compilation_cache'), ('optim.peak', 'did you mean peak_lr?'),
        ('data.week', 'data.week is not known; '), ('mode.remat', 'did you mean model?'),
        ('steps.more', 'steps is one value'),
    ):  # fmt: skip
        said = refused(
            capsys, 'train', '--config', path, '--workdir', workdir, f'--config.{key}=1'
        )
        assert f'--config.{key}: ' in said and near in said
    assert not workdir.exists()


@pytest.mark.parametrize('name', ['sft', 'tokenizer', 'decoder'])
@pytest.mark.parametrize(
    'line, said',
    [
        ('config.stepps = 3', 'config key stepps is not known; did you mean steps?'),
        ('config.optim.peek_lr = 1.0', 'config key optim.peek_lr is not known; did you mean peak_'),
        ('config.data.weigths = {}', 'config key data.weigths is not known; did you mean weights?'),
        ('config.loss.chunkk = 3', 'config key loss.chunkk is not known; '),
        ('config.model.modle = 1', 'config key model.modle is not known; '),
        ('config.optimm.b1 = 0.5', 'Did you mean "optim" instead of "optimm"?'),
        ('config.steps = "many"', "cannot be casted to type <class 'int'>"),
        ('import nothing_of_this_name', "No module named 'nothing_of_this_name'); correct it"),
    ],
)
def test_typo_in_a_config_file(name, line, said, tmp_path, capsys):
    file = tmp_path / 'mine.py'
    file.write_text(
        f'from experiments.nano.configs import {name}\n\n\ndef get_config():\n'
        f'    config = {name}.get_config()\n    {line}\n    return config\n'
    )
    before = listing(tmp_path)
    call = ('train', f'--config={file}', '--workdir', tmp_path / 'run')
    assert said in refused(capsys, *call)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    'text, said',
    [
        ('def get_config():\n    pass\n', 'get_config() returned nothing, no ConfigDict'),
        ('def get_config():\n    return {"steps": 2}\n', 'a value of type dict, no ConfigDict'),
        ('def get_config():\n    return 5\n', 'a value of type int, no ConfigDict'),
        ('', 'defines no function get_config()'),
        ('get_config = 3\n', 'defines no function get_config()'),
        ('def get_config(size):\n    return size\n', 'TypeError: get_config() missing 1 required'),
        ('def get_config():\n    x = 1\n    return x / 0\n', ', line 3, cannot be used (ZeroDiv'),
        ('def get_config(:\n', 'SyntaxError'),
        ('\0', 'SyntaxError'),
        (TOY.replace('defaults()\n', 'defaults()\n    config.model = 3\n'), 'line 6, cannot be'),
        (TOY.replace('return config', 'del config.optim.b1\n    return config'), 'lacks optim.b1'),
    ],
)
def test_a_config_file_that_gives_no_config(text, said, tmp_path, capsys):
    file = tmp_path / 'mine.py'
    file.write_text(text)
    message = refused(capsys, 'train', f'--config={file}', '--workdir', tmp_path / 'run')
    assert said in message and (str(file) in message or 'lacks' in message)
    assert list(tmp_path.iterdir()) == [file]


def test_a_config_that_is_not_there(tmp_path, capsys):
    (tmp_path / 'self.py').symlink_to(tmp_path / 'self.py')
    for name, why in (
        ('gone.py', 'no such file'), ('', 'is a folder'), ('self.py', 'leads to itself'),
    ):  # fmt: skip
        for more in ([], ['--config.steps=3']):
            call = ('train', '--config', tmp_path / name, '--workdir', tmp_path / 'run', *more)
            said = refused(capsys, *call)
            assert f'--config {tmp_path / name}' in said and why in said
    assert [p.name for p in tmp_path.iterdir()] == ['self.py']


@pytest.mark.parametrize(
    'change, said',
    [
        ('optim.warmup_steps=-5', 'config.optim.warmup_steps is -5, expected a whole number from'),
        ('optim.peak_lr=nan', 'config.optim.peak_lr is nan, expected a number from 0'),
        ('optim.final_lr=inf', 'config.optim.final_lr is inf'),
        ('optim.b2=1', 'config.optim.b2 is 1.0, expected a number from 0 below 1'),
        ('optim.eps=0', 'config.optim.eps is 0.0, expected a number above 0'),
        ('optim.clip_norm=-1', 'config.optim.clip_norm is -1.0'),
        ('optim.weight_decay=-0.1', 'config.optim.weight_decay is -0.1'),
        ('optim.frozen=(1,2)', 'config.optim.frozen[0] is 1; it must be of type str'),
        ('optim.frozen=[', "optim.frozen: '[' is no regular expression"),
        ('optim.no_decay=(', "optim.no_decay: '(' is no regular expression"),
        (f'steps=1{"0" * 30}', 'config.steps is 1000000000000000000000000000000, expected'),
        (f'steps={"9" * 50}', 'config.steps is a number of more than 40 digits, expected'),
        (f'seed=1{"0" * 23}', 'config.seed is 100000000000000000000000, expected a whole number'),
        ('seed=-1', 'config.seed is -1, expected a whole number from 0 up to 4294967295'),
        ('keep=0', 'config.keep is 0, expected'),
        ('save_every=-2', 'config.save_every is -2, expected'),
        ('steps=2.5', '--config.steps=2.5'),
        (f'mesh.fsdp={10**30}', 'config.mesh.fsdp is 1000000000000000000000000000000, expected'),
        ('mesh.slices=0', 'config.mesh.slices is 0, expected'),
        ('mesh.tensor=0', 'sizes are 1 or more'),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_made(change, said, trained, tmp_path,
                                                                  capsys):  # fmt: skip
    call = ('--config', trained / 'mine.py', '--workdir', tmp_path / 'run', f'--config.{change}')
    assert said in refused(capsys, 'train', *call)
    assert not list(tmp_path.iterdir())


# --- workdirs


def test_workdirs_that_cannot_be(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)  # no extra [gcs]
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'self').symlink_to(tmp_path / 'self')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/checkpoints').write_text('x')
    odd = os.fsdecode(os.fsencode(tmp_path) + b'/\xff')
    before = sorted(tmp_path.rglob('*'))
    for place, said in (
        (tmp_path / 'file', 'is a file; give the name of a folder'),
        (tmp_path / 'file/run', 'is a file, not a folder'),
        (tmp_path / 'self', 'a symbolic link that leads to itself'),
        ('/proc/run', '/proc takes no files'),
        (tmp_path / 'run', 'run/checkpoints is a file; a folder of checkpoints is due there'),
        (odd, '\\udcff: checkpoints need a path in UTF-8'),
        ('gs://bucket/run', "pip install 'mossjax[gcs]'"),
        ('gs://Bucket/run', 'a bucket is named gs://BUCKET/FOLDER'),
        ('s3://bucket/run', 's3:// is not read here'),
        ('', '--workdir is empty'),
    ):
        assert said in refused(capsys, 'train', '--config', trained / 'mine.py', '--workdir', place)
    assert sorted(tmp_path.rglob('*')) == before


# --- checkpoints


def test_checkpoint_of_a_run(run, tmp_path, capsys):
    """Parameters to start from, with a missing, an extra and a mis-shaped array."""
    file, _ = run
    params = {'more': np.zeros(3, np.float32), 'kernel': np.zeros((8, 9), np.float32)}
    checkpoints = Checkpoints(tmp_path / 'other' / 'checkpoints')
    checkpoints.save(3, {'params': params, 'opt_state': {}, 'extra': {}}, {})
    checkpoints.close()
    before = listing(tmp_path)
    said = refused(
        capsys, 'train', '--config', file, '--workdir', tmp_path / 'new',
        f'--config.init_from={tmp_path / "other"}',
    )  # fmt: skip
    assert str(tmp_path / 'other' / 'checkpoints') in said
    for fault in ('missing bias (8,)', 'unexpected more (3,)', 'kernel has shape (8, 9)', 'config'):
        assert fault in said
    assert listing(tmp_path) == before


def test_what_a_run_started_from_may_vanish(run, tmp_path):
    file, work = run
    shutil.copytree(work, tmp_path / 'first')
    call = ('train', '--config', file, '--workdir', tmp_path / 'second',
            f'--config.init_from={tmp_path / "first"}')  # fmt: skip
    assert mossjax(*call) == 0
    shutil.rmtree(tmp_path / 'first')
    assert mossjax(*call, '--config.steps=4') == 0
    assert lines(tmp_path / 'second') == [2, 4]


def test_a_run_goes_on_with_another_config_only_where_that_is_meant(run, capsys, caplog):
    file, work = run
    call = ('train', '--config', file, '--workdir', work)
    other = ('--config.optim.peak_lr=2e-3', '--config.seed=3')
    before = listing(work)
    said = refused(capsys, *call, *other, '--config.steps=4')
    assert 'step 2 was written: optim.peak_lr 0.001 -> 0.002; seed 0 -> 3. Undo' in said
    assert '--changed=optim.peak_lr,seed' in said
    said = refused(capsys, *call, *other, '--changed=seed')
    assert 'optim.peak_lr 0.001 -> 0.002. Undo' in said and 'seed' not in said
    assert "names 'sede', which is no key" in refused(capsys, *call, *other, '--changed=seed,sede')
    frozen = ('--config.optim.frozen=bias', '--changed=optim.frozen')
    assert 'If optim.frozen or the optimiser changed' in refused(capsys, *call, *frozen)
    assert listing(work) == before
    with caplog.at_level(logging.WARNING):
        assert mossjax(*call, *other, '--changed=optim.peak_lr,seed', '--config.steps=4') == 0
        assert mossjax(*call, *other, '--changed=seed') == 0  # the same command, restarted
    said = [r.getMessage() for r in caplog.records if 'the config is another' in r.getMessage()]
    assert said[1:] == [  # the first: optim.frozen
        'the config is another than when step 2 was written: optim.peak_lr 0.001 -> 0.002; '
        'seed 0 -> 3; steps 2 -> 4', 'the config is another than when step 4 was written: '
        'steps 4 -> 2'
    ]  # fmt: skip


def test_a_run_that_went_wrong_says_so_in_its_exit_code(run, capsys, monkeypatch):
    file, work = run
    monkeypatch.setitem(tasks.FACTORIES, 'toy', lambda config, fresh: starts.Run(
        ToyTask(poison=range(9)), config, None
    ))
    capsys.readouterr()
    assert mossjax('train', '--config', file, '--workdir', work / 'new', '--config.steps=9') == 3
    assert 'not finite at steps 1, 2, 3, 4, 5 (5 in a row' in capsys.readouterr().err


@pytest.mark.parametrize('how', ['gone', 'cut', 'empty'])
def test_damaged_checkpoint_of_a_run(how, run, capsys, caplog):
    """The run goes on from the one before and says so; the damaged one is kept under a name."""
    file, work = run
    call = ('train', '--config', file, '--workdir', work)
    assert mossjax(*call, '--config.steps=4') == 0
    step = work / 'checkpoints' / '4'
    data = [path for path in (step / 'params').glob('**/d/*') if path.is_file()]
    assert data
    for path in data:
        if how == 'gone':
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: -9 if how == 'cut' else 0])
    kept = {p.name: p.read_bytes() for p in step.rglob('*') if p.is_file()}
    with caplog.at_level(logging.WARNING):
        assert mossjax(*call, '--config.steps=6') == 0
    said = ' '.join(r.getMessage() for r in caplog.records)
    assert 'step 4 is incomplete (params/' in said and 'taking step 2, the last complete' in said
    assert 'step 4 is now torn-4' in said
    aside = work / 'checkpoints' / 'torn-4'
    assert {p.name: p.read_bytes() for p in aside.rglob('*') if p.is_file()} == kept
    assert lines(work) == [2, 4, 6]
    assert Checkpoints(work / 'checkpoints').latest() == 6


def test_a_run_without_a_whole_checkpoint_does_not_start_anew(run, capsys):
    file, work = run
    (work / 'checkpoints/2/opt_state/manifest.ocdbt').unlink()
    before = listing(work)
    said = refused(capsys, 'train', '--config', file, '--workdir', work, '--config.steps=4')
    assert 'no checkpoint there is complete: step 2 (opt_state/manifest.ocdbt is missing)' in said
    assert listing(work) == before


def test_damage_that_only_reading_shows_is_named_with_its_step(run, capsys):
    file, work = run
    for path in (work / 'checkpoints/2/extra').glob('**/d/*'):
        if len(content := path.read_bytes()) > 4000:  # values; nodes have sums of their own
            path.write_bytes(bytes(len(content)))
    before = listing(work)
    said = refused(capsys, 'train', '--config', file, '--workdir', work, '--config.steps=4')
    assert f'{work / "checkpoints"}, step 2 cannot be read' in said
    assert 'move the folder 2 away' in said and 'tensorstore_spec' not in said
    assert listing(work) == before


def test_lost_checkpoints_are_said(run, caplog):
    file, work = run
    shutil.rmtree(work / 'checkpoints')
    with caplog.at_level(logging.WARNING):
        assert mossjax('train', '--config', file, '--workdir', work) == 0
    assert 'has metrics up to step 2 and no checkpoint' in caplog.text


def test_full_disk_while_a_checkpoint_is_written(run, capsys):
    """The one before is not touched. That a run goes on from it is tested in tests/train."""
    file, work = run
    call = ('train', '--config', file, '--workdir', work, '--config.steps=4')
    stored = listing(work / 'checkpoints' / '2')
    with room_for_files_of(100_000):
        said = refused(capsys, *call)
    assert f'{work / "checkpoints"}: the disk takes no more while a checkpoint is written' in said
    assert 'free space' in said and 'orbax' not in said
    assert listing(work / 'checkpoints' / '2') == stored
    with room_for_files_of(4000):
        said = refused(capsys, *call)
    assert f'--workdir {work} cannot be written' in said and 'free space' in said


# --- devices


@pytest.mark.parametrize(
    'asked, brings', [('cuda', 'jax[cuda12]'), ('rocm', 'ROCm'), ('nonsense', 'name one of cpu')]
)
def test_a_platform_that_is_not_here(asked, brings, tmp_path):
    """In a process of its own, where jax has not started yet."""
    (tmp_path / 'mine.py').write_text(TOY.replace('"toy"', '"flow"'))
    code = (
        'import sys\nfrom mossjax.cli import main as cli\nfrom mossjax.train import starts, tasks\n'
        'from tests.train.toy_task import ToyTask\n'
        'tasks.FACTORIES["flow"] = lambda c, fresh: starts.Run(ToyTask(), c, None)\n'
        'sys.exit(cli.main(sys.argv[1:]))'
    )
    call = ['train', '--config', tmp_path / 'mine.py', '--workdir', tmp_path / 'run']
    done = subprocess.run(
        [sys.executable, '-c', code, *call], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, 'JAX_PLATFORMS': asked},
    )
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith('mossjax train: ')]
    assert f'JAX_PLATFORMS={asked}' in said and 'unset JAX_PLATFORMS' in said and brings in said
    assert not (tmp_path / 'run').exists()

"""Checkpoints whose files were lost, cut or renamed: read right, refused, or an older one taken."""

import json
import logging
import os
from pathlib import Path
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from mossjax import checkpoint, steps
from mossjax.checkpoint import Checkpoints, restore
from mossjax.convert.orbax_tensors import create
from mossjax.errors import InputError


def items(step):
    """Small arrays, which the database keeps inside its nodes, and large ones, which lie apart."""
    rng = np.random.default_rng(step)
    large = rng.normal(size=(600, 8)).astype(np.float32)
    return {
        'params': {'a': {'kernel': large}, 'b': rng.normal(size=3).astype(np.float32)},
        'opt_state': {'mu': 2 * large, 'count': np.int32(step)},
        'extra': {'half': large.astype(ml_dtypes.bfloat16)},
    }


def like(step=0):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=one), items(step)
    )


def same(found, step) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(items(step)), strict=True)
    )


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp('written')
    checkpoints = Checkpoints(root / 'c')
    for step in (2, 4):
        on_devices = jax.device_put(items(step), jax.tree.map(lambda x: x.sharding, like()))
        checkpoints.save(step, on_devices, {'note': 'ours'})
    checkpoints.close()
    return root / 'c'


@pytest.fixture
def directory(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / 'c'))


def unlink(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize('damage', [unlink, cut, zeros])
def test_any_file_of_the_newest_step_damaged(damage, written, tmp_path):
    """Each file by itself: step 4 exactly as it was, or step 2, or a refusal that names step 4.

    Only what lies inside values shows itself when they are read; nothing is ever taken for right.
    """
    outcomes = {}
    for path in sorted(p for p in (written / '4').rglob('*') if p.is_file()):
        name = str(path.relative_to(written / '4'))
        place = Path(shutil.copytree(written, tmp_path / 'c'))
        damage(place / '4' / name)
        before = {p: p.stat().st_size for p in place.rglob('*')}
        try:
            found, meta = restore(place, like())
            assert same(found, meta['step']) and meta['note'] == 'ours'
            outcomes[name] = meta['step']
        except InputError as error:
            assert 'step 4 cannot be read' in str(error) and 'move the folder 4' in str(error)
            outcomes[name] = 'refused'
        assert {p: p.stat().st_size for p in place.rglob('*')} == before
        shutil.rmtree(place)
    vital = {n for n in outcomes if n.endswith(('_METADATA', 'meta/metadata', '/manifest.ocdbt'))}
    vital -= {n for n in vital if n.startswith('_') or 'ocdbt.process_' in n}
    assert {outcomes[n] for n in vital} == {2} and len(vital) == 7
    assert 'refused' not in outcomes.values() or damage is zeros
    # Commit marks are not needed; shardings neither, but they are read where they are.
    assert outcomes['_CHECKPOINT_METADATA'] == outcomes['params/commit_success.txt'] == 4
    assert outcomes['params/_sharding'] == (4 if damage is unlink else 2)


@pytest.mark.parametrize('empty', [1, None, 'params', {'params': 1}])
def test_a_meta_that_names_no_trees(empty, directory):
    path = directory / '4/meta/metadata'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'empty': empty}))
    assert restore(directory, like())[1]['step'] == 2


@pytest.mark.parametrize('name', [
    'params', 'opt_state', 'extra', 'meta', 'params/d', 'opt_state/ocdbt.process_0', '',
])  # fmt: skip
@pytest.mark.parametrize('whole', [True, False])
def test_folders_lost_or_emptied(name, whole, directory):
    folder = directory / '4' / name
    shutil.rmtree(folder)
    if not whole:
        folder.mkdir()
    found, meta = restore(directory, like())
    assert meta['step'] == 2 and same(found, 2)
    there = (directory / '4').exists()
    with pytest.raises(InputError, match='step 4 is incomplete' if there else 'holds steps .2., n'):
        restore(directory, like(), 4)
    if name in ('opt_state', 'extra'):  # what is asked for alone decides
        params, meta = checkpoint.restore_params(directory, like()['params'])
        assert meta['step'] == 4
        np.testing.assert_array_equal(params['b'], items(4)['params']['b'])


def test_no_step_is_whole(directory):
    for step in (2, 4):
        (directory / str(step) / 'params/manifest.ocdbt').unlink()
    for read in (
        lambda: restore(directory, like()), lambda: steps.newest(directory),
        lambda: checkpoint.read_meta(directory), lambda: checkpoint.find_step(directory),
        lambda: Checkpoints(directory),
    ):
        with pytest.raises(InputError) as caught:
            read()
        for part in ('no checkpoint there is complete', 'step 4 (params/manifest.ocdbt is missing)',
                     'step 2 (params/manifest.ocdbt is missing)', 'Copy them again'):  # fmt: skip
            assert part in str(caught.value)


def test_strays_beside_the_steps(directory, caplog):
    shutil.copytree(directory / '4', directory / '100 (copy)')
    shutil.copytree(directory / '4', directory / '007')
    (directory / '200').write_text('a file')
    (directory / '300').symlink_to(directory / 'nowhere')
    for name in ('.DS_Store', '._4', 'notes.txt', '\N{SUPERSCRIPT TWO}', '4/.DS_Store',
                 '4/params/.DS_Store', '4/params/d/._x', '4/params/Thumbs.db'):  # fmt: skip
        (directory / name).write_bytes(b'\0\1Bud1')
    before = sorted(directory.rglob('*'))
    found, meta = restore(directory, like())
    assert meta['step'] == 4 and same(found, 4)
    checkpoints = Checkpoints(directory, keep=2)
    assert checkpoints.latest() == 4
    checkpoints.save(6, items(6), {})
    checkpoints.close()
    assert same(restore(directory, like())[0], 6)
    gone = set(before) - set(directory.rglob('*'))
    assert {p.relative_to(directory).parts[0] for p in gone} == {'2'}  # as `keep` says


def test_folders_under_other_names(directory, tmp_path, caplog):
    """A step alone in a folder is read; one under the number of another is not it."""
    alone = tmp_path / 'alone'
    shutil.copytree(directory / '4', alone / '4')
    assert same(restore(alone, like())[0], 4)
    (directory / '4').rename(directory / '9')
    with caplog.at_level(logging.WARNING):
        assert same(restore(directory, like())[0], 2)
    assert 'step 9 is incomplete (meta/metadata is of step 4)' in caplog.text
    (alone / '4').rename(alone / '4 (copy)')
    with pytest.raises(InputError, match=r"named by its number, not '4 \(copy\)'"):
        restore(alone, like())
    assert steps.newest(alone) is None and steps.newest(tmp_path / 'nothing') is None


def test_torn_steps_make_room_for_new_ones(directory):
    """They keep their content under another name, and `keep` never counts or removes them."""
    (directory / '4/params/manifest.ocdbt').unlink()
    for _ in range(2):
        checkpoints = Checkpoints(directory, keep=1)
        assert checkpoints.latest() == 2
        checkpoints.close()
    checkpoints = Checkpoints(directory, keep=1)
    for step in (3, 4):
        checkpoints.save(step, items(step), {})
    checkpoints.close()
    assert sorted(p.name for p in directory.iterdir()) == ['4', 'torn-4']
    assert same(restore(directory, like())[0], 4)
    assert (directory / 'torn-4/opt_state/manifest.ocdbt').is_file()
    shutil.rmtree(directory / '4/meta')
    shutil.copytree(directory / 'torn-4', directory / '3')
    with pytest.raises(InputError, match='no checkpoint there is complete'):
        Checkpoints(directory)
    shutil.copytree(directory / '4', directory / '2')
    assert sorted(p.name for p in directory.iterdir()) == ['2', '3', '4', 'torn-4']


def test_a_converted_checkpoint_without_an_array(tmp_path):
    """One folder an array: a description that is lost shows, and a piece when it is read."""
    shapes = {'a/kernel': np.zeros((4, 6), np.float32), 'b': np.zeros(3, np.float32)}
    create(tmp_path, shapes, {'a/kernel': ('embed', 'mlp'), 'b': ('norm',)}, {'model': {}})
    for name, value in shapes.items():
        array = checkpoint.open_array(tmp_path, name, 0)
        array.write(value + 1).result()
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {'a': {'kernel': shapes['a/kernel']}, 'b': shapes['b']}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), wanted)
    params, _ = checkpoint.restore_params(tmp_path, abstract)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y + 1), params, wanted)
    piece = tmp_path / '0/params/a.kernel/0.0'
    piece.rename(tmp_path / 'piece')
    with pytest.raises(InputError, match='step 0 cannot be read'):
        checkpoint.restore_params(tmp_path, abstract)
    (tmp_path / 'piece').rename(piece)
    os.truncate(tmp_path / '0/params/a.kernel/.zarray', 0)
    with pytest.raises(InputError, match=r'params/a.kernel/.zarray is empty'):
        checkpoint.restore_params(tmp_path, abstract)
    (tmp_path / '0/params/a.kernel/.zarray').unlink()
    with pytest.raises(InputError, match=r'params/a.kernel/.zarray is missing'):
        checkpoint.read_meta(tmp_path)

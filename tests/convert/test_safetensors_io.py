"""safetensors files: against the reference implementation, and every way they can be damaged."""

import json
import pathlib
import resource
import signal
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as reference

from mossjax.convert.directories import new_directory
from mossjax.convert.safetensors_io import write
from mossjax.convert.weight_files import open_tensors
from mossjax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]


def tensors(rng):
    """Odd sizes and all kinds, so that offsets are not aligned by luck."""
    return {
        'bytes': rng.integers(0, 255, 3).astype(np.uint8),
        'half': rng.normal(size=(5, 3)).astype(ml_dtypes.bfloat16),
        'float': rng.normal(size=(2, 3, 1)).astype(np.float32),
        'scalar': np.array(2.5),
        'empty': np.zeros((0, 4), np.float16),
        'flag': np.array([True, False, True]),
        'ids': rng.integers(-9, 9, (7,)),
    }


def same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    assert got.tobytes() == want.tobytes()


def test_reads_what_the_reference_wrote(tmp_path, rng):
    want = tensors(rng)
    reference.save_file(want, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    got = open_tensors(tmp_path)
    assert got.shapes == {n: a.shape for n, a in want.items()}
    assert set(got.shapes) == set(want) == set(got.dtypes)
    for name, array in want.items():
        same(got.read(name), array)


def test_the_reference_reads_what_we_wrote(tmp_path, rng):
    want = tensors(rng)
    write(tmp_path / 'model.safetensors', want)
    got = reference.load_file(tmp_path / 'model.safetensors')
    assert set(got) == set(want)
    for name, array in want.items():
        same(got[name], array)
    assert [p.name for p in tmp_path.iterdir()] == ['model.safetensors']


def test_transposed_arrays_are_written_in_their_own_order(tmp_path, rng):
    array = rng.normal(size=(3, 5)).T
    write(tmp_path / 'x.safetensors', {'a': array})
    np.testing.assert_array_equal(reference.load_file(tmp_path / 'x.safetensors')['a'], array)


def test_shards_are_cut_in_order_before_the_limit(tmp_path, rng):
    want = {name: rng.normal(size=10).astype(np.float32) for name in 'abcde'}  # 40 bytes each
    write(tmp_path / 'model.safetensors', want, shard_bytes=100)
    index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
    files = [f'model-0000{i}-of-00003.safetensors' for i in (1, 1, 2, 2, 3)]
    assert index == {
        'metadata': {'total_size': 200}, 'weight_map': dict(zip('abcde', files, strict=True))
    }  # fmt: skip
    got = open_tensors(tmp_path)
    assert list(got.shapes) == list('abcde')
    for name, array in want.items():
        same(got.read(name), array)


def test_a_failed_write_leaves_nothing_and_keeps_the_old(tmp_path):
    path = tmp_path / 'model.safetensors'
    write(path, {'a': np.zeros(3)})
    before = path.read_bytes()

    with pytest.raises(OSError, match='disk full'):
        write(path, {'a': np.ones(3), 'b': Unreadable()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / 'model.safetensors'
    write(path, {'a': np.zeros(3)})
    program = (
        'import os, signal, sys, numpy as np; from mossjax.convert.safetensors_io import write\n'
        'class Deadly:\n'
        '    dtype, shape, nbytes = np.dtype(np.float64), (4,), 32\n'
        '    def __array__(self, dtype=None, copy=None): os.kill(os.getpid(), signal.SIGKILL)\n'
        'write(sys.argv[1], {"a": np.ones(100_000), "b": Deadly()})\n'
    )
    done = subprocess.run([sys.executable, '-c', program, str(path)], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    np.testing.assert_array_equal(open_tensors(tmp_path).read('a'), np.zeros(3))


def test_a_full_disk_is_refused_by_name_and_leaves_the_old_file(tmp_path):
    """A limit on the size of files stands for it: the writer's own calls fail."""
    path = tmp_path / 'model.safetensors'
    write(path, {'a': np.zeros(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(InputError, match='model.safetensors cannot be written.*free space'):
            write(path, {'a': np.ones(100_000)})
        with pytest.raises(InputError, match='new cannot be written'), new_directory(
            tmp_path / 'new'
        ) as folder:
            (folder / 'large').write_bytes(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(open_tensors(tmp_path).read('a'), np.zeros(3))


class Unreadable:
    """Has a header entry but no bytes."""

    dtype, shape, nbytes = np.dtype(np.float64), (4,), 32

    def __array__(self, dtype=None, copy=None):
        raise OSError('disk full')


def damaged(path, how):
    data = path.read_bytes()
    length = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8 : 8 + length])

    def again(header):
        text = json.dumps(header).encode()
        return struct.pack('<Q', len(text)) + text + data[8 + length :]

    if how == 'truncated':
        return data[:-1]
    if how == 'four bytes':
        return data[:4]
    if how == 'git lfs pointer':
        return b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n'
    if how == 'absurd header':
        return struct.pack('<Q', 2**62) + data[8:]
    if how == 'not json':
        return struct.pack('<Q', 8) + b'notjson!' + data[8:]
    if how == 'list header':
        return again([1])
    if how == 'deep header':
        text = b'[' * 100_000
        return struct.pack('<Q', len(text)) + text + data[8:]
    if how == 'name twice':
        text = json.dumps(header).encode()
        text = text[:-1] + b', "a"' + text[len('{"a"'):]
        return struct.pack('<Q', len(text)) + text + data[8 + length :]
    if how == 'unused bytes':
        return again(header) + b'more'
    if how == 'a hole':
        return again({'a': {**header['a'], 'shape': [2], 'data_offsets': [4, 12]}})
    if how == 'notes that are numbers':
        return again({**header, '__metadata__': {'format': 1}})
    if how == 'shared bytes':
        return again({**header, 'b': {**header['a'], 'shape': [1], 'data_offsets': [4, 8]}})
    header['a'] |= {
        'offsets beyond the shape': {'data_offsets': [0, 8]},
        'negative offset': {'data_offsets': [-4, 8]},
        'negative shape': {'shape': [-3]},
        'no offsets': {'data_offsets': None},
        'fractions': {'shape': [3.0]},
        'a key of next year': {'strides': [1]},
        'a size as text': {'shape': ['3']},
        'sizes without end': {'shape': [2**62, 0], 'data_offsets': [0, 0]},
        'unknown dtype': {'dtype': 'F4'},
    }[how]
    return again(header)


@pytest.mark.parametrize(
    'how',
    [
        'truncated', 'four bytes', 'git lfs pointer', 'absurd header', 'not json', 'list header',
        'deep header', 'name twice', 'shared bytes',
        'offsets beyond the shape', 'negative offset', 'negative shape', 'no offsets',
        'unknown dtype', 'unused bytes', 'a hole', 'notes that are numbers', 'fractions',
        'a key of next year',
        'a size as text', 'sizes without end',
    ],
)  # fmt: skip
def test_damaged_files_are_refused_on_opening(tmp_path, how):
    path = tmp_path / 'model.safetensors'
    write(path, {'a': np.arange(3, dtype=np.float32)})
    path.write_bytes(damaged(path, how))
    with pytest.raises(InputError, match='model.safetensors'):
        open_tensors(tmp_path)


def sharded(tmp_path):
    write(
        tmp_path / 'model.safetensors', {n: np.zeros(4, np.float32) for n in 'abc'}, shard_bytes=16
    )
    index = tmp_path / 'model.safetensors.index.json'
    return index, json.loads(index.read_text())


def test_a_missing_shard_is_named(tmp_path):
    sharded(tmp_path)
    (tmp_path / 'model-00002-of-00003.safetensors').unlink()
    with pytest.raises(InputError, match='shard model-00002-of-00003.safetensors is not there'):
        open_tensors(tmp_path)


@pytest.mark.parametrize('file', ['../model.safetensors', '/etc/passwd', 'sub/x', '..', '', 7])
def test_an_index_may_not_leave_its_directory(tmp_path, file):
    index, content = sharded(tmp_path)
    content['weight_map']['a'] = file
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match='outside its own directory'):
        open_tensors(tmp_path)


def test_index_and_shards_must_agree(tmp_path):
    index, content = sharded(tmp_path)
    content['weight_map']['d'] = content['weight_map']['a']
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="tensor 'd' is not in model-00001"):
        open_tensors(tmp_path)
    del content['weight_map']['d']
    content['weight_map']['b'] = content['weight_map']['a']
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match='does not name model-00002-of-00003.safetensors'):
        open_tensors(tmp_path)


def test_an_index_that_names_a_tensor_twice_is_refused(tmp_path):
    index, content = sharded(tmp_path)
    text = index.read_text().replace('"b": "model-00002', '"a": "model-00002')
    assert text != index.read_text()
    index.write_text(text)
    with pytest.raises(InputError, match="'a' is given twice"):
        open_tensors(tmp_path)


def test_index_and_single_file_together_are_ambiguous(tmp_path):
    sharded(tmp_path)
    write(tmp_path / 'model.safetensors', {'a': np.zeros(1)})
    with pytest.raises(InputError, match='Remove the stale one'):
        open_tensors(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match='holds no model.safetensors; download the weights'):
        open_tensors(tmp_path)

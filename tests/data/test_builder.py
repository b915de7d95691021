"""Rows on disk: the same rows back, no TensorFlow, nothing half-written is opened."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mossjax.data.builder import open_rows, write_rows
from mossjax.data.rows import IGNORE, Example, pack
from mossjax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = {'recipe': 'test', 'ids': {'sosp': 4, 'filler': 512}, 'seed': 1}


def make(n):
    rng = np.random.default_rng(5)
    for i in range(n):
        tokens = rng.integers(0, 151_680, (int(rng.integers(3, 20)), 2))
        labels = np.roll(tokens, -1, 0)
        labels[-1] = IGNORE
        yield Example(tokens, labels, f'e{i}')


def test_round_trip(tmp_path, capfd):
    counted = []
    examples = (counted.append(x) or x for x in make(60))
    summary = lambda: {'made': len(counted)}  # noqa: E731
    metadata = write_rows(tmp_path, examples, 32, config=CONFIG, pad=(3, 5), summary=summary)
    assert not capfd.readouterr().out and metadata['summary'] == {'made': 60}
    want = list(pack(make(60), 32, pad=(3, 5)))
    source = open_rows(tmp_path)
    assert len(source) == len(want) == metadata['rows']
    for i, row in enumerate(want):  # the order of packing
        got = source[i]
        assert set(got) == set(row)
        for key in row:
            np.testing.assert_array_equal(got[key], row[key])
            assert got[key].dtype == np.int32
    assert source.metadata == metadata
    assert metadata['config'] == CONFIG and metadata['length'] == 32 and metadata['pad'] == [3, 5]
    tokens = sum(map(len, make(60)))
    assert metadata['tokens'] == tokens and metadata['examples'] == 60
    assert metadata['padding'] == pytest.approx(1 - tokens / (32 * len(want)))
    again = write_rows(tmp_path / 'again', make(60), 32, config=CONFIG, pad=(3, 5))
    other = write_rows(tmp_path / 'other', make(59), 32, config=CONFIG, pad=(3, 5))
    assert again['sha256'] == metadata['sha256'] != other['sha256']


def test_finished_is_kept_and_another_config_refused(tmp_path):
    first = write_rows(tmp_path, make(10), 32, config=CONFIG)

    def unused():
        raise AssertionError('the examples of a finished data set were read')
        yield

    assert write_rows(tmp_path, unused(), 32, config=CONFIG) == first
    with pytest.raises(InputError, match='seed = 1, asked for 2; write to another directory'):
        write_rows(tmp_path, unused(), 32, config={**CONFIG, 'seed': 2})
    with pytest.raises(InputError, match='fact = null, asked for 2'):
        write_rows(tmp_path, unused(), 32, config={**CONFIG, 'fact': 2})
    with pytest.raises(InputError, match='length = 32, asked for 64'):
        write_rows(tmp_path, unused(), 64, config=CONFIG)


# Dies without clean-up in the middle of writing, as a preempted machine does.
KILLED = """
import os, sys
from tests.data.test_builder import make
from mossjax.data.builder import write_rows
def examples():
    yield from make(40)
    os.kill(os.getpid(), 9)
write_rows(sys.argv[1], examples(), 32, config={'a': 1}, window=8)
"""
# Writes, opens and mixes without ever importing TensorFlow.
LIGHT = """
import sys
from tests.data.test_builder import make
from mossjax.data.builder import open_rows, write_rows
from mossjax.data.pipeline import RowBatches
write_rows(sys.argv[1], make(40), 32, config={})
batch = RowBatches({'x': open_rows(sys.argv[1])}, 4, 0).batch(3)
assert batch['tokens'].shape == (4, 32, 2)
assert 'tensorflow' not in sys.modules
"""


def run(code, *args):
    command = [sys.executable, '-c', code, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_half_written_is_not_opened_but_written_anew(tmp_path):
    assert run(KILLED, tmp_path).returncode == -9
    assert list(tmp_path.glob('rows/*incomplete*'))
    with pytest.raises(InputError, match='interrupted.*write it anew'):
        open_rows(tmp_path)
    write_rows(tmp_path, make(40), 32, config={'a': 1}, window=8)
    assert not list(tmp_path.glob('rows/*incomplete*'))
    assert len(open_rows(tmp_path)) == len(list(pack(make(40), 32, window=8)))


def test_without_tensorflow(tmp_path):
    done = run(LIGHT, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_to_open_or_to_write(tmp_path):
    with pytest.raises(InputError, match='there is none'):
        open_rows(tmp_path)
    with pytest.raises(InputError, match='no examples'):
        write_rows(tmp_path, iter([]), 32, config={})
    with pytest.raises(InputError, match=r"'e\d+' has 1\d positions, rows have 8"):
        write_rows(tmp_path, make(40), 8, config={})
    with pytest.raises(InputError, match='no complete packed data set'):
        open_rows(tmp_path)


@pytest.mark.parametrize('left, said', [
    (0.5, 'damaged or cut short'), (0.999, 'damaged or cut short'), (None, 'No such file'),
])  # fmt: skip
def test_a_file_that_is_cut_short_is_named_when_it_is_opened(tmp_path, left, said):
    write_rows(tmp_path, make(40), 32, config={})
    (file,) = tmp_path.rglob('*array_record*')
    content = file.read_bytes()
    file.unlink() if left is None else file.write_bytes(content[: int(left * len(content))])
    with pytest.raises(InputError, match=f'{file}: damaged or cut short .*copy it') as caught:
        open_rows(tmp_path)
    assert said in str(caught.value)
    file.write_bytes(content)
    assert len(open_rows(tmp_path)) > 1

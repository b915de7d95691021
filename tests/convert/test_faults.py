"""Conversions on disks that are small, fill up, lose pieces or lie; sources that are none."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from mossjax.convert import kinds, transfer
from mossjax.convert.directories import save_lm
from mossjax.convert.placement import open_lm
from mossjax.convert.transfer import convert, verify
from mossjax.errors import InputError
from tests.tiny_lm import tiny_config, tiny_params


def test_a_small_disk_is_seen_before_anything_is_written(tmp_path, source, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(transfer.shutil, 'disk_usage', lambda p: usage._replace(free=1000))
    with pytest.raises(InputError, match='GB are needed, 0.0 GB are free'):
        convert(kinds.open_source(source), tmp_path / 'out')
    assert [p.name for p in tmp_path.iterdir()] == ['source']


def test_what_an_interrupted_export_holds_is_not_asked_for_again(tmp_path, source, monkeypatch):
    """Shards have their full size from the start; the disk need only take the rest."""
    convert(kinds.open_source(source), tmp_path / 'orbax')
    read = transfer.OrbaxTensors.read

    def killed(self, name):
        if name == 'text_lm_head.weight':
            raise KeyboardInterrupt
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(transfer.OrbaxTensors, 'read', killed)
        with pytest.raises(KeyboardInterrupt):
            convert(kinds.open_source(tmp_path / 'orbax'), tmp_path / 'back')
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        transfer.shutil, 'disk_usage', lambda p: usage._replace(free=transfer.SPARE_BYTES)
    )
    convert(kinds.open_source(tmp_path / 'orbax'), tmp_path / 'back')
    assert verify(tmp_path / 'back') == []


def test_a_disk_that_fills_up_on_the_way_to_orbax(tmp_path):
    """In a process that may write only small files; afterwards the same command completes."""
    config = tiny_config(audio_vocab_size=4000)
    save_lm(tmp_path / 'source', config, tiny_params(config))
    code = (
        'import resource, sys; from mossjax.cli import main; '
        'resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 10**5, 2 * 10**5)); '
        'sys.exit(main.main(["convert", *sys.argv[1:]]))'
    )
    command = [sys.executable, '-c', code, str(tmp_path / 'source'), str(tmp_path / 'out')]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and 'Traceback' not in ended.stderr
    assert 'the disk takes no more' in ended.stderr and not (tmp_path / 'out').exists()
    done = (tmp_path / '.out.converting' / 'progress.jsonl').read_text().splitlines()
    assert len(done) > 1  # what is in place is not written again
    convert(kinds.open_source(tmp_path / 'source'), tmp_path / 'out')
    assert verify(tmp_path / 'out', tmp_path / 'source') == []


@pytest.mark.parametrize('harm', ['lost', 'cut'])
def test_a_piece_of_an_orbax_array_that_is_gone_is_no_zeros(tmp_path, source, harm):
    convert(kinds.open_source(source), tmp_path / 'orbax')
    folder = tmp_path / 'orbax' / '0' / 'params' / 'text_head.kernel'
    piece = next(p for p in sorted(folder.iterdir()) if not p.name.startswith('.'))
    if harm == 'lost':
        piece.unlink()
    else:
        piece.write_bytes(piece.read_bytes()[:-7])
    with pytest.raises(InputError, match='missing or damaged'):
        convert(kinds.open_source(tmp_path / 'orbax'), tmp_path / 'back')
    with pytest.raises(InputError, match='missing or damaged'):
        open_lm(tmp_path / 'orbax')


def test_an_orbax_source_is_hashed_too(tmp_path, source):
    convert(kinds.open_source(source), tmp_path / 'orbax')
    paper = convert(kinds.open_source(tmp_path / 'orbax'), tmp_path / 'back')
    assert any(name.startswith('0/params/') for name in paper['source']['files'])
    assert verify(tmp_path / 'back', tmp_path / 'orbax') == []
    piece = next(p for p in (tmp_path / 'orbax/0/params/text_head.kernel').iterdir()
                 if not p.name.startswith('.'))  # fmt: skip
    piece.write_bytes(piece.read_bytes()[::-1])
    [fault] = verify(tmp_path / 'back', tmp_path / 'orbax')
    assert 'differs from the one converted' in fault


@pytest.mark.parametrize('inside', ['', 'params', 'meta'])
def test_a_folder_with_a_number_is_not_yet_a_checkpoint(tmp_path, inside):
    (tmp_path / 'made' / '2024' / inside).mkdir(parents=True)
    with pytest.raises(InputError, match='neither a Hugging Face|no checkpoint there is complete'):
        kinds.open_source(tmp_path / 'made')


def test_verifying_what_is_no_directory(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='no such file'):
        verify(tmp_path / 'file')


def test_a_full_target_is_left_alone(tmp_path, source):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'precious').write_text('x')
    with pytest.raises(InputError, match='not empty'):
        convert(kinds.open_source(source), tmp_path / 'out')
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['precious']


def test_a_disk_that_returns_other_bytes_is_noticed(tmp_path, source, monkeypatch):
    """Nothing is kept of a conversion whose tensors do not come back."""
    wrong = 'model.text_norm.weight'
    read = transfer.OrbaxTensors.read

    def lying(self, name):
        tensor = read(self, name)
        return np.roll(tensor, 1) if name == wrong else tensor

    monkeypatch.setattr(transfer.OrbaxTensors, 'read', lying)
    with pytest.raises(InputError, match=wrong):
        convert(kinds.open_source(source), tmp_path / 'out')
    assert [p.name for p in tmp_path.iterdir()] == ['source']

"""The one rule for paths, on a real file system; nothing is left behind by a check."""

import json
import os
from pathlib import Path
import resource
import stat
import threading

import pytest

from mossjax import paths
from mossjax.errors import InputError
from mossjax.files import json_line, read_json, replacing

ROLES = [paths.file_to_read, paths.folder_to_read, paths.file_to_write, paths.folder_to_write]


def everything(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob('*')}


@pytest.fixture
def place(tmp_path):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'link').symlink_to('file')
    (tmp_path / 'loop').symlink_to('loop')
    (tmp_path / 'ring-a').symlink_to('ring-b')
    (tmp_path / 'ring-b').symlink_to('ring-a')
    (tmp_path / 'dangling').symlink_to('not-there')
    os.mkfifo(tmp_path / 'pipe')
    return tmp_path


@pytest.mark.parametrize('role', ROLES)
@pytest.mark.parametrize('text, said', [
    ('', 'is empty'), ('  ', 'is empty'), ('a\0b', 'NUL'),
    ('s3://bucket/x', 's3:// is not read here'),
    ('https://host/x.wav', 'curl'), ('hf://org/model', 'hf download'),
    ('file:///x', 'without file://'),
    ('gs:/bucket/x', 'gs://BUCKET'), ('gs://', 'gs://BUCKET'), ('GS://Bucket', 'gs://BUCKET'),
    ('gs://bucket/x', 'gcloud storage cp'), ('az://c/x', 'az:// is not read here'),
])  # fmt: skip
def test_places_that_are_no_local_path_are_refused_with_the_flag_named(role, text, said):
    with pytest.raises(InputError, match='^--flag') as refused:
        role(text, '--flag')
    assert said in str(refused.value)


@pytest.mark.parametrize('role', ROLES)
@pytest.mark.parametrize('name, said', [
    ('loop', 'leads to itself'), ('ring-a', 'leads to itself'),
    ('file/inside', 'is a file, not a folder'),
    ('file/deep/inside', 'is a file, not a folder'),
    ('n' * 300, 'longer than the file system takes'),
])  # fmt: skip
def test_names_no_file_can_have_here(place, role, name, said):
    before = everything(place)
    with pytest.raises(InputError, match='^--flag') as refused:
        role(place / name, '--flag')
    assert said in str(refused.value)
    assert everything(place) == before


def test_what_is_read_must_be_there(place):
    assert paths.file_to_read(place / 'link', 'x').read_text() == 'x'
    assert paths.file_to_read(place / 'pipe', 'x') == place / 'pipe'
    assert paths.folder_to_read(place / 'folder', 'x') == place / 'folder'
    for role, name, said in (
        (paths.file_to_read, 'folder', 'is a folder'),
        (paths.file_to_read, 'none', 'no such file'),
        (paths.file_to_read, 'dangling', 'no such file'),
        (paths.folder_to_read, 'file', 'is a file'),
        (paths.folder_to_read, 'none', 'no such folder'),
        (paths.folder_to_read, 'pipe', 'is a file'),
    ):
        with pytest.raises(InputError, match=said):
            role(place / name, 'x')


def test_what_is_written_needs_a_place(place):
    before = everything(place)
    for name in ('file', 'link', 'new', 'a/b/new', 'dangling', 'pipe'):
        assert paths.file_to_write(place / name, 'x') == place / name
    for name in ('folder', 'new', 'a/b/new'):
        assert paths.folder_to_write(place / name, 'x') == place / name
    for role, name, said in (
        (paths.file_to_write, 'folder', 'is a folder'),
        (paths.folder_to_write, 'file', 'is a file'),
        (paths.folder_to_write, 'pipe', 'is a file'),
    ):
        with pytest.raises(InputError, match=said):
            role(place / name, 'x')
    with pytest.raises(InputError, match='is a folder'):
        paths.file_to_write(f'{place}/new/', 'x')
    assert everything(place) == before


@pytest.mark.parametrize('role', [paths.file_to_write, paths.folder_to_write])
def test_a_file_system_that_takes_no_files_is_found_before_work_starts(role):
    with pytest.raises(InputError, match='^--out /proc/new.* /proc takes no files'):
        role('/proc/new', '--out')


@pytest.mark.parametrize('role', [paths.file_to_write, paths.folder_to_write])
@pytest.mark.parametrize('room', [0, 1, paths.PROBE_BYTES - 1])
def test_a_file_system_that_takes_a_part_of_a_file_is_full(role, room, place):
    """The write that meets the limit succeeds in part; only the next one fails."""
    before, limits = everything(place), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(InputError, match='takes no files .File too large.; free space'):
            role(place / 'new', '--out')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    role(place / 'new', '--out')
    assert everything(place) == before


def test_home_and_names_in_any_bytes(place, monkeypatch):
    monkeypatch.setenv('HOME', str(place))
    assert paths.file_to_read('~/file', 'x') == place / 'file'
    odd = Path(os.fsdecode(bytes(place) + b'/caf\xe9 \xff.wav'))
    odd.write_text('y')
    assert paths.file_to_read(odd, 'x').read_text() == 'y'
    assert paths.printable(odd).endswith('caf\\udce9 \\udcff.wav')
    with pytest.raises(InputError) as refused:
        paths.folder_to_read(odd, 'x')
    str(refused.value).encode()
    line = json_line({'path': str(odd)})
    assert line.isascii() and json.loads(line) == {'path': str(odd)}
    assert json_line({'path': '北京'}) == '{"path": "北京"}\n'


def test_a_bucket_needs_the_extra(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'mossjax\[gcs\]'"):
        paths.folder_to_write('gs://bucket/run', '--workdir', buckets=True)
    with pytest.raises(InputError, match='only local paths'):
        paths.folder_to_write('gs://bucket/run', 'x')


# ------------------------------------------------------------------------------------- replacing


def test_a_link_stays_a_link_and_its_target_is_replaced(place):
    with replacing(place / 'link') as temporary:
        temporary.write_text('new')
    assert (place / 'link').is_symlink() and (place / 'file').read_text() == 'new'
    with replacing(place / 'dangling') as temporary:
        temporary.write_text('made')
    assert (place / 'not-there').read_text() == 'made'


def test_a_pipe_gets_what_a_file_would_hold(place):
    got = []
    reader = threading.Thread(target=lambda: got.append((place / 'pipe').read_bytes()))
    reader.start()
    with replacing(place / 'pipe') as temporary:
        temporary.write_bytes(b'abc' * 50_000)
    reader.join()
    assert got == [b'abc' * 50_000] and stat.S_ISFIFO((place / 'pipe').stat().st_mode)


def test_the_longest_name_a_file_system_takes_can_be_written(place):
    path = place / ('n' * 251 + '.wav')
    with replacing(path) as temporary:
        assert temporary.suffix == '.wav'
        temporary.write_text('x')
    assert path.read_text() == 'x'


@pytest.mark.parametrize('name', ['file/new', 'folder', 'n' * 300])
def test_what_cannot_be_written_is_named_and_no_temporary_is(place, name):
    before = everything(place)
    with pytest.raises(InputError, match='cannot be written') as refused:
        with replacing(place / name) as temporary:
            temporary.write_text('x')
    assert str(place / name) in str(refused.value)
    assert everything(place) == before


def test_json_files(place):
    (place / 'bom.json').write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(place / 'bom.json') == {'a': 1}
    (place / 'latin.json').write_bytes(b'{"a": "\xe9"}')
    for name, said in (
        ('folder', 'is a folder'), ('none', 'no such file'),
        ('latin.json', 'UTF-8'), ('file', 'not JSON'),
    ):
        with pytest.raises(InputError, match=said):
            read_json(place / name)

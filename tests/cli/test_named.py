"""Which lines of a dialogue are recordings, which words, which neither."""

import os

import pytest

from mossjax.cli.named import recording
from mossjax.errors import InputError
from mossjax.infer.formats.names import SUFFIXES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, which is the home folder as well, with some files."""
    for name in ('q.wav', 'My Question.MP3', "it's 100% (1).m4a", 'noted', 'a.wav b.wav', '$q.ogg'):
        (tmp_path / name).write_bytes(b'sound')
    (tmp_path / 'rec.wav').mkdir()
    (tmp_path / 'loop.wav').symlink_to('loop.wav')
    (tmp_path / 'linked.opus').symlink_to('q.wav')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    'line, name',
    [
        ('q.wav', 'q.wav'),
        ('  q.wav  \r', 'q.wav'),
        ("'q.wav' ", 'q.wav'),
        ('My Question.MP3', 'My Question.MP3'),  # as it stands
        ("'My Question.MP3'", 'My Question.MP3'),
        ('"My Question.MP3" ', 'My Question.MP3'),
        ('My\\ Question.MP3', 'My Question.MP3'),
        ("it's 100% (1).m4a", "it's 100% (1).m4a"),
        ("it\\'s\\ 100%\\ \\(1\\).m4a ", "it's 100% (1).m4a"),  # macOS
        ("'{}/it'\\''s 100% (1).m4a' ", "it's 100% (1).m4a"),  # GNOME
        ('file://{}/it%27s%20100%25%20(1).m4a', "it's 100% (1).m4a"),
        ("'FILE://localhost{}/My%20Question.MP3'", 'My Question.MP3'),
        ('file:{}/q.wav', 'q.wav'),
        ('{}/noted', 'noted'),
        ('./noted', 'noted'),
        ('~/noted', 'noted'),
        ("'~/My Question.MP3'", 'My Question.MP3'),
        ('file://{}/noted', 'noted'),
        ('a.wav b.wav', 'a.wav b.wav'),  # there is such a file
        ('$q.ogg', '$q.ogg'),
        ('linked.opus', 'linked.opus'),
    ],
)
def test_heard(line, name, folder):
    assert os.path.samefile(recording(line.replace('{}', str(folder))), folder / name)
    assert recording(line.replace('{}', str(folder))).is_absolute() == ('{}' in line or '~' in line)


@pytest.mark.parametrize(
    'line',
    [
        'what is a .wav file', 'is mp3 better than wav', 'I prefer .wav', 'Open q.wav, please.',
        'What is in q.wav?', 'noted', 'hello', '...', '/', '~', '"', "don't", 'and/or', '1/2', '\\',
        '/tmp and /usr are what', '~ is a tilde', './ means here', 'visit abc.net.au', 'e.g.',
        'https://example.org/ says so', "'hello there'", 'a . wav', 'wav', '.mp3', 'so: .flac',
    ],
)  # fmt: skip
def test_words(line, folder):
    assert recording(line) is None


@pytest.mark.parametrize(
    'line, said',
    [
        ('gone.wav', 'recording gone.wav: no such file'),
        ("'my gone.FLAC'", 'recording my gone.FLAC: no such file'),
        ('my\\ gone.webm', 'recording my gone.webm: no such file'),
        ('my gone.aiff', 'my gone.aiff ends as the name of a recording does, and there is no such'),
        ('please play q.wav', 'no such file; give its name alone, and end words with a full stop'),
        ('~/gone.ogg', '{}/gone.ogg: no such file'),
        ('{}/my gone.m4a', '{}/my gone.m4a: no such file'),
        ('file://{}/my%20gone.aac', '{}/my gone.aac: no such file'),
        ('/gone/away', '/gone/away: no such file'),
        ('./gone', 'recording gone: no such file'),
        ('~/gone', '{}/gone: no such file'),
        ('q.wav/more.wav', 'q.wav is a file, not a folder'),
        ('rec.wav', 'rec.wav is a folder; give the name of a file in it'),
        ('{}', '{} is a folder'),
        ('loop.wav', 'leads to itself'),
        ('q.wav linked.opus', 'q.wav linked.opus names 2 files; give one recording a line'),
        ("'{}/q.wav' '{}/noted'", 'names 2 files'),
        ("'{}/q.wav' what did I say?", 'has a recording among words; give it a line of its own'),
        (f'{"x" * 300}.wav', 'a name longer than the file system takes'),
        ('a\0b.wav', 'NUL'),
        ('gs://bucket/q.wav', 'only local paths'),
        ('https://example.org/q.mp3', 'download it first'),
        ('\udcff.wav', '\\udcff.wav: no such file'),
    ],
)
def test_refused(line, said, folder):
    with pytest.raises(InputError) as error:
        recording(line.replace('{}', str(folder)))
    assert said.replace('{}', str(folder)) in str(error.value)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_every_suffix_in_any_case(suffix, folder):
    for name in (f'new.{suffix}', f'new.{suffix.upper()}'):
        with pytest.raises(InputError, match='no such file'):
            recording(name)
        (folder / name).write_bytes(b'sound')
        assert str(recording(name)) == name


def test_a_name_of_any_bytes(folder):
    (folder / os.fsdecode(b'caf\xe9.wav')).write_bytes(b'sound')
    assert os.fsencode(recording(os.fsdecode(b"'caf\xe9.wav'"))) == b'caf\xe9.wav'
    assert os.fsencode(recording(f'file://{folder}/caf%E9.wav')).endswith(b'/caf\xe9.wav')

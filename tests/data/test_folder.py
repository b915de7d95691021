"""Folders as people have them: which files become which entries, and what is refused."""

import json
import os

import pytest

from mossjax.data.folder import read_folder
from mossjax.data.manifest import Dialogue, Recording, Turn, read_manifest, write_manifest
from mossjax.errors import InputError


def lay_out(root, files):
    """Makes files of these contents (None: a recording, which is not opened here)."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else (content or '').encode())


def recordings(found):
    """{path below the folder: (text, speaker)}"""
    return {
        os.path.relpath(e.audio, found.root): (e.text, e.speaker)
        for e in found.entries if isinstance(e, Recording)
    }  # fmt: skip


def test_text_files_beside_recordings(tmp_path):
    lay_out(tmp_path, {
        'b.wav': None, 'b.txt': ' two\n  lines \n', 'a/c.FLAC': None, 'a/c.lab': 'three',
        'a/d.mp3': None, 'e.wav': None, 'e.normalized.txt': 'five', 'e.original.txt': '5',
        'notes.txt': 'of the studio', '.hidden/f.wav': None, '._b.wav': None, 'picture.png': None,
        'f.wav': None, 'f.txt': '\ufeffvier'.encode(), 'g.wav': None,
        'g.txt': 'sechs'.encode('utf-16'),
    })  # fmt: skip
    found = read_folder(tmp_path)
    assert recordings(found) == {
        'a/c.FLAC': ('three', ''), 'a/d.mp3': ('', ''), 'b.wav': ('two lines', ''),
        'e.wav': ('five', ''), 'f.wav': ('vier', ''), 'g.wav': ('sechs', ''),
    }  # fmt: skip
    assert [e.audio for e in found.entries] == sorted(e.audio for e in found.entries)
    left = [(os.path.basename(r.name), r.reason) for r in found.rejects]
    assert left == [
        ('e.original.txt', 'a text without a recording of that name'),
        ('notes.txt', 'a text without a recording of that name'),
    ]


def test_lists_of_transcripts_as_librispeech_has_them(tmp_path):
    lay_out(tmp_path, {
        '84/121/84-121-0000.flac': None, '84/121/84-121-0001.flac': None,
        '84/121/84-121.trans.txt': '84-121-0000 GO DO YOU HEAR\n84-121-0001 BUT  IN\n',
    })  # fmt: skip
    assert recordings(read_folder(tmp_path)) == {
        '84/121/84-121-0000.flac': ('GO DO YOU HEAR', ''), '84/121/84-121-0001.flac': ('BUT IN', '')
    }  # fmt: skip


TABLES = {
    'audiofolder': (
        'metadata.csv', 'file_name,transcription,speaker_id\n'
        'clips/a.wav,"the answer, ""seven""",ann\nb.wav,eight,bob\n',
    ),
    'common voice': (
        'validated.tsv', 'client_id\tpath\tsentence\tup_votes\n'
        'ann\ta.wav\tthe answer, "seven"\t2\nbob\tb.wav\teight\t2\n',
    ),
    'deepspeech': (
        'train.csv', 'wav_filename,wav_filesize,transcript,speaker\n'
        'clips/a.wav,44,"the answer, ""seven""",ann\nb.wav,44,eight,bob\n',
    ),
    'windows': (
        'list.csv', '\ufeffFile Name;Text;Speaker\r\nclips\\a.wav;"the answer, ""seven""";ann\r\n'
        'b;eight;bob\r\n',
    ),
    'json lines': (
        'metadata.jsonl',
        json.dumps({'file_name': 'clips/a.wav', 'text': 'the answer, "seven"', 'speaker': 'ann'})
        + '\n' + json.dumps({'file_name': 'b.wav', 'text': 'eight', 'speaker': 'bob', 'n': 3}),
    ),
}  # fmt: skip


@pytest.mark.parametrize('name, content', TABLES.values(), ids=TABLES.keys())
def test_tables(tmp_path, name, content):
    lay_out(tmp_path, {'clips/a.wav': None, 'b.wav': None, 'c.wav': None, name: content})
    want = {'clips/a.wav': ('the answer, "seven"', 'ann'), 'b.wav': ('eight', 'bob')}
    assert recordings(read_folder(tmp_path)) == want  # c.wav is not listed
    assert recordings(read_folder(tmp_path / name)) == want


def test_a_table_without_header_as_ljspeech_has_it(tmp_path):
    lay_out(tmp_path, {
        'wavs/LJ001-0001.wav': None, 'wavs/LJ001-0002.wav': None,
        'metadata.csv': 'LJ001-0001|in 1455, "Mainz"|in fourteen fifty-five, "Mainz"\n'
                        'LJ001-0002|being|being modern\n',
    })  # fmt: skip
    assert recordings(read_folder(tmp_path)) == {
        'wavs/LJ001-0001.wav': ('in fourteen fifty-five, "Mainz"', ''),
        'wavs/LJ001-0002.wav': ('being modern', ''),
    }


def test_which_table(tmp_path):
    files = {'a.wav': None, 'train.tsv': 'path\ttext\na.wav\tone', 'test.tsv': 'path\ttext\n'}
    lay_out(tmp_path, files)
    with pytest.raises(InputError, match=r'several tables \(test.tsv, train.tsv\); give the path'):
        read_folder(tmp_path)
    assert recordings(read_folder(tmp_path / 'train.tsv')) == {'a.wav': ('one', '')}
    lay_out(tmp_path, {'metadata.csv': 'file_name,text\na.wav,two'})
    assert recordings(read_folder(tmp_path)) == {'a.wav': ('two', '')}
    # Below the folder only tables called metadata count.
    lay_out(tmp_path / 'hub', {'test/a.wav': None, 'test/metadata.csv': 'file_name,text\na.wav,3',
                               'test/others.csv': 'x'})  # fmt: skip
    assert recordings(read_folder(tmp_path / 'hub')) == {'test/a.wav': ('3', '')}


def test_lines_that_name_no_or_several_files(tmp_path):
    lay_out(tmp_path, {
        'x/a.wav': None, 'y/a.wav': None, 'b.wav': None,
        'metadata.csv': 'file_name,text\na.wav,one\nx/a.wav,two\n,three\ngone.wav,four\nb.wav\n',
    })  # fmt: skip
    found = read_folder(tmp_path)
    assert recordings(found) == {
        'x/a.wav': ('two', ''), 'gone.wav': ('four', ''), 'b.wav': ('', '')
    }  # fmt: skip
    assert [(r.name, r.reason) for r in found.rejects] == [
        ('a.wav', 'several files are called so'), (' three', 'a line that names no file')
    ]  # fmt: skip


def test_dialogues_by_their_names(tmp_path):
    lay_out(tmp_path, {
        '001.user.wav': None, '001.user.txt': 'two plus two', '001.assistant.wav': None,
        '001.assistant.txt': 'four',
        '002.question.wav': None, '002.answer.txt': 'written only',
        'long.1.user.wav': None, 'long.2.assistant.wav': None, 'long.10.assistant.wav': None,
        'long.9.user.wav': None, 'long.system.txt': 'be brief',
        'plain.wav': None, 'two.user.wav': None, 'two.user.flac': None,
    })  # fmt: skip
    found = read_folder(tmp_path)

    def at(name):
        return str(tmp_path / name)

    assert found.entries == [
        Dialogue((Turn('user', audio=at('001.user.wav'), text='two plus two'),
                  Turn('assistant', audio=at('001.assistant.wav'), text='four'))),
        Dialogue((Turn('user', audio=at('002.question.wav')),
                  Turn('assistant', text='written only'))),
        Dialogue((Turn('system', text='be brief'), Turn('user', audio=at('long.1.user.wav')),
                  Turn('assistant', audio=at('long.2.assistant.wav')),
                  Turn('user', audio=at('long.9.user.wav')),
                  Turn('assistant', audio=at('long.10.assistant.wav')))),
        Recording(at('plain.wav')),
    ]  # fmt: skip
    assert [(r.name, r.reason) for r in found.rejects] == [
        (at('two.*'), 'one turn of a dialogue is there twice')
    ]
    write_manifest(tmp_path / 'm.jsonl', found.entries)
    assert read_manifest(tmp_path / 'm.jsonl') == found.entries


def test_a_table_may_name_turns_too(tmp_path):
    lay_out(tmp_path, {
        'audio/7.user.wav': None, 'audio/7.assistant.wav': None,
        'metadata.csv': 'file_name,text\naudio/7.user.wav,two\naudio/7.assistant.wav,four\n',
    })  # fmt: skip
    (entry,) = read_folder(tmp_path).entries
    assert [(t.role, t.text) for t in entry.turns] == [('user', 'two'), ('assistant', 'four')]


def test_links_and_names_of_odd_bytes(tmp_path):
    lay_out(tmp_path, {'far/a.wav': None, 'far/a.txt': 'one'})
    folder = tmp_path / 'folder'
    folder.mkdir()
    (folder / 'near').symlink_to(tmp_path / 'far')
    (folder / 'again').symlink_to(folder)
    odd = os.fsdecode(b'caf\xe9.wav')
    (folder / odd).touch()
    found = read_folder(folder)
    assert recordings(found) == {'near/a.wav': ('one', ''), odd: ('', '')}
    write_manifest(folder / 'm.jsonl', found.entries)
    assert read_manifest(folder / 'm.jsonl') == found.entries


@pytest.mark.parametrize('files, said', [
    ({}, 'has no recordings that can be used. Put WAV'),
    ({'a.txt': 'x'}, 'has no recordings that can be used. Put WAV'),
    ({'a.wav': None, 'metadata.csv': ''}, 'metadata.csv is empty'),
    ({'a.wav': None, 'metadata.csv': 'name,words\na,b'}, 'its columns are name, words. Call that'),
    ({'a.wav': None, 'metadata.csv': b'file_name,text\na.wav,\xe9'}, 'save it as UTF-8'),
    ({'a.wav': None, 'a.txt': b'\xe9'}, 'a.txt: cannot be read as text'),
    ({'a.wav': None, 'metadata.jsonl': '{"file_name": "a"}\n[3]'}, 'metadata.jsonl:2: expected'),
    ({'a.wav': None, 'metadata.jsonl': '\n'}, 'metadata.jsonl is empty'),
    ({'a.wav': None, 'metadata.jsonl': '{"file_name": NaN}'}, 'metadata.jsonl:1: not JSON'),
    ({'a.user.wav': None, 'a.user.mp3': None}, r'a\.\*: one turn of a dialogue is there twice'),
])  # fmt: skip
def test_refusals_name_the_file_and_the_remedy(tmp_path, files, said):
    lay_out(tmp_path, files)
    with pytest.raises(InputError, match=said):
        read_folder(tmp_path)


def test_what_is_neither_folder_nor_table(tmp_path):
    lay_out(tmp_path, {'a.wav': None, 'b.wav': b'RIFF\xff\xff'})
    for name, said in (('gone', 'cannot be read as text'), ('b.wav', 'cannot be read as text'),
                       ('a.wav', 'is empty')):  # fmt: skip
        with pytest.raises(InputError, match=f'{name}:? {said}'):
            read_folder(tmp_path / name)

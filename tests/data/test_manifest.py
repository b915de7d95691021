"""The manifest: round trip, and every fault named by file, line and key."""

import json
import os

import pytest

from mossjax.data.manifest import (
    Dialogue,
    Document,
    Recording,
    Turn,
    check_audio,
    read_manifest,
    read_recordings,
    write_manifest,
)
from mossjax.errors import InputError


def test_round_trip_and_relative_paths(tmp_path):
    entries = [
        Recording(
            str(tmp_path / 'wav/a.wav'), 'two\u2028lines', 'slt', (('t', 0.1), ('uw', 0.25)),
            (('two', 0.25),), {'split': 'train', 'weight': 6},
        ),
        Dialogue(
            (
                Turn('user', audio=str(tmp_path / 'wav/a.wav')),
                Turn('assistant', codes=(1, 2)),
                Turn('user', text=''),
                Turn('assistant', audio=str(tmp_path / 'wav/b.wav'), text='both'),
            ),
            {'mode': 'S2S'},
        ),
        Recording('/elsewhere/b.wav'),
        Document('never spoken', {'quality': 3}),
    ]  # fmt: skip
    path = tmp_path / 'manifest.jsonl'
    write_manifest(path, entries)
    assert read_manifest(path) == entries
    first, second, third = (json.loads(line) for line in path.read_text().split('\n')[:3])
    assert second['turns'][3] == {'role': 'assistant', 'audio': 'wav/b.wav', 'text': 'both'}
    assert first['audio'] == 'wav/a.wav' and third == {'audio': '/elsewhere/b.wav'}
    moved = tmp_path / 'moved'
    moved.mkdir()
    path.rename(moved / 'manifest.jsonl')
    assert read_manifest(moved / 'manifest.jsonl')[0].audio == str(moved / 'wav/a.wav')


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'manifest.jsonl'
    write_manifest(path, [Recording('/a.wav')])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_manifest(path, [Recording('/b.wav'), Recording('/c.wav', extra={'x': object()})])
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['manifest.jsonl']


GOOD = '{"audio": "a.wav"}'
TURNS = '{"turns": [{"role": "user", "text": "hi"}, %s]}'


@pytest.mark.parametrize(
    'line, where',
    [
        ('{"audio": ', r':2: not JSON'),
        ('["a.wav"]', r':2: a list'),
        ('{"txt": "hi"}', r':2: needs either "audio"'),
        ('{"text": 3}', r':2:text: a int'),
        ('{"audio": "a", "turns": []}', r':2: needs either "audio"'),
        ('{"audio": 3}', r':2:audio: 3'),
        ('{"audio": "a", "text": 3}', r':2:text: a int'),
        ('{"audio": "a", "speaker": null}', r':2:speaker: a NoneType'),
        ('{"audio": "a", "times": {}}', r':2:times: expected'),
        ('{"audio": "a", "times": [["t"]]}', r":2:times\[0\]: \['t'\]"),
        ('{"audio": "a", "times": [["t", "1"]]}', r":2:times\[0\]: the end in seconds is '1'"),
        ('{"audio": "a", "times": [["t", 0.2], ["u", 0.1]]}', r':2:times\[1\]: ends at 0.1 s'),
        ('{"audio": "a", "words": [["t", NaN]]}', r':2: not JSON \(NaN is no number'),
        ('{"audio": "a", "words": [["t", 1e30]]}', r':2:words\[0\]: the end in seconds is 1e'),
        ('{"audio": "a", "seconds": "long"}', r":2:seconds is 'long', expected a number above 0"),
        ('{"audio": "a", "audio": "b"}', r':2: not JSON'),
        ('{"audio": ' + '[' * 10**5, r':2: nested too deep'),
        ('{"audio": "a", "words": [["t", true]]}', r':2:words\[0\]: the end in seconds is True'),
        ('{"turns": []}', r':2:turns: expected'),
        (TURNS % '3', r':2:turns\[1\]: a int'),
        (TURNS % '{"role": "bot", "text": ""}', r":2:turns\[1\].role: 'bot'.*assistant"),
        (TURNS % '{"role": "user"}', r':2:turns\[1\]: .*give "text", or the speech as "audio"'),
        (TURNS % '{"role": "user", "audio": "a", "codes": [1]}', r':2:turns\[1\]: .*give "text"'),
        (TURNS % '{"role": "user", "txt": "", "text": ""}', r':2:turns\[1\]: .*give "text"'),
        (TURNS % '{"role": "user", "codes": []}', r':2:turns\[1\].codes: expected a list'),
        (TURNS % '{"role": "user", "codes": [1, -1]}', r':2:turns\[1\].codes'),
        (TURNS % '{"role": "user", "codes": [true]}', r':2:turns\[1\].codes'),
        (TURNS % '{"role": "user", "codes": [3000000000]}', r':2:turns\[1\].codes'),
        (TURNS % '{"role": "user", "codes": [4294967297]}', r':2:turns\[1\].codes'),
    ],
)
def test_faults_name_file_line_and_key(tmp_path, line, where):
    path = tmp_path / 'bad.jsonl'
    path.write_text(f'{GOOD}\n{line}\n{GOOD}\n')
    with pytest.raises(InputError, match=r'bad\.jsonl' + where):
        read_manifest(path)


def test_other_faults(tmp_path):
    with pytest.raises(InputError, match='none.jsonl: cannot read'):
        read_manifest(tmp_path / 'none.jsonl')
    (tmp_path / 'empty.jsonl').write_text('\n\n')
    with pytest.raises(InputError, match='empty.jsonl: the manifest is empty'):
        read_manifest(tmp_path / 'empty.jsonl')
    (tmp_path / 'mixed.jsonl').write_text(f'{GOOD}\n' + TURNS % '{"role": "user", "text": ""}')
    with pytest.raises(InputError, match='entry 2 is a dialogue'):
        read_recordings(tmp_path / 'mixed.jsonl')
    (tmp_path / 'mixed.jsonl').write_text('{"text": "never spoken"}')
    with pytest.raises(InputError, match='entry 1 is a document'):
        read_recordings(tmp_path / 'mixed.jsonl')
    (tmp_path / 'a.wav').touch()
    check_audio([Recording(str(tmp_path / 'a.wav'))])
    missing = Dialogue((Turn('user', audio=str(tmp_path / 'b.wav')),))
    with pytest.raises(InputError, match=r'1 of 2 audio files do not exist, first: .*b\.wav'):
        check_audio([Recording(str(tmp_path / 'a.wav')), missing])

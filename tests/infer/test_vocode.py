"""Codes to a folder of recordings: names, what is kept, what is made again. The decoder is simple
enough to be computed by hand."""

import json
import types

import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer import audio, vocode
from mossjax.models.flow.config import FlowConfig

CONFIG = FlowConfig(vocab_size=100)


class Decoder:
    """Every code is 1920 samples of a hundredth of it.

    Attributes:
      hears: how much is added for the codes beside those of a line, as float32 sums may differ.
    """

    rate, vocoder = 24000, types.SimpleNamespace(limit=0.5)

    def __init__(self, stop=None, hears=0):
        self.groups, self._stop, self._hears = [], stop, hears

    def decode_many(self, utterances):
        if len(self.groups) == self._stop:
            raise KeyboardInterrupt
        self.groups.append([len(codes) for codes in utterances])
        more = self._hears * sum(map(sum, utterances))
        return [np.repeat(np.float32(codes) / 100 + more, 1920) for codes in utterances]


def written(tmp_path, *lines):
    path = tmp_path / 'codes.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path


def lines_of(tmp_path, *lines):
    return vocode.read_lines(written(tmp_path, *lines), CONFIG)


def test_a_recording_of_every_line_and_what_is_said_of_it(tmp_path):
    lines = lines_of(
        tmp_path, {'path': 'in/Ann.flac', 'codes': [10, 20]}, {'codes': [60] * 3, 'seconds': 1}
    )
    first, second = vocode.Job(lines, tmp_path / 'out', b'x').run(Decoder())
    assert (first.path, first.seconds, first.clipped) == (tmp_path / 'out/Ann.wav', 0.16, 0)
    assert (second.path.name, second.seconds, second.clipped) == ('line-2.wav', 0.24, 3 * 1920)
    assert str(second).endswith('LUFS, 5760 samples clipped')
    wave = audio.load(first.path, 24000)
    np.testing.assert_array_equal(wave, np.repeat(np.rint([3276.8, 6553.6]) / 32768, 1920))


def test_names(tmp_path):
    given = ['q.wav', 'b/q.mp3', r'C:\x\Q.wav', 'q-2.ogg', '..', '', '.hid', 'a?b\n.wav',
             '\ud800.wav', 'ä' * 300, 'q-2-4.wav']  # fmt: skip
    lines = lines_of(tmp_path, *({'path': name, 'codes': [1]} for name in given))
    assert [line.name for line in lines] == [
        'q.wav', 'q-2.wav', 'Q-3.wav', 'q-2-4.wav', 'line-5.wav', 'line-6.wav', 'hid.wav',
        'a_b_.wav', '_.wav', 'ä' * 100 + '.wav', 'q-2-4-11.wav',
    ]  # fmt: skip


def test_an_interrupted_job_goes_on(tmp_path):
    """Groups stay as they were, so a recording is what it would have been."""
    lines = lines_of(tmp_path, *({'codes': [i] * (1 + i % 3)} for i in range(40)))
    job, made = vocode.Job(lines, tmp_path, b'x'), []
    with pytest.raises(KeyboardInterrupt):
        made += job.run(Decoder(stop=1))
    (tmp_path / 'line-3.wav').unlink()
    (tmp_path / 'line-5.wav').write_bytes((tmp_path / 'line-5.wav').read_bytes()[:30])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob('*.wav')}
    again, decoder = vocode.Job(lines, tmp_path, b'x'), Decoder()
    assert len(again.kept) == 14
    assert len(list(again.run(decoder))) == 26
    assert decoder.groups == [[1 + i % 3 for i in part] for part in (range(16), range(16, 32),
                                                                     range(32, 40))]  # fmt: skip
    for line in again.kept:
        path = tmp_path / line.name
        assert path.stat().st_mtime_ns == before[path]
    assert len(vocode.Job(lines, tmp_path, b'x').kept) == 40
    third = Decoder()
    assert not list(vocode.Job(lines, tmp_path, b'x').run(third)) and not third.groups


@pytest.mark.parametrize('stop', [1, 2])
def test_what_was_interrupted_ends_in_the_same_bytes(stop, tmp_path):
    """Even where what a line becomes depends on those beside it; and no other files are left."""
    lines = lines_of(tmp_path, *({'codes': [i] * (1 + i % 3)} for i in range(40)))
    list(vocode.Job(lines, tmp_path / 'whole', b'x').run(Decoder(hears=1e-4)))
    with pytest.raises(KeyboardInterrupt):
        list(vocode.Job(lines, tmp_path / 'torn', b'x').run(Decoder(stop, hears=1e-4)))
    (tmp_path / 'torn' / 'line-7.wav').unlink()
    list(vocode.Job(lines, tmp_path / 'torn', b'x').run(Decoder(hears=1e-4)))
    whole, torn = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ('whole', 'torn')
    )
    assert whole == torn and len(whole) == 40


def test_what_is_made_of_something_else_is_made_again(tmp_path):
    lines = lines_of(tmp_path, {'codes': [1]}, {'codes': [2]})
    list(vocode.Job(lines, tmp_path, b'x').run(Decoder()))
    assert not vocode.Job(lines, tmp_path, b'another voice').kept
    other = lines_of(tmp_path, {'codes': [1]}, {'codes': [3]}, {'codes': [4]})
    job = vocode.Job(other, tmp_path, b'x')
    assert [line.number for line in job.kept] == [1]
    assert [spoken.path.name for spoken in job.run(Decoder())] == ['line-2.wav', 'line-3.wav']
    assert audio.load(tmp_path / 'line-2.wav', 24000)[0] == np.rint(983.04) / 32768


def test_long_lines_are_groups_of_their_own(tmp_path):
    lines = lines_of(tmp_path, *({'codes': [1] * n} for n in (3000, 700, 60, 3750, 1)))
    decoder = Decoder()
    list(vocode.Job(lines, tmp_path, b'x').run(decoder))
    assert decoder.groups == [[3000, 700], [60], [3750], [1]]


def test_recordings_of_others_are_not_replaced(tmp_path):
    lines = lines_of(tmp_path, {'path': 'a', 'codes': [1]}, {'path': 'b', 'codes': [1]})
    vocode.check_folder(lines, tmp_path / 'new')
    list(vocode.Job(lines[:1], tmp_path, b'x').run(Decoder()))
    vocode.check_folder(lines, tmp_path)
    audio.save(tmp_path / 'b.wav', np.zeros(2000), 24000)
    with pytest.raises(InputError, match='b.wav was not made by this command'):
        vocode.check_folder(lines, tmp_path)

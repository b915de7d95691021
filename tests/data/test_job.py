"""The job around the corpus: resumed, kept, refused, and everything counted or listed."""

import json
import os

import numpy as np
import pytest
import soundfile

from mossjax.data import job as jobs
from mossjax.data.builder import open_rows
from mossjax.data.drafts import Recipe, Reject
from mossjax.data.job import Job, Source
from mossjax.data.manifest import parse_line
from mossjax.data.rows import IGNORE, unpack
from mossjax.errors import InputError

SP, EOSP = 5, 32  # ids of tests/data/conftest.py


class Sizes:
    """Codes that say how loud the beginning of each 80 ms is, 0 to 10; counts what it encodes."""

    def __init__(self, fail_after=None):
        self.heard, self.opened, self.fail_after = 0, 0, fail_after

    def __call__(self):
        self.opened += 1
        return self

    def encode(self, wavs):
        if self.fail_after is not None and self.heard >= self.fail_after:
            raise KeyboardInterrupt
        self.heard += len(wavs)
        return [np.clip(np.rint(10 * np.abs(w[::1280])), 0, 10).astype(np.int32) for w in wavs]


def wav(path, codes):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.repeat(np.float32(codes) / 10, 1280), 16000)


@pytest.fixture
def folder(tmp_path):
    """Three questions and answers of 3 to 5 codes."""
    folder = tmp_path / 'recordings'
    for i in range(3):
        wav(folder / f'q{i}.wav', [i + 1, i + 2, 3])
        wav(folder / f'a{i}.wav', [9, 8, 7, i + 1, 4])
    return folder


def dialogues(folder, count=3):
    texts = ('what is two', 'is four', 'dog')
    return [
        parse_line(json.dumps({'turns': [
            {'role': 'user', 'audio': f'q{i}.wav', 'text': texts[i]},
            {'role': 'assistant', 'audio': f'a{i}.wav', 'text': 'two four'},
        ]}), 'test', folder)
        for i in range(count)
    ]  # fmt: skip


def job(form, folder, entries, name='sft', length=64, **options):
    return Job([Source(entries, folder)], Recipe(name, length=length), form, length, **options)


def examples(directory):
    source = open_rows(str(directory))
    return [e for i in range(len(source)) for e in unpack(source[i])]


def as_set(found):
    return sorted((e.tokens.tolist(), e.labels.tolist()) for e in found)


def test_dialogues_become_rows_and_are_counted(form, folder, tmp_path):
    encoder = Sizes()
    made = jobs.run(job(form, folder, dialogues(folder), versions=2), tmp_path / 'out', encoder)
    assert made['examples'] == 3 * 2 * 4 and made['supervised'] == len(
        [1 for e in examples(tmp_path / 'out') for t in e.labels.ravel() if t != IGNORE]
    )
    assert encoder.opened == 1 and encoder.heard == 3 * 2 + 3  # answers once
    facts = made['summary']
    assert facts['examples'] == dict.fromkeys(['s2s', 's2t', 't2s', 't2t'], 6)
    assert facts['recordings'] == 6 and facts['hours'] == pytest.approx(3 * 8 * 0.08 / 3600)
    found = examples(tmp_path / 'out')
    rows = np.concatenate([e.tokens for e in found])
    speech = rows[:, 0] == SP
    assert facts['tokens']['text'] == (~speech).sum()
    assert facts['tokens']['speech'] == (speech & (rows[:, 1] != EOSP)).sum()
    labels = np.concatenate([e.labels for e in found])
    assert [facts['tokens'][f'{x} targets'] for x in ('text', 'speech')] == (
        (labels != IGNORE).sum(0).tolist()
    )
    assert facts['left_out'] == [] and facts['unreadable'] == {'recordings': 0, 'why': []}
    config = made['config']
    assert config['recipe'] == 'sft' and config['format'] == json.loads(json.dumps(form.facts()))


def test_the_same_again_is_kept_and_anything_else_refused(form, folder, tmp_path):
    mine = job(form, folder, dialogues(folder))
    first = jobs.run(mine, tmp_path / 'out', Sizes())
    silent = Sizes()
    assert jobs.run(mine, tmp_path / 'out', silent) == first and not silent.opened
    for other, said in (
        (job(form, folder, dialogues(folder), seed=1), 'seed = 0, asked for 1'),
        (job(form, folder, dialogues(folder), 'asr'), 'recipe = "sft", asked for "asr"'),
        (job(form, folder, dialogues(folder), length=32), 'length = 64, asked for 32'),
        (job(form, folder, dialogues(folder), fingerprint='x'), 'codec = "", asked for "x"'),
        (job(form, folder, dialogues(folder, 2)), 'recordings = "'),
    ):
        with pytest.raises(InputError, match=said):
            jobs.run(other, tmp_path / 'out', silent)
    wav(folder / 'q1.wav', [1, 1, 1, 1])  # recorded anew
    with pytest.raises(InputError, match=r'recordings = .*or delete .*out/rows\.'):
        jobs.run(mine, tmp_path / 'out', silent)
    assert not silent.opened


def test_a_recording_that_changed_is_tokenized_again(form, folder, tmp_path):
    mine = job(form, folder, dialogues(folder), 'speech')
    codes = tmp_path / 'codes.jsonl'
    jobs.run(mine, tmp_path / 'one', Sizes(), codes=codes)
    wav(folder / 'q1.wav', [5, 5, 5, 5])
    again = Sizes()
    jobs.run(mine, tmp_path / 'two', again, codes=codes)
    assert again.heard == 1
    jobs.run(mine, tmp_path / 'fresh', Sizes())
    assert as_set(examples(tmp_path / 'two')) == as_set(examples(tmp_path / 'fresh'))


def test_an_interrupted_job_goes_on(form, folder, tmp_path, monkeypatch):
    mine = job(form, folder, dialogues(folder), versions=40)
    jobs.run(mine, tmp_path / 'whole', Sizes())
    with pytest.raises(KeyboardInterrupt):
        jobs.run(mine, tmp_path / 'part', Sizes(fail_after=64))
    with pytest.raises(InputError, match='no complete packed data set'):
        open_rows(str(tmp_path / 'part'))
    rest = Sizes()
    jobs.run(mine, tmp_path / 'part', rest)
    assert rest.heard == 3 * 40 + 3 - 64  # two batches of 32 were kept
    assert as_set(examples(tmp_path / 'part')) == as_set(examples(tmp_path / 'whole'))


def test_an_entry_gives_the_same_wherever_it_stands(form, folder, tmp_path):
    """In another order, beside others, from a folder that moved."""
    words = [['what', 0.08], ['is', 0.16], ['two', 0.24]]
    lines = [
        {'audio': f'{x}{i}.wav', 'text': 'what is two', 'words': words}
        for i in range(3) for x in 'qa'
    ]  # fmt: skip
    recipe = Recipe('interleaved', length=64, seconds=(0.08, 0.16))

    def run(name, lines, root):
        entries = [parse_line(json.dumps(line), 'test', root) for line in lines]
        mine = Job([Source(entries, root)], recipe, form, 64, versions=5)
        jobs.run(mine, tmp_path / name, Sizes(), codes=root / 'codes.jsonl')
        return as_set(examples(tmp_path / name))

    whole = run('whole', lines, folder)
    assert run('turned', lines[::-1], folder) == whole
    first = run('first', lines[:2], folder)
    assert len(first) == 10 and all(e in whole for e in first)
    os.rename(folder, tmp_path / 'moved')
    assert run('moved rows', lines, tmp_path / 'moved') == whole


def test_all_versions_of_a_recording_do_not_share_a_row(form, folder, tmp_path):
    lines = ({'audio': f'q{i}.wav', 'text': word} for i, word in enumerate(('is', 'two', 'dog')))
    entries = [parse_line(json.dumps(line), 'test', folder) for line in lines]
    jobs.run(job(form, folder, entries, 'asr', versions=20), tmp_path / 'out', Sizes())
    source = open_rows(str(tmp_path / 'out'))
    texts = [{e.tokens[-3, 0] for e in unpack(source[i])} for i in range(len(source))]
    assert len(source) >= 20 and np.mean([len(x) > 1 for x in texts]) > 0.5


def test_good_recordings_are_kept_and_bad_ones_listed(form, folder, tmp_path):
    os.remove(folder / 'q0.wav')
    (folder / 'a1.wav').write_text('no audio')
    soundfile.write(folder / 'q2.wav', np.full(3840, np.nan), 16000, 'FLOAT')
    made = jobs.run(job(form, folder, dialogues(folder)), tmp_path / 'out', Sizes())
    facts = made['summary']
    # What is not heard can be read, what is not said can be written.
    assert facts['examples'] == {'s2t': 1, 't2s': 2, 't2t': 3}
    (left,) = facts['left_out']
    assert (left['entries'], left['kinds']) == (3, ['s2s', 's2t', 't2s'])
    assert left['reason'] == 'audio that cannot be read'
    assert facts['unreadable']['recordings'] == 3
    for name in ('q0.wav', 'a1.wav', 'q2.wav'):
        assert sum(name in why for why in facts['unreadable']['why']) == 1
    listed = [json.loads(x) for x in (tmp_path / 'out/left_out.jsonl').read_text().splitlines()]
    assert sum(x['kinds'] == ['audio'] for x in listed) == 3 and len(listed) == 6
    with pytest.raises(InputError, match='asr can make nothing of this(.|\n)*q0.wav(.|\n)*--help'):
        jobs.run(job(form, folder, [parse_line(
            '{"audio": "q0.wav", "text": "two"}', 'test', folder)], 'asr'), tmp_path / 'no',
            Sizes())  # fmt: skip
    assert not (tmp_path / 'no' / 'rows').exists()


def test_what_is_left_out_is_counted_by_reason(form, folder, tmp_path):
    lines = [{'audio': f'q{i}.wav', 'text': ('two ' * 20 if i else 'two')} for i in range(3)]
    lines += [{'audio': f'a{i}.wav'} for i in range(3)] + [{'audio': 'a0.wav', 'text': ' '}] * 4
    entries = [parse_line(json.dumps(line), 'test', folder) for line in lines]
    odd = [Reject('folder', str(folder / 'notes.txt'), 'a text without a recording of that name')]
    mine = job(form, folder, entries, 'asr', 32, rejects=odd, versions=3)
    facts = jobs.run(mine, tmp_path / 'out', Sizes())['summary']
    assert facts['examples'] == {'asr': 3}
    assert [(x['reason'], x['entries']) for x in facts['left_out']] == [
        ('no text', 7), ('longer than a row', 2), ('a text without a recording of that name', 1)
    ]  # fmt: skip
    assert len(facts['left_out'][0]['names']) == 5
    listed = (tmp_path / 'out/left_out.jsonl').read_text().splitlines()
    assert len(listed) == 10


def test_codes_of_a_manifest_count_as_recordings(form, folder, tmp_path):
    line = {'turns': [{'role': 'user', 'codes': [1] * 20}, {'role': 'assistant', 'codes': [2] * 5}]}
    entry = parse_line(json.dumps(line), 'test', folder)
    encoder = Sizes()
    facts = jobs.run(job(form, folder, [entry]), tmp_path / 'out', encoder)['summary']
    assert facts['recordings'] == 2 and facts['hours'] == pytest.approx(2 / 3600)
    assert not encoder.opened and facts['examples'] == {'s2s': 1}


def test_nothing_to_make_is_said_before_anything_is_opened(form, folder, tmp_path):
    entries = [parse_line('{"audio": "q0.wav", "text": "two"}', 'test', folder)] * 2
    encoder = Sizes()
    with pytest.raises(InputError, match='sft can make nothing of this:\n  2  no dialogue: sft'):
        jobs.run(job(form, folder, entries), tmp_path / 'out', encoder)
    assert not encoder.opened and not (tmp_path / 'out').exists()

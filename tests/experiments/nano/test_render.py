"""Rendering, with a stand-in for the flite program: a script that plays one recording."""

from collections import Counter
import os
import stat

import pytest

from experiments.nano import render, world
from mossjax.data import manifest
from mossjax.errors import InputError

PHONES = 'pau:0.1 dh:0.2 ax:0.3 n:0.4 pau:0.5'
SCRIPT = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
  -lv) echo 'Voices available: kal awb kal16 rms slt' ;;
  *-psdur*) echo '{phones}'; for last; do :; done; cp {wav} "$last" ;;
  *) echo 'pau dh ax pau' ;;
esac
"""


@pytest.fixture
def flite(tmp_path, monkeypatch, golden):
    """A directory on PATH with a `flite` that notes its calls in `log`."""
    import soundfile

    folder = tmp_path / 'bin'
    folder.mkdir()
    samples, rate = soundfile.read(golden('judge/seven.flac'), dtype='int16')
    soundfile.write(folder / 'speech.wav', samples, rate)
    script = folder / 'flite'
    text = SCRIPT.format(log=folder / 'log', wav=folder / 'speech.wav', phones=PHONES)
    script.write_text(text)
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
    render.pronounce.cache_clear()
    yield folder
    render.pronounce.cache_clear()


def spoken(folder):
    return sum('-psdur' in line for line in (folder / 'log').read_text().splitlines())


@pytest.fixture(scope='module')
def plan():
    return render.plan(world.build())


def test_training_never_says_a_never_spoken_question(plan):
    nano = world.build()
    texts = [f' {job.text} ' for job in plan['train']]
    for fact in nano.never_spoken:
        assert not any(f' {fact.question} ' in text for text in texts)
    assert {job.fact for job in plan['never_spoken']} == {f.id for f in nano.never_spoken}


def test_heldout_rates_are_never_heard_in_training(plan):
    heard = {(job.speaker, job.rate) for job in plan['train']}
    asked = {(job.speaker, job.rate) for job in plan['heldout']}
    assert len(asked) == 4 and not heard & asked
    assert {job.text for job in plan['heldout']} == {f.question for f in world.build().spoken}


def test_every_word_is_heard_in_every_voice_outside_its_fact(plan):
    for voice in render.VOICES:
        strings = [j for j in plan['train'] if j.kind == 'words' and j.speaker == voice]
        count = Counter(word for job in strings for word in job.text.split())
        assert set(count) == set(world.build().words)
        assert min(count.values()) >= 15


def test_files_are_distinct_and_the_plan_is_reproducible(plan):
    for jobs in plan.values():
        assert len({job.audio for job in jobs}) == len(jobs)
    assert render.plan(world.build()) == plan


def test_manifest_is_in_order_readable_and_resumed(plan, flite, tmp_path):
    jobs, folder = plan['train'][:6], tmp_path / 'train'
    whole = tmp_path / 'whole'
    render.render_split(jobs, whole)
    assert spoken(flite) == 6

    # As after a kill: three lines, a torn fourth, and one file gone.
    lines = (whole / 'manifest.jsonl').read_text().splitlines()
    render.render_split(jobs[:3], folder)
    os.remove(folder / 'manifest.jsonl')
    os.remove(folder / jobs[1].audio)
    (folder / 'unfinished.jsonl').write_text('\n'.join(lines[:3]) + '\n' + lines[3][:40])
    before = spoken(flite)
    render.render_split(jobs, folder)
    assert spoken(flite) == before + 4
    assert (folder / 'manifest.jsonl').read_bytes() == (whole / 'manifest.jsonl').read_bytes()
    for job in jobs:
        assert (folder / job.audio).read_bytes() == (whole / job.audio).read_bytes()

    read = list(manifest.read_recordings(folder / 'manifest.jsonl'))
    assert [r.text for r in read] == [job.text for job in jobs]
    assert read[0].times[1] == ('dh', 0.2) and read[0].extra['rate'] == 0.8


def test_verify_finds_a_recording_that_flite_would_not_make(plan, flite, tmp_path):
    for split in render.SPLITS:
        render.render_split(plan[split][:2], tmp_path / split)
    render.verify(tmp_path, 2)
    import soundfile

    path = tmp_path / 'heldout' / plan['heldout'][1].audio
    samples, rate = soundfile.read(path, dtype='int16')
    samples[100] += 1
    soundfile.write(path, samples, rate, subtype='PCM_16')
    with pytest.raises(InputError, match=path.name):
        render.verify(tmp_path, 2)


def test_word_ends_follow_flite_where_words_change_in_context():
    """What flite 2.2 printed for this sentence (voice slt); "the" alone ends in 'ax'."""
    alone = {
        'the': ('dh', 'ax'),
        'answer': ('ae', 'n', 's', 'er'),
        'is': ('ih', 'z'),
        'seven': ('s', 'eh', 'v', 'ax', 'n'),
    }
    printed = (
        'pau:0.192 dh:0.242 iy:0.331 ae:0.427 n:0.481 s:0.649 er:0.815 ih:0.895 z:0.925 '
        's:1.019 eh:1.067 v:1.128 ax:1.233 n:1.354 pau:1.539'
    )
    phones = [(p, float(end)) for p, end in (item.split(':') for item in printed.split())]
    ends = render.word_ends('the answer is seven', phones, alone.get)
    assert ends == [('the', 0.331), ('answer', 0.815), ('is', 0.925), ('seven', 1.354)]


def test_missing_flite_and_foreign_recordings_are_refused(flite, tmp_path, monkeypatch):
    nano = world.build()
    render._claim(nano, tmp_path)
    render._claim(nano, tmp_path)
    with pytest.raises(InputError, match='another world'):
        render._claim(world.build(seed=1), tmp_path)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(InputError, match='apt-get install flite'):
        render.render(nano, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()

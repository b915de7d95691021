"""Cuts of recordings: what is in them is known by the numbers they are made of."""

import numpy as np
import pytest

from mossjax.data.clips import Clips
from mossjax.data.codes import CodesStore, Version
from mossjax.data.manifest import Recording
from mossjax.data.prompts import PromptedBatches
from mossjax.data.segments import HOP, MARGIN, UNKNOWN, SegmentBatches, SpeakerBatches
from mossjax.errors import InputError

FRAMES, ROWS = 6, 4


def clips(rate: int, lengths, speakers='aabb') -> Clips:
    """Recording i counts upwards from 1000 i + 1: a sample says where it comes from."""
    waves = [1000.0 * i + 1 + np.arange(n, dtype=np.float32) for i, n in enumerate(lengths)]
    recordings = [Recording(f'/{i}.wav', speaker=s) for i, s in enumerate(speakers)]
    return Clips(recordings, rate, np.array(lengths), waves.__getitem__)


def test_cuts_of_sound_and_pitch_lie_on_each_other():
    """A recording whose sample k of frame f is f (scaled), and whose pitch is f too."""
    counts = (40, 9, 3, 20)
    waves = [np.repeat(np.arange(n, dtype=np.float32), HOP) + 1 for n in counts]
    recordings = [Recording(f'/{i}.wav') for i in range(4)]
    source = Clips(recordings, 24_000, np.array([len(w) for w in waves]), waves.__getitem__)
    pitches = {f'/{i}.wav': np.arange(n, dtype=np.float32) + 1 for i, n in enumerate(counts) if i}
    batches = SegmentBatches(source, pitches, frames=FRAMES, rows=ROWS, seed=3)
    seen = set()
    for step in range(6):
        batch, names = batches.batch(step), batches.names(step)
        assert sorted(names) == [r.audio for r in recordings]  # four rows are an epoch here
        assert batch['audio'].shape == (ROWS, (FRAMES + 2 * MARGIN) * HOP)
        whole = batch['audio'].reshape(ROWS, -1, HOP)
        assert (whole == whole[..., :1]).all()  # whole frames
        inside = whole[:, MARGIN:-MARGIN, 0]
        for row, name in enumerate(names):
            if name == '/0.wav':
                assert (batch['f0'][row] == UNKNOWN).all()
            else:
                np.testing.assert_array_equal(batch['f0'][row], inside[row])
            if name == '/2.wav':  # shorter than a cut: all of it, in silence
                assert sorted(inside[row])[-3:] == [1, 2, 3] and (inside[row] == 0).sum() == 3
            seen.add((name, float(inside[row, 0])))
        some = batches.batch(step, [2, 0])  # by place, whoever asks
        for key, x in some.items():
            np.testing.assert_array_equal(x, batch[key][[2, 0]])
    assert len(seen) > 12  # the beginnings are drawn
    assert len({tuple(batches.names(step)) for step in range(6)}) > 1  # and the order of an epoch
    halves = SegmentBatches(source, pitches, frames=FRAMES, rows=2, seed=3)
    for step in range(6):
        assert halves.names(2 * step) + halves.names(2 * step + 1) == batches.names(step)


def test_who_speaks_and_short_recordings_said_again():
    batches = SpeakerBatches(clips(16_000, (50, 7, 30, 30)), samples=20, rows=4, seed=0)
    assert batches.speakers == ('a', 'b')
    batch = batches.batch(0)
    first = batch['audio'][:, 0] // 1000
    np.testing.assert_array_equal(batch['speakers'], first >= 2)
    (row,) = batch['audio'][first == 1]
    np.testing.assert_array_equal(row, 1001 + np.arange(20) % 7)


def test_a_recording_played_faster_is_somebody_elses_and_higher():
    def tone(hz, seconds=2):
        return np.sin(2 * np.pi * hz * np.arange(16_000 * seconds) / 16_000).astype(np.float32)

    waves = [tone(hz) for hz in (1000, 1010, 2000, 2010)]
    recordings = [Recording(f'/{i}.wav', speaker='aabb'[i]) for i in range(4)]
    batches = SpeakerBatches(
        Clips(recordings, 16_000, np.array([32_000] * 4), waves.__getitem__),
        samples=16_000, rows=32, seed=0, speeds=(0.8, 1.25),
    )  # fmt: skip
    assert batches.speakers == ('a', 'b', 'a x0.8', 'b x0.8', 'a x1.25', 'b x1.25')
    batch = batches.batch(0)
    heard = np.abs(np.fft.rfft(batch['audio'])).argmax(axis=1)  # Hz, of a second
    factor, tones = np.repeat([1, 0.8, 1.25], 2), np.tile([1000, 2000], 3)
    near = (factor * tones)[batch['speakers']]
    assert set(batch['speakers']) == set(range(6))
    assert np.all((heard >= near - 1) & (heard <= near * 1.01 + 3))


def test_what_is_skipped_changes_nothing_else():
    def batches(*skip):
        return SpeakerBatches(
            clips(16_000, (50, 40, 30, 30)), samples=20, rows=4, seed=0, skip=skip
        )

    for step in range(3):  # each an epoch
        plain, found = batches().batch(step), batches('/1.wav', '/2.wav').batch(step)
        names = batches().names(step)
        other = next(name for name in names if name not in ('/1.wav', '/2.wav'))
        for row, name in enumerate(batches('/1.wav', '/2.wav').names(step)):
            if names[row] in ('/1.wav', '/2.wav'):
                assert name == other and found['audio'][row, 0] // 1000 == int(other[1])
            else:
                assert name == names[row]
                np.testing.assert_array_equal(found['audio'][row], plain['audio'][row])
    with pytest.raises(InputError, match='that the manifest lacks: /9.wav'):
        batches('/9.wav')


@pytest.mark.parametrize(
    ('speakers', 'message'),
    [('aab', 'one recording alone: b'), (('a', 'a', ''), 'have no "speaker", first: /2.wav')],
)
def test_speakers_nothing_is_learnt_from(speakers, message):
    with pytest.raises(InputError, match=message):
        SpeakerBatches(clips(16_000, (9, 9, 9), speakers), samples=4, rows=2, seed=0)


def test_a_prompt_is_of_the_same_speaker_and_of_another_recording():
    """Codes of recording i are 100 i + 1 ...; a code's 1920 samples count with it."""
    lengths = (9, 12, 8, 30)
    codes = [100 * i + 1 + np.arange(n, dtype=np.int32) for i, n in enumerate(lengths)]
    waves = [np.repeat(c, 1920).astype(np.float32) for c in codes]
    recordings = [Recording(f'/{i}.wav', speaker='aabb'[i]) for i in range(4)]
    source = Clips(recordings, 24_000, np.array([len(w) for w in waves]), waves.__getitem__)
    store = CodesStore({  # disturbed versions are not to be heard here
        r.audio: [Version(c), Version(c + 50)] for r, c in zip(recordings, codes, strict=True)
    })
    given = {
        'undisturbed': 1.0, 'seconds': 10.0, 'seed': 1, 'prompts': 0.7, 'longest': 7, 'buckets': 1
    }  # fmt: skip
    batches = PromptedBatches(source, store, **given)
    skipping = PromptedBatches(source, store, **given, skip=['/1.wav'])
    told = PromptedBatches(
        source, store, **given,
        vectors={r.audio: np.full(3, i + 1, np.float32) for i, r in enumerate(recordings)},
    )  # fmt: skip
    counts, unprompted = set(), set()
    for step in range(30):
        batch = batches.batch(step)
        also = told.batch(step)
        vectors = also.pop('xvector')
        assert also.keys() == batch.keys() and vectors.shape == (len(batch['codes']), 3)
        for name in batch:
            np.testing.assert_array_equal(also[name], batch[name])
        left = skipping.batch(step)['codes']
        assert not (left // 100 == 1).any() and (left // 100 == 3).any()
        for row, n in enumerate(batch['prompt_lengths']):
            found = batch['codes'][row, : batch['code_lengths'][row]]
            prompt, spoken = found[:n] // 100, found[n:] // 100
            assert len(set(spoken)) == 1 and n <= 7
            assert found[n] % 100 == 1 and (n == 0 or found[0] % 100 == 1)  # both from the start
            other = spoken[0] ^ 1  # of the two recordings of a speaker
            if n:
                assert len(set(prompt)) == 1 and prompt[0] == other
            assert set(vectors[row]) <= ({other + 1} if n else {other + 1, 0})
            unprompted |= set() if n else {vectors[row, 0] > 0}
            np.testing.assert_array_equal(
                batch['audio'][row, : 1920 * len(found)], np.repeat(found, 1920)
            )
            assert not batch['audio'][row, 1920 * len(found) :].any()
            counts.add(int(n))
    assert counts == {0, 5, 6, 7} and unprompted == {True, False}

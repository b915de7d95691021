"""Speech batches: labels against hand-computed times, buckets, reproducibility, the codes store."""

import collections
import dataclasses
import itertools
import json

import numpy as np
import pytest
import soundfile

from mossjax.data import codes
from mossjax.data.clips import CLEAN, Perturb, clips_in_memory, clips_on_disk
from mossjax.data.codes import CodesStore, Version, tokenize_recordings
from mossjax.data.labels import NONE, Inventory
from mossjax.data.manifest import Recording
from mossjax.data.speech import (
    DecoderBatches,
    Schedule,
    TokenizerBatches,
    bucket_lengths,
    by_key,
)
from mossjax.errors import InputError
from mossjax.infer import audio
from tests import sounds

TIMES = (('pau', 0.05), ('t', 0.09), ('uw', 0.2))


def test_frame_labels_by_hand():
    inventory = Inventory(('pau', 't', 'uw'))
    # Middles of 20 ms frames: .01 .03 .05 .07 .09 .11 .13 .15 .17 .19 .21; a border belongs to
    # the label that ends on it.
    got = inventory.frames(TIMES, 12, 50)
    assert got.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, NONE, NONE] and got.dtype == np.int32
    assert inventory.frames((), 2, 50).tolist() == [NONE, NONE]


def test_inventory(tmp_path):
    recordings = [Recording('a', 'two', times=TIMES), Recording('b', 'at')]
    inventory = Inventory.of(recordings)
    assert inventory.labels == ('a', 'pau', 't', 'uw') and len(inventory) == 4
    assert inventory.sequence(recordings[0]).tolist() == [2, 3]  # no silence
    assert inventory.sequence(recordings[1]).tolist() == [0, 2]
    inventory.save(tmp_path / 'labels.json')
    assert Inventory.open(tmp_path / 'labels.json') == inventory
    with pytest.raises(InputError, match="label 'x' is not among the 4"):
        inventory.frames((('x', 0.1),), 3, 50)
    (tmp_path / 'bad.json').write_text('[]')
    with pytest.raises(InputError, match='bad.json: not a JSON object'):
        Inventory.open(tmp_path / 'bad.json')
    for labels in ('null', '"ab"', '[]', '["a", 1]', '["a", "a"]'):
        (tmp_path / 'bad.json').write_text(f'{{"labels": {labels}}}')
        with pytest.raises(InputError, match='no list of different labels'):
            Inventory.open(tmp_path / 'bad.json')


@pytest.mark.parametrize(
    'line, said',
    [
        ('{"path": "a"}', 'expected {"path"'),
        ('[1]', 'expected {"path"'),
        ('{"path": 1, "codes": []}', 'expected {"path"'),
        ('{"path": "a", "codes": [1, NaN]}', 'NaN is no number'),
        ('{"path": "a", "codes": [1, 4294967297]}', r'codes\[1\] is 4294967297'),
        ('{"path": "a", "codes": [1.5]}', r'codes\[0\] is 1.5'),
        ('{"path": "a", "codes": [[1]]}', r'codes\[0\] is \[1\]'),
        ('{"path": "a", "codes": [1], "offset": "x"}', "offset is 'x'"),
        ('{"path": "a", "codes": [1], "version": null}', 'version is None'),
        ('{"path": "a", "path": "b", "codes": [1]}', 'twice'),
    ],
)
def test_a_bad_line_of_a_codes_store_is_named(line, said, tmp_path):
    (tmp_path / 'codes.jsonl').write_text('{"path": "a.wav", "codes": [3]}\n' + line + '\n')
    with pytest.raises(InputError, match=f'codes.jsonl:2: .*{said}'):
        CodesStore.open(tmp_path / 'codes.jsonl')


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
    """24 recordings of 0.2 to 1.5 s: ramps, so that a sample tells where it came from."""
    folder = tmp_path_factory.mktemp('recordings')
    rng = np.random.default_rng(1)
    made = []
    for i in range(24):
        seconds = float(rng.uniform(0.2, 1.5))
        wav = (np.arange(round(seconds * 16_000)) % 1000 + 1) / 4000.0
        path = folder / f'{i:02}.wav'
        audio.save(path, wav.astype(np.float32), 16_000)
        times = (('pau', 0.05), ('t', 0.6 * seconds), ('uw', len(wav) / 16_000))
        kind = 'answer' if i < 4 else 'question'
        made.append(Recording(str(path), f'two {i}', 's', times, (), {'kind': kind}))
    return made


@pytest.fixture
def damaged(tmp_path):
    """A FLAC file cut in the middle, and no audio at all."""
    whole = sounds.encoded(np.tile(sounds.question(), 3), format='FLAC')
    (tmp_path / 'torn.flac').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'text.wav').write_text('hello')
    return [Recording(str(tmp_path / name)) for name in ('torn.flac', 'text.wav')]


def test_memory_and_disk_give_the_same_samples(recordings):
    memory, disk = (f(recordings, 16_000) for f in (clips_in_memory, clips_on_disk))
    np.testing.assert_array_equal(memory.lengths, disk.lengths)
    said = dataclasses.replace(recordings[3], extra={'seconds': memory.lengths[3] / 16_000 + 2e-3})
    np.testing.assert_array_equal(clips_on_disk([said], 16_000).read(0), memory.read(3))
    for i in range(len(recordings)):
        want = audio.load(recordings[i].audio, 16_000)
        np.testing.assert_array_equal(memory.read(i), want)
        np.testing.assert_array_equal(disk.read(i), want)


def test_wrong_seconds_are_noticed(recordings):
    short = dataclasses.replace(recordings[0], extra={'seconds': 0.1})
    with pytest.raises(InputError, match=r'00\.wav lasts .* the manifest says 0.100 s'):
        clips_on_disk([short], 16_000).read(0)
    with pytest.raises(InputError, match='1 of 2 audio files do not exist'):
        clips_in_memory([recordings[0], Recording('/none.wav')], 16_000)
    for wrong in (-1.0, float('inf'), 'two', 1e9):
        said = dataclasses.replace(recordings[0], extra={'seconds': wrong})
        with pytest.raises(InputError, match=r'"seconds" of .*00\.wav in the manifest is'):
            clips_on_disk([said], 16_000)


@pytest.mark.parametrize('keep', [clips_in_memory, clips_on_disk])
def test_damaged_recordings_are_all_named_before_training(recordings, damaged, keep):
    with pytest.raises(InputError) as refused:
        keep([*recordings[:2], *damaged, *recordings[2:]], 16_000)
    assert '2 of 26 inputs cannot be used' in str(refused.value)
    assert 'torn.flac breaks off' in str(refused.value)
    assert 'text.wav is not audio' in str(refused.value)


@pytest.mark.parametrize('keep', [clips_in_memory, clips_on_disk])
def test_lengths_are_those_of_what_the_files_hold(tmp_path, golden, keep):
    whole = sounds.riff(sounds.question().tobytes(), size=0)
    (tmp_path / 'killed.wav').write_bytes(whole)
    (tmp_path / 'two.wav').write_bytes(whole * 2)
    paths = [golden('audio/question_pipe.flac'), tmp_path / 'killed.wav', tmp_path / 'two.wav',
             golden('audio/question_no_count.mp3')]  # fmt: skip
    clips = keep([Recording(str(path)) for path in paths], 16_000)
    assert clips.lengths.tolist() == [25280, 25280, 50560, 26496]
    assert [len(clips.read(i)) for i in range(4)] == clips.lengths.tolist()


def test_perturbation(rng):
    wav = np.full(4000, 0.1, np.float32)
    out, offset = Perturb(0.07, 6.0, 0.0)(rng, wav, 16_000)
    assert 0 <= offset <= 1120 and len(out) == 4000 + offset and not out[:offset].any()
    level = 20 * np.log10(out[offset:].astype(np.float64) / 0.1)
    assert np.ptp(level) < 1e-4 and abs(level[0]) <= 6
    noisy, offset = Perturb(0.0, 0.0, 0.02)(np.random.default_rng(1), wav, 16_000)
    drawn = np.random.default_rng(1)
    drawn.integers(0, 1), drawn.uniform(0, 0)  # shift and gain are drawn first
    assert offset == 0 and np.std(noisy - wav) == pytest.approx(drawn.uniform(0, 0.02), rel=0.05)
    same, offset = CLEAN(rng, wav, 16_000)
    np.testing.assert_array_equal(same, wav)


weight = by_key('kind', {'answer': 6})


def tokenizer_batches(recordings, **settings):
    clips = clips_in_memory(recordings, 16_000)
    settings = {'seconds': 4.0, 'seed': 2, 'room': 0.07, 'weight': weight} | settings
    return TokenizerBatches(clips, Inventory.of(recordings), **settings)


@pytest.mark.parametrize('buckets', [1, 2, 3, 9])
def test_buckets_have_the_least_padding(rng, buckets):
    """Against every choice of padded lengths there is."""
    lengths = rng.integers(1, 90, 60)
    up = -(-lengths // 10) * 10
    edges = np.unique(up)

    def padded(chosen):
        return sum(min(c for c in chosen if c >= x) for x in up)

    choices = (
        (*some, edges[-1])
        for k in range(min(buckets, len(edges)))
        for some in itertools.combinations(edges[:-1], k)
    )
    got = bucket_lengths(lengths, buckets, 10)
    assert len(got) == min(buckets, len(edges)) and padded(got) == min(map(padded, choices))


def test_schedule_shows_everything_as_often_as_its_weight(rng):
    lengths = rng.integers(100, 4000, 300)
    weights = np.where(np.arange(300) % 5 == 0, 6, 1)
    weights[7] = 0
    schedule = Schedule(lengths, weights, budget=12_000, seed=0, buckets=4, unit=160)
    assert len(schedule.lengths) <= 4 and not (schedule.lengths % 160).any()
    for epoch in range(2):
        seen = collections.Counter()
        steps = range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)
        for step in steps:
            width, indices = schedule.batch(step)
            assert lengths[indices].max() <= width
            assert len(indices) * width <= 12_000 < (len(indices) + 1) * width  # the budget
            seen.update(indices.tolist())
        # Each bucket's last batch is filled up, so some are seen once or twice more.
        extra = np.array([seen[i] for i in range(300)]) - weights
        assert extra.min() == 0 and extra.sum() <= sum(schedule.rows) and seen[7] == 0


def test_tokenizer_batches(recordings):
    batches = tokenizer_batches(recordings)
    assert [weight(r) for r in recordings] == [6] * 4 + [1] * 20
    inventory = Inventory.of(recordings)
    shapes = set()
    for step in range(batches.schedule.steps_per_epoch):
        batch = batches.batch(step)
        width, indices = batches.schedule.batch(step)
        shapes.add((batch['audio'].shape, batch['targets'].shape))
        assert width % 1280 == 0 and batch['phones'].shape[1] == width // 320
        for row, i in enumerate(indices):
            length = batch['lengths'][row]
            said = audio.load(recordings[i].audio, 16_000)
            assert length == len(said) <= width - 1120  # room to delay it by 70 ms
            np.testing.assert_array_equal(batch['audio'][row, :length], said)
            assert not batch['audio'][row, length:].any()
            middle = (np.arange(width // 320) + 0.5) / 50
            ends = [end for _, end in recordings[i].times]
            want = np.select([middle <= end for end in ends], [0, 1, 2], default=-1)
            np.testing.assert_array_equal(batch['phones'][row], want)
            assert batch['targets'][row, : batch['target_lengths'][row]].tolist() == [1, 2]
    assert inventory.labels == ('pau', 't', 'uw') and len(shapes) <= 4


def assert_rows_of(batches, again, step):
    """Any rows, alone and in any order, are those of the whole batch: widths are the batch's."""
    want = batches.batch(step)
    size = len(want['audio'])
    assert batches.size(step) == size
    for rows in ([size - 1], range(size), [1, 0], np.arange(0, size, 2)):
        got = again.batch(step, rows)
        assert got.keys() == want.keys()
        for key in want:
            np.testing.assert_array_equal(got[key], want[key][list(rows)])
    return size


def test_batches_are_a_function_of_seed_step_and_row(recordings):
    one, again = (tokenizer_batches(recordings, rows_multiple=2) for _ in range(2))
    for step in (11, 3, 200):
        assert assert_rows_of(one, again, step) % 2 == 0
    other = tokenizer_batches(recordings, rows_multiple=2, seed=3)
    assert any(other.schedule.batch(s)[0] != one.schedule.batch(s)[0] for s in range(10))


class Peaks:
    """Stands for a tokenizer: code = 1 + rounded mean level of its 80 ms, so silence is 1."""

    calls = 0

    def encode(self, wavs):
        self.calls += len(wavs)
        padded = [np.pad(w, (0, -len(w) % 1280)).reshape(-1, 1280) for w in wavs]
        return [(1 + np.round(1000 * np.abs(w).mean(1))).astype(np.int32) for w in padded]


def test_codes_store(recordings, tmp_path):
    path = tmp_path / 'codes.jsonl'
    store = tokenize_recordings(Peaks(), recordings, path, versions=3, seed=5)
    assert len(store) == 24
    for recording in recordings:
        versions = store.versions(recording.audio)
        wav = audio.load(recording.audio, 16_000)
        np.testing.assert_array_equal(versions[0].codes, Peaks().encode([wav])[0])
        assert len(versions) == 3 and versions[0].offset == 0
        for version in versions[1:]:
            assert 0 <= version.offset <= 0.07
            assert len(version.codes) == -(-(len(wav) + round(16_000 * version.offset)) // 1280)
    offsets = [store.versions(r.audio)[v].offset for r in recordings for v in (1, 2)]
    assert len(set(offsets)) > 40


def test_an_interrupted_store_goes_on_where_it_stopped(recordings, tmp_path):
    whole, part = tmp_path / 'whole.jsonl', tmp_path / 'part.jsonl'
    tokenize_recordings(Peaks(), recordings, whole, versions=3, seed=5)
    tokenize_recordings(Peaks(), recordings, part, versions=3, seed=5)
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b''.join(lines[:20]) + lines[20][:30])  # torn
    with pytest.raises(InputError, match='no codes of'):
        opened = CodesStore.open(part)
        for recording in recordings:
            opened.versions(recording.audio)
    rest = Peaks()
    tokenize_recordings(rest, recordings[::-1], part, versions=3, seed=5)
    assert rest.calls == 72 - 20
    assert sorted(part.read_text().split('\n')) == sorted(whole.read_text().split('\n'))
    none = Peaks()
    tokenize_recordings(none, recordings, part, versions=3, seed=5)
    assert none.calls == 0


def test_codes_of_the_good_ones_among_damaged_recordings_are_kept(recordings, damaged, tmp_path):
    alone, path = tmp_path / 'alone.jsonl', tmp_path / 'codes.jsonl'
    tokenize_recordings(Peaks(), recordings, alone, versions=2)
    late = Recording(str(tmp_path / 'nan.wav'))
    soundfile.write(late.audio, np.full(4000, np.nan), 16_000, 'FLOAT')
    mixed = [*recordings[:3], *damaged, late, *recordings[3:]]
    with pytest.raises(InputError) as refused:
        tokenize_recordings(Peaks(), mixed, path, versions=2)
    assert f'3 of 27 recordings are not in {path}; the others are.' in str(refused.value)
    assert str(refused.value).count('nan.wav has a sample that is no number') == 1
    assert 'torn.flac breaks off' in str(refused.value)
    assert path.read_text() == alone.read_text()
    again = Peaks()
    tokenize_recordings(again, recordings, path, versions=2)
    assert again.calls == 0


def test_bad_stores(recordings, tmp_path):
    path = tmp_path / 'codes.jsonl'
    with pytest.raises(InputError, match='no codes; tokenize'):
        CodesStore.open(path)
    tokenize_recordings(Peaks(), recordings[:1], path, versions=1, fingerprint='a')
    with pytest.raises(InputError, match="'fingerprint': 'a'.*'fingerprint': 'b'"):
        tokenize_recordings(Peaks(), recordings[:1], path, versions=1, fingerprint='b')
    for line in ({'path': 'a'}, [3], {'path': 'a', 'codes': [1, 10**20]},
                 {'path': 'a', 'codes': [1, -1]}, {'path': 'a', 'codes': [1, True]},
                 {'path': 'a', 'codes': [1, [2]]}, {'path': 'a', 'codes': [2.5]},
                 {'path': 'a', 'codes': [1], 'offset': 'x'}):  # fmt: skip
        path.write_text(json.dumps(line) + '\n')
        with pytest.raises(InputError, match=r'codes\.jsonl:1: '):
            CodesStore.open(path)


def test_long_recordings_are_tokenized_few_at_a_time(recordings, tmp_path, monkeypatch):
    seconds = sorted(len(audio.load(r.audio, 16_000)) / 16_000 for r in recordings)
    monkeypatch.setattr(codes, 'GROUP_SECONDS', seconds[0] + seconds[1] + 0.01)
    held = []

    class Counting(Peaks):
        def encode(self, wavs):
            held.append((len(wavs), sum(map(len, wavs)) / 16_000))
            return super().encode(wavs)

    tokenize_recordings(Counting(), recordings, tmp_path / 'codes.jsonl', versions=1)
    assert sum(count for count, _ in held) == len(recordings) and held[0][0] == 2
    assert all(count == 1 or total <= codes.GROUP_SECONDS for count, total in held)


def test_decoder_batches_align_codes_and_audio(recordings, tmp_path):
    """The stand-in's codes, computed again from the batch's audio, are the batch's codes."""
    store = tokenize_recordings(
        Peaks(), recordings, tmp_path / 'codes.jsonl', versions=4, perturb=Perturb(0.07, 0.0, 0.0)
    )
    clips = clips_in_memory(recordings, 24_000)
    batches = DecoderBatches(clips, store, seconds=4.0, seed=0, weight=weight)
    drawn = set()
    for step in range(batches.schedule.steps_per_epoch):
        batch = batches.batch(step)
        n = batch['codes'].shape[1]
        assert batch['audio'].shape == (len(batch['codes']), 1920 * n)
        for row, length in enumerate(batch['code_lengths']):
            level = np.abs(batch['audio'][row].reshape(n, 1920)).mean(1)
            again = 1 + 1000 * level
            # Resampling the ramp to 24 kHz changes the level of 80 ms by a per cent or so.
            assert abs(again[:length] - batch['codes'][row, :length]).max() < 6
            assert not batch['codes'][row, length:].any()
            assert not batch['audio'][row, 1920 * length :].any()
            drawn.add(bytes(batch['codes'][row]))
        assert_rows_of(
            batches, DecoderBatches(clips, store, seconds=4.0, seed=0, weight=weight), step
        )
    assert len(drawn) > 24  # several versions of a recording
    with pytest.raises(InputError, match='24000 Hz'):
        DecoderBatches(clips_in_memory(recordings, 16_000), store, seconds=4.0, seed=0)


def test_audio_beyond_its_codes_is_left_out(recordings):
    """Codes of the first 160 ms only, beside a longer recording: the rest of the row is silent."""
    first = np.array([5, 6], np.int32)
    codes = CodesStore({recordings[0].audio: [Version(first)], recordings[1].audio: [
        Version(np.ones(30, np.int32))
    ]})  # fmt: skip
    clips = clips_in_memory(recordings[:2], 24_000)
    batch = DecoderBatches(clips, codes, seconds=6.0, seed=0, buckets=1).batch(0)
    row = batch['code_lengths'].tolist().index(2)
    np.testing.assert_array_equal(batch['audio'][row, :3840], clips.read(0)[:3840])
    assert not batch['audio'][row, 3840:].any()


def test_nothing_to_train_on(recordings):
    with pytest.raises(InputError, match='no recordings to train on'):
        tokenizer_batches(recordings, weight=lambda r: 0)
    with pytest.raises(InputError, match='whole numbers'):
        tokenizer_batches(recordings, weight=lambda r: 0.5)

"""Packing a run: same bytes twice, nothing missing, nothing too large, a fair draw."""

from collections import Counter
import hashlib
import io
import json
import random
import shutil

import jax
import numpy as np
import pytest

from experiments.nano import ogg, ship, world
from mossjax.convert import codec_vocoder
from mossjax.convert.directories import save_lm
from mossjax.convert.placement import open_lm
from mossjax.errors import InputError
from mossjax.infer.assets import FILES, Assets, shipped
from mossjax.models.vocoder.hift.config import HiftConfig
from tests.tiny_run import JUDGE, REPORT, WORLD, drawn, write_run

FLITE = {'flite': 'flite-2.2', 'licence': '    Permission is hereby granted'}

HIFT = HiftConfig(
    channels=4, f0_width=4, harmonics=1, rates=(120,), kernels=(120,), source_kernels=(3,),
    block_kernels=(3,), dilations=(1,),
)  # fmt: skip


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def packed(run, tmp_path_factory):
    out = tmp_path_factory.mktemp('packed') / 'nano'
    ship.pack(run, out, questions=5, never_spoken=2, **FLITE)
    return out


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run that a test may damage."""
    shutil.copytree(run.lm.parent, tmp_path / 'run')
    root = tmp_path / 'run'
    return ship.Run(root / 'lm', root / 'codec', root / 'recordings', root / 'report.json')


def test_the_same_run_gives_the_same_bytes(run, packed, tmp_path):
    sizes = ship.pack(run, tmp_path / 'again', questions=5, never_spoken=2, **FLITE)
    again = contents(tmp_path / 'again')
    assert again == contents(packed)
    assert sizes == {name: len(data) for name, data in sorted(again.items())}
    assert set(FILES) <= set(again)
    other = tmp_path / 'other'
    ship.pack(run, other, questions=5, never_spoken=2, seed=1, **FLITE)
    index = 'recordings/index.json'
    assert (other / index).read_bytes() != again[index]


def test_weights_are_copied(run, packed):
    for source, name, files in ((run.lm, 'lm', 4), (run.codec, 'codec', 5)):
        got, want = contents(packed / name), contents(source)
        assert got == want and len(got) >= files


def test_a_vocoder_is_taken_along_and_hashed(copied, tmp_path):
    codec_vocoder.save_hift(
        copied.codec, HIFT, drawn(codec_vocoder.hift_network(HIFT), 0.1), suffix='.safetensors'
    )
    ship.pack(copied, tmp_path / 'nano', questions=5, never_spoken=2, **FLITE)
    name = 'codec/flow/hift.safetensors'
    data = (tmp_path / 'nano' / name).read_bytes()
    assert Assets.open(tmp_path / 'nano').hashes()[name] == hashlib.sha256(data).hexdigest()
    assert data == (copied.codec / 'flow' / 'hift.safetensors').read_bytes()
    (copied.codec / 'flow' / 'hift.safetensors').write_bytes(data[:-8])
    with pytest.raises(InputError, match='hift.safetensors'):
        ship.pack(copied, tmp_path / 'other', questions=5, never_spoken=2, **FLITE)
    assert not (tmp_path / 'other').exists()


def test_recordings_sound_as_before_and_are_indexed(packed):
    import soundfile

    assets = Assets.open(packed)
    assert list(assets.answers) == ['seven', 'twelve']
    assert [len(assets.questions(s)) for s in ('heldout', 'never_spoken')] == [5, 2]
    for clip in assets.clips:
        answer = clip.kind == 'answer'
        name = clip.text.split()[-1] if answer else 'question_kal16'
        want, _ = soundfile.read(JUDGE / f'{name}.flac', dtype='float32')
        got = assets.load(clip, 16000)
        assert len(got) == len(want) == clip.frames
        assert 10 * np.log10(np.sum(want**2) / np.sum((got - want) ** 2)) > 15
        if not answer:
            fact = WORLD.facts[clip.fact]
            assert clip.text == fact.question
            assert fact.spoken == (clip.split == 'heldout')
    assert len(assets.load(clip, 24000)) == -(-clip.frames * 3 // 2)


def test_a_damaged_recording_is_refused(packed, tmp_path):
    shutil.copytree(packed, tmp_path / 'nano')
    path = tmp_path / 'nano' / 'recordings' / 'answers.ogg'
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assets = Assets.open(tmp_path / 'nano')
    with pytest.raises(InputError, match='answers.ogg is not the file that was packed'):
        assets.load(assets.answers['seven'], 16000)
    assert len(assets.load(assets.questions('heldout')[0], 16000))


def test_the_notice_has_origin_licence_and_hashes(packed):
    notice = (packed / 'NOTICE').read_text()
    for words in ('flite-2.2', 'slt, rms, awb, kal16', 'Permission is hereby', 'Apache-2.0'):
        assert words in notice
    for name, data in contents(packed).items():
        listed = f'{hashlib.sha256(data).hexdigest()}  {name}\n' in notice
        assert listed == (name != 'NOTICE')


def test_everything_missing_is_named_at_once(copied, tmp_path):
    (copied.lm / 'tokenizer.json').unlink()
    (copied.codec / 'flow' / 'flow.safetensors').unlink()
    copied.report.unlink()
    with pytest.raises(InputError) as refusal:
        ship.pack(copied, tmp_path / 'out', **FLITE)
    for name in ('lm/tokenizer.json', 'flow/flow.safetensors', 'report.json'):
        assert name in str(refusal.value)
    assert not (tmp_path / 'out').exists()


def test_what_does_not_belong_into_a_package_is_refused(run, copied, tmp_path):
    def refusal():
        with pytest.raises(InputError) as caught:
            ship.pack(copied, tmp_path / 'out', questions=5, never_spoken=2, **FLITE)
        assert not (tmp_path / 'out').exists()
        return str(caught.value)

    copied.report.write_text(json.dumps({**REPORT, 'workdir': '/data' + '/runs/nano'}))
    assert 'paths of this machine (/data/runs/nano)' in refusal()
    copied.report.write_text('{"stages": ["text"]}')
    assert 'has no object "stages"' in refusal()
    fewer = {name: facts for name, facts in REPORT['stages'].items() if name != 'sft'}
    copied.report.write_text(json.dumps({'stages': fewer}))
    assert 'says nothing of the stages sft' in refusal()
    copied.report.write_text(json.dumps(REPORT))
    manifest = copied.recordings / 'train' / 'manifest.jsonl'
    whole = manifest.read_text()
    manifest.write_text(''.join(x for x in whole.splitlines(True) if 'twelve' not in x))
    assert 'no recording answers twelve' in refusal()
    manifest.write_text(whole)
    config, params = open_lm(copied.lm)
    settings = {'generation_config.json': b'{"system_prompts": {}}'}
    shutil.rmtree(copied.lm)
    save_lm(copied.lm, config, jax.tree.map(lambda x: x.astype('float32'), params), files=settings)
    assert 'lacks' in refusal() and 'tokenizer.json' in refusal()
    for name in ('tokenizer.json', 'tokenizer_config.json'):
        shutil.copyfile(run.lm / name, copied.lm / name)
    assert 'has no repetition_penalty; add it: the default of 1.1' in refusal()
    shutil.copyfile(run.lm / 'generation_config.json', copied.lm / 'generation_config.json')
    assert 'is stored in float32; save it in bfloat16' in refusal()


def test_too_large_is_refused_with_the_largest_parts(run, tmp_path):
    largest = r'the limit is 0\.05 MB \(codec/flow/flow\.safetensors 0\.\d+ MB, '
    with pytest.raises(InputError, match=largest):
        ship.pack(run, tmp_path / 'out', questions=5, never_spoken=2, limit=50_000, **FLITE)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match='7 questions of heldout wanted, the world has 6'):
        ship.pack(run, tmp_path / 'out', questions=7, never_spoken=2, **FLITE)


def test_a_draw_takes_each_family_in_proportion():
    facts = world.build().spoken
    families = [fact.family for fact in facts]
    drawn = ship.spread([fact.id for fact in facts], families, 132, random.Random(0))
    assert len(set(drawn)) == 132
    got = Counter(fact.family for fact in facts if fact.id in set(drawn))
    for family, count in Counter(families).items():
        assert abs(got[family] - count * 132 / len(facts)) <= 1


def test_an_ogg_stream_keeps_its_sound_under_another_number(tmp_path):
    """libsndfile checks the checksum of each page, so a wrong one would lose the sound."""
    import soundfile

    wav, rate = soundfile.read(JUDGE / 'seven.flac', dtype='float32')
    first, second = (ogg.encode(wav, rate, 0.4, serial) for serial in (1, 2))
    assert first == ogg.encode(wav, rate, 0.4, 1) and first != second
    assert ogg.renumbered(first, 2) == second
    waves = [soundfile.read(io.BytesIO(data))[0] for data in (first, second)]
    assert waves[0].shape == wav.shape
    np.testing.assert_array_equal(*waves)
    assert ogg.crc32(b'123456789') == 0x89A1897F  # CRC-32/CKSUM's published 0x765E7680, inverted


def test_the_licence_is_the_section_on_the_voices(tmp_path):
    path = tmp_path / 'copyright'
    path.write_text(
        'Other.\n\nAll other files are under following license:\n=====\n\nAuthors:\tA\n\n'
        ' Use THIS\n SOFTWARE.\n\nThe package is GPL.\n'
    )
    assert ship.flite_licence(path) == '    Authors:    A\n\n     Use THIS\n     SOFTWARE.'
    path.write_text('nothing')
    with pytest.raises(InputError, match='has no section'):
        ship.flite_licence(path)


def test_an_installation_without_the_checkpoint_says_so():
    with pytest.raises(InputError, match='came without the pico checkpoint.*--assets'):
        shipped('pico')


def test_an_incomplete_directory_is_refused(packed, tmp_path):
    shutil.copytree(packed, tmp_path / 'nano')
    (tmp_path / 'nano' / 'world.json').unlink()
    with pytest.raises(InputError, match='no world.json; copy the directory again'):
        Assets.open(tmp_path / 'nano')


def test_the_version_is_what_flite_says_of_itself(tmp_path, monkeypatch):
    """Version 2.2 ends with code 1 after it has said so."""
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(InputError, match='flite is not installed'):
        ship.flite_version()
    script = tmp_path / 'flite'
    script.write_text("#!/bin/sh\necho '  version: flite-2.2-current Sep 2018 (x)'\nexit 1\n")
    script.chmod(0o755)
    assert ship.flite_version() == 'flite-2.2-current Sep 2018 (x)'
    script.write_text('#!/bin/sh\nexit 1\n')
    with pytest.raises(InputError, match='says no version'):
        ship.flite_version()

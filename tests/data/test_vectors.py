"""Who speaks in recordings: the store is what the encoder says, and of which encoder it is."""

import json

import numpy as np
import pytest

from mossjax.convert import codec_directory
from mossjax.convert.codec_speaker import save_campp
from mossjax.data import vectors
from mossjax.data.manifest import Recording
from mossjax.errors import InputError
from mossjax.infer import audio
from mossjax.infer.voice_maker import SpeakerEncoder
from mossjax.train import flow
from mossjax.train.config import defaults
from tests import tiny_codec


@pytest.fixture(scope='module')
def codec(tmp_path_factory):
    root = tmp_path_factory.mktemp('codec')
    save_campp(root, tiny_codec.SPEAKER, tiny_codec.speaker_params())
    return str(root)


@pytest.fixture
def recordings(tmp_path, rng):
    found = []
    for name, samples in (('a', 16000), ('b', 9000), ('short', 1000)):
        audio.save(tmp_path / f'{name}.wav', 0.1 * rng.normal(size=samples).astype('f'), 16000)
        found.append(Recording(str(tmp_path / f'{name}.wav'), speaker='x'))
    return found


def test_the_store_is_what_the_encoder_says(codec, recordings, tmp_path):
    vectors.measure(recordings, tmp_path / 'vectors.jsonl', codec)
    found = vectors.read(tmp_path / 'vectors.jsonl', codec)
    assert list(found) == [r.audio for r in recordings[:2]]  # 62 ms are too short for any
    encoder = SpeakerEncoder(*codec_directory.open_campp(codec))
    for name, vector in found.items():
        want = encoder(audio.load(name, 16000))
        assert np.ptp(want) > 1e-2
        np.testing.assert_allclose(vector, want, atol=6e-6)


def test_vectors_of_another_encoder_are_refused(codec, tmp_path):
    other = tiny_codec.speaker_params()
    other['embed']['kernel'] = other['embed']['kernel'] + 1
    save_campp(tmp_path, tiny_codec.SPEAKER, other)
    line = {'path': 'a.wav', 'speaker': vectors._mark(codec), 'vector': [1, -0.5]}
    (tmp_path / 'v.jsonl').write_text(json.dumps(line) + '\n')
    found = vectors.read(tmp_path / 'v.jsonl', codec)
    np.testing.assert_array_equal(found[str(tmp_path / 'a.wav')], np.float32([1, -0.5]))
    with pytest.raises(InputError, match='v.jsonl:1: heard by another speaker encoder'):
        vectors.read(tmp_path / 'v.jsonl', str(tmp_path))


@pytest.mark.parametrize('line', ['[]', '{"path": "a", "vector": []}', '{"path": 1, "vector": [1]}',
                                  '{"path": "a", "vector": [1, "2"]}'])  # fmt: skip
def test_a_store_that_is_none(line, codec, tmp_path):
    (tmp_path / 'v.jsonl').write_text(line + '\n')
    with pytest.raises(InputError, match='v.jsonl:1: expected .* delete the file'):
        vectors.read(tmp_path / 'v.jsonl', codec)


def test_a_decoder_run_is_told_what_is_missing(codec, recordings, tmp_path):
    """Before anything is measured that does not fit."""
    config = defaults()
    config.data.manifest = str(tmp_path / 'manifest.jsonl')
    lines = [{'audio': r.audio, 'speaker': 'x', 'text': ''} for r in recordings]
    (tmp_path / 'manifest.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    codes = [{'path': r.audio, 'version': 0, 'offset': 0, 'codes': [1] * 13} for r in recordings]
    (tmp_path / 'codes.jsonl').write_text('\n'.join(map(json.dumps, codes)) + '\n')
    config.data.codes, config.data.seconds = str(tmp_path / 'codes.jsonl'), 8.0
    config.data.vectors = str(tmp_path / 'vectors.jsonl')
    with pytest.raises(InputError, match='config.data.speaker no codec; name the one'):
        flow.run(config, fresh=True)
    config.data.speaker = str(tmp_path)
    with pytest.raises(InputError, match='has no speaker encoder that can be read'):
        flow.run(config, fresh=True)
    config.data.speaker, config.model.xvector_size = codec, 64
    with pytest.raises(InputError, match='has 192 numbers, the decoder takes .* = 64'):
        flow.run(config, fresh=True)
    config.model.xvector_size = 192
    batch = flow.run(config, fresh=True).task.batches.batch(0)
    assert batch['xvector'].shape == (len(batch['codes']), 192)

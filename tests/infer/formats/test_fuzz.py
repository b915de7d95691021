"""Damaged files of every format are read or refused, quickly, and never surprise."""

import random
import time

import numpy as np

from mossjax.errors import InputError
from mossjax.infer import audio
from tests import sounds
from tests.sounds import encoded

QUESTION = sounds.question()[:8000]
FILES = {
    'wav': sounds.riff(QUESTION.tobytes()),
    'wav twice': sounds.riff(QUESTION.tobytes(), size=0) * 2,
    **{
        kind: encoded(QUESTION, format=kind, subtype='PCM_16')
        for kind in ('W64', 'RF64', 'AIFF', 'CAF', 'AU', 'FLAC', 'NIST')
    },
    'adpcm': encoded(QUESTION, format='WAV', subtype='IMA_ADPCM'),
    'mp3': sounds.id3(100) + encoded(QUESTION, format='MP3'),
    'mp3 twice': encoded(QUESTION, format='MP3') * 2,
    'vorbis': encoded(QUESTION, format='OGG', subtype='VORBIS'),
    'opus': encoded(QUESTION, format='OGG', subtype='OPUS'),
}
EXTREMES = [b'\xff' * 4, bytes(4), b'\x7f\xff\xff\xff', b'\xff\xff\xff\x7f', b'\0\0\0\x80']
EACH = 20


def _mutated(content: bytes, rng: random.Random) -> bytes:
    content = bytearray(content)
    at = rng.randrange(len(content))
    match rng.randrange(5):
        case 0:
            content[rng.randrange(100)] = rng.randrange(256)
        case 1:
            at = rng.randrange(100)
            content[at : at + 4] = rng.choice(EXTREMES)
        case 2:
            content[at : at + rng.randrange(1, 1000)] = b''
        case 3:
            content[at:at] = rng.randbytes(rng.randrange(1, 1000))
        case 4:
            del content[at:]
    return bytes(content)


def test_damaged_files_are_read_or_refused(tmp_path):
    rng, path, opened = random.Random(0), tmp_path / 'a.bin', 0
    for content in [*FILES.values()] * EACH:
        path.write_bytes(_mutated(content, rng) or b'x')
        started = time.process_time()
        try:
            header = audio.read_header(path)
            wav = audio.load(path, 16000)
        except InputError as error:
            assert len(str(error)) < 1000 and '\n' not in str(error)
            continue
        finally:
            assert time.process_time() - started < 20
        opened += 1
        assert wav.dtype == np.float32 and np.isfinite(wav).all()
        # What training plans with is what it gets.
        assert abs(len(wav) - header.seconds * 16000) <= 160
    assert opened >= 0.3 * EACH * len(FILES)

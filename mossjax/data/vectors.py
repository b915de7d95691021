"""The vector store: who speaks in recordings, as a codec's speaker encoder hears it, measured once.

A JSONL file, one recording a line, {"path": "wav/0001.wav", "speaker": "9f2c...", "vector": [...]},
with `path` relative to the file and `speaker` the hash of the encoder (`convert.fingerprint`): a
decoder reads only vectors of the encoder that it was trained with.
"""

from collections.abc import Mapping, Sequence
import json
import os
from pathlib import Path

from absl import logging
import numpy as np

from mossjax import paths, values
from mossjax.convert import codec_directory
from mossjax.convert.fingerprint import SPEAKER
from mossjax.data.clips import load_audio
from mossjax.data.manifest import Recording, check_audio
from mossjax.errors import InputError
from mossjax.files import replacing
from mossjax.infer.voice_maker import LONGEST, SHORTEST, SpeakerEncoder
from mossjax.models.speaker import fbank

DIGITS = 5  # after the point


def measure(recordings: Sequence[Recording], path: str | os.PathLike, codec_dir: str) -> None:
    """Writes the store of these recordings, whole or not at all.

    Of a long recording the first 30 s are heard; one that is shorter than a code has no vector.

    Args:
      codec_dir: whose speaker encoder hears them.

    Raises:
      InputError: the codec has none, or naming recordings that are missing or cannot be read.
    """
    check_audio(recordings)
    mark = _mark(codec_dir)
    encoder = SpeakerEncoder(*codec_directory.open_campp(codec_dir))
    logging.info('measuring the voices of %d recordings', len(recordings))
    root = Path(path).resolve().parent
    with replacing(Path(path)) as temporary, open(temporary, 'w', encoding='utf-8') as store:
        for recording in recordings:
            wave = load_audio(recording.audio, fbank.RATE)[: round(LONGEST * fbank.RATE)]
            if len(wave) < SHORTEST * fbank.RATE:
                continue
            line = {
                'path': os.path.relpath(recording.audio, root), 'speaker': mark,
                'vector': [round(float(x), DIGITS) for x in encoder(wave)],
            }  # fmt: skip
            store.write(json.dumps(line) + '\n')


def read(path: str | os.PathLike, codec_dir: str) -> Mapping[str, np.ndarray]:
    """{absolute path of a recording: (x,) float32}.

    Args:
      codec_dir: whose speaker encoder must have heard them.

    Raises:
      InputError: it cannot be read, a line is no such entry, or another encoder heard it.
    """
    root, mark, found = Path(path).resolve().parent, _mark(codec_dir), {}
    with paths.errors_of(path, 'read'), open(path, encoding='utf-8', errors='replace') as lines:
        for number, line in enumerate(lines, 1):
            where = f'{path}:{number}'
            fields = values.parse_json(line, where, 'Delete the file to measure again.')
            vector = fields.get('vector') if isinstance(fields, dict) else None
            if not (
                isinstance(vector, list) and vector and all(x in values.NUMBER for x in vector)
                and isinstance(fields.get('path'), str)
            ):
                raise InputError(
                    f'{where}: expected {{"path": ..., "speaker": ..., "vector": [...]}}; delete '
                    'the file to measure again'
                )
            if fields.get('speaker') != mark:
                raise InputError(
                    f'{where}: heard by another speaker encoder than the one of {codec_dir}; '
                    'delete the file to measure again, or name the codec that it was made with'
                )
            found[os.path.normpath(root / fields['path'])] = np.array(vector, np.float32)
    if len({len(vector) for vector in found.values()}) > 1:
        raise InputError(f'{path}: vectors of several lengths; delete the file to measure again')
    return found


def _mark(codec_dir: str) -> str:
    """What tells the speaker encoder of a codec from others."""
    found = codec_directory.prints(codec_dir, [SPEAKER])
    if SPEAKER not in found:
        raise InputError(
            f'{codec_dir} has no speaker encoder that can be read (flow/campplus.safetensors, or '
            'campplus.onnx with the extra [onnx]); name a codec that has one'
        )
    return found[SPEAKER].hex()[:16]

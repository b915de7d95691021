"""A voice: what the decoder is told of a speaker, made once of a recording and kept in a file."""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np

from mossjax.convert import codec_directory, safetensors_io
from mossjax.convert.fingerprint import BYTES, VOICE
from mossjax.convert.weight_files import open_tensors
from mossjax.errors import InputError
from mossjax.files import replacing
from mossjax.models.flow import mel as features
from mossjax.models.flow.config import FlowConfig

_PRINT = 'fingerprint.'
_WHAT = {'codebook': 'speech tokenizer', 'speaker': 'speaker encoder'}


@dataclasses.dataclass(frozen=True, eq=False)
class Voice:
    """A prompt and a speaker vector. Either may be absent.

    Attributes:
      codes: (p,) int32, what the recording says, in codes; p may be 0.
      mel: (ratio * p, 80) float32, its natural-log mel at 24 kHz.
      xvector: (192,) float32, who says it; zeros for nobody.
      made_with: {part of the codec: hash}, see `convert.fingerprint`.
    """

    codes: np.ndarray
    mel: np.ndarray
    xvector: np.ndarray
    made_with: dict[str, bytes] = dataclasses.field(default_factory=dict)

    def prompt_alone(self) -> 'Voice':
        """Without the speaker vector."""
        return dataclasses.replace(self, xvector=np.zeros_like(self.xvector))

    def vector_alone(self) -> 'Voice':
        """Without the prompt."""
        return dataclasses.replace(self, codes=self.codes[:0], mel=self.mel[:0])

    def digest(self) -> bytes:
        """A hash of what is heard of it."""
        found = hashlib.sha256()
        for part in (self.codes, self.mel, self.xvector):
            found.update(np.ascontiguousarray(part).tobytes())
        return found.digest()

    def __str__(self) -> str:
        prompt = f'a prompt of {len(self.mel) * features.HOP / features.RATE:.1f} s'
        parts = [prompt] * bool(len(self.codes)) + ['a speaker vector'] * bool(self.xvector.any())
        return ' and '.join(parts) or "the decoder's own (no prompt, zero speaker vector)"


def nobody(config: FlowConfig) -> Voice:
    """No prompt and a zero vector: the decoder's own voice."""
    return Voice(
        np.zeros(0, np.int32), np.zeros((0, config.mels), np.float32),
        np.zeros(config.xvector_size, np.float32),
    )  # fmt: skip


def own(codec_dir: str | Path, config: FlowConfig) -> Voice:
    """The voice that a codec directory comes with (`voice.safetensors`), else nobody's.

    Raises:
      InputError: see `load`.
    """
    path = Path(codec_dir) / VOICE
    return load(path, codec_dir) if path.is_file() else nobody(config)


def is_file(path: str | os.PathLike) -> bool:
    """Whether a path is that of a file that `save` wrote, damaged perhaps, and of no recording."""
    if Path(path).suffix == Path(VOICE).suffix:
        return True
    if not os.path.isfile(path):
        return False
    with open(path, 'rb') as file:
        start = file.read(9)
    # The length of the header in 64 bits, and the header's first letter; no sound begins so.
    return start[8:] == b'{' and int.from_bytes(start[:8], 'little') < safetensors_io.MAX_HEADER


def save(path: str | os.PathLike, voice: Voice) -> None:
    """Writes a safetensors file, whole or not at all; its folder is made if missing.

    Raises:
      InputError: the disk is full.
    """
    tensors = {
        'codes': np.asarray(voice.codes, np.int32), 'mel': np.asarray(voice.mel, np.float32),
        'xvector': np.asarray(voice.xvector, np.float32),
    }  # fmt: skip
    for part, digest in voice.made_with.items():
        tensors[_PRINT + part] = np.frombuffer(digest, np.uint8)
    with replacing(path) as temporary:
        safetensors_io.write(temporary, tensors)


def load(path: str | Path, codec_dir: str | Path) -> Voice:
    """Reads a voice for a codec.

    Raises:
      InputError: no voice file, or one that was made with another codec.
    """
    tensors = open_tensors(path)
    wanted = {'codes': ('int32', 1), 'mel': ('float32', 2), 'xvector': ('float32', 1)}
    found = {n: (d.name, len(tensors.shapes[n])) for n, d in tensors.dtypes.items() if n in wanted}
    if found != wanted:
        raise InputError(
            f'{path}: no voice: it must hold codes, mel and xvector; make one with mossjax voice'
        )
    parts = {name: np.array(tensors.read(name)) for name in wanted}
    if not all(np.isfinite(part).all() for part in parts.values()):
        raise InputError(f'{path}: holds numbers that are not finite; make the voice again')
    made_with = {
        name.removeprefix(_PRINT): tensors.read(name).tobytes()
        for name, shape in tensors.shapes.items()
        if name.startswith(_PRINT) and shape == (BYTES,)
    }
    for part, digest in codec_directory.prints(codec_dir).items():
        if made_with.get(part, digest) != digest:
            raise InputError(
                f'{path}: made with another {_WHAT[part]} than the one of {codec_dir}; make the '
                'voice again with this codec: mossjax voice'
            )
    return Voice(**parts, made_with=made_with)


def check(voice: Voice, config: FlowConfig, name: str = 'the voice') -> Voice:
    """The voice, if a decoder of this configuration can use it.

    Raises:
      InputError: its codes, its mel or its vector do not fit.
    """
    codes, mel = voice.codes, voice.mel
    if mel.shape != (config.ratio * len(codes), config.mels):
        raise InputError(
            f'{name}: {len(codes)} codes need a mel of {config.ratio * len(codes)} frames of '
            f'{config.mels} bins, it has {mel.shape}'
        )
    if voice.xvector.shape != (config.xvector_size,):
        raise InputError(
            f'{name}: a speaker vector of {voice.xvector.shape} for a decoder that takes '
            f'{config.xvector_size} numbers; make the voice with this codec'
        )
    wrong = codes[(codes < 0) | (codes >= config.vocab_size)]
    if wrong.size:
        raise InputError(
            f'{name}: code {wrong[0]} is outside 0..{config.vocab_size - 1}; make the voice with '
            'this codec'
        )
    return voice

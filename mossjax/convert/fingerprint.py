"""Which codec something was made with: hashes of weights that give its numbers their meaning."""

from collections.abc import Collection
import hashlib
from pathlib import Path

import numpy as np

from mossjax.convert import codec_speaker, codec_tokenizer

CODEBOOK, SPEAKER = 'codebook', 'speaker'
BYTES = 32  # of a hash
VOICE = 'voice.safetensors'  # in a codec directory: the voice it speaks with when none is named


def fingerprint(
    codec_dir: str | Path, parts: Collection[str] = (CODEBOOK, SPEAKER)
) -> dict[str, bytes]:
    """{CODEBOOK, SPEAKER: SHA-256} of the tokenizer's codes and of the speaker encoder.

    Args:
      parts: those that are wanted.

    What this directory or machine cannot tell is left out: it has no encoder, or `onnx` is not
    installed. Values count, not files: the same weights in another format have the same hash.

    Raises:
      InputError: a file is damaged.
    """
    root, found = Path(codec_dir), {}
    stem = codec_tokenizer.WEIGHTS
    if CODEBOOK in parts and any((root / name).is_file() for name in (stem, f'{stem}.index.json')):
        _, tensors, prefix, _ = codec_tokenizer.open_files(root)
        found[CODEBOOK] = digest(tensors.read(f'{prefix}codebook.weight'))
    if SPEAKER in parts and codec_speaker.can_read(root):
        _, tensors = codec_speaker.open_tensors(root)
        found[SPEAKER] = digest(tensors.read(codec_speaker.EMBED))
    return found


def digest(tensor: np.ndarray) -> bytes:
    """SHA-256 of its values as float32."""
    return hashlib.sha256(np.asarray(tensor, '<f4', order='C').data).digest()

"""The certificate of a conversion: what every tensor was, and that it came back the same.

certificate.json, beside the weights:

    source     revision if known, {file: {bytes, sha256}} of the weights and of config.json
    made       kind, choices (a Qwen3 start), cast, versions, date
    coverage   tensors read, tensors written, parameters filled, unused tensors
    tensors    {name: {dtype, shape, sha256, min, max, mean, std, non_finite}} as stored here
    round_trip {equal: n, differing: []}: every tensor read back from what was written
    attention  of a language model, {known_maximum: layers, online: {layer: bound}}: where the
               norms' gains bound the scores closely enough for the flash kernel to take the bound
               for the maximum; the others' bounds, in base 2 (there rows' own norms decide)

SHA-256 is over a tensor's bytes in the checkpoint's layout (C order), so that it is the same on
both sides of a conversion.
"""

from collections.abc import Callable, Iterable, Mapping
import hashlib
import math
from pathlib import Path
import re

import ml_dtypes
import numpy as np

from mossjax import paths, values
from mossjax.convert.safetensors_writer import blocks
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.models.lm.bounds import score_bound, within

NAME = 'certificate.json'
# What is said of a tensor.
FIELDS = ('dtype', 'shape', 'sha256', 'min', 'max', 'mean', 'std', 'non_finite')
BLOCK_BYTES = 16 * 2**20
_COMMIT = re.compile(r'[0-9a-f]{40}')


def describe(tensor: np.ndarray) -> dict:
    """dtype, shape, SHA-256 and statistics (over finite values, in float64) of one tensor."""
    digest = hashlib.sha256()
    count, total, squares, non_finite = 0, 0.0, 0.0, 0
    low, high = np.inf, -np.inf
    for block in blocks(tensor, BLOCK_BYTES):
        digest.update(block.reshape(-1).view(np.uint8).data)
        part = _float32(block)
        finite = np.isfinite(part)
        if not finite.all():
            non_finite += int(part.size - finite.sum())
            part = part[finite]
        if part.size:
            low, high = min(low, float(part.min())), max(high, float(part.max()))
            count += part.size
            with np.errstate(over='ignore'):  # of float64; what comes of it is left out below
                total += float(part.sum(dtype=np.float64))
                squares += float(np.dot(*[part.reshape(-1).astype(np.float64)] * 2))
    mean = total / count if count else 0.0
    variance = squares / count - mean * mean if count else 0.0
    return {
        'dtype': tensor.dtype.name, 'shape': list(tensor.shape), 'sha256': digest.hexdigest(),
        'min': low if count else None, 'max': high if count else None,
        'mean': mean if math.isfinite(mean) else None,
        'std': max(variance, 0.0) ** 0.5 if math.isfinite(variance) else None,
        'non_finite': non_finite,
    }  # fmt: skip


def attention_roads(entries: Mapping) -> dict:
    """The record 'attention' of tensors by their names upstream, {} without normed queries."""
    bounds = {}
    for name, norm in entries.items():
        layer, found, _ = name.partition('.self_attn.q_norm.weight')
        other = entries.get(f'{layer}.self_attn.k_norm.weight')
        if found and other:
            gains = (max(map(abs, (x['min'] or 0.0, x['max'] or 0.0))) for x in (norm, other))
            bounds[layer] = score_bound(*gains, norm['shape'][-1])
    loose = {layer: round(bound, 1) for layer, bound in bounds.items() if not within(bound)}
    return {'known_maximum': len(bounds) - len(loose), 'online': loose} if bounds else {}


def _float32(block: np.ndarray) -> np.ndarray:
    if block.dtype == ml_dtypes.bfloat16:  # the upper half of a float32; quicker than a cast
        return (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return block.astype(np.float32 if block.dtype.itemsize <= 4 else np.float64)


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two tensors are equal to the last bit, NaNs and signs of zero included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return all(
        np.array_equal(x.reshape(-1).view(np.uint8), y.reshape(-1).view(np.uint8))
        for x, y in zip(blocks(a, BLOCK_BYTES), blocks(b, BLOCK_BYTES), strict=True)
    )


def file_record(path: Path) -> dict:
    """Size and SHA-256 of a file."""
    with open(path, 'rb') as file:
        return {
            'bytes': path.stat().st_size, 'sha256': hashlib.file_digest(file, 'sha256').hexdigest()
        }


def revision_of(directory: Path) -> str | None:
    """The commit a directory was downloaded at, as the Hugging Face client records it."""
    resolved = directory.resolve()
    if resolved.parent.name == 'snapshots' and _COMMIT.fullmatch(resolved.name):
        return resolved.name
    for record in sorted((directory / '.cache' / 'huggingface' / 'download').glob('*.metadata')):
        first = record.read_text(errors='replace').partition('\n')[0].strip()
        if _COMMIT.fullmatch(first):
            return first
    return None


def load(directory: Path) -> dict:
    """
    Raises:
      InputError: there is none, or it is damaged.
    """
    path = directory / NAME
    if not path.is_file():
        raise InputError(
            f'{paths.printable(path)}: no such file; only directories that mossjax convert wrote '
            '(without --nocertificate) can be verified'
        )
    content = read_json(path)
    for name, kind in _PARTS.items():
        found = content
        for key in name.split('.'):
            found = found.get(key) if isinstance(found, dict) else None
        entries = found.values() if name in _OF_OBJECTS and isinstance(found, dict) else ()
        if not isinstance(found, kind) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(
                f'{paths.printable(path)} is damaged ({name} is {values.shown(found)}); convert '
                'again'
            )
    return content


# What is read of a certificate, and what it must be.
_PARTS = {
    'tensors': dict, 'source': dict, 'source.files': dict, 'made': dict, 'made.choices': dict,
    'made.cast': str,
}
_OF_OBJECTS = ('tensors', 'source.files')


def compare(
    certificate: Mapping, names: Iterable[str], read: Callable[[str], np.ndarray],
    progress: Callable[[int], None] = lambda n: None,
) -> list[str]:
    """Faults of a directory's tensors against its certificate, [] if there are none.

    Args:
      progress: told the bytes of each tensor.
    """
    names, expected = list(names), certificate['tensors']
    faults = [f'{name}: not in the certificate' for name in names if name not in expected]
    faults += [f'{name}: missing' for name in expected if name not in set(names)]
    for name in names:
        if name in expected:
            tensor = read(name)
            found = describe(tensor)
            faults += [
                f'{name}: {key} is {found[key]}, was {expected[name].get(key)}'
                for key in ('dtype', 'shape', 'sha256')
                if found[key] != expected[name].get(key)
            ]
            progress(tensor.nbytes)
    return faults

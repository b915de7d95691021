"""Recordings to codes: cutting, padding, batching, and the compiled encoder."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.convert.codec_tokenizer import open_tokenizer, tokenizer_network
from mossjax.errors import InputError
from mossjax.models.tokenizer import mel
from mossjax.models.tokenizer.config import TokenizerConfig

# A batch holds at most this much padded audio, in samples: four pieces of 30 s or many short ones.
# At the released size the attention scores of those four take 0.7 GB.
BATCH_SAMPLES = 4 * 30 * mel.RATE
MAX_ROWS = 128


class SpeechTokenizer:
    """The tokenizer of a codec directory, ready to run.

    Ids do not depend on what else is in a batch: a row's dynamic range is set by its own frames
    and everything else is causal.
    """

    def __init__(self, config: TokenizerConfig, params: dict):
        self.config = config
        # Weights may be stored in half the bytes; ids are validated in float32 only.
        self.params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
        self._network = tokenizer_network(config)
        self._run = jax.jit(self._ids)

    @classmethod
    def open(cls, codec_dir) -> 'SpeechTokenizer':
        """Raises InputError where the directory is no codec, see `open_tokenizer`."""
        return cls(*open_tokenizer(codec_dir))

    def encode(self, recordings: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of each recording.

        Args:
          recordings: float arrays (samples,), mono, 16 kHz, in [-1, 1].

        Returns:
          int32 arrays of exactly ceil(samples / 1280) codes, 80 ms each.
        """
        recordings = [_checked(i, x) for i, x in enumerate(recordings)]
        pieces = [
            (i, x[start : start + self.config.piece])
            for i, x in enumerate(recordings)
            for start in range(0, len(x), self.config.piece)
        ]
        found: dict[int, np.ndarray] = {}
        for group in self._batches([piece for _, piece in pieces]):
            found |= self._encode_group(group, pieces)
        codes: list[list[np.ndarray]] = [[] for _ in recordings]
        for at, (i, _) in enumerate(pieces):
            codes[i].append(found[at])
        return [np.concatenate([np.zeros(0, np.int32), *parts]) for parts in codes]

    def _batches(self, pieces: list[np.ndarray]) -> Iterator[tuple[int, list[int]]]:
        """(codes per row, indices of pieces): pieces of one bucket together."""
        buckets: dict[int, list[int]] = {}
        for at, piece in enumerate(pieces):
            buckets.setdefault(self._bucket(len(piece)), []).append(at)
        for width, members in sorted(buckets.items()):
            rows = int(np.clip(BATCH_SAMPLES // (width * self.config.stride), 1, MAX_ROWS))
            for start in range(0, len(members), rows):
                yield width, members[start : start + rows]

    def _bucket(self, samples: int) -> int:
        """Codes per row, rounded up to a power of two (25 codes are 2 s): few compilations."""
        needed = -(-samples // self.config.stride)
        most = self.config.piece // self.config.stride
        return min(most, max(8, 1 << (needed - 1).bit_length()))

    def _encode_group(self, group, pieces) -> dict[int, np.ndarray]:
        width, members = group
        # Rows too are rounded to a power of two; the ones nobody asked for are silent.
        rows = 1 << (len(members) - 1).bit_length()
        audio = np.zeros((rows, width * self.config.stride), np.float32)
        counts = np.ones(rows, np.int32)
        for row, at in enumerate(members):
            piece = pieces[at][1]
            counts[row] = -(-len(piece) // self.config.stride)
            audio[row] = _padded(piece, counts[row] * self.config.stride, audio.shape[1])
        ids = np.asarray(self._run(self.params, audio, counts))
        return {at: ids[row, : counts[row]] for row, at in enumerate(members)}

    def _ids(self, params, audio, counts):
        """audio (b, w), counts (b,) codes of each row -> ids (b, w / 1280) int32."""
        # Ids are validated in float32 only; a TPU would otherwise multiply in bfloat16.
        with jax.default_matmul_precision('highest'):
            features = mel.log_mel(
                audio, self.config.mels, counts * (self.config.stride // mel.HOP)
            )
            return self._network.bind(params)(features)


def _padded(piece: np.ndarray, own: int, width: int) -> np.ndarray:
    """Zeros up to the piece's own end, then the reflection there that the piece alone would see.

    The features of a piece then equal, up to its own last frame, those of the piece encoded alone
    however wide the batch is.
    """
    row = np.zeros(width, np.float32)
    row[: len(piece)] = piece
    room = min(mel.RIGHT, width - own)
    row[own : own + room] = row[own - 1 - room : own - 1][::-1]
    return row


def _checked(index: int, x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 1 or not np.issubdtype(x.dtype, np.floating):
        raise InputError(
            f'recording {index}: {x.dtype} array of shape {x.shape}; give one channel of float '
            'samples in [-1, 1] at 16 kHz'
        )
    if not np.all(np.isfinite(x)):
        raise InputError(f'recording {index} holds NaN or infinite samples; decode the file again')
    return x.astype(np.float32)

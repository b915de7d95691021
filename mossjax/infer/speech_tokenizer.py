"""Recordings to codes: cutting, padding, batching, and the compiled encoder."""

from collections.abc import Iterator, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.convert.codec_directory import open_tokenizer
from mossjax.convert.codec_tokenizer import tokenizer_network
from mossjax.errors import InputError
from mossjax.infer.buckets import hearing
from mossjax.infer.layout import placed
from mossjax.infer.streaming import Rung, Sessions
from mossjax.models.tokenizer import mel
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.models.tokenizer.stream import NEVER, TokenizerStream
from mossjax.ops.head_by_head import on_cpu

# A batch holds at most this much padded audio, in samples: four pieces of 30 s or many short ones.
# At the released size the attention scores of those four take 0.7 GB.
BATCH_SAMPLES = 4 * 30 * mel.RATE
MAX_ROWS = 128
BULK = 25  # codes that a stream works out at once where the sound of so many is waiting: 2 s


class SpeechTokenizer:
    """The tokenizer of a codec directory, ready to run.

    Ids do not depend on what else is in a batch: a row's dynamic range is set by its own frames
    and everything else is causal.
    """

    def __init__(self, config: TokenizerConfig, params: dict):
        self.config = config
        # Weights may be stored in half the bytes; ids are validated in float32 only.
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
        self._network = tokenizer_network(config, attend=on_cpu)
        self.params = placed(params, self._network)
        self._run = jax.jit(self._ids)
        self._peaks = jax.jit(self._loudest)
        self._step = jax.jit(self._stream_step, donate_argnums=1)

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
        pieces = [(i, piece) for i, x in enumerate(recordings) for piece in self._pieces(x)]
        found: dict[int, np.ndarray] = {}
        for group in self._batches([piece for _, piece in pieces]):
            audio, counts = self._padded_rows(group, [piece for _, piece in pieces])
            ids = np.asarray(self._run(self.params, audio, counts))
            found |= {at: ids[row, : counts[row]] for row, at in enumerate(group[1])}
        codes: list[list[np.ndarray]] = [[] for _ in recordings]
        for at, (i, _) in enumerate(pieces):
            codes[i].append(found[at])
        return [np.concatenate([np.zeros(0, np.int32), *parts]) for parts in codes]

    def stream(
        self, sessions: int = 1, *, known: Sequence[np.ndarray] | None = None,
        names: Sequence[str] | None = None,
    ) -> Sessions:  # fmt: skip
        """Sessions that take 16 kHz samples in pieces of any length and give a code every 80 ms.

        A session of w samples gives ceil(w / 1280) codes, and how they arrive changes none.

        Args:
          known: `maxima` of each session's recording, where it has been heard before: its codes
            are then those of `encode`. Without, the dynamic range of a piece of 30 s is set by its
            loudest moment so far, and codes from before its loudest moment may differ.
          names: see `Sessions`.
        """
        table = None
        if known is not None:
            table = np.full((sessions, max(1, *map(len, known))), NEVER, np.float32)
            for row, peaks in zip(table, known, strict=True):
                row[: len(peaks)] = peaks
        stream = self._stream(self.params)
        step = functools.partial(self._step, self.params)
        return Sessions(
            [Rung(stream.block, step)], stream.start(sessions, table), names=names,
            bulk=Rung(BULK * stream.block, step),
        )  # fmt: skip

    def maxima(self, recording: np.ndarray) -> np.ndarray:
        """(samples,) -> (pieces,) what sets the dynamic range of each piece of 30 s."""
        pieces = list(self._pieces(_checked(0, recording)))
        found = np.zeros(len(pieces), np.float32)
        for group in self._batches(pieces):
            peaks = np.asarray(self._peaks(*self._padded_rows(group, pieces)))
            found[group[1]] = peaks[: len(group[1])]
        return found

    def _pieces(self, x: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(x), self.config.piece):
            yield x[start : start + self.config.piece]

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
        """Codes per row: few compilations."""
        return min(
            self.config.piece // self.config.stride,
            hearing(-(-samples // self.config.stride)),
        )

    def _padded_rows(self, group, pieces: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The pieces of a group as (b, w) audio, and the codes of each row."""
        width, members = group
        # Rows too are rounded to a power of two; the ones nobody asked for are silent.
        rows = 1 << (len(members) - 1).bit_length()
        audio = np.zeros((rows, width * self.config.stride), np.float32)
        counts = np.ones(rows, np.int32)
        for row, at in enumerate(members):
            piece = pieces[at]
            counts[row] = -(-len(piece) // self.config.stride)
            audio[row] = _padded(piece, counts[row] * self.config.stride, audio.shape[1])
        return audio, counts

    def _ids(self, params, audio, counts):
        """audio (b, w), counts (b,) codes of each row -> ids (b, w / 1280) int32."""
        # Ids are validated in float32 only; a TPU would otherwise multiply in bfloat16.
        with jax.default_matmul_precision('highest'):
            features = mel.log_mel(audio, self.config.mels, self._frames(counts))
            return self._network.bind(params)(features)

    def _loudest(self, audio, counts):
        return mel.loudest(audio, self.config.mels, self._frames(counts))

    def _frames(self, counts):
        return counts * (self.config.stride // mel.HOP)

    def _stream(self, params) -> TokenizerStream:
        return TokenizerStream(self._network.bind(params), self.config)

    def _stream_step(self, params, state, piece):
        with jax.default_matmul_precision('highest'):
            return self._stream(params).step(state, piece)


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

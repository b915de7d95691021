"""Speech codes -> mel -> waveform at 24 kHz, for one utterance or many."""

from collections.abc import Sequence
import functools
from pathlib import Path

from absl import logging
import jax
import numpy as np

from mossjax.convert.codec_flow import flow_network, open_flow
from mossjax.errors import InputError
from mossjax.models.flow import mel as features
from mossjax.models.flow import solver
from mossjax.models.flow.config import OFFLINE, Context, FlowConfig
from mossjax.models.vocoder.griffin_lim import griffin_lim

BATCH = 16  # utterances decoded at once


def bucket(codes: int, longest: int) -> int:
    """The padded length for this many codes: 16, 24, 32, 48, 64, ... so that few programs exist."""
    size = 16
    while size < codes:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return min(size, longest)


def _speaks(folder: Path) -> str:
    """How the waveform and the voice come about."""
    there = [name for name in ('hift.pt', 'campplus.onnx') if (folder / name).exists()]
    unused = f' ({" and ".join(there)} in {folder.name}/ not read)' if there else ''
    return (
        f'waveforms by Griffin-Lim, no trained vocoder{unused}; the voice is the decoder\'s own '
        '(zero speaker vector, no voice prompt)'
    )


class SpeechDecoder:
    """A flow decoder with its weights, and Griffin-Lim behind it.

    Utterances are padded to a few lengths; the padding is masked everywhere and changes nothing.
    The voice is the decoder's own: the speaker vector is zero and no prompt is given.
    """

    rate = features.RATE

    def __init__(
        self, config: FlowConfig, params: dict, *, steps: int = solver.STEPS,
        guidance: float | None = None,
    ):  # fmt: skip
        """Args:
          steps: Euler steps. guidance: the config's by default.

        Raises:
          InputError: the decoder's mel is not the one the vocoder reads.
        """
        if config.mels != features.MELS:
            raise InputError(
                f'the flow decoder makes {config.mels} mel bins, the vocoder reads {features.MELS}'
            )
        self.config, self.params = config, params
        self._network = flow_network(config)
        self._options = {'steps': steps, 'guidance': guidance}
        self._mel = jax.jit(self._run, static_argnames='context')
        self._vocode = jax.jit(griffin_lim)

    @classmethod
    def open(cls, codec_dir: str | Path, **options) -> 'SpeechDecoder':
        """Loads `flow/` of a codec directory; options are the constructor's.

        Raises:
          InputError: files missing or damaged.
        """
        config, params = open_flow(codec_dir)
        logging.info('%s: %s', codec_dir, _speaks(Path(codec_dir) / 'flow'))
        return cls(config, jax.tree.map(jax.numpy.asarray, params), **options)

    def mel(self, codes: Sequence[int], *, context: Context = OFFLINE) -> np.ndarray:
        """(n,) codes -> (4 (n - context.held), 80) float32 natural-log mel at 50 frames a second.

        Raises:
          InputError: see `mel_many`.
        """
        return self.mel_many([codes], context=context)[0]

    def decode(self, codes: Sequence[int]) -> np.ndarray:
        """(n,) codes -> (1920 n,) float32 wave at 24 kHz."""
        return self.decode_many([codes])[0]

    def mel_many(
        self, utterances: Sequence[Sequence[int]], *, context: Context = OFFLINE
    ) -> list[np.ndarray]:
        """The mel of each utterance, in order.

        Raises:
          InputError: codes that are no ids of this decoder, or an utterance beyond 300 s.
        """
        rows = [self._checked(codes, i, context) for i, codes in enumerate(utterances)]
        return self._batched(rows, functools.partial(self._mel_batch, context=context))

    def decode_many(self, utterances: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The 24 kHz wave of each utterance, in order: exactly 1920 samples a code."""
        return self._batched(self.mel_many(utterances), self._wave_batch)

    def _run(self, params, codes, lengths, noise, *, context):
        b = codes.shape[0]
        xvector = np.zeros((b, self.config.xvector_size), np.float32)
        prompt = np.zeros((b, 0, self.config.mels), np.float32)
        model = self._network.bind(params)
        with jax.default_matmul_precision('highest'):  # float32 on every device, as upstream
            return model(codes, lengths, xvector, prompt, noise, context=context, **self._options)

    def _checked(self, codes, i: int, context: Context) -> np.ndarray:
        ids = np.asarray(codes)
        ids = ids.astype(np.int32) if ids.size == 0 else ids
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f'utterance {i}: codes must be a flat list of integers')
        wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if wrong.size:
            raise InputError(
                f'utterance {i}: code {wrong[0]} is outside 0..{self.config.vocab_size - 1}; '
                'were these codes made by the tokenizer of this codec?'
            )
        if len(ids) < context.held:
            raise InputError(
                f'utterance {i}: {len(ids)} codes, but {context.held} are held back as look-ahead'
            )
        longest = solver.MAX_FRAMES // self.config.ratio
        if len(ids) > longest:
            raise InputError(
                f'utterance {i}: {len(ids)} codes; the decoder takes {longest} (300 s). Split it.'
            )
        return ids.astype(np.int32)

    def _batched(self, rows: list[np.ndarray], run) -> list[np.ndarray]:
        """Runs batches of rows of similar length and puts the results back in order."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        done: list = [None] * len(rows)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            for i, result in zip(chosen, run([rows[i] for i in chosen]), strict=True):
                done[i] = result
        return done

    def _pad(self, rows: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows as one array of this length, and their lengths; the row count becomes 2^k."""
        count = 1 << (len(rows) - 1).bit_length()
        padded = np.zeros((count, length, *rows[0].shape[1:]), rows[0].dtype)
        lengths = np.zeros(count, np.int32)
        for i, row in enumerate(rows):
            padded[i, : len(row)], lengths[i] = row, len(row)
        return padded, lengths

    def _mel_batch(self, rows: list[np.ndarray], *, context: Context) -> list[np.ndarray]:
        ratio = self.config.ratio
        longest = max(map(len, rows))
        size = bucket(longest, solver.MAX_FRAMES // ratio)
        codes, lengths = self._pad(rows, size)
        # Rows added to fill the batch have no codes; nothing can be held back of them.
        lengths = np.maximum(lengths, context.held)
        noise = solver.noise(ratio * (size - context.held), self.config.mels)
        mel = np.asarray(self._mel(self.params, codes, lengths, noise, context=context))
        return [mel[i, : ratio * (len(row) - context.held)] for i, row in enumerate(rows)]

    def _wave_batch(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        ratio = self.config.ratio
        size = ratio * bucket(-(-max(map(len, rows)) // ratio), solver.MAX_FRAMES // ratio)
        mel, lengths = self._pad(rows, size)
        wave = np.asarray(self._vocode(mel, lengths, jax.random.key(0)))
        return [wave[i, : features.HOP * len(row)] for i, row in enumerate(rows)]

"""Speech codes -> mel -> waveform at 24 kHz, for one utterance or many."""

from collections.abc import Sequence
import functools
from pathlib import Path

from absl import logging
import jax
import numpy as np

from mossjax.convert.codec_directory import open_flow
from mossjax.convert.codec_flow import STEM, flow_network
from mossjax.errors import InputError
from mossjax.infer import voice as voices
from mossjax.infer.layout import placed
from mossjax.infer.vocoder import GriffinLim, Vocoder, open_vocoder
from mossjax.infer.voice import Voice
from mossjax.models.flow import mel as features
from mossjax.models.flow import solver
from mossjax.models.flow.config import OFFLINE, Context, FlowConfig
from mossjax.ops.head_by_head import on_cpu

BATCH = 16  # utterances decoded at once, fewer if they are long


def bucket(codes: int, longest: int) -> int:
    """The padded length for this many codes, so that few programs exist: 16, 20, 24, 28, 32, 40...

    Four to an octave: from 16 codes on, at most a fifth of the work is for padding.
    """
    quarter = max(4, (1 << (codes - 1).bit_length()) >> 3)
    return min(max(16, -(-codes // quarter) * quarter), longest)


def checked_codes(codes, config: FlowConfig, name: str) -> np.ndarray:
    """(n,) int32.

    Raises:
      InputError: no flat list of integers, or codes that the decoder does not have.
    """
    ids = np.asarray(codes)
    ids = ids.astype(np.int32) if ids.size == 0 else ids
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f'{name}: codes must be a flat list of integers')
    wrong = ids[(ids < 0) | (ids >= config.vocab_size)]
    if wrong.size:
        raise InputError(
            f'{name}: code {wrong[0]} is outside 0..{config.vocab_size - 1}; were these codes made '
            'by the tokenizer of this codec?'
        )
    return ids.astype(np.int32)


class SpeechDecoder:
    """A flow decoder with its weights, a vocoder behind it, and the voice they speak with.

    Utterances are padded to a few lengths; the padding is masked everywhere and changes nothing.
    """

    rate = features.RATE

    def __init__(
        self, config: FlowConfig, params: dict, *, vocoder: Vocoder | None = None,
        voice: Voice | None = None, steps: int = solver.STEPS, guidance: float | None = None,
    ):  # fmt: skip
        """Args:
          vocoder: Griffin-Lim by default.
          voice: the decoder's own by default: no prompt, a zero speaker vector.
          steps: Euler steps. guidance: the config's by default.

        Raises:
          InputError: the decoder's mel is not the one that vocoders read; a voice that does not
            fit.
        """
        if config.mels != features.MELS:
            raise InputError(
                f'the flow decoder makes {config.mels} mel bins, the vocoder reads {features.MELS}'
            )
        self.config = config
        self.vocoder = vocoder or GriffinLim()
        self.voice = voices.nobody(config) if voice is None else voices.check(voice, config)
        self._network = flow_network(config, attend=on_cpu)
        self.params = placed(params, self._network)
        self.options = {'steps': steps, 'guidance': guidance}
        self._mel = jax.jit(self._run, static_argnames='context')

    @classmethod
    def open(
        cls, codec_dir: str | Path, *, voice: Voice | None = None, seed: int = 0,
        stem: str = STEM, **options,
    ) -> 'SpeechDecoder':
        """Loads the decoder of a codec directory, in either form (`convert.codec_directory`).

        Args:
          voice: by default the directory's own, see `voice.own`.
          seed: of the vocoder's noise. stem: of the checkpoint, see `open_flow`.
          options: the constructor's.

        Raises:
          InputError: files missing or damaged, or a voice that does not fit.
        """
        config, params = open_flow(codec_dir, stem)
        voice = voices.own(codec_dir, config) if voice is None else voice
        decoder = cls(
            config, params, voice=voice, vocoder=open_vocoder(codec_dir, seed), **options
        )  # fmt: skip
        logging.info(
            '%s: waveforms by %s; the voice is %s', codec_dir, decoder.vocoder.name, decoder.voice
        )
        return decoder

    def mel(
        self, codes: Sequence[int], *, context: Context = OFFLINE, voice: Voice | None = None
    ) -> np.ndarray:
        """(n,) codes -> (4 (n - context.held), 80) float32 natural-log mel at 50 frames a second.

        Raises:
          InputError: see `mel_many`.
        """
        return self.mel_many([codes], context=context, voice=voice)[0]

    def decode(self, codes: Sequence[int], *, voice: Voice | None = None) -> np.ndarray:
        """(n,) codes -> (1920 n,) float32 wave at 24 kHz."""
        return self.decode_many([codes], voice=voice)[0]

    def mel_many(
        self, utterances: Sequence[Sequence[int]], *, context: Context = OFFLINE,
        voice: Voice | None = None,
    ) -> list[np.ndarray]:  # fmt: skip
        """The mel of each utterance, in order.

        Args:
          voice: of all of them; by default the decoder's.

        Raises:
          InputError: codes that are no ids of this decoder, an utterance that is longer than 300 s
            with the voice's prompt, or a voice that does not fit.
        """
        voice = self.voice if voice is None else voices.check(voice, self.config)
        rows = [self._checked(codes, i, context, voice) for i, codes in enumerate(utterances)]
        run = functools.partial(self._mel_batch, context=context, voice=voice)
        return self._batched(rows, run, solver.MAX_FRAMES // self.config.ratio)

    def decode_many(
        self, utterances: Sequence[Sequence[int]], *, voice: Voice | None = None
    ) -> list[np.ndarray]:
        """The 24 kHz wave of each utterance, in order: exactly 1920 samples a code."""
        return self._batched(
            self.mel_many(utterances, voice=voice), self._wave_batch, solver.MAX_FRAMES
        )

    def _run(self, params, codes, lengths, xvector, known, noise, *, context):
        """The mel of (b, n) codes that begin with a prompt's; known: its mel, zeros behind."""
        b = codes.shape[0]
        model = self._network.bind(params)
        with jax.default_matmul_precision('highest'):  # float32 on every device, as upstream
            return model(
                codes, lengths, jax.numpy.tile(xvector, (b, 1)), jax.numpy.tile(known, (b, 1, 1)),
                noise, context=context, **self.options,
            )  # fmt: skip

    def _checked(self, codes, i: int, context: Context, voice: Voice) -> np.ndarray:
        ids = checked_codes(codes, self.config, f'utterance {i}')
        if len(ids) < context.held:
            raise InputError(
                f'utterance {i}: {len(ids)} codes, but {context.held} are held back as look-ahead'
            )
        longest, prompt = solver.MAX_FRAMES // self.config.ratio, len(voice.codes)
        if len(ids) + prompt > longest:
            spent = f', {prompt} of them the voice\'s prompt' if prompt else ''
            raise InputError(
                f'utterance {i}: {len(ids)} codes; the decoder takes {longest} (300 s){spent}. '
                'Split it.'
            )
        return ids

    def _batched(self, rows: list[np.ndarray], run, most: int) -> list[np.ndarray]:
        """Runs batches of rows of similar length and puts the results back in order.

        Args:
          most: places of a batch, padding included; a row alone may have that many.
        """
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        done: list = [None] * len(rows)
        while order:
            count = BATCH
            while count > 1 and count * len(rows[order[:count][-1]]) > most:
                count //= 2
            chosen, order = order[:count], order[count:]
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

    def _mel_batch(
        self, rows: list[np.ndarray], *, context: Context, voice: Voice
    ) -> list[np.ndarray]:
        ratio, prompt = self.config.ratio, len(voice.codes)
        # Prompt and codes are padded as one, so prompts of all lengths share the programs.
        size = bucket(prompt + max(map(len, rows)), solver.MAX_FRAMES // ratio)
        codes, lengths = self._pad([np.concatenate([voice.codes, row]) for row in rows], size)
        # Rows added to fill the batch have no codes; nothing can be held back of them.
        lengths = np.maximum(lengths, context.held)
        frames = ratio * (size - context.held)
        known = np.zeros((frames, self.config.mels), np.float32)
        known[: len(voice.mel)] = voice.mel
        noise = solver.noise(frames, self.config.mels)
        mel = np.asarray(
            self._mel(self.params, codes, lengths, voice.xvector, known, noise, context=context)
        )
        return [
            mel[i, ratio * prompt : ratio * (prompt + len(row) - context.held)]
            for i, row in enumerate(rows)
        ]

    def _wave_batch(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        ratio = self.config.ratio
        size = ratio * bucket(-(-max(map(len, rows)) // ratio), solver.MAX_FRAMES // ratio)
        mel, lengths = self._pad(rows, size)
        wave = np.asarray(self.vocoder(mel, lengths))
        return [wave[i, : features.HOP * len(row)] for i, row in enumerate(rows)]

"""Mel -> waveform with what a codec directory has: HiFT, or Griffin-Lim where it has no vocoder."""

from collections.abc import Sequence
import functools
from pathlib import Path
from typing import Protocol

from absl import logging
import jax
import numpy as np

from mossjax.convert import codec_directory, codec_vocoder
from mossjax.convert.codec_vocoder import hift_network
from mossjax.errors import InputError
from mossjax.infer.streaming import Rung, Sessions
from mossjax.models.flow import mel as features
from mossjax.models.vocoder.griffin_lim import griffin_lim
from mossjax.models.vocoder.hift import source
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.models.vocoder.hift.stream import BLOCKS, Fade, HiftStream, raised_cosine


class Vocoder(Protocol):
    """(b, t, 80) natural-log mel, (b,) frames that exist -> (b, 480 t) samples at 24 kHz.

    A row's samples depend neither on its padding nor on other rows; those past its end are zero.

    Attributes:
      limit: samples lie in [-limit, limit] in a file; where one reaches it, the sound was clipped.
    """

    name: str
    limit: float

    def __call__(self, mel: np.ndarray, lengths: np.ndarray) -> jax.Array: ...


class GriffinLim:
    """Phases found from nothing: no weights, and audibly so."""

    name, limit = 'Griffin-Lim', 1.0

    def __init__(self, seed: int = 0):
        self._key = jax.random.key(seed)
        self._run = jax.jit(griffin_lim)

    def __call__(self, mel: np.ndarray, lengths: np.ndarray) -> jax.Array:
        return self._run(mel, lengths, self._key)


class HiftVocoder:
    """The trained vocoder. The noise in its source is drawn from a seed, by absolute sample."""

    name = 'HiFT'

    def __init__(self, config: HiftConfig, params: dict, seed: int = 0):
        """Args:
          params: of `codec_vocoder.hift_network`.

        Raises:
          InputError: it reads another mel than the flow decoder makes.
        """
        if config.mels != features.MELS:
            raise InputError(
                f'the vocoder reads {config.mels} mel bins, the decoder\'s mel has {features.MELS}'
            )
        self.config, self.limit = config, min(1.0, config.limit)
        self.params = jax.tree.map(jax.numpy.asarray, params)
        self._key = jax.random.key(seed)
        self._network = hift_network(config)
        self._run = jax.jit(self._wave)
        self._step = jax.jit(self._stream_step, static_argnums=(0, 1), donate_argnums=3)

    def __call__(self, mel: np.ndarray, lengths: np.ndarray) -> jax.Array:
        return self._run(self.params, mel, lengths, self._key)

    def sessions(
        self, count: int = 1, *, blocks: Sequence[int] = BLOCKS, fade: Fade = raised_cosine,
        names: Sequence[str] | None = None,
    ) -> Sessions:  # fmt: skip
        """Sessions that take mel frames (any, 80) and give 480 samples of each, 160 ms behind.

        Args:
          blocks: frames of a session's first step, of its second, ... and of all others.
          fade: from a step to the next, see `models.vocoder.hift.stream`.
          names: see `Sessions`.
        """
        state = self._stream(blocks[0], fade, self.params).start(count, self._key)
        ladder = [
            Rung(block, functools.partial(self._step, block, fade, self.params))
            for block in blocks
        ]
        return Sessions(ladder, state, shape=(self.config.mels,), names=names)

    def _stream(self, block: int, fade: Fade, params) -> HiftStream:
        return HiftStream(self._network.bind(params), block, fade=fade)

    def _stream_step(self, block, fade, params, state, piece):
        with jax.default_matmul_precision('highest'):
            return self._stream(block, fade, params).step(state, piece)

    def _wave(self, params, mel, lengths, key):
        noise = source.noise(self.config, key, mel.shape[1])
        with jax.default_matmul_precision('highest'):  # float32 on every device, as upstream
            return self._network.bind(params)(mel, lengths, noise)


def open_vocoder(codec_dir: str | Path, seed: int = 0) -> Vocoder:
    """The vocoder of a codec directory; says where it has none.

    Raises:
      InputError: its weights are damaged or fit no configuration.
    """
    if codec_directory.has(codec_dir, codec_vocoder.STEM):
        return HiftVocoder(*codec_directory.open_hift(codec_dir), seed=seed)
    logging.info(
        '%s: no flow/hift.pt or flow/hift.safetensors, so Griffin-Lim makes the sound; a trained '
        'vocoder sounds better', codec_dir,
    )  # fmt: skip
    return GriffinLim(seed)

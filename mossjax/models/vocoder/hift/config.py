"""Facts about a HiFT vocoder; the defaults are the released MOSS-Speech one."""

import dataclasses
import math

from mossjax.errors import InputError
from mossjax.models.flow import mel as features


@dataclasses.dataclass(frozen=True)
class HiftConfig:
    """Mel -> waveform at 24 kHz.

    Attributes:
      mels: bins of the mel. channels: width before the first upsampling, halved by each.
      harmonics: overtones of the source beside the fundamental.
      sine: amplitude of the source's sines. noise: of the noise on voiced samples.
      voiced: Hz; a frame is voiced where f0 is above.
      rates, kernels: of the transposed convolutions.
      n_fft, hop: of the spectrum that the network ends in, samples.
      block_kernels, dilations: of the residual blocks of each stage, which are averaged.
      source_kernels: of the residual blocks on the source's spectrum, one a stage.
      slope: of the leaky ReLU before each upsampling.
      limit: samples are clipped to +-limit.
      f0_width: channels of the f0 predictor.
    """

    mels: int = features.MELS
    channels: int = 512
    harmonics: int = 8
    sine: float = 0.1
    noise: float = 0.003
    voiced: float = 10.0
    rates: tuple[int, ...] = (8, 5, 3)
    kernels: tuple[int, ...] = (16, 11, 7)
    n_fft: int = 16
    hop: int = 4
    block_kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)
    source_kernels: tuple[int, ...] = (7, 7, 11)
    slope: float = 0.1
    limit: float = 0.99
    f0_width: int = 512

    def __post_init__(self):
        if math.prod(self.rates) * self.hop != features.HOP:
            raise InputError(
                f'HiFT config: upsampling by {self.rates} and hop {self.hop} make '
                f'{math.prod(self.rates) * self.hop} samples of a mel frame, which has '
                f'{features.HOP} at {features.RATE} Hz; only such vocoders work here'
            )
        if not len(self.rates) == len(self.kernels) == len(self.source_kernels):
            raise InputError(
                f'HiFT config: rates {self.rates}, kernels {self.kernels} and source_kernels '
                f'{self.source_kernels} must have one entry a stage'
            )
        for rate, kernel in zip(self.rates, self.kernels, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                raise InputError(
                    f'HiFT config: kernel {kernel} cannot upsample by {rate}; their difference '
                    'must be even and not negative'
                )
        if even := [k for k in (*self.block_kernels, *self.source_kernels) if k % 2 == 0]:
            raise InputError(f'HiFT config: kernel {even[0]} of a residual block must be odd')
        if self.n_fft % self.hop or self.n_fft % 2:
            raise InputError(
                f'HiFT config: n_fft {self.n_fft} must be even and a multiple of hop {self.hop}'
            )
        if self.channels % 2 ** len(self.rates):
            raise InputError(
                f'HiFT config: {self.channels} channels cannot be halved {len(self.rates)} times'
            )

    def width(self, stage: int) -> int:
        """Channels after upsampling number `stage`, counted from 0."""
        return self.channels >> (stage + 1)

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

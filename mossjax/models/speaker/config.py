"""Facts about a CAM++ speaker encoder; the defaults are the one of the released codec."""

import dataclasses

from mossjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class CamppConfig:
    """Filter bank -> speaker vector (arXiv 2303.00332).

    Attributes:
      mels: bands of the filter bank, halved three times by the head.
      head: channels of the two-dimensional head.
      width: channels after the time-delay layer.
      growth: channels that each dense layer adds. bottleneck: of its inner layer.
      layers, dilations: of the dense blocks.
      embedding: length of the speaker vector.
      folded: paths of the norms that stand in the weights of the convolution before them; such a
        norm is a shift. Exporters of ONNX fold every norm that directly follows a convolution.
    """

    mels: int = 80
    head: int = 32
    width: int = 128
    growth: int = 32
    bottleneck: int = 128
    layers: tuple[int, ...] = (12, 24, 16)
    dilations: tuple[int, ...] = (1, 2, 2)
    embedding: int = 192
    folded: frozenset[str] = frozenset()

    def __post_init__(self):
        if self.mels % 8:
            raise InputError(f'CAM++ config: {self.mels} bands cannot be halved three times')
        if len(self.layers) != len(self.dilations):
            raise InputError(
                f'CAM++ config: layers {self.layers} and dilations {self.dilations} must have one '
                'entry a block'
            )

    def block_widths(self, block: int) -> tuple[int, int]:
        """Channels into dense block number `block` (from 0) and out of it."""
        width = self.width
        for done, layers in enumerate(self.layers):
            grown = width + layers * self.growth
            if done == block:
                return width, grown
            width = grown // 2
        raise ValueError(f'there is no block {block}')

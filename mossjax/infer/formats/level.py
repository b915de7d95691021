"""Speech on a channel that nobody hears."""

import numpy as np

from mossjax.infer.formats.block import by_ffmpeg, say

# The first channel is silence beside another that is so much louder (30 dB) and not silence itself.
SILENT, HEARD = 0.03, 1e-4


class Level:
    """Compares the loudness of channels, to find speech that nobody would hear."""

    def __init__(self, name: str):
        self._name, self._energy, self._count = name, np.zeros(1), 0

    def add(self, samples: np.ndarray) -> None:
        """samples: (w, c)."""
        if samples.shape[1] < 2:
            return
        energy = np.einsum('wc,wc->c', samples, samples, dtype=np.float64)
        if len(energy) != len(self._energy):
            self._energy, self._count = np.zeros(len(energy)), 0
        self._energy += energy
        self._count += len(samples)

    def check(self) -> None:
        """Warns if the first channel is silent beside another."""
        level = np.sqrt(self._energy / max(1, self._count))
        loudest = int(level.argmax())
        if level[loudest] < HEARD or level[0] > SILENT * level[loudest]:
            return
        side = ' (the right one)' if len(level) == 2 else ''
        command = by_ffmpeg(self._name, after=f"-af 'pan=mono|c0=c{loudest}'")
        say(
            f'{self._name}: the first of its {len(level)} channels is heard and is silent, the '
            f'sound is on channel {loudest + 1}{side}; make that the only one: {command}'
        )

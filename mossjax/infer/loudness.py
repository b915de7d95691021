"""How loud a recording is: ITU-R BS.1770-4, mono.

Two filters weigh frequencies as ears do: a shelf that lifts what a head reflects, and a high-pass.
Mean squares of blocks of 400 ms, each 100 ms after the one before, are averaged over those that
are loud enough to count.
"""

import numpy as np

BLOCK, STEP = 0.4, 0.1  # seconds
SILENCE, RELATIVE = -70.0, -10.0  # gates: LUFS, LU below the mean of the blocks above SILENCE
OFFSET = -0.691  # LUFS of a mean square of 1: a sine of 997 Hz at full scale has -3.01
# The standard gives its filters as coefficients at 48 kHz. These are the analogue filters that
# those come of, so that they can be had at any rate: frequency in Hz, Q, gain in dB.
SHELF, HIGH_PASS = (1681.974450955533, 0.7071752369554196, 3.999843853973347), (
    38.13547087602444, 0.5003270373238773,
)  # fmt: skip
_GAIN_SLOPE = 0.4996667741545416  # of the shelf's gain, what its middle term has


def integrated(wave: np.ndarray, rate: int) -> float:
    """Loudness of (w,) samples at `rate` Hz in LUFS; -inf where nothing is loud enough to count.

    What is shorter than a block is one block.
    """
    from scipy.signal import lfilter

    wave = np.asarray(wave, np.float64)
    for b, a in (_shelf(rate), _high_pass(rate)):
        wave = lfilter(b, a, wave)
    size, step = round(BLOCK * rate), round(STEP * rate)
    total = np.concatenate([[0], np.cumsum(np.square(wave))])
    if len(wave) < size:
        power = np.array([total[-1] / max(1, len(wave))])
    else:
        starts = np.arange(0, len(wave) - size + 1, step)
        power = (total[starts + size] - total[starts]) / size
    power = power[_level(power) > SILENCE]
    if not len(power):
        return -np.inf
    power = power[_level(power) > _level(power.mean()) + RELATIVE]
    return float(_level(power.mean()))


def _level(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide='ignore'):
        return OFFSET + 10 * np.log10(power)


def _shelf(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """(b, a) of the bilinear transform of the shelf."""
    frequency, q, gain = SHELF
    k, high = np.tan(np.pi * frequency / rate), 10 ** (gain / 20)
    middle = high**_GAIN_SLOPE
    b = [high + middle * k / q + k * k, 2 * (k * k - high), high - middle * k / q + k * k]
    a = [1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k]
    return np.array(b) / a[0], np.array(a) / a[0]


def _high_pass(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """(b, a) of the bilinear transform of the high-pass, b as the standard has it."""
    frequency, q = HIGH_PASS
    k = np.tan(np.pi * frequency / rate)
    a = [1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k]
    return np.array([1.0, -2.0, 1.0]), np.array(a) / a[0]

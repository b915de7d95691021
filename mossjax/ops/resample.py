"""Changing the sample rate of a waveform by a windowed sinc.

The law is torchaudio's default, since the released speech tokenizer was made with it and its
codes depend on the last bits: Hann-squared-cosine window, 6 zero crossings, roll-off 0.99. Numpy,
not jnp: it runs on hosts that load data, once a file, where every length would be a compilation.
"""

import functools
import math

import numpy as np

from mossjax.errors import InputError

ZERO_CROSSINGS = 6
ROLL_OFF = 0.99
# Elements gathered at once: bounds the memory for long recordings.
CHUNK = 2**22


def resample(wav: np.ndarray, source: int, target: int) -> np.ndarray:
    """Resamples a waveform.

    Args:
      wav: (w,) float samples at `source` Hz.
      source, target: sample rates in Hz, any two.

    Returns:
      (ceil(w * target / source),) float32 samples at `target` Hz.

    Raises:
      InputError: a rate is not positive.
    """
    wav = np.asarray(wav, np.float32)
    step, phases = _reduced(source, target)
    if step == phases:
        return wav
    table = filters(step, phases)
    width = table.shape[1] // 2 - 1
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(wav, (width, width + 2)), table.shape[1]
    )
    count, rows = -(-len(wav) * phases // step), max(1, CHUNK // table.shape[1])
    resampled = np.empty(count, np.float32)
    for start in range(0, count, rows):
        at = np.arange(start, min(start + rows, count))
        resampled[at] = np.einsum('nk,nk->n', windows[at * step // phases], table[at % phases])
    return resampled


@functools.lru_cache(maxsize=16)
def filters(step: int, phases: int) -> np.ndarray:
    """The filters of a rate change by phases / step, two integers without a common factor.

    Output sample j lies j * step / phases input samples after the first, and the whole part of that
    is i. Row j % phases correlates with the input samples i - width .. i + width + 1.

    Returns:
      (phases, 2 * width + 2) float32.
    """
    cutoff = ROLL_OFF * min(step, phases)
    width = math.ceil(ZERO_CROSSINGS * step / cutoff)
    phase = np.arange(phases)
    taps = ((phase * step // phases)[:, None] + np.arange(-width, width + 2)) / step
    # torchaudio divides the phase in float32 and does all else in float64.
    shifts = (phase.astype(np.float32) / np.float32(phases)).astype(np.float64)
    t = np.clip((taps - shifts[:, None]) * cutoff, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(np.pi * t / (2 * ZERO_CROSSINGS)) ** 2
    return (cutoff / step * np.sinc(t) * window).astype(np.float32)


def _reduced(source: int, target: int) -> tuple[int, int]:
    """(source, target) without their common factor."""
    if source < 1 or target < 1:
        raise InputError(f'sample rates must be positive, got {source} Hz and {target} Hz')
    common = math.gcd(source, target)
    return source // common, target // common

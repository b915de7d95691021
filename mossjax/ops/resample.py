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
# Kernel elements, 64 MiB in float32: every usual pair of rates needs under a hundredth of it.
KERNEL_LIMIT = 2**24
# Input elements gathered at once: bounds the memory for long recordings.
CHUNK = 2**24


def resample(wav: np.ndarray, source: int, target: int) -> np.ndarray:
    """Resamples a waveform.

    Args:
      wav: (w,) float samples at `source` Hz.
      source, target: sample rates in Hz.

    Returns:
      (ceil(w * target / source),) float32 samples at `target` Hz.

    Raises:
      InputError: the two rates have no ratio of small integers.
    """
    wav = np.asarray(wav, np.float32)
    step, phases = _reduced(source, target)
    if step == phases:
        return wav
    kernel = sinc_kernel(step, phases)
    width = (kernel.shape[1] - step) // 2
    padded = np.pad(wav, (width, width + step))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1])[::step]
    rows = max(1, CHUNK // kernel.shape[1])
    pieces = [windows[i : i + rows] @ kernel.T for i in range(0, len(windows), rows)]
    return np.concatenate(pieces).reshape(-1)[: -(-len(wav) * phases // step)]


@functools.lru_cache(maxsize=16)
def sinc_kernel(step: int, phases: int) -> np.ndarray:
    """The filters of a rate change by phases / step, two integers without a common factor.

    Output sample `step * i` of the input's clock is phase 0; phase p lies p / phases of a step
    later. Row p correlates with input samples `step * i - width .. step * i + width + step - 1`.

    Returns:
      (phases, 2 * width + step) float32.
    """
    cutoff = ROLL_OFF * min(step, phases)
    width = math.ceil(ZERO_CROSSINGS * step / cutoff)
    taps = np.arange(-width, width + step) / step
    # torchaudio divides the phase in float32 and does all else in float64.
    shifts = (np.arange(phases, dtype=np.float32) / np.float32(phases)).astype(np.float64)
    t = np.clip((taps - shifts[:, None]) * cutoff, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(np.pi * t / (2 * ZERO_CROSSINGS)) ** 2
    return (cutoff / step * np.sinc(t) * window).astype(np.float32)


def _reduced(source: int, target: int) -> tuple[int, int]:
    """(source, target) without their common factor; refuses what no small kernel can do."""
    if source < 1 or target < 1:
        raise InputError(f'sample rates must be positive, got {source} Hz and {target} Hz')
    common = math.gcd(source, target)
    step, phases = source // common, target // common
    if phases * step > KERNEL_LIMIT:
        raise InputError(
            f'cannot resample {source} Hz to {target} Hz: the rates share no useful factor. '
            'Convert the audio to a common rate (16000, 24000, 44100 or 48000 Hz) first.'
        )
    return step, phases

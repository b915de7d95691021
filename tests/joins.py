"""What a join sounds like: how much more the spectrum changes there than elsewhere."""

import numpy as np

SIZE, HOP = 256, 64  # samples at 24 kHz


def flux(wave: np.ndarray) -> np.ndarray:
    """(w,) -> (t,) how much louder the bins get from one frame to the next, mean of log magnitudes.

    Frame i compares the samples from 64 i on with those from 64 (i + 1) on, 256 each.
    """
    frames = np.lib.stride_tricks.sliding_window_view(wave, SIZE)[::HOP] * np.hanning(SIZE)
    log = np.log(np.abs(np.fft.rfft(frames)) + 1e-3)
    return np.maximum(np.diff(log, axis=0), 0).mean(axis=1)


def at_joins_and_elsewhere(wave: np.ndarray, joins) -> tuple[float, float]:
    """The 95th percentile of the flux of frames that hold a join, and that of all others.

    Args:
      joins: samples at which another step begins to be heard.
    """
    found = flux(wave)
    starts = HOP * np.arange(len(found))
    near = np.zeros(len(found), bool)
    for join in joins:
        near |= (starts <= join) & (join < starts + SIZE + HOP)
    return float(np.percentile(found[near], 95)), float(np.percentile(found[~near], 95))

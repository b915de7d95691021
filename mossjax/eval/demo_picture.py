"""The picture of a tour: questions and spoken answers, each over the codes that stand for it."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib

import numpy as np

from mossjax.eval.demo import Answer, Tour, key
from mossjax.files import replacing
from mossjax.infer.assets import HELDOUT
from mossjax.infer.chat import INPUT_RATE, OUTPUT_RATE

ROWS = 3  # questions shown
CODE = 0.08  # seconds
QUIETEST = -9.0  # of the log-mel, shown black
FONT = 12


def examples(tour: Tour) -> list[tuple[int, Answer]]:
    """(index of the question, its spoken answer): right ones first, other voices and words."""
    pairs = [
        (i, answer)
        for i, answer in enumerate(tour.answers[: len(tour.asked)])  # speech to speech is first
        if answer.split == HELDOUT and answer.codes
    ]
    pairs.sort(key=lambda pair: not pair[1].right)  # stable
    chosen: list[tuple[int, Answer]] = []
    for pair in pairs:
        shown = [answer for _, answer in chosen]
        if pair[1].speaker not in {a.speaker for a in shown} and (
            pair[1].expected not in {a.expected for a in shown}
        ):
            chosen.append(pair)
    return [*chosen, *(pair for pair in pairs if pair not in chosen)][:ROWS]


def draw(path: pathlib.Path, tour: Tour) -> bool:
    """Writes a PNG; False, and no file, if no reply had any codes."""
    shown = examples(tour)
    if not shown:
        return False
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    from mossjax.ops.resample import resample

    spans = (
        max(len(tour.heard[i]) for i, _ in shown),
        max(len(answer.codes) for _, answer in shown),
    )
    figure = pyplot.figure(figsize=(14, 0.6 + 2.3 * len(shown)))
    grid = figure.add_gridspec(len(shown), 2, width_ratios=spans, hspace=0.32, wspace=0.04)
    for line, (i, answer) in enumerate(shown):
        wav = resample(tour.waves[i], INPUT_RATE, OUTPUT_RATE)
        last = line == len(shown) - 1
        title = f'{answer.speaker} asks: “{answer.question}”'
        _panel(figure, grid[line, 0], wav, tour.heard[i], spans[0], title, last)
        said = 'nothing' if answer.heard is None else f'“the answer is {answer.heard}”'
        title = f'The judge hears: {said}'
        _panel(
            figure, grid[line, 1], tour.wavs[key(answer.codes)], answer.codes, spans[1], title, last
        )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches='tight', facecolor='white')
    pyplot.close(figure)
    return True


def _panel(figure, cell, wav, codes: Sequence[int], span: int, title: str, ticks: bool) -> None:
    """One recording (w,) at 24 kHz: its log-mel, and each code under the 80 ms it stands for."""
    from mossjax.models.flow.mel import log_mel

    rows = cell.subgridspec(2, 1, height_ratios=[1, 0.17], hspace=0.05)
    above, below = (figure.add_subplot(row) for row in rows)
    mel = np.asarray(log_mel(wav[None]))[0]
    above.imshow(
        mel.T, origin='lower', aspect='auto', cmap='magma', interpolation='nearest',
        extent=(0, len(wav) / OUTPUT_RATE, 0, 1), vmin=QUIETEST, vmax=max(mel.max(), QUIETEST + 1),
    )  # fmt: skip
    above.set_title(title, fontsize=FONT, loc='left')
    hues = np.asarray(codes) * 0.618034 % 1.0  # golden ratio: codes next in number look apart
    below.imshow(
        _pastel(hues)[None], aspect='auto', interpolation='nearest',
        extent=(0, CODE * len(codes), 0, 1),
    )  # fmt: skip
    for at, code in enumerate(codes):
        below.text(
            CODE * (at + 0.5), 0.5, str(code), rotation=90, fontsize=7, ha='center', va='center'
        )
    for axis in (above, below):
        axis.set_xlim(0, CODE * span)
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        axis.tick_params(labelbottom=False, bottom=False)
    if ticks:
        below.tick_params(labelbottom=True, bottom=True)
        below.set_xlabel('seconds; a code is 80 ms')


def _pastel(hues: np.ndarray) -> np.ndarray:
    """(n,) in [0, 1) -> (n, 3) light colours."""
    from matplotlib.colors import hsv_to_rgb

    return hsv_to_rgb(np.stack([hues, np.full_like(hues, 0.32), np.ones_like(hues)], -1))

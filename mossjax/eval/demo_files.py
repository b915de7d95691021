"""What a tour leaves behind: waveforms, a JSON file with every answer, one picture."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import importlib.metadata
import json
import pathlib
import platform

import numpy as np

from mossjax import __version__
from mossjax.errors import InputError
from mossjax.eval.demo import MODES, Answer, Tour
from mossjax.eval.demo_table import Line, all_met
from mossjax.files import replacing
from mossjax.infer import audio
from mossjax.infer.assets import HELDOUT, NEVER_SPOKEN, Assets
from mossjax.infer.chat import INPUT_RATE, OUTPUT_RATE

# Spoken replies written as files, of each mode. The JSON has the codes of all of them.
WAVS = {HELDOUT: 24, NEVER_SPOKEN: 8}
PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'pocketsphinx', 'soundfile', 'tokenizers')


def prepare(out: pathlib.Path) -> None:
    """Makes the folder, before any long work.

    Raises:
      InputError: `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f'--out {out} is a file; name a folder')
    out.mkdir(parents=True, exist_ok=True)


def write_wavs(out: pathlib.Path, tour: Tour) -> list[str | None]:
    """Writes the first spoken replies of each mode and split, with their questions.

    Returns:
      for each of `tour.answers` the path of its wav below `out`, or None.
    """
    paths: list[str | None] = []
    asked = len(tour.asked)
    for i, answer in enumerate(tour.answers):
        at = i % asked  # answers stand mode by mode, each in the order asked
        before = sum(clip.split == answer.split for clip in tour.asked[:at])
        if MODES[answer.mode][1] != 'audio' or before >= WAVS[answer.split]:
            paths.append(None)
            continue
        folder = f'{answer.mode.replace(" ", "-")}/{answer.split}'
        stem = f'{before:02d}_{answer.speaker}_{answer.question.replace(" ", "-")}'
        if MODES[answer.mode][0] == 'speech':
            audio.save(out / folder / f'{stem}_question.wav', tour.waves[at], INPUT_RATE)
        paths.append(f'{folder}/{stem}_answer.wav' if answer.codes else None)
        if answer.codes:
            # A bad decoder may shout; what is beyond full scale is cut, not refused.
            wav = np.clip(tour.wavs(answer.codes), -1, 1)
            audio.save(out / paths[-1], wav, OUTPUT_RATE)
    return paths


def record(
    assets: Assets, tour: Tour, found: Sequence[Line], paths: Sequence[str | None]
) -> dict:
    """Everything as plain data: figures, single answers, controls, versions, hashes."""
    settings = {
        'draw': tour.settings.draw.__name__,
        'text': dataclasses.asdict(tour.settings.text),
        'audio': dataclasses.asdict(tour.settings.audio),
        'max_new_tokens': tour.settings.max_new_tokens,
        'min_new_tokens': tour.settings.min_new_tokens,
    }
    return {
        'all_gates_met': all_met(found),
        'table': [
            {'section': x.section, **dataclasses.asdict(x.row), 'gate': x.gate,
             'verdict': x.verdict}
            for x in found
        ],
        'stages': assets.report.get('stages', []),
        'settings': settings,
        'seconds': tour.seconds,
        'versions': versions(),
        'sha256': assets.hashes(),
        'controls': tour.controls,
        'answers': [
            {**dataclasses.asdict(answer), 'wav': path}
            for answer, path in zip(tour.answers, paths, strict=True)
        ],
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Of what computed the answers."""
    found = {'mossjax': __version__, 'python': platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, 'machine': f'{platform.system()} {platform.machine()}'}


def write_json(path: pathlib.Path, content: dict) -> None:
    """One line for each answer and verdict, so that the file can be read and compared."""
    lists = {**content['controls'], 'table': content['table'], 'answers': content['answers']}
    marks = {name: f'@{name}@' for name in lists}
    frame = {
        **content, 'table': marks['table'], 'answers': marks['answers'],
        'controls': {name: marks[name] for name in content['controls']},
    }  # fmt: skip
    text = json.dumps(frame, indent=1)
    for name, entries in lists.items():
        inner = ',\n'.join(f'  {json.dumps(entry)}' for entry in entries)
        text = text.replace(f'"{marks[name]}"', f'[\n{inner}\n ]')
    with replacing(path) as temporary:
        temporary.write_text(text + '\n', 'utf-8')


# ------------------------------------------------------------------------------------- picture

PANELS = 3  # questions shown
RATE = 24_000
HEIGHT = 2.3  # inches of a panel


def examples(tour: Tour) -> list[tuple[int, Answer]]:
    """(index of the question, its spoken answer) to show: right ones first, voices apart."""
    pairs = [
        (i, answer)
        for i, answer in enumerate(tour.answers[: len(tour.asked)])
        if answer.split == HELDOUT and answer.codes
    ]
    pairs.sort(key=lambda pair: not pair[1].right)  # stable
    chosen, voices, said = [], set(), set()
    for pair in pairs:
        if pair[1].speaker not in voices and pair[1].expected not in said:
            chosen.append(pair)
            voices.add(pair[1].speaker)
            said.add(pair[1].expected)
    chosen += [pair for pair in pairs if pair not in chosen]
    return chosen[:PANELS]


def draw(path: pathlib.Path, tour: Tour) -> bool:
    """Questions and answers as spectrograms over their codes; False if no reply had any codes."""
    shown = examples(tour)
    if not shown:
        return False
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    from mossjax.ops.resample import resample

    left = max(len(tour.heard[i]) for i, _ in shown)
    right = max(len(answer.codes) for _, answer in shown)
    figure, axes = pyplot.subplots(
        2 * len(shown), 2, figsize=(14, HEIGHT * len(shown) + 0.4), squeeze=False,
        gridspec_kw={
            'width_ratios': [left, right], 'height_ratios': [1, 0.16] * len(shown),
            'wspace': 0.05, 'hspace': 0.12,
        },
    )  # fmt: skip
    for line, (i, answer) in enumerate(shown):
        question = resample(tour.waves[i], INPUT_RATE, RATE)
        reply = tour.wavs(answer.codes)
        said = 'nothing' if answer.heard is None else f'“the answer is {answer.heard}”'
        for column, (wav, codes, span, title) in enumerate(
            (
                (question, tour.heard[i], left, f'asked by {answer.speaker}: “{answer.question}”'),
                (reply, np.array(answer.codes), right, f'the judge hears {said}'),
            )
        ):
            spectrogram, strip = axes[2 * line : 2 * line + 2, column]
            _panel(spectrogram, strip, wav, codes, span, title)
            if column == 0:
                spectrogram.set_ylabel('mel')
                strip.set_ylabel('codes', rotation=0, ha='right', va='center')
        if line == len(shown) - 1:
            for strip in axes[-1]:
                strip.set_xlabel('seconds')
                strip.tick_params(labelbottom=True, bottom=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches='tight', facecolor='white')
    pyplot.close(figure)
    return True


def _panel(spectrogram, strip, wav, codes, span: int, title: str) -> None:
    """One recording: its log-mel, and below it each code over the 80 ms it stands for."""
    from mossjax.models.flow.mel import log_mel

    seconds = span * 0.08
    mel = np.asarray(log_mel(wav[None]))[0]
    spectrogram.imshow(
        mel.T, origin='lower', aspect='auto', cmap='magma', interpolation='nearest',
        extent=(0, len(wav) / RATE, 0, mel.shape[1]), vmin=-9, vmax=max(mel.max(), -8),
    )  # fmt: skip
    spectrogram.set_title(title, fontsize=12, loc='left')
    colours = (np.asarray(codes) * 0.618034) % 1.0  # neighbours in number look apart
    strip.imshow(
        colours[None], aspect='auto', cmap='Pastel1', interpolation='nearest', vmin=0, vmax=1,
        extent=(0, 0.08 * len(codes), 0, 1),
    )
    for at, code in enumerate(codes):
        strip.text(
            0.08 * (at + 0.5), 0.5, str(code), rotation=90, fontsize=7, ha='center', va='center'
        )
    for axis in (spectrogram, strip):
        axis.set_xlim(0, seconds)
        axis.set_yticks([])
        axis.tick_params(labelbottom=False, bottom=False)
        for side in axis.spines.values():
            side.set_visible(False)

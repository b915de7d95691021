"""What a tour leaves behind: waveforms, and a JSON file with every answer."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import importlib.metadata
import json
import pathlib
import platform

import numpy as np

from mossjax import __version__
from mossjax.eval.demo import MODES, Tour, key
from mossjax.eval.demo_table import Line, all_met, figures
from mossjax.files import replacing
from mossjax.infer import audio
from mossjax.infer.assets import HELDOUT, NEVER_SPOKEN, Assets
from mossjax.infer.chat import INPUT_RATE, OUTPUT_RATE

# Spoken replies written as files, of each mode. The JSON has the codes of all of them.
WAVS = {HELDOUT: 24, NEVER_SPOKEN: 8}
PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'pocketsphinx', 'soundfile', 'tokenizers')


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
            wav = np.clip(tour.wavs[key(answer.codes)], -1, 1)
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
        'table': figures(found),
        'stages': assets.report.get('stages', {}),
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

"""Packs a finished run into the directory that the demo runs on: the same bytes each time.

    python -m experiments.nano.ship --lm runs/nano/lm --codec runs/nano/codec \
        --recordings runs/nano/recordings --report runs/nano/report.json

Layout: see `mossjax.infer.assets`. Weights are opened once and copied as they are: what ships is
what was measured. Recordings are drawn at random (--seed): questions of spoken facts at the rates
that no training heard, questions of never-spoken facts, both dealt to all voices in turn, and the
recorded answers, all as Ogg Vorbis.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
import random
import re
import shutil
import subprocess

from absl import flags
import jax
import numpy as np

from experiments.nano import render
from experiments.nano import world as worlds
from experiments.nano.ogg import encode
from experiments.nano.script import start
from mossjax.convert import codec_directory, codec_speaker, codec_vocoder
from mossjax.convert.directories import new_directory
from mossjax.convert.fingerprint import VOICE
from mossjax.convert.placement import open_lm
from mossjax.errors import InputError
from mossjax.eval.demo_table import STAGES
from mossjax.files import read_json
from mossjax.infer import audio
from mossjax.infer import voice as voices
from mossjax.infer.assets import (
    CODEC_FILES,
    HELDOUT,
    LM_FILES,
    NEVER_SPOKEN,
    RATE,
    VOICE_FILES,
    Clip,
    sha256,
)  # fmt: skip
from mossjax.models.lm.dialogue import SystemPrompts

LIMIT = 16_000_000  # bytes, all files together
QUESTIONS, NEVER = 120, 45  # to ask: of spoken facts, of facts never spoken
QUALITY = 0.4  # of Vorbis; leaves the recordings an error 24 dB below the signal
OUT = 'mossjax/assets/nano'
LICENCE = '/usr/share/doc/flite/copyright'
NOTICE = """\
The nano checkpoint of mossjax
==============================

Weights (lm/, codec/): trained from nothing by this project on the recordings described below;
Apache-2.0, like the code (see LICENSE).

Recordings (recordings/): synthetic speech, no person was recorded for it. Made by flite
({flite}) with its voices {voices}:

    flite -voice VOICE --setf duration_stretch=RATE -t TEXT -o FILE

16 kHz, one channel, stored as Ogg Vorbis of quality {quality:.1f}; recordings/index.json gives
voice, rate and text of each. Licence of flite and its voices:

{licence}

SHA-256 of all files
--------------------

{hashes}
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """Where the parts of a finished run are."""

    lm: Path
    codec: Path
    recordings: Path
    report: Path


def pack(
    run: Run, out: Path, *, flite: str, licence: str, questions: int = QUESTIONS,
    never_spoken: int = NEVER, quality: float = QUALITY, seed: int = 0, limit: int = LIMIT,
) -> dict[str, int]:
    """Writes `out`, whole or not at all.

    Args:
      flite: the version that spoke. licence: its text.
      questions, never_spoken: how many of each to take along.
      quality: of Vorbis, 0 to 1.
      limit: bytes of all files together.

    Returns:
      bytes of each file.

    Raises:
      InputError: the run is incomplete (all that is missing is named), its parts do not fit their
        configurations, `out` is not empty, or it would be larger than `limit`.
    """
    check_complete(run)
    report = check_report(run.report)
    check_weights(run)
    world = worlds.World.load(run.recordings / 'world.json')
    drawn = draw(world, run.recordings, questions, never_spoken, seed)
    with new_directory(out) as folder:
        _copy(run.lm, folder / 'lm', LM_FILES)
        spoken = [name for name in VOICE_FILES if (run.codec / name).is_file()]
        _copy(run.codec, folder / 'codec', [*CODEC_FILES, *spoken])
        _write_recordings(drawn, run.recordings, folder / 'recordings', quality)
        shutil.copyfile(run.recordings / 'world.json', folder / 'world.json')
        (folder / 'report.json').write_text(json.dumps(report, indent=1) + '\n')
        _write_notice(folder, flite, licence, quality)
        sizes = {name: (folder / name).stat().st_size for name in _names(folder)}
        _check_size(sizes, limit)
    return sizes


# ------------------------------------------------------------------------- what must be there


def check_complete(run: Run) -> None:
    """Raises InputError that names every missing file of the run."""
    needed = [run.lm / name for name in LM_FILES]
    needed += [run.codec / name for name in CODEC_FILES]
    needed += [run.recordings / 'world.json', run.report]
    needed += [run.recordings / split / 'manifest.jsonl' for split in render.SPLITS]
    missing = [str(path) for path in needed if not path.is_file()]
    if missing:
        raise InputError(f'the run is not finished, it lacks {", ".join(missing)}')
    settings = read_json(run.lm / 'generation_config.json')
    for name, why in (
        ('system_prompts', 'the model does not know those of the released one'),
        ('repetition_penalty', 'the default of 1.1 punishes codes that rightly come twice'),
    ):
        if name not in settings:
            raise InputError(f'{run.lm / "generation_config.json"} has no {name}; add it: {why}')


def check_report(path: Path) -> dict:
    """The report of the run, if it has stages and names no path of this machine."""
    report = read_json(path)
    stages = report.get('stages')
    if not isinstance(stages, dict):
        raise InputError(f'{path} has no object "stages"; write it with experiments.nano.run')
    missing = [name for name in STAGES if not isinstance(stages.get(name), dict)]
    if missing:
        raise InputError(f'{path} says nothing of the stages {", ".join(missing)}; run them')
    named = sorted(set(re.findall(r'"(/[\w.-]+/[^"]*)"', json.dumps(report))))
    if named:
        raise InputError(
            f'{path} names paths of this machine ({", ".join(named[:3])}); write them relative to '
            'the run'
        )
    return report


def check_weights(run: Run) -> None:
    """Raises InputError unless weights fit their configurations, and the large ones are small."""
    _, params = open_lm(run.lm)
    codec_directory.open_tokenizer(run.codec)
    codec_directory.open_flow(run.codec)
    if codec_directory.has(run.codec, codec_vocoder.STEM):
        codec_directory.open_hift(run.codec)
    if codec_directory.has(run.codec, codec_speaker.STEM):
        codec_directory.open_campp(run.codec)
    if (run.codec / VOICE).is_file():
        voices.load(run.codec / VOICE, run.codec)
    SystemPrompts.of(read_json(run.lm / 'generation_config.json'))
    stored = {x.dtype.name for x in jax.tree.leaves(params)}
    if stored != {'bfloat16'}:
        raise InputError(
            f'{run.lm} is stored in {", ".join(sorted(stored))}; save it in bfloat16, and measure '
            'it again as it then is'
        )


def _check_size(sizes: dict[str, int], limit: int) -> None:
    total = sum(sizes.values())
    if total > limit:
        parts: dict[str, int] = {}
        for name, size in sizes.items():
            part = name if name.endswith('.safetensors') else name.split('/')[0]
            parts[part] = parts.get(part, 0) + size
        largest = sorted(parts.items(), key=lambda item: -item[1])[:4]
        listed = ', '.join(f'{name} {size / 1e6:.2f} MB' for name, size in largest)
        raise InputError(
            f'{total / 1e6:.2f} MB, the limit is {limit / 1e6:.2f} MB ({listed}); take fewer '
            'questions, a lower --quality, store the codec in bfloat16, or train a smaller model'
        )


# --------------------------------------------------------------------------------- recordings


def draw(
    world: worlds.World, recordings: Path, questions: int, never_spoken: int, seed: int
) -> list[dict]:
    """Manifest lines of what to take along, with their `split`.

    Raises:
      InputError: fewer facts than asked for, or a recording that the manifests do not list.
    """
    rng = random.Random(seed)
    chosen = []
    for split, facts, count in (
        (HELDOUT, world.spoken, questions),
        (NEVER_SPOKEN, world.never_spoken, never_spoken),
    ):
        if count > len(facts):
            raise InputError(f'{count} questions of {split} wanted, the world has {len(facts)}')
        lines = {
            (r['fact'], r['speaker']): r
            for r in render.read_lines(recordings / split / 'manifest.jsonl')
            if r['rate'] == render.HELDOUT_RATES[r['speaker']]
        }
        asked = spread([fact.id for fact in facts], [fact.family for fact in facts], count, rng)
        dealt = [(fact, render.VOICES[i % len(render.VOICES)]) for i, fact in enumerate(asked)]
        rng.shuffle(dealt)  # so that the first few are a fair sample too
        for fact, voice in dealt:
            if (fact, voice) not in lines:
                raise InputError(
                    f'{recordings / split}: fact {fact} is not rendered in voice {voice} at its '
                    'held-out rate; render anew'
                )
            chosen.append({**lines[fact, voice], 'split': split})
    lines = render.read_lines(recordings / 'train' / 'manifest.jsonl')
    said = {r['text'].split()[-1]: r for r in lines if r['kind'] == 'answer'}
    unsaid = sorted(set(world.answers) - set(said))
    if unsaid:
        raise InputError(
            f'{recordings / "train"}: no recording answers {", ".join(unsaid)}; render anew'
        )
    return chosen + [{**said[word], 'split': 'train'} for word in world.answers]


def spread(
    items: Sequence[int], groups: Sequence[str], count: int, rng: random.Random
) -> list[int]:
    """`count` of the items at random, each group in proportion, in random order within a group."""
    order = list(range(len(items)))
    rng.shuffle(order)
    order.sort(key=lambda i: groups[i])  # stable: random inside a group
    return [items[order[i * len(order) // count]] for i in range(count)]


def _copy(source: Path, out: Path, names: Sequence[str]) -> None:
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, out / name)


def _write_recordings(drawn: list[dict], recordings: Path, out: Path, quality: float) -> None:
    out.mkdir()
    waves: dict[str, list[np.ndarray]] = {}
    clips = []
    for line in drawn:
        file = f'{line["split"] if line["kind"] == "question" else "answers"}.ogg'
        so_far = waves.setdefault(file, [])
        start = sum(map(len, so_far))
        so_far.append(audio.load(recordings / line['split'] / line['audio'], RATE))
        kept = {name: line[name] for name in ('kind', 'split', 'text', 'speaker', 'rate', 'fact')}
        length = len(so_far[-1])
        clips.append(
            Clip(file, **kept, start=start, frames=length, seconds=round(length / RATE, 4))
        )
    for serial, (file, parts) in enumerate(waves.items()):
        (out / file).write_bytes(encode(np.concatenate(parts), RATE, quality, serial))
    lines = ',\n'.join(json.dumps(dataclasses.asdict(clip)) for clip in clips)
    hashes = json.dumps({file: sha256(out / file) for file in waves}, indent=1)
    (out / 'index.json').write_text(f'{{"files": {hashes},\n"recordings": [\n{lines}\n]}}\n')


# ------------------------------------------------------------------------------------- NOTICE


def flite_version() -> str:
    """What flite says of itself.

    Raises:
      InputError: flite is missing or says nothing of the kind.
    """
    try:  # it prints its version and ends with an error code
        done = subprocess.run(['flite', '--version'], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise InputError(render.INSTALL) from error
    printed = done.stdout + done.stderr
    found = re.search(r'version:\s*(\S.*?)\s*$', printed, re.MULTILINE)
    if found is None:
        raise InputError(f'flite --version says no version: {printed!r}; {render.INSTALL}')
    return found[1]


def flite_licence(path: str | Path) -> str:
    """The licence of flite's own files and voices, from the package's copyright file.

    Raises:
      InputError: no such file, or no such section.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f'{path} does not exist; give the copyright file of the flite package')
    found = re.search(
        r'All other files are under following license:\n=+\n(.*?SOFTWARE\.)', path.read_text(),
        re.DOTALL,
    )
    if found is None:
        raise InputError(f'{path} has no section on "All other files"; give the one of flite 2.2')
    lines = [line.expandtabs(4).rstrip() for line in found[1].strip().splitlines()]
    return '\n'.join(f'    {line}'.rstrip() for line in lines)


def _write_notice(folder: Path, flite: str, licence: str, quality: float) -> None:
    hashes = '\n'.join(f'{sha256(folder / name)}  {name}' for name in _names(folder))
    text = NOTICE.format(
        flite=flite, voices=', '.join(render.VOICES), quality=quality, licence=licence,
        hashes=hashes,
    )  # fmt: skip
    (folder / 'NOTICE').write_text(text)


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


def main() -> None:
    given = flags.FLAGS
    run = Run(*map(Path, (given.lm, given.codec, given.recordings, given.report)))
    sizes = pack(
        run, Path(given.out), flite=flite_version(), licence=flite_licence(given.licence),
        questions=given.questions, never_spoken=given.never_spoken, seed=given.seed,
        quality=given.quality,
    )  # fmt: skip
    for name, size in sizes.items():
        print(f'{size:10,d}  {name}')
    print(f'{sum(sizes.values()):10,d}  in {len(sizes)} files under {given.out}')


if __name__ == '__main__':
    flags.DEFINE_string('lm', None, 'language model directory', required=True)
    flags.DEFINE_string('codec', None, 'codec directory', required=True)
    flags.DEFINE_string('recordings', None, 'output of experiments.nano.render', required=True)
    flags.DEFINE_string('report', None, 'report.json of the run', required=True)
    flags.DEFINE_string('out', OUT, 'directory to write; must not exist')
    flags.DEFINE_string('licence', LICENCE, 'copyright file of the flite package')
    flags.DEFINE_integer('questions', QUESTIONS, 'held-out questions to ship', lower_bound=100)
    flags.DEFINE_integer('never_spoken', NEVER, 'never-spoken questions to ship', lower_bound=1)
    flags.DEFINE_float('quality', QUALITY, 'of Vorbis', lower_bound=0.0, upper_bound=1.0)
    flags.DEFINE_integer('seed', 0, 'of the draw')
    start(main)

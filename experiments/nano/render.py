"""Renders the nano world with flite: reproducible bytes, resumable, apart from any training.

    python -m experiments.nano.render --out runs/nano/recordings

writes

    world.json          the facts and which of them are never spoken
    recordings.json     voices, rates, seed: what the files below were made from
    train/              manifest.jsonl and FLAC files: all that training may read
    heldout/            spoken facts at the one rate per voice that training never hears
    never_spoken/       facts that no training audio says, in all voices

A rate is flite's `duration_stretch`: 1.2 is slower than 1.0. Training questions come in every
voice at six rates. The target of a reply is one voice at rate 1.0; answers in other voices and
rates, and strings of random words, exist so that the tokenizer hears every word outside its fact.
Manifest lines carry flite's own phone end times (`times`), word ends derived from them (`words`)
and kind, rate, fact and seconds. Recordings are 16 kHz mono FLAC of 16 bits.

About five minutes on two idle cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
import functools
import json
import os
from pathlib import Path
import random
import shutil
import subprocess
import tempfile

from absl import flags, logging

from experiments.nano import world as worlds
from experiments.nano.script import start
from mossjax.errors import InputError

RATE = 16_000
VOICES = ('slt', 'rms', 'awb', 'kal16')
REPLY_VOICE, REPLY_RATE = 'slt', 1.0
TRAIN_RATES = (0.8, 0.87, 0.95, 1.05, 1.13, 1.2)
HELDOUT_RATES = {'slt': 0.91, 'rms': 1.09, 'awb': 1.0, 'kal16': 1.0}
NEVER_SPOKEN_RATE = 1.05  # beside the held-out rate of the voice
OTHER_ANSWER_RATES = (0.87, 1.05, 1.2)
WORD_STRINGS = 800  # a voice
SPLITS = ('train', 'heldout', 'never_spoken')
INSTALL = 'flite is not installed; run: apt-get install flite'

Labels = list[tuple[str, float]]  # (label, end in seconds)


@dataclass(frozen=True)
class Job:
    """One recording to make. `fact` is -1 for strings of random words."""

    audio: str  # path relative to the manifest
    text: str
    speaker: str
    rate: float
    kind: str  # question, answer (what replies sound like), answer_other, words
    fact: int


# ------------------------------------------------------------------------------- what to render


def plan(world: worlds.World) -> dict[str, list[Job]]:
    """All recordings by split, in a fixed order."""
    train = [_question(f, v, r) for v in VOICES for r in TRAIN_RATES for f in world.spoken]
    train += list(_answers(world))
    train += [job for voice in VOICES for job in _word_strings(world, voice)]
    heldout = [_question(f, v, HELDOUT_RATES[v]) for v in VOICES for f in world.spoken]
    never = [
        _question(f, voice, rate)
        for voice in VOICES
        for rate in (HELDOUT_RATES[voice], NEVER_SPOKEN_RATE)
        for f in world.never_spoken
    ]
    return dict(zip(SPLITS, (train, heldout, never), strict=True))


def _question(fact: worlds.Fact, voice: str, rate: float) -> Job:
    audio = f'question/{voice}_{rate:.2f}/{fact.id:04d}.flac'
    return Job(audio, fact.question, voice, rate, 'question', fact.id)


def _answers(world: worlds.World) -> Iterator[Job]:
    first = {f.answer: f for f in reversed(world.facts)}  # any fact will do for the sentence
    for answer in world.answers:
        fact = first[answer]
        path = f'answer/{answer}.flac'
        yield Job(path, fact.sentence, REPLY_VOICE, REPLY_RATE, 'answer', -1)
        for voice in VOICES:
            for rate in OTHER_ANSWER_RATES:
                path = f'answer_other/{voice}_{rate:.2f}/{answer}.flac'
                yield Job(path, fact.sentence, voice, rate, 'answer_other', -1)


def _word_strings(world: worlds.World, voice: str) -> Iterator[Job]:
    """Three to six random words; the deck is dealt out before it is shuffled again."""
    rng = random.Random(f'{world.seed} words {voice}')
    forbidden = [f' {f.question} ' for f in world.never_spoken]
    deck: list[str] = []
    for i in range(WORD_STRINGS):
        size = rng.randint(3, 6)
        while len(deck) < size:
            deck = rng.sample(world.words, len(world.words)) + deck
        words = [deck.pop() for _ in range(size)]
        while any(question in f' {" ".join(words)} ' for question in forbidden):
            rng.shuffle(words)
        rate = rng.choice(TRAIN_RATES)
        path = f'words/{voice}/{i:04d}.flac'
        yield Job(path, ' '.join(words), voice, rate, 'words', -1)


# ------------------------------------------------------------------------------- how to render


def speak(text: str, voice: str, rate: float):
    """Runs flite once.

    Returns:
      (samples, phones): int16 (w,) at 16 kHz and [(phone, end in seconds), ...]; silence is 'pau'.

    Raises:
      InputError: flite is missing, lacks the voice, or failed.
    """
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        wav = f'{folder}/speech.wav'
        stretch = f'duration_stretch={rate}'
        command = ['flite', '-voice', voice, '--setf', stretch, '-psdur', '-t', text, '-o', wav]
        printed = _run(command)
        samples, found = soundfile.read(wav, dtype='int16')
    if found != RATE or samples.ndim != 1:
        raise InputError(f'flite voice {voice!r} speaks at {found} Hz; use one of {VOICES}')
    seconds = len(samples) / RATE
    phones = []
    for item in printed.split():
        label, _, end = item.rpartition(':')
        phones.append((label, min(float(end), seconds)))
    return samples, phones


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise InputError(INSTALL) from error
    except subprocess.CalledProcessError as error:
        raise InputError(f'{" ".join(command)} failed: {error.stderr.strip()}') from error
    return done.stdout


def require_flite() -> None:
    """Raises InputError unless flite and all our voices are there."""
    if shutil.which('flite') is None:
        raise InputError(INSTALL)
    listed = set(_run(['flite', '-lv']).split())
    missing = [voice for voice in VOICES if voice not in listed]
    if missing:
        raise InputError(f'this flite has no voice {", ".join(missing)}; {INSTALL.split("; ")[1]}')


@functools.cache
def pronounce(word: str) -> tuple[str, ...]:
    """The phones of a word said alone."""
    command = ['flite', '-voice', REPLY_VOICE, '-ps', '-t', word, '-o', 'none']
    return tuple(p for p in _run(command).split() if p != 'pau')


def word_ends(text: str, phones: Labels, alone_of: Callable = pronounce) -> Labels:
    """Word ends from phone ends, by the cheapest alignment with the words said alone.

    In a sentence some words are said otherwise than alone ("the", "a"), hence an alignment; both
    sides are a few dozen phones. A pause belongs to the word after it.

    Args:
      text: words with spaces between.
      phones: (phone, end in seconds) of the whole sentence.
      alone_of: word -> its phones.
    """
    spoken = [(p, end) for p, end in phones if p != 'pau']
    words = text.split()
    owner = [i for i, word in enumerate(words) for _ in alone_of(word)]
    alone = [p for word in words for p in alone_of(word)]
    n, m = len(alone), len(spoken)
    cost = [[float(i + j) for j in range(m + 1)] for i in range(n + 1)]
    for i in range(n):
        for j in range(m):
            swap = cost[i][j] + (0.0 if alone[i] == spoken[j][0] else 1.0)
            cost[i + 1][j + 1] = min(swap, cost[i][j + 1] + 1, cost[i + 1][j] + 1)
    ends = [0.0] * len(words)
    i, j = n, m
    while i and j:  # walk back; the last phone of a word is the first one met
        swap = cost[i - 1][j - 1] + (0.0 if alone[i - 1] == spoken[j - 1][0] else 1.0)
        if cost[i][j] == swap:
            word = owner[i - 1]
            ends[word] = max(ends[word], spoken[j - 1][1])
            i, j = i - 1, j - 1
        elif cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    for k in range(1, len(ends)):
        ends[k] = max(ends[k], ends[k - 1])
    return list(zip(words, ends, strict=True))


def _make(job: Job, folder: Path) -> str:
    """Renders one job; returns its manifest line."""
    import soundfile

    samples, phones = speak(job.text, job.speaker, job.rate)
    path = folder / job.audio
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix('.part')
    soundfile.write(part, samples, RATE, format='FLAC', subtype='PCM_16')
    os.replace(part, path)
    line = asdict(job)
    line['seconds'] = round(len(samples) / RATE, 4)
    line['times'] = [[p, round(end, 4)] for p, end in phones]
    line['words'] = [[w, round(end, 4)] for w, end in word_ends(job.text, phones)]
    return json.dumps(line)


# ----------------------------------------------------------------------------- all of them


def render(world: worlds.World, out: Path, workers: int = 2) -> None:
    """Renders everything under `out`; what an earlier, interrupted call finished is kept.

    Raises:
      InputError: flite is missing, or `out` holds recordings of another world.
    """
    require_flite()
    out.mkdir(parents=True, exist_ok=True)
    _claim(world, out)
    for split, jobs in plan(world).items():
        render_split(jobs, out / split, workers)


def render_split(jobs: Sequence[Job], folder: Path, workers: int = 2) -> None:
    """Renders the jobs into `folder` and writes its manifest.jsonl last, in the order of jobs."""
    from tqdm import tqdm

    manifest = folder / 'manifest.jsonl'
    if manifest.exists():
        logging.info('%s is complete', manifest)
        return
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / 'unfinished.jsonl'
    done = _read_journal(journal, folder)
    todo = [job for job in jobs if job.audio not in done]
    with (
        open(journal, 'w') as kept,  # rewritten, to lose a line torn by a kill
        ThreadPoolExecutor(workers) as pool,  # threads: flite is a process of its own
        tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc=folder.name, disable=None) as bar,
    ):
        kept.writelines(line + '\n' for line in done.values())
        kept.flush()
        for job, line in zip(todo, pool.map(lambda j: _make(j, folder), todo), strict=True):
            done[job.audio] = line
            kept.write(line + '\n')
            bar.update()
    part = folder / 'manifest.part'
    part.write_text(''.join(done[job.audio] + '\n' for job in jobs))
    os.replace(part, manifest)
    journal.unlink()


def _read_journal(journal: Path, folder: Path) -> dict[str, str]:
    done = {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        try:
            audio = json.loads(line)['audio']
        except ValueError:
            continue  # torn by a kill
        if (folder / audio).exists():
            done[audio] = line
    return done


def _claim(world: worlds.World, out: Path) -> None:
    """Writes world.json and recordings.json, or checks that they say the same as ours."""
    settings = {
        'seed': world.seed,
        'voices': VOICES,
        'reply': [REPLY_VOICE, REPLY_RATE],
        'train_rates': TRAIN_RATES,
        'heldout_rates': HELDOUT_RATES,
        'never_spoken_rates': NEVER_SPOKEN_RATE,
        'other_answer_rates': OTHER_ANSWER_RATES,
        'word_strings': WORD_STRINGS,
    }
    text = json.dumps(settings, indent=1) + '\n'
    stored = out / 'recordings.json'
    if not stored.exists():
        world.save(out / 'world.json')
        stored.write_text(text)
    elif stored.read_text() != text or worlds.World.load(out / 'world.json') != world:
        raise InputError(
            f'{out} holds recordings of another world or of other settings; '
            'delete it or name another --out'
        )


def verify(out: Path, count: int, seed: int = 0) -> None:
    """Speaks some recordings again, drawn at random, and compares every sample.

    Raises:
      InputError: flite now says something else, so that what was trained on `out` cannot be
        rebuilt here.
    """
    import soundfile

    rng = random.Random(seed)
    for split in SPLITS:
        lines = list(read_lines(out / split / 'manifest.jsonl'))
        for line in rng.sample(lines, min(count, len(lines))):
            samples, _ = speak(line['text'], line['speaker'], line['rate'])
            stored, _ = soundfile.read(out / split / line['audio'], dtype='int16')
            if stored.tobytes() != samples.tobytes():
                raise InputError(
                    f'{out / split / line["audio"]} is not what flite says now; '
                    'render anew with the flite you have, or install the one it was made with'
                )


def summary(out: Path) -> str:
    """Files and hours by split and kind."""
    rows = []
    for split in SPLITS:
        kinds: dict[str, list[float]] = {}
        for line in read_lines(out / split / 'manifest.jsonl'):
            kinds.setdefault(line['kind'], []).append(line['seconds'])
        for kind, seconds in sorted(kinds.items()):
            hours = sum(seconds) / 3600
            rows.append(f'{split:13s} {kind:13s} {len(seconds):6d} files {hours:6.2f} h')
    return '\n'.join(rows)


def read_lines(manifest: Path) -> Iterable[dict]:
    with open(manifest) as lines:
        for line in lines:
            yield json.loads(line)


def main() -> None:
    out = Path(flags.FLAGS.out)
    render(worlds.build(), out, flags.FLAGS.workers)
    verify(out, flags.FLAGS.verify)
    print(summary(out))


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'directory of the recordings', required=True)
    flags.DEFINE_integer('workers', 2, 'flite processes at once', lower_bound=1)
    flags.DEFINE_integer('verify', 10, 'recordings of each split spoken again and compared')
    start(main)

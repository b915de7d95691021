"""The guide is run as it stands: 20 recordings in, an adapter out, the judge hears the answers."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from experiments.own_voice import listen, recordings
from mossjax.infer import audio
from mossjax.infer.assets import NEVER_SPOKEN, Assets, shipped

ROOT = pathlib.Path(__file__).parents[3]
GUIDE = (ROOT / 'experiments' / 'own_voice' / 'README.md').read_text()


def commands() -> list[str]:
    """The lines of the guide's plain code blocks that are commands, continuations joined."""
    blocks = re.findall(r'^```(\w*)\n(.*?)^```$', GUIDE, re.DOTALL | re.MULTILINE)
    plain = [block for language, block in blocks if not language]
    lines = [line for block in plain for line in block.replace('\\\n', '').splitlines()]
    return [line for line in lines if not re.match(r'00\d\.', line)]


def run(line: str, folder: pathlib.Path) -> str:
    """What a command prints, run as a reader with this Python would."""
    words = shlex.split(line)
    start = {'mossjax': [sys.executable, '-m', 'mossjax'], 'python': [sys.executable]}[words[0]]
    plain = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}  # one device
    done = subprocess.run(
        [*start, *words[1:]], cwd=folder, capture_output=True, text=True,
        env={**plain, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, (line, done.stderr[-2000:])
    return done.stdout


@pytest.mark.slow
def test_the_guide_teaches_twenty_answers(tmp_path):
    for name in ('mossjax', 'experiments'):
        (tmp_path / name).symlink_to(ROOT / name)
    said = {line: run(line, tmp_path) for line in commands()}
    starts = [' '.join(line.split()[:3]) for line in said]
    assert starts == [
        'python -m experiments.own_voice.recordings', 'mossjax rows --folder',
        'mossjax train --config', 'mossjax convert --adapter', 'mossjax chat --model',
        'python -m experiments.own_voice.listen',
    ]  # fmt: skip
    rows = next(out for line, out in said.items() if line.startswith('mossjax rows'))
    assert 'examples    320: s2s 160, t2s 160\n' in rows and 'left out' not in rows
    assert audio.read_header(tmp_path / 'answer.wav').rate == 24000
    heard = re.findall(r'(\d+) of 20 heard right, (\d+) of 20 others', said[commands()[-1]])
    (before, _), (after, kept) = (map(int, line) for line in heard)
    assert before < 5 and after >= 15 and kept >= 12, heard


def test_what_is_taught_was_never_spoken(tmp_path):
    assets = Assets.open(shipped())
    recordings.write(tmp_path, assets)
    questions, answers = listen.taught(str(tmp_path))
    assert len(set(questions)) == len(answers) == 20
    asked = {clip.text for clip in assets.questions(NEVER_SPOKEN)}
    facts = {fact.question: fact for fact in assets.facts.values()}
    for question, answer in zip(questions, answers, strict=True):
        text = pathlib.Path(question).with_suffix('.txt').read_text().strip()
        assert text in asked and not facts[text].spoken and facts[text].answer == answer


def test_files_and_flags_the_guide_names_are_there():
    for name in re.findall(r'`((?:mossjax|experiments)/[\w./-]+)`', GUIDE):
        assert (ROOT / name).exists(), name

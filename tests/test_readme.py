"""The README is run: its commands in order, on the shipped model under the names it gives.

Directories that the README calls MOSS-Speech and MOSS-Speech-Codec are the nano ones; what needs
a network or another machine is listed in ELSEWHERE and only read.
"""

import importlib
import json
import pathlib
import re
import shlex
import subprocess

import librosa
import numpy as np
import pytest

from mossjax.cli import main as cli
from mossjax.infer import audio
from mossjax.infer.assets import Assets, shipped

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
ELSEWHERE = ('source .venv/bin/activate', 'apt-get install ', 'pip install ', 'hf download ')


def commands() -> list[str]:
    """The lines of all code blocks of the README that are commands, continuations joined."""
    found = re.findall(r'^```(\w*)\n(.*?)^```$', README, re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in found if not language]
    lines = [line for block in blocks for line in block.replace('\\\n', '').splitlines()]
    return [line.split('  #')[0].strip() for line in lines if not line.startswith(('16 kHz', ' '))]


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """A folder as the README's reader has it after make demo and hf download."""
    folder = tmp_path_factory.mktemp('clone')
    nano = shipped()
    (folder / 'mossjax').symlink_to(ROOT / 'mossjax')
    (folder / 'experiments').symlink_to(ROOT / 'experiments')
    (folder / 'MOSS-Speech').symlink_to(nano / 'lm')
    (folder / 'MOSS-Speech-Codec').symlink_to(nano / 'codec')
    assets = Assets.open(nano)
    clips = assets.questions('heldout')
    said = folder / 'demo-output/speech-to-speech/heldout'
    first = f'00_{clips[0].speaker}_{clips[0].text.replace(" ", "-")}_question.wav'
    audio.save(said / first, assets.load(clips[0], 16000), 16000)
    audio.save(folder / 'question.wav', assets.load(clips[1], 16000), 16000)
    return folder


def pitch(path: str) -> float:
    """The median, in Hz."""
    wave = audio.load(path, 16000)
    hertz, voiced, _ = librosa.pyin(wave, fmin=60, fmax=400, sr=16000)
    return float(np.median(hertz[voiced]))


def mossjax(line: str) -> None:
    command, *args = shlex.split(line)[1:]
    importlib.reload(importlib.import_module(f'mossjax.cli.{command}'))  # flags as a process has
    assert cli.main([command, *args]) == 0, line


def test_every_command_runs_in_the_order_it_stands_there(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    run, said = [], {}
    for line in commands():
        if line.startswith('mossjax ') and '[' not in line and 'COMMAND' not in line:
            mossjax(line)
            said[line] = capsys.readouterr().out
            run.append(line)
        elif line.startswith('make '):
            shown = subprocess.run(
                ['make', '-n', *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True
            )
            assert shown.returncode == 0, (line, shown.stderr)
        else:
            assert line.startswith(ELSEWHERE), f'README: {line!r} is neither run nor known'
    answers = [out for line, out in said.items() if '--reply text' in line]
    assert answers and set(answers) == {'the answer is seven\n'}
    # What was heard is what the command line can be asked for again, as codes or as samples.
    codes = json.loads((clone / 'codes.jsonl').read_text().splitlines()[-1])
    assert codes['path'] == 'question.wav'
    header = audio.read_header('answer.wav')
    assert header.rate == 24000 and header.frames % 1920 == 0
    # A man's voice was asked for; answers have a woman's.
    assert pitch('deep.wav') < 125 < 150 < pitch('answer.wav')
    for name in ('model.safetensors', 'config.json'):
        there, back = clone / 'MOSS-Speech' / name, clone / 'MOSS-Speech-again' / name
        assert there.read_bytes() == back.read_bytes()


def test_what_make_would_do_is_what_the_readme_says():
    for target, does in (('demo', '-m mossjax demo'), ('test', '-m pytest'),
                         ('nano', '-m experiments.nano.run --workdir runs/nano')):
        shown = subprocess.run(['make', '-n', target], cwd=ROOT, capture_output=True, text=True)
        assert does in shown.stdout
        assert f'make {target}' in README


def test_files_the_readme_names_are_there():
    for name in re.findall(r'`((?:mossjax|experiments|tests|launch)/[\w./-]+)`', README):
        assert (ROOT / name).exists(), name


def test_every_command_of_the_program_stands_in_its_table():
    table = README[README.index('## Commands'):README.index('## Weights')]
    for name in cli.COMMANDS:
        assert f'| `{name} ' in table or f'| `{name}`' in table, name

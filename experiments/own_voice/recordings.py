"""A folder of recordings to try the guide with, if you have none: 20 questions, 20 answers.

    python -m experiments.own_voice.recordings --out recordings

The questions are facts that no training audio of the shipped model ever asked, so that it mostly
answers them wrong. Each pair is four files: 001.user.wav and .txt, 001.assistant.wav and .txt.
"""

from pathlib import Path

from absl import flags

from experiments.nano.script import start
from mossjax.infer import audio
from mossjax.infer.assets import NEVER_SPOKEN, RATE, Assets, Clip, shipped

PAIRS = 20
KNOWN = ('sums', 'differences')  # families of which it gets some right by itself


def pairs(assets: Assets) -> list[tuple[Clip, Clip]]:
    """(question, answer) of each pair."""
    asked = [
        clip for clip in assets.questions(NEVER_SPOKEN)
        if assets.facts[clip.fact].family not in KNOWN
    ]  # fmt: skip
    return [(clip, assets.answers[assets.facts[clip.fact].answer]) for clip in asked[:PAIRS]]


def write(out: Path, assets: Assets) -> None:
    for number, (question, answer) in enumerate(pairs(assets), 1):
        for role, clip in (('user', question), ('assistant', answer)):
            stem = out / f'{number:03d}.{role}'
            audio.save(f'{stem}.wav', assets.load(clip, RATE), RATE)
            Path(f'{stem}.txt').write_text(clip.text + '\n')


def main() -> None:
    out = Path(flags.FLAGS.out)
    write(out, Assets.open(shipped()))
    print(f'{out}: {PAIRS} questions and their answers')


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'folder to write', required=True)
    start(main)

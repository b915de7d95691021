"""How many of the taught answers a judge hears, and of others, without and with the adapter.

    python -m experiments.own_voice.listen --folder recordings --adapter adapter

Every question of the folder is asked aloud, and as many that the model could answer before, to see
what it forgot. pocketsphinx listens to the replies with the closed grammar of the nano world
(`mossjax.eval.judge`): it hears "the answer is X" for the answers of that world and nothing else,
so this is for the recordings of `experiments.own_voice.recordings`.
"""

from collections.abc import Sequence
import dataclasses

from absl import flags
import numpy as np

from experiments.nano.script import start
from mossjax.convert.placement import on_host
from mossjax.data.folder import read_folder
from mossjax.data.manifest import Dialogue
from mossjax.errors import InputError
from mossjax.eval.judge import Judge
from mossjax.eval.spoken_qa import accuracy
from mossjax.infer import audio
from mossjax.infer.assets import HELDOUT, Assets, shipped
from mossjax.infer.chat import INPUT_RATE, OUTPUT_RATE, Chat
from mossjax.models.lm.dialogue import Turn

LONGEST = 48  # rows of a reply, twice the longest answer


def taught(folder: str) -> tuple[list[str], list[str]]:
    """(recordings of the questions, answer words) of the dialogues in a folder."""
    turns = [entry.turns for entry in read_folder(folder).entries if isinstance(entry, Dialogue)]
    pairs = [(a.audio, b.text.split()[-1]) for a, b in turns if a.audio and b.text]
    if not pairs:
        raise InputError(f'{folder} has no question with its answer; see --help')
    return tuple(map(list, zip(*pairs, strict=True)))


def heard(chat: Chat, judge: Judge, questions: Sequence[np.ndarray]) -> list[str | None]:
    """The answer word that the judge hears in each reply, None for none.

    Args:
      questions: waveforms (w,) at 16 kHz.
    """
    asked = [[Turn('user', wav)] for wav in questions]
    replies = chat.replies(asked, 'audio', chat.settings.greedy().at_most(LONGEST))
    return [None if r.wav is None else judge.answer(r.wav, OUTPUT_RATE) for r in replies]


def main() -> None:
    assets = Assets.open(shipped())
    files, answers = taught(flags.FLAGS.folder)
    others = assets.questions(HELDOUT)[: len(files)]
    questions = [audio.load(file, INPUT_RATE) for file in files]
    questions += [assets.load(clip, INPUT_RATE) for clip in others]
    facts = assets.facts.values()
    judge = Judge([fact.answer for fact in facts], [fact.question for fact in facts])
    put = on_host('float32')
    plain = Chat.open(assets.lm, assets.codec, put=put)
    taught_one = dataclasses.replace(  # one codec, compiled once, for both
        Chat.open(assets.lm, put=put, adapter=flags.FLAGS.adapter),
        encode=plain.encode, decode=plain.decode,
    )  # fmt: skip
    for name, chat in (('without', plain), ('with', taught_one)):
        found, count = heard(chat, judge, questions), len(answers)
        right = accuracy(found[:count], answers)
        old = accuracy(found[count:], [assets.facts[clip.fact].answer for clip in others])
        print(f'{name} the adapter: {right} of {count} heard right, {old} of {len(others)} others')


if __name__ == '__main__':
    flags.DEFINE_string('folder', None, 'recordings that were taught', required=True)
    flags.DEFINE_string('adapter', None, 'directory of the adapter', required=True)
    start(main)

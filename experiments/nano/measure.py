"""What a nano language model can do, by exact comparison (no judge): fast enough between stages.

A spoken reply counts if its codes are those of the right answer's recording. That agrees with what
the judge hears, because replies come out as clean code sequences of some answer.
"""

from collections.abc import Sequence

import numpy as np

from experiments.nano.examples import sentence
from experiments.nano.world import World
from mossjax.data.codes import CodesStore
from mossjax.data.manifest import Recording
from mossjax.infer.chat import Chat
from mossjax.models.lm.dialogue import Turn

ROWS = 48  # a reply is under 30
BATCH = 64


def replies(chat: Chat, questions: Sequence, reply: str) -> list:
    """Greedy replies to single questions (text or codes), in batches of like length."""
    settings = chat.settings.greedy().at_most(ROWS)
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    found = [None] * len(questions)
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        filled = part + part[:1] * (BATCH - len(part))  # one batch shape, so one compilation
        dialogues = [[Turn('user', questions[i])] for i in filled]
        for i, answer in zip(part, chat.replies(dialogues, reply, settings), strict=False):
            found[i] = answer
    return found


def text_accuracy(chat: Chat, world: World) -> dict[str, float]:
    """Share of facts answered with exactly the right words, asked in writing."""
    given = replies(chat, [f.question for f in world.facts], 'text')
    right = [r.text == sentence(f.answer) for r, f in zip(given, world.facts, strict=True)]
    spoken = [f.spoken for f in world.facts]
    return {
        'all': float(np.mean(right)),
        'never_spoken': float(np.mean([r for r, s in zip(right, spoken, strict=True) if not s])),
    }


def by_ear(
    chat: Chat, world: World, recordings: Sequence[Recording], codes: CodesStore,
    answers: dict[str, Sequence[int]],
) -> dict[str, float]:
    """Shares of spoken questions answered right: `s2s` in codes, `s2t` in words."""
    heard = [codes.versions(r.audio)[0].codes for r in recordings]
    facts = {f.id: f for f in world.facts}
    wanted = [facts[r.extra['fact']].answer for r in recordings]
    spoken = replies(chat, heard, 'audio')
    written = replies(chat, heard, 'text')
    return {
        's2s': float(np.mean([
            list(r.codes) == list(answers[w]) for r, w in zip(spoken, wanted, strict=True)
        ])),
        's2t': float(np.mean([
            r.text == sentence(w) for r, w in zip(written, wanted, strict=True)
        ])),
        'unfinished': float(np.mean([r.reason != 'stop' for r in spoken])),
    }  # fmt: skip


def in_speech(chat: Chat, facts: Sequence, answers: dict[str, Sequence[int]]) -> float:
    """Share of written questions answered with the codes of the right answer (`t2s`)."""
    given = replies(chat, [f.question for f in facts], 'audio')
    return float(np.mean([
        list(r.codes) == list(answers[f.answer]) for r, f in zip(given, facts, strict=True)
    ]))  # fmt: skip

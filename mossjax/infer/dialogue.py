"""A dialogue that lives on in its lane: each turn is heard, encoded and read once.

What no longer fits the model leaves; then what stays is read anew.

    talk = Dialogue(Chat.open('model', 'codec'), 'audio')
    reply = talk.ask(audio.load('question.wav', 16000))      # reply.wav, reply.codes, ...
    reply = talk.ask('And in one word?')
"""

from collections.abc import Callable
import dataclasses

from absl import logging
import numpy as np

from mossjax.infer.chat import Chat, Reply
from mossjax.infer.generate import Session
from mossjax.infer.sampling import Settings
from mossjax.models.lm.dialogue import Turn

CUT = 'cut'  # why a reply ended that somebody interrupted


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """A question and what the model is given with it.

    Attributes:
      turns: those that it reads, the question last.
      prompt: int32 (p, 2), the rows of these. settings: of the reply.
      dropped: how many turns had to leave.
    """

    turns: list[Turn]
    prompt: np.ndarray
    settings: Settings
    dropped: int


class Dialogue:
    """The exchanges of one user with a model.

    When the next prompt would leave too little room for a reply, the oldest exchanges leave, each
    a question with its reply; a system turn of one's own stays. A reply needs the room that the
    chat's `longest` asks for, or else its usual limit, of which half the positions must do.

    Attributes:
      turns: those the next question follows, their content text or codes.
      session: the lane that the dialogue lives in.
    """

    def __init__(
        self, chat: Chat, kind: str = 'audio', *, system: str | None = None,
        say: Callable[[str], None] = logging.warning, session: Session | None = None,
    ):
        """Args:
          kind: of the replies, 'audio' or 'text'.
          system: the system turn, instead of the checkpoint's own.
          say: told once when the first exchange leaves, once when the limit of replies shrinks.
          session: of one dialogue, where lanes are shared; one of its own by default.
        """
        self.chat, self.kind, self._say = chat, kind, say
        self._system = [] if system is None else [Turn('system', system)]
        self.turns: list[Turn] = []
        self.session = session or chat.session()
        self._said: set[str] = set()

    def ask(self, question: str | np.ndarray, seed: int = 0) -> Reply:
        """The reply to one more turn, text, codes (n,) or a waveform (w,) at 16 kHz.

        A reply that was to be spoken and has no codes is no turn, nor is the question then; a
        call that raises changes nothing either.

        Raises:
          InputError: as `Chat.replies`; the turn alone is too long for the model.
        """
        asked = self.prepare(question)
        [reply] = self.chat.answers([asked.prompt], self.kind, asked.settings, seed, self.session)
        self.keep(asked, reply)
        return reply

    def prepare(self, question: str | np.ndarray) -> Asked:
        """What the model reads of one more turn; the dialogue is as it was until `keep`.

        Raises:
          InputError: as `ask`.
        """
        if isinstance(question, np.ndarray) and question.dtype.kind == 'f':
            (question,) = self.chat.hear([question])
        turns = [*self.turns, Turn('user', question)]
        kept, prompt = self._recent(turns)
        return Asked(kept, prompt, self.chat.settings_for(len(prompt)), len(turns) - len(kept))

    def keep(self, asked: Asked, reply: Reply) -> None:
        """The question and its reply are turns from here on."""
        limit, usual = asked.settings.max_new_tokens, self.chat.settings.max_new_tokens
        if asked.dropped:
            self._say_once(
                'turns',
                f'the dialogue has outgrown the {self.chat.positions} positions of the model: from '
                'here on its oldest turns are left out',
            )
        if limit < usual:
            self._say_once(
                'limit',
                f'the reply could have {limit} rows, not {usual}: the model has '
                f'{self.chat.positions} positions, of which the prompt takes {len(asked.prompt)}',
            )
        if len(reply.codes) or self.kind == 'text' and (reply.text or reply.reason != CUT):
            self.turns = [*asked.turns, reply.turn]

    def before_speech(self) -> np.ndarray:
        """Rows (n, 2) that a question in speech begins with, up to its first code."""
        one, other = (self._prompt([*self.turns, Turn('user', [code])]) for code in (0, 1))
        return one[: int(np.flatnonzero((one != other).any(axis=1))[0])]

    def _recent(self, turns: list[Turn]) -> tuple[list[Turn], np.ndarray]:
        """The last turns, as many whole exchanges as leave a reply its room, and their rows."""
        limit, positions = self.chat.settings.max_new_tokens, self.chat.positions
        needed = limit if self.chat.longest is not None else min(limit, positions // 2)
        while len(prompt := self._prompt(turns)) + needed > positions and len(turns) > 1:
            turns = turns[2:]
        return turns, prompt

    def _prompt(self, turns: list[Turn]) -> np.ndarray:
        return self.chat.prompt([*self._system, *turns], self.kind)

    def _say_once(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._say(text)

"""A dialogue that lives on in its lane: each turn is heard, encoded and read once.

What no longer fits the model leaves; then what stays is read anew.

    talk = Dialogue(Chat.open('model', 'codec'), 'audio')
    reply = talk.ask(audio.load('question.wav', 16000))      # reply.wav, reply.codes, ...
    reply = talk.ask('And in one word?')
"""

from collections.abc import Callable

from absl import logging
import numpy as np

from mossjax.infer.chat import Chat, Reply
from mossjax.models.lm.dialogue import Turn


class Dialogue:
    """The exchanges of one user with a model.

    When the next prompt would leave too little room for a reply, the oldest exchanges leave, each
    a question with its reply; a system turn of one's own stays. A reply needs the room that the
    chat's `longest` asks for, or else its usual limit, of which half the positions must do.

    Attributes:
      turns: those the next question follows, their content text or codes.
    """

    def __init__(
        self, chat: Chat, kind: str = 'audio', *, system: str | None = None,
        say: Callable[[str], None] = logging.warning,
    ):
        """Args:
          kind: of the replies, 'audio' or 'text'.
          system: the system turn, instead of the checkpoint's own.
          say: told once when the first exchange leaves, once when the limit of replies shrinks.
        """
        self.chat, self.kind, self._say = chat, kind, say
        self._system = [] if system is None else [Turn('system', system)]
        self.turns: list[Turn] = []
        self._session = chat.session()
        self._said: set[str] = set()

    def ask(self, question: str | np.ndarray, seed: int = 0) -> Reply:
        """The reply to one more turn, text, codes (n,) or a waveform (w,) at 16 kHz.

        A reply that was to be spoken and has no codes is no turn, nor is the question then; a
        call that raises changes nothing either.

        Raises:
          InputError: as `Chat.replies`; the turn alone is too long for the model.
        """
        if isinstance(question, np.ndarray) and question.dtype.kind == 'f':
            (question,) = self.chat.hear([question])
        asked = [*self.turns, Turn('user', question)]
        turns = self._recent(asked)
        rows = self._rows(turns)
        settings = self.chat.settings_for(rows)
        given = [*self._system, *turns]
        reply = self.chat.reply(given, self.kind, settings, seed, self._session)
        limit, usual = settings.max_new_tokens, self.chat.settings.max_new_tokens
        if len(turns) < len(asked):
            self._say_once(
                'turns',
                f'the dialogue has outgrown the {self.chat.positions} positions of the model: from '
                'here on its oldest turns are left out',
            )
        if limit < usual:
            self._say_once(
                'limit',
                f'the reply could have {limit} rows, not {usual}: the model has '
                f'{self.chat.positions} positions, of which the prompt takes {rows}',
            )
        if self.kind == 'text' or len(reply.codes):
            self.turns = [*turns, reply.turn]
        return reply

    def _recent(self, turns: list[Turn]) -> list[Turn]:
        """The last turns, as many whole exchanges as leave a reply its room."""
        limit, positions = self.chat.settings.max_new_tokens, self.chat.positions
        needed = limit if self.chat.longest is not None else min(limit, positions // 2)
        while len(turns) > 1 and self._rows(turns) + needed > positions:
            turns = turns[2:]
        return turns

    def _rows(self, turns: list[Turn]) -> int:
        return len(self.chat.prompt([*self._system, *turns], self.kind))

    def _say_once(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._say(text)

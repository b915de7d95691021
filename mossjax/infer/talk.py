"""A dialogue while it happens: pieces of sound in and out, one's question read as it is heard.

    codec = open_codec('codec', codes, streams=True)
    talk = Talk(Dialogue(chat), codec.mouth(), ears=codec.ears)
    for piece in microphone:                    # 16 kHz, of any length
        talk.listen(piece)
    for part in talk.reply():                   # part.wave, 24 kHz; part.text
        play(part.wave)
    talk.interrupt(heard=48000)                 # or before it ends: what was not heard was not said

Several talks may share an engine, each with a session of its own: `begin` them, give what
`engine.run` yields to `take` of the talk whose lane it is.
"""

from collections.abc import Iterator
import dataclasses

import numpy as np

from mossjax.errors import InputError
from mossjax.infer import buckets
from mossjax.infer.chat import Reply
from mossjax.infer.codec import Mouth, Utterance
from mossjax.infer.dialogue import CUT, Asked, Dialogue
from mossjax.infer.engine import Said
from mossjax.infer.generate import Generation
from mossjax.infer.sampling import row_keys
from mossjax.infer.speech_tokenizer import SpeechTokenizer
from mossjax.infer.streaming import Session as Hearing
from mossjax.infer.voice import Voice
from mossjax.models.flow.mel import HOP
from mossjax.models.lm.grid import speech_rows

SAMPLES = 4 * HOP  # of a code at 24 kHz


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What a reply goes on with.

    Attributes:
      text: more of its words. wave: float32 (w,) more of its sound at 24 kHz. Either may be empty.
      reason: 'running', or why it ends with this part.
    """

    text: str
    wave: np.ndarray
    reason: str


@dataclasses.dataclass(eq=False)
class _Answer:
    """A reply that is being made: rows (n, 2) so far, what of them was given."""

    asked: Asked
    utterance: Utterance | None
    rows: np.ndarray
    text: str = ''
    codes: int = 0
    waves: list[np.ndarray] = dataclasses.field(default_factory=list)


class Talk:
    """One dialogue, heard and spoken piece by piece.

    Attributes:
      dialogue: its turns; it goes on in its lane.
      last: the last reply, whole or as far as it was heard.
    """

    def __init__(
        self, dialogue: Dialogue, mouth: Mouth | None = None, *,
        ears: SpeechTokenizer | None = None, voice: Voice | None = None,
    ):  # fmt: skip
        """Args:
          mouth: gives replies their sound; without one they are text and codes.
          ears: what `listen` needs.
          voice: who speaks, instead of the mouth's own.
        """
        self.dialogue, self.last = dialogue, None
        self._mouth, self._ears, self._voice = mouth, ears, voice
        self.engine, (self.lane,) = dialogue.session.engine, dialogue.session.lanes
        self._hearing: Hearing | None = None
        self._before, self._heard = None, np.zeros(0, np.int32)
        self._answer: _Answer | None = None

    def listen(self, piece: np.ndarray) -> None:
        """Hears more of the question, (w,) samples at 16 kHz, and lets the model read it.

        A reply that is being made ends, see `interrupt`. How the sound is cut into pieces changes
        nothing. Codes are those of `SpeechTokenizer.stream`.

        Raises:
          InputError: no ears, or no sound.
        """
        if self._ears is None:
            raise InputError('there are no ears to listen with; open the codec\'s speech tokenizer')
        self.interrupt()
        if self._hearing is None:
            self._hearing = Hearing(self._ears.stream(names=['the question']))
            self._before, self._heard = self.dialogue.before_speech(), np.zeros(0, np.int32)
        self._heard = np.concatenate([self._heard, self._hearing.feed(piece)])
        self._read_ahead()

    def begin(self, question: str | np.ndarray | None = None, seed: int = 0) -> None:
        """Lets the lane reply to a question, by default to what was heard.

        Args:
          question: text, codes (n,) or a waveform (w,) at 16 kHz.

        Raises:
          InputError: nothing was asked, or see `Dialogue.ask`.
        """
        self.interrupt()
        asked = self.dialogue.prepare(self._end_of_speech() if question is None else question)
        spoken = self.dialogue.kind == 'audio'
        utterance = self._mouth.begin(self._voice) if spoken and self._mouth else None
        self.dialogue.session.begin([asked.prompt], asked.settings, row_keys(seed, 1), [spoken])
        self._answer = _Answer(asked, utterance, np.zeros((0, 2), np.int32))

    def take(self, said: Said) -> Part:
        """What rows of this lane say; with the last ones the reply becomes a turn."""
        answer, chat = self._answer, self.dialogue.chat
        answer.rows = np.concatenate([answer.rows, said.rows])
        ended = said.reason != 'running'
        text, codes = chat.generator.rules.decode(answer.rows, chat.generator.ids, chat.text)
        new = text[len(answer.text) :] if text.startswith(answer.text) else ''
        answer.text += new
        wave = self._voiced(codes, ended)
        if ended:
            self._keep(Generation(answer.rows, said.reason))
        return Part(new, wave, said.reason)

    def reply(
        self, question: str | np.ndarray | None = None, seed: int = 0
    ) -> Iterator[Part]:
        """`begin`, and the parts of the reply as they are made.

        Whoever stops to listen, with Ctrl-C for example, calls `interrupt`.

        Raises:
          InputError: see `begin`.
        """
        self.begin(question, seed)
        for said in self.engine.run():
            if said.lane is self.lane:
                yield self.take(said)

    def interrupt(self, heard: int | None = None) -> Reply | None:
        """Ends the reply that is being made, if one is.

        Args:
          heard: samples at 24 kHz of it that reached somebody; by default all that were given. The
            turn holds the codes of these alone. If there are none, the question is taken back.

        Returns:
          what stays of the reply, None if none was being made.
        """
        answer = self._answer
        if answer is None:
            return None
        self.engine.cut(self.lane, len(self.lane.rows))  # the next turn cuts it to what was said
        rows = answer.rows
        if answer.utterance is not None:
            given = sum(map(len, answer.waves))
            heard = given if heard is None else min(heard, given)
            codes = -(-heard // SAMPLES)
            speech = np.flatnonzero(rows[:, 0] == self.dialogue.chat.generator.ids.speech)
            rows = rows[: speech[codes - 1] + 1 if codes else 0]
            sound = np.concatenate([np.zeros(0, np.float32), *answer.waves])
            answer.waves = [sound[:heard]]
        self._keep(Generation(rows, CUT))
        return self.last

    def _keep(self, generation: Generation) -> None:
        """The reply is made: a turn from here on."""
        answer, self._answer = self._answer, None
        reply = self.dialogue.chat.read(
            answer.asked.prompt, generation, self.dialogue.kind,
            quiet=generation.reason == CUT,
        )  # fmt: skip
        wave = np.concatenate(answer.waves) if answer.waves and len(reply.codes) else None
        self.last = dataclasses.replace(reply, wav=wave)
        self.dialogue.keep(answer.asked, self.last)

    def _voiced(self, codes: np.ndarray, ended: bool) -> np.ndarray:
        answer = self._answer
        if answer.utterance is None:
            return np.zeros(0, np.float32)
        wave = answer.utterance.feed(codes[answer.codes :])
        answer.codes = len(codes)
        if ended:
            wave = np.concatenate([wave, answer.utterance.finish()])
        answer.waves.append(wave)
        return wave

    def _read_ahead(self) -> None:
        """Lets the lane read what was heard, in pieces that the last one does not wait for."""
        total = len(self._before) + len(self._heard)
        behind = total - min(len(self.lane.rows), total)
        if behind < buckets.LISTEN or total > self.engine.positions:
            return
        rows = speech_rows(self._heard, self.dialogue.chat.generator.ids)[1:-1]
        self.engine.follow(self.lane, np.concatenate([self._before, rows]))
        self.engine.read()

    def _end_of_speech(self) -> np.ndarray:
        if self._hearing is None:
            raise InputError('nothing was heard and nothing is asked; listen first')
        hearing, self._hearing = self._hearing, None
        codes = np.concatenate([self._heard, hearing.finish()])
        if not len(codes):
            raise InputError('the question has no sound; listen first')
        return codes

"""A file of questions to a file of answers, many at once in lanes; goes on where it was stopped.

Which other questions are asked beside one changes no answer, so an interrupted job and a whole one
write the same.
"""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from mossjax import paths, values
from mossjax.errors import InputError
from mossjax.files import cut_torn_line, json_line, read_lines, room_for
from mossjax.infer import audio
from mossjax.infer.chat import INPUT_RATE, OUTPUT_RATE, Chat
from mossjax.infer.dialogue import Dialogue
from mossjax.infer.engine import Engine
from mossjax.infer.generate import Session
from mossjax.infer.talk import Talk

ANSWERS = 'answers.jsonl'


@dataclasses.dataclass(frozen=True)
class Question:
    """One line: its number from 1, and its words or the recording that asks."""

    number: int
    text: str | None
    recording: Path | None

    def content(self) -> str | np.ndarray:
        """Words, or samples (w,) at 16 kHz.

        Raises:
          InputError: the recording cannot be heard.
        """
        return self.text if self.recording is None else audio.load(self.recording, INPUT_RATE)


def read_questions(path: str | os.PathLike, hears: bool) -> list[Question]:
    """The lines of a JSONL file of {"text": "..."} or {"audio": "q.wav"}.

    Args:
      path: recordings are named relative to it.
      hears: whether recordings can be asked with.

    Raises:
      InputError: there is no line, or some cannot be asked: all of them are named.
    """
    return read_lines(
        path, lambda number, line: _question(number, line, Path(path), hears),
        '{"text": "..."}', 'questions cannot be asked',
    )  # fmt: skip


def _question(number: int, line: bytes, path: Path, hears: bool) -> Question:
    where = f'{paths.printable(path)}, line {number}'
    fields = values.parse_json(line, where, 'If it is cut off, make the file again.')
    given = {k: fields[k] for k in ('text', 'audio') if isinstance(fields, dict) and k in fields}
    if len(given) != 1 or not isinstance(*given.values(), str) or not given.popitem()[1].strip():
        raise InputError(f'{where}: expected {{"text": "..."}} or {{"audio": "q.wav"}}')
    if 'text' in fields:
        return Question(number, fields['text'], None)
    if not hears:
        raise InputError(f'{where}: a recording needs --codec to be heard')
    recording = paths.file_to_read(path.parent / os.path.expanduser(fields['audio']), where)
    audio.read_header(recording)
    return Question(number, None, recording)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of a question: a line of ANSWERS.

    Attributes:
      line: number of the question. mark: of all that the answer depends on.
      text, codes: see `chat.Reply`. audio: name of the recording, '' of a written answer.
      seconds: its length. reason: why it ended.
    """

    line: int
    text: str
    codes: list[int]
    audio: str
    seconds: float
    reason: str
    mark: str


class Job:
    """The questions of a file, and which of them are answered.

    Attributes:
      questions: all of them. kept: those whose answer was there.
    """

    def __init__(
        self, questions: list[Question], folder: str | os.PathLike, kind: str, seed: int,
        made_with: str,
    ):  # fmt: skip
        """Args:
          folder: where answers are written, and the recordings of spoken ones.
          kind: of the replies, 'audio' or 'text'. seed: of every reply's draws.
          made_with: names all else that decides an answer: model, settings, voice.

        Raises:
          InputError: a file of answers that this is no continuation of.
        """
        self.questions, self._folder = questions, Path(folder)
        self._kind, self._seed, self._made_with = kind, seed, made_with
        found = self._read()
        self.kept = [
            q for q in questions if q.number in found and found[q.number] == self._mark(q)
        ]
        others = set(found) - {q.number for q in self.kept}
        if others:
            raise InputError(
                f'{self._folder / ANSWERS} answers other questions, or with other settings (line '
                f'{min(others)} for one); name another folder'
            )

    def run(self, chat: Chat, lanes: int, system: str | None = None) -> Iterator[Answer]:
        """Answers what is left, as many at once as there are lanes; each is written when it ends.

        Raises:
          InputError: see `Dialogue.ask`, or the disk is full.
        """
        kept = {question.number for question in self.kept}
        left = [question for question in self.questions if question.number not in kept]
        lanes = max(1, min(lanes, len(left)))
        engine = Engine(chat.generator.programs, chat.params, lanes)
        # A lane that is free hears its next question; what it said before is read over.
        free = [Session(engine) for _ in range(lanes)]
        busy: dict = {}
        while left or busy:
            while left and free:
                self._ask(left.pop(0), free.pop(), chat, system, busy)
            for said in engine.run():
                talk, question, session = busy[said.lane]
                if talk.take(said).reason != 'running':
                    del busy[said.lane]
                    free.append(session)
                    yield self._save(question, talk.last)
                    break  # the lane is free: somebody may join the others

    def _ask(self, question: Question, session: Session, chat: Chat, system, busy: dict) -> None:
        dialogue = Dialogue(chat, self._kind, system=system, session=session)
        talk = Talk(dialogue, chat.mouth)
        try:
            talk.begin(question.content(), self._seed)
        except InputError as error:
            raise InputError(f'line {question.number}: {error}') from error
        busy[talk.lane] = talk, question, session

    def _save(self, question: Question, reply) -> Answer:
        name, seconds = '', 0.0
        if reply.wav is not None:
            name, seconds = f'line-{question.number}.wav', len(reply.wav) / OUTPUT_RATE
            audio.save(self._folder / name, reply.wav, OUTPUT_RATE)
        answer = Answer(
            question.number, reply.text, reply.codes.tolist(), name, seconds, reply.reason,
            self._mark(question),
        )  # fmt: skip
        path = self._folder / ANSWERS
        with room_for(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(path, 'a', encoding='utf-8') as file:
                file.write(json_line(dataclasses.asdict(answer)))
        return answer

    def _mark(self, question: Question) -> str:
        asked = question.text
        if question.recording is not None:
            asked = hashlib.sha256(question.recording.read_bytes()).hexdigest()
        content = json.dumps([asked, self._kind, self._seed, self._made_with])
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    def _read(self) -> dict[int, str]:
        """{line: mark} of the answers that are there; what an interrupted write left is cut off."""
        path = self._folder / ANSWERS
        if not path.exists():
            return {}
        cut_torn_line(path)
        found = {}
        for i, line in enumerate(path.read_bytes().splitlines(), 1):
            fields = values.parse_json(line, f'{path}, line {i}', 'Remove the file.')
            number = fields.get('line') if isinstance(fields, dict) else None
            if not isinstance(number, int) or 'mark' not in fields:
                raise InputError(f'{path}, line {i}: no answer of this command; remove the file')
            found[number] = fields['mark']
        return found

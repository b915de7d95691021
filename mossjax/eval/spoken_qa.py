"""Scores of spoken replies, and the controls without which such a score means nothing.

A score stands beside: the judge on source recordings and on codec-reconstructed ones (how well it
hears at best), on replies dealt to the wrong questions (chance), on silence and on the questions
themselves (does it hear answers where there are none), and the length of replies (an answer that
is said twice is still judged right).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
import math
import re

import numpy as np

from mossjax.errors import InputError
from mossjax.eval.judge import Judge

TOO_LONG = 1.5  # times the recording of the same answer
SILENCES = (0.5, 1.0, 2.0)  # seconds

Reconstruct = Callable[[list[np.ndarray]], tuple[list[np.ndarray], int]]


@dataclass(frozen=True)
class Row:
    """One line of the table. `low` and `high` bound the score with 95 % confidence."""

    name: str
    score: float
    low: float
    high: float
    count: int
    meaning: str


def wilson(hits: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share of hits; sound near 0 and 1, where +- is not."""
    if count == 0:
        return 0.0, 1.0
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    spread *= z / (1 + z * z / count)
    return max(0.0, middle - spread), min(1.0, middle + spread)


def row(name: str, hits: float, count: int, meaning: str) -> Row:
    low, high = wilson(hits, count)
    return Row(name, hits / count if count else 0.0, low, high, count, meaning)


def accuracy(heard: Sequence[str | None], expected: Sequence[str]) -> int:
    """How many replies were heard as the expected answer."""
    _same_count(heard, expected)
    return sum(h == e for h, e in zip(heard, expected, strict=True))


def _same_count(replies: Sequence, expected: Sequence) -> None:
    if len(replies) != len(expected):
        raise InputError(f'{len(replies)} replies for {len(expected)} questions; give one for each')


def shuffled(heard: Sequence[str | None], expected: Sequence[str]) -> float:
    """Accuracy when every reply is dealt to another question: the mean over all such pairs."""
    count = len(expected)
    if count < 2:
        return 0.0
    wanted = Counter(expected)
    same = sum(wanted[h] for h in heard if h is not None)
    return (same - accuracy(heard, expected)) / (count * (count - 1))


def same_words(text: str, expected: str) -> bool:
    """Whether two texts have the same words; case, punctuation and spaces do not count."""

    return _words(text) == _words(expected)


def has_words(text: str, expected: str) -> bool:
    """Whether the words of `expected` stand together somewhere in the text."""
    said, wanted = _words(text), _words(expected)
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def text_row(name: str, texts: Sequence[str], expected: Sequence[str]) -> Row:
    """Exact words of text replies."""
    _same_count(texts, expected)
    hits = sum(same_words(t, e) for t, e in zip(texts, expected, strict=True))
    return row(name, hits, len(expected), 'text replies with exactly the right words')


def controls(
    judge: Judge,
    sources: Mapping[str, np.ndarray],
    rate: int,
    questions: Sequence[np.ndarray],
    question_rate: int,
    reconstruct: Reconstruct | None = None,
) -> list[Row]:
    """What the judge hears in recordings, in their reconstructions, in silence and in questions.

    Args:
      sources: answer word -> recording of its sentence, float32 (w,) at `rate`.
      questions: recordings of questions, float32 (w,) at `question_rate`.
      reconstruct: wavs at `rate` -> (wavs, rate) through the codec; None leaves that row out.
    """
    words, wavs = list(sources), list(sources.values())
    heard = judge.answers_of(wavs, rate)
    rows = [row('source', accuracy(heard, words), len(words), 'judge on the recorded answers')]
    if reconstruct is not None:
        heard = judge.answers_of(*reconstruct(wavs))
        meaning = 'the same through speech codes and back'
        rows.append(row('reconstructed', accuracy(heard, words), len(words), meaning))
    silences = [np.zeros(int(s * rate), np.float32) for s in SILENCES]
    heard = judge.answers_of(silences, rate)
    count = len(heard) - heard.count(None)
    rows.append(row('silence', count, len(heard), 'silence heard as some answer; 0 is right'))
    heard = judge.answers_of(questions, question_rate)
    count = len(heard) - heard.count(None)
    rows.append(row('questions', count, len(heard), 'questions heard as some answer; 0 is right'))
    return rows


def reply_rows(
    judge: Judge,
    name: str,
    wavs: Sequence[np.ndarray],
    rate: int,
    expected: Sequence[str],
    seconds: Mapping[str, float] | None = None,
) -> list[Row]:
    """Accuracy of spoken replies, its chance level, and how long they are.

    Args:
      name: of the mode, for example 'speech to speech'.
      wavs: one reply a question, float32 (w,) at `rate`.
      expected: the right answer word of each.
      seconds: answer word -> length of its recording; None leaves the length row out.
    """
    heard = judge.answers_of(wavs, rate)
    count = len(expected)
    dealt = 'the same replies dealt to other questions: chance'
    rows = [
        row(name, accuracy(heard, expected), count, 'spoken replies heard as the right answer'),
        row(f'{name}, shuffled', shuffled(heard, expected) * count, count, dealt),
    ]
    if seconds is not None:
        ratios = length_ratios(wavs, rate, expected, seconds)
        long = sum(r > TOO_LONG for r in ratios)
        meaning = f'longer than {TOO_LONG} recordings; median ratio {np.median(ratios):.2f}'
        rows.append(row(f'{name}, too long', long, count, meaning))
    return rows


def length_ratios(
    wavs: Sequence[np.ndarray], rate: int, expected: Sequence[str], seconds: Mapping[str, float]
) -> list[float]:
    """Length of each reply over the length of the recording of its right answer."""
    return [len(w) / rate / seconds[e] for w, e in zip(wavs, expected, strict=True)]


def table(rows: Sequence[Row]) -> str:
    """The rows as text that explains itself."""
    width = max([len(r.name) for r in rows] + [4])
    head = f'{"what":{width}s}  score  95 % interval   count  meaning'
    lines = [head, '-' * len(head)]
    for r in rows:
        score, interval = f'{100 * r.score:5.1f}%', f'{100 * r.low:5.1f} - {100 * r.high:5.1f}'
        lines.append(f'{r.name:{width}s} {score}  {interval:13s}  {r.count:5d}  {r.meaning}')
    return '\n'.join(lines)


def as_json(rows: Sequence[Row]) -> list[dict]:
    """The rows as plain data."""
    return [asdict(r) for r in rows]

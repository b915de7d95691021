"""A dialogue line by line: each is a turn in words, or names a recording to hear."""

from collections.abc import Callable
import contextlib
import sys

import numpy as np

from mossjax.cli import lines, named
from mossjax.errors import InputError
from mossjax.infer import audio

INPUT_RATE = 16000  # Hz

Answer = Callable[[str | np.ndarray, int], int]  # (question, number of the reply) -> exit code


def converse(start: Callable[[], Answer], codec: str | None) -> int:
    """Answers every line; returns the last exit code that is not 0.

    On a terminal a refusal, or Ctrl-C, ends a turn and not the dialogue. In piped input nobody
    could mend a line, so a refusal ends it, before anything is opened if it is the first line's.

    Args:
      start: opens what answers.
      codec: directory of the codec, None if recordings cannot be heard.

    Raises:
      InputError: in piped input, a line that cannot be answered.
    """
    typed = lines.terminal()
    answer = start() if typed else None
    if typed:
        notice(f'type a question or the name of a recording; Ctrl-D or {lines.END} ends')
    number, code = 1, 0
    with contextlib.closing(lines.read()) as given:
        for line in given:
            try:
                asked = question(line, codec)
                answer = answer or start()
                code = answer(asked, number) or code
                number += 1
            except InputError as error:
                if not typed:
                    raise
                notice(error)
            except KeyboardInterrupt:
                if not typed:
                    raise
                notice('interrupted; the question is taken back')
    return code


def question(line: str, codec: str | None) -> str | np.ndarray:
    """The words, or the samples (w,) at INPUT_RATE of the recording that is named.

    Raises:
      InputError: a recording that cannot be heard, or words that are no text.
    """
    path = named.recording(line)
    if path is None:
        return lines.words(line, 'the question')
    if codec is None:
        raise InputError(f'{path} needs --codec to be heard')
    return audio.load(path, INPUT_RATE)


def notice(text: object) -> None:
    """Says something that is no answer."""
    print(f'mossjax chat: {text}', file=sys.stderr)

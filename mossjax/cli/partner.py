"""What answers in mossjax chat: words to standard output, sound to a file, as they come."""

import json
import pathlib

import numpy as np

from mossjax.cli import lines
from mossjax.cli.live import Live
from mossjax.cli.talk import notice
from mossjax.files import replacing

OUTPUT_RATE = 24000  # Hz


class Partner:
    """A dialogue: called with a question, it shows and writes the answer."""

    def __init__(
        self, chat, kind: str, *, out: str | None, grid: str | None, seed: int, system: str | None
    ):
        """Args:
          chat: see `infer.chat`, opened to stream.
          kind: of the replies, 'audio' or 'text'.
          out: file for a spoken reply. grid: for the rows, if they are wanted.
          seed: of every reply's draws. system: see `infer.dialogue`.
        """
        from mossjax.infer.dialogue import Dialogue
        from mossjax.infer.talk import Talk

        self._out, self._grid, self._seed, self._speaks = out, grid, seed, kind == 'audio'
        self._talk = Talk(Dialogue(chat, kind, system=system, say=notice), chat.mouth)

    def __call__(self, question: str | np.ndarray, number: int | None = None) -> int:
        """Answers; `number` is that of the reply in a dialogue. Returns the exit code.

        Ctrl-C ends the reply. In a dialogue it goes on from what was heard by then.
        """
        said, out = self._talk.reply(question, self._seed), self._out
        try:
            if self._speaks:
                out = _numbered(out, number)
                _speak(said, out)
            else:
                _write(said)
        except KeyboardInterrupt:
            kept = self._talk.interrupt()
            stays = kept is not None and (len(kept.codes) or kept.text)
            if number is None or not lines.terminal() or not stays:
                raise
            notice('interrupted; the dialogue goes on from here')
        reply = self._talk.last
        if self._grid:
            _write_grid(_numbered(self._grid, number), reply)
        if self._speaks and reply.wav is not None:
            print(f'{out}: {len(reply.wav) / OUTPUT_RATE:.2f} s', flush=True)
        if reply.reason == 'length':
            notice(
                f'the reply was cut at its limit of {len(reply.grid)} rows; --max_new_tokens sets '
                'another'
            )
        # The chat has said so where nothing was spoken.
        return int(self._speaks and reply.wav is None)


def _speak(said, out: str) -> None:
    from mossjax.infer.growing import GrowingSound

    live = Live(OUTPUT_RATE)
    with GrowingSound(out, OUTPUT_RATE) as sound:
        try:
            for part in said:
                sound.write(part.wave)
                live.add(len(part.wave))
        finally:
            live.end()


def _write(said) -> None:
    words = ''
    try:
        for part in said:
            words += part.text
            print(part.text, end='', flush=True)
    except KeyboardInterrupt:
        if words:
            print(flush=True)
        raise
    print(flush=True)


def _write_grid(path: str, reply) -> None:
    content = {
        'prompt': reply.prompt.tolist(), 'grid': reply.grid.tolist(), 'text': reply.text,
        'codes': reply.codes.tolist(), 'reason': reply.reason,
    }  # fmt: skip
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False) + '\n', 'utf-8')


def _numbered(path: str, number: int | None) -> str:
    """out.wav -> out-1.wav in a dialogue, as it is outside."""
    if number is None:
        return path
    return str(pathlib.Path(path).with_stem(f'{pathlib.Path(path).stem}-{number}'))

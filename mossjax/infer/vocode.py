"""A file of speech codes to a folder of recordings at 24 kHz, one a line.

Every recording carries a comment that says what it was made of, so a job that was interrupted goes
on with the lines that have no file yet, or one of other codes, another voice or another decoder.
"""

from collections.abc import Iterator, Sequence
import hashlib
import os
from pathlib import Path, PurePath
import re
from typing import NamedTuple

import numpy as np

from mossjax import files, paths, values
from mossjax.convert import codec_directory, codec_flow, codec_vocoder
from mossjax.errors import InputError, one_or_all
from mossjax.infer import audio, loudness
from mossjax.infer.speech_decoder import BATCH, SpeechDecoder
from mossjax.infer.vocode_stream import StreamedSpeech
from mossjax.models.flow import solver
from mossjax.models.flow.config import FlowConfig

MARK = 'mossjax vocode '  # begins the comment
GROUP_CODES = 3750  # decoded together, 300 s; one line may have as many
NAME_BYTES = 200  # file systems take 255, and something is put behind it
_UNFIT = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]')  # in names, on any system


class Line(NamedTuple):
    """One line of the file: its number from 1, the name of its recording, its codes int32 (n,)."""

    number: int
    name: str
    codes: np.ndarray


class Spoken(NamedTuple):
    """What came of a line.

    Attributes:
      seconds: its length.
      loudness: integrated, in LUFS; -inf is silence.
      clipped: samples at the vocoder's limit.
    """

    path: Path
    seconds: float
    loudness: float
    clipped: int

    def __str__(self) -> str:
        loud = f'{self.loudness:.1f} LUFS' if np.isfinite(self.loudness) else 'silent'
        clipped = f', {self.clipped} samples clipped' if self.clipped else ''
        return f'{self.path}: {self.seconds:.2f} s, {loud}{clipped}'


class Job:
    """The lines of a file, and which of them have been spoken.

    Attributes:
      lines: all of them, in order. kept: those whose recording was there.
    """

    def __init__(self, lines: Sequence[Line], folder: str | os.PathLike, made_with: bytes):
        """Args:
          made_with: see `made_with`.
        """
        self.lines, self._folder, self._made_with = lines, Path(folder), made_with
        self.kept = [line for line in lines if self._done(line)]

    def run(self, decoder: SpeechDecoder | StreamedSpeech) -> Iterator[Spoken]:
        """Speaks the lines that are left, in groups; whole groups, so that what one recording is
        does not depend on which others were there.

        Raises:
          InputError: see `SpeechDecoder.decode_many`, or the disk is full.
        """
        kept = {line.number for line in self.kept}
        for group in _groups(self.lines):
            if kept.issuperset(line.number for line in group):
                continue
            waves = decoder.decode_many([line.codes for line in group])
            for line, wave in zip(group, waves, strict=True):
                if line.number not in kept:
                    yield self._save(line, wave, decoder)

    def _save(self, line: Line, wave: np.ndarray, decoder) -> Spoken:
        path = self._folder / line.name
        audio.save(path, wave, decoder.rate, self._comment(line))
        clipped = int((np.abs(wave) >= decoder.vocoder.limit).sum())
        loud = loudness.integrated(wave, decoder.rate)
        return Spoken(path, len(wave) / decoder.rate, loud, clipped)

    def _comment(self, line: Line) -> str:
        return MARK + hashlib.sha256(self._made_with + line.codes.tobytes()).hexdigest()

    def _done(self, line: Line) -> bool:
        return audio.read_comment(self._folder / line.name) == self._comment(line)


def read_lines(path: str | os.PathLike, config: FlowConfig) -> list[Line]:
    """The lines of a JSONL file of {"codes": [...], "path": "..."}; the path may be left out.

    A recording is named after the one in the path, or after the line; of several that would have
    one name, the later ones have the line's number behind it.

    Raises:
      InputError: there is no line, or some cannot be spoken: all of them are named.
    """
    shown = paths.printable(path)
    given = files.read_lines(
        path, lambda number, text: (number, *_parsed(number, text, shown, config)),
        '{"codes": [...]}', 'lines cannot be spoken',
    )  # fmt: skip
    lines, taken = [], set()
    for number, name, codes in given:
        name = name or f'line-{number}'
        while name.casefold() in taken:  # folders may not tell capitals from small letters
            name = f'{name}-{number}'
        taken.add(name.casefold())
        lines.append(Line(number, f'{name}.wav', codes))
    return lines


def _parsed(number: int, text: bytes, path: str, config: FlowConfig) -> tuple[str, np.ndarray]:
    """(stem of the recording's name or '', codes) of a line."""
    where = f'{path}, line {number}'
    remedy = 'If it is cut off, make the file again.'
    fields = values.parse_json(text, where, remedy)
    codes = fields.get('codes') if isinstance(fields, dict) else None
    if not isinstance(codes, list):
        raise InputError(f'{where}: expected {{"codes": [...]}}, as mossjax tokenize writes it')
    if not codes:
        raise InputError(f'{where}: no codes, so there is nothing to speak; remove the line')
    ids = values.Range(0, config.vocab_size - 1, whole=True)
    if wrong := [code for code in codes if code not in ids]:
        raise InputError(
            f'{where}: code {values.shown(wrong[0])} is not {ids}; were these codes made by the '
            'tokenizer of this codec?'
        )
    name = fields.get('path', '')
    if not isinstance(name, str):
        raise InputError(f'{where}: path is {values.shown(name)}, expected text; remove it')
    stem = _UNFIT.sub('_', PurePath(name.replace('\\', '/')).stem).lstrip('.').strip()
    return stem.encode()[:NAME_BYTES].decode(errors='ignore'), np.array(codes, np.int32)


def check_lengths(lines: Sequence[Line], config: FlowConfig, prompt: int, path: str) -> None:
    """Refuses lines that are longer than the decoder takes.

    Args:
      prompt: codes of the voice's prompt, which are a part of what it takes.

    Raises:
      InputError: naming all of them.
    """
    most = solver.MAX_FRAMES // config.ratio - prompt
    shown, spent = paths.printable(path), f' and a prompt of {prompt}' if prompt else ''
    long = [
        f'{shown}, line {line.number}: {len(line.codes)} codes; the decoder takes {most} in one '
        f'piece (300 s{spent}). Write them as several lines'
        for line in lines if len(line.codes) > most
    ]
    if long:
        raise one_or_all(long, len(lines), 'lines are too long')


def check_folder(lines: Sequence[Line], folder: str | os.PathLike) -> None:
    """Refuses a folder in which a recording that was not made here would be replaced.

    Raises:
      InputError: naming all of them.
    """
    places = [Path(folder) / line.name for line in lines]
    others = [
        f'{file} was not made by this command and would be replaced; name another folder with --out'
        for file in places
        if os.path.lexists(file) and not audio.read_comment(file).startswith(MARK)
    ]
    if others:
        raise one_or_all(others, len(places), 'files are in the way')


def made_with(
    codec_dir: str | os.PathLike, voice: bytes, seed: int, stem: str = codec_flow.STEM,
    steps: Sequence[int] = (),
) -> bytes:  # fmt: skip
    """A hash of all that recordings are made of beside their codes: decoder, voice, seed.

    Args:
      voice: its hash. stem: of the flow decoder's checkpoint. steps: of a stream, in codes.
    """
    found = hashlib.sha256(','.join(map(str, [seed, *steps])).encode())
    for digest in codec_directory.weights(codec_dir, (stem, codec_vocoder.STEM)):
        found.update(digest.encode())
    found.update(voice)
    return found.digest()


def _groups(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Neighbours that are decoded together, at least one line each."""
    group, total = [], 0
    for line in lines:
        if group and (len(group) == BATCH or total + len(line.codes) > GROUP_CODES):
            yield group
            group, total = [], 0
        group.append(line)
        total += len(line.codes)
    if group:
        yield group

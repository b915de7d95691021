"""turns recordings into speech codes, 12.5 a second.

  mossjax tokenize --codec DIR --out FILE.jsonl RECORDING...

Takes WAV, FLAC, OGG, MP3 and, with the extra [audio], m4a, aac, webm and others, at any sample
rate; of several channels the first is used. Writes one JSON line a recording, in the order given:
  {"path": "question.wav", "codes": [5, 1023, ...], "seconds": 2.31}
The file appears when it is complete. Recordings that cannot be read are left out of it and listed
with the reason of each at the end; the exit code is then 2.

Examples:
  mossjax tokenize --codec MOSS-Speech-Codec --out codes.jsonl question.wav
  mossjax tokenize --codec MOSS-Speech-Codec --out codes.jsonl recordings/*.flac
"""

from collections.abc import Iterator
import os

from absl import flags

from mossjax.cli.common import READ_FOLDER, WRITE_FILE, path_flag
from mossjax.errors import InputError, refusal, sift
from mossjax.files import json_line, replacing
from mossjax.infer import audio

RATE = 16000
# Recordings are encoded together up to this much audio: fills a batch, bounds the memory.
GROUP_SECONDS = 8 * 60

FLAGS = flags.FlagValues()
_CODEC = path_flag(
    'codec', None, 'Codec directory: config.json, preprocessor_config.json, model.safetensors; or '
    'its Orbax form.',
    READ_FOLDER, FLAGS, required=True,
)  # fmt: skip
_OUT = path_flag(
    'out', None, 'JSONL file to write; replaced if it exists.', WRITE_FILE, FLAGS, required=True
)


def main(args: list[str]) -> None:
    if not args:
        raise InputError('no recordings given; name one or more audio files after the flags')
    out = _OUT.value
    if any(os.path.realpath(out) == os.path.realpath(path) for path in args):
        raise InputError(f'--out {out} is also one of the recordings; give another name')
    opened, refusals = sift(_opened, args)
    if not opened:
        raise refusal(refusals, len(args), 'recordings cannot be used')

    import tqdm

    from mossjax.infer.speech_tokenizer import SpeechTokenizer

    tokenizer = SpeechTokenizer.open(_CODEC.value)
    progress = tqdm.tqdm(total=len(opened), unit='file', disable=None)  # none where no terminal
    sources = [(path, source) for path, (source, _) in opened]
    seconds = [length for _, (_, length) in opened]
    with replacing(out) as temporary, open(temporary, 'w', encoding='utf-8') as file, progress:
        for group in groups(sources, seconds):
            heard, unread = sift(lambda named: audio.load(named[1], RATE), group)
            refusals += unread
            codes = tokenizer.encode([wav for _, wav in heard]) if heard else []
            for ((path, _), wav), found in zip(heard, codes, strict=True):
                line = {'path': path, 'codes': found.tolist(), 'seconds': len(wav) / RATE}
                file.write(json_line(line))
            progress.update(len(group))
        if len(refusals) == len(args):
            raise refusal(refusals, len(args), 'recordings cannot be used')
    if refusals:
        raise refusal(refusals, len(args), f'recordings are not in {out}')


def _opened(path: str) -> tuple[audio.Source, float]:
    """A recording that can be read, and its seconds."""
    source = audio.Source.of(path)
    return source, audio.read_header(source).seconds


def groups(recordings: list, seconds: list[float]) -> Iterator[list]:
    """Cuts a list of recordings into runs of at most GROUP_SECONDS, one recording at least."""
    group, total = [], 0.0
    for recording, length in zip(recordings, seconds, strict=True):
        if group and total + length > GROUP_SECONDS:
            yield group
            group, total = [], 0.0
        group.append(recording)
        total += length
    if group:
        yield group

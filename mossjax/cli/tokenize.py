"""turns recordings into speech codes, 12.5 a second.

  mossjax tokenize --codec DIR --out FILE.jsonl RECORDING...

Takes WAV, FLAC, OGG or MP3 at any sample rate; of several channels the first is used. Writes one
JSON line a recording, in the order given:
  {"path": "question.wav", "codes": [5, 1023, ...], "seconds": 2.31}
The headers of all recordings are checked before the first is encoded, and the file appears when it
is complete.

Examples:
  mossjax tokenize --codec MOSS-Speech-Codec --out codes.jsonl question.wav
  mossjax tokenize --codec MOSS-Speech-Codec --out codes.jsonl recordings/*.flac
"""

from collections.abc import Iterator
import json
import pathlib

from absl import flags

from mossjax.cli.common import check_all
from mossjax.errors import InputError
from mossjax.files import replacing
from mossjax.infer import audio

RATE = 16000
# Recordings are encoded together up to this much audio: fills a batch, bounds the memory.
GROUP_SECONDS = 8 * 60

FLAGS = flags.FlagValues()
_CODEC = flags.DEFINE_string(
    'codec', None, 'Codec directory: config.json, preprocessor_config.json, model.safetensors.',
    required=True, flag_values=FLAGS,
)
_OUT = flags.DEFINE_string(
    'out', None, 'JSONL file to write; replaced if it exists.', required=True, flag_values=FLAGS
)


def main(args: list[str]) -> None:
    if not args:
        raise InputError('no recordings given; name one or more audio files after the flags')
    out = pathlib.Path(_OUT.value)
    if out.is_dir():
        raise InputError(f'--out {out} is a folder; give the name of a file in it')
    if any(out.resolve() == pathlib.Path(path).resolve() for path in args):
        raise InputError(f'--out {out} is also one of the recordings; give another name')
    headers = check_all(audio.read_header, args)

    import tqdm

    from mossjax.infer.speech_tokenizer import SpeechTokenizer

    tokenizer = SpeechTokenizer.open(_CODEC.value)
    progress = tqdm.tqdm(total=len(args), unit='file', disable=None)  # none where no terminal
    with replacing(out) as temporary, open(temporary, 'w') as file, progress:
        for paths in groups(args, [header.seconds for header in headers]):
            waves = check_all(lambda path: audio.load(path, RATE), paths)
            for path, wav, codes in zip(paths, waves, tokenizer.encode(waves), strict=True):
                line = {'path': path, 'codes': codes.tolist(), 'seconds': len(wav) / RATE}
                file.write(json.dumps(line, ensure_ascii=False) + '\n')
            progress.update(len(paths))


def groups(paths: list[str], seconds: list[float]) -> Iterator[list[str]]:
    """Cuts a list of recordings into runs of at most GROUP_SECONDS, one recording at least."""
    group, total = [], 0.0
    for path, length in zip(paths, seconds, strict=True):
        if group and total + length > GROUP_SECONDS:
            yield group
            group, total = [], 0.0
        group.append(path)
        total += length
    if group:
        yield group

"""makes a voice of a recording, for chat and vocode to speak with.

  mossjax voice RECORDING --codec DIR --out FILE     (--wav RECORDING is the same)

A voice is a prompt (what the recording says in codes, and how, as a mel) and a speaker vector (who
says it). A few seconds in which one person speaks are best; from 80 ms to 30 s are taken, in any
format, at any sample rate; of several channels the first is used. --only leaves one part out.
--voice RECORDING makes the same voice each time; --voice FILE reads it. The file is bound to the
codec: one with another speech tokenizer or speaker encoder refuses it. Named DIR/voice.safetensors
it is the voice that the codec speaks with where none is given.

Examples:
  mossjax voice ann.flac --codec MOSS-Speech-Codec --out ann.safetensors
  mossjax chat --model MOSS-Speech --codec MOSS-Speech-Codec --voice ann.safetensors \\
      --wav question.wav --out answer.wav
"""

import os

from absl import flags

from mossjax.cli.common import READ_FILE, READ_MODEL, WRITE_FILE, path_flag
from mossjax.errors import InputError

FLAGS = flags.FlagValues()
_CODEC = path_flag(
    'codec', None, 'Codec directory: speech tokenizer (for the prompt) and flow/campplus.onnx or '
    '.safetensors (for the vector).', READ_MODEL, FLAGS, required=True,
)  # fmt: skip
_WAV = path_flag('wav', None, 'The recording.', READ_FILE, FLAGS)
_OUT = path_flag(
    'out', None, 'File to write; replaced if it exists.', WRITE_FILE, FLAGS, required=True
)
_ONLY = flags.DEFINE_enum(
    'only', None, ['prompt', 'vector'], 'One part of the voice; both by default.',
    flag_values=FLAGS,
)  # fmt: skip


def main(args: list[str]) -> None:
    recordings = [*args, *filter(None, [_WAV.value])]
    if len(recordings) != 1:
        raise InputError(f'takes one recording, got {len(recordings)}; a voice is one person')
    [path] = recordings
    if os.path.realpath(_OUT.value) == os.path.realpath(path):
        raise InputError(f'--out {_OUT.value} is also the recording; give another name')

    from mossjax.infer import voice, voice_maker

    recording = voice_maker.read_recording(path)  # refused before networks are opened
    made = voice_maker.VoiceMaker.open(
        _CODEC.value, prompt=_ONLY.value != 'vector', vector=_ONLY.value != 'prompt'
    ).make(*recording)
    voice.save(_OUT.value, made)
    print(f'{_OUT.value}: {made}')

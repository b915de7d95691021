"""answers a question, spoken or written, in speech or text.

  mossjax chat --model DIR --codec DIR (--wav FILE | --text WORDS) --reply speech --out FILE.wav

The codec's speech tokenizer is needed to hear, its decoder (flow/) to speak; a written answer to a
written question does without both.

With neither --wav nor --text it is a dialogue: each line is a turn, up to the end of the input or
/quit; blank lines are skipped. On a terminal lines can be edited, and earlier ones called back.
A line names a recording if it ends like an audio file (q.wav, 'my question.MP3', my\\ q.m4a) or is
a path (/, ./, ~/, file://), as a file that is dropped on the window is; all else is words. The
replies of a dialogue are numbered: out-1.wav, ... When it outgrows the model's context, its oldest
turns are left out.

Standard output holds the answers alone: written replies, or the names of the files.

Examples:
  mossjax chat --model MOSS-Speech --codec MOSS-Speech-Codec --wav question.wav --out answer.wav
  mossjax chat --model MOSS-Speech --text "What is three plus four?" --reply text --greedy
  mossjax chat --model MOSS-Speech --reply text --system "Answer in one word." < questions.txt
"""

import dataclasses
import json
import pathlib

from absl import flags
import numpy as np

from mossjax import values
from mossjax.cli import lines, talk
from mossjax.cli.common import READ_FILE, READ_FOLDER, WRITE_FILE, number_flag, path_flag
from mossjax.errors import InputError
from mossjax.files import replacing
from mossjax.infer import audio

OUTPUT_RATE = 24000  # Hz

FLAGS = flags.FlagValues()
_MODEL = path_flag(
    'model', None, 'Language model directory: config.json, tokenizer.json, model.safetensors.',
    READ_FOLDER, FLAGS, required=True,
)
_CODEC = path_flag(
    'codec', None, 'Codec directory: speech tokenizer (to hear) and flow decoder (to speak); or '
    'its Orbax form.', READ_FOLDER, FLAGS,
)
_WAV = path_flag('wav', None, 'The question as a recording.', READ_FILE, FLAGS)
_TEXT = flags.DEFINE_string('text', None, 'The question as text.', flag_values=FLAGS)
_VOICE = path_flag(
    'voice', None, 'Who answers: a recording of 80 ms to 30 s, or a file made by mossjax voice; by '
    'default the voice that the codec comes with.', READ_FILE, FLAGS,
)  # fmt: skip
_REPLY = flags.DEFINE_enum(
    'reply', 'speech', ['speech', 'text'], 'How to answer.', flag_values=FLAGS
)
_OUT = path_flag(
    'out', None, 'WAV file for a spoken answer; replaced if it exists.', WRITE_FILE, FLAGS
)
_GRID = path_flag(
    'grid', None, 'JSON file for the token grids (rows of text id, audio id) of prompt and reply.',
    WRITE_FILE, FLAGS,
)
_SYSTEM = flags.DEFINE_string(
    'system', None, "The system prompt, instead of the checkpoint's own.", flag_values=FLAGS
)
_GREEDY = flags.DEFINE_bool(
    'greedy', False, 'Always take the likeliest token instead of drawing.', flag_values=FLAGS
)
_SEED = number_flag('seed', 0, 'Of the random draws.', values.SEED, FLAGS)
_LONGEST = number_flag(
    'max_new_tokens', None, 'Longest reply in grid rows, 12.5 a second of speech; the '
    "checkpoint's own limit by default.", values.SIZE, FLAGS,
)
_ADAPTER = path_flag(
    'adapter', None, "Directory of a LoRA adapter in PEFT's layout to answer with.", READ_FOLDER,
    FLAGS,
)
_INT8 = flags.DEFINE_bool(
    'int8', False, 'Hold the language model in int8, quantised while it is read: half the memory. '
    'The 9.1 B model then fits a chip of 16 GB.', flag_values=FLAGS,
)  # fmt: skip
_RULES = flags.DEFINE_enum(
    'rules', 'clean', ['clean', 'upstream'],
    "'upstream' reproduces the prompts and decoding quirks of the released code, for comparisons.",
    flag_values=FLAGS,
)


def main(args: list[str]) -> int | None:
    if args:
        raise InputError(f'stray argument {args[0]!r}; put a question in quotes after --text')
    if _WAV.value is not None and _TEXT.value is not None:
        raise InputError('--wav and --text are both given; ask one question')
    for flag in (_TEXT, _SYSTEM):
        if flag.value is not None:
            lines.words(flag.value, f'--{flag.name}')
    if _REPLY.value == 'speech' and not (_CODEC.value and _OUT.value):
        raise InputError('a spoken reply needs --codec and --out; or ask with --reply text')
    if _WAV.value is not None and not _CODEC.value:
        raise InputError('--wav needs --codec to be heard')
    if _VOICE.value is not None and _REPLY.value == 'text':
        raise InputError('--voice speaks, and the reply is to be written; leave one of them out')
    _check_targets()
    if _WAV.value is None and _TEXT.value is None:
        return talk.converse(_Partner, _CODEC.value)
    question = _TEXT.value if _WAV.value is None else audio.load(_WAV.value, talk.INPUT_RATE)
    return _Partner()(question)


def _check_targets() -> None:
    """What the files to write may be called; that they can be written is checked with the flags."""
    if _OUT.value is None:
        return
    audio.check_writable_suffix(_OUT.value, '--out')
    if _REPLY.value == 'text':
        talk.notice('--out is left alone: a written reply goes to standard output')
    for flag in (_WAV, _VOICE, _GRID):
        if flag.value and pathlib.Path(flag.value).resolve() == pathlib.Path(_OUT.value).resolve():
            raise InputError(f'--out {_OUT.value} is also --{flag.name}; give another name')


class _Partner:
    """A dialogue as the flags say: called with a question, it shows and writes the answer."""

    def __init__(self):
        from mossjax.convert.int8 import int8
        from mossjax.infer.chat import Chat
        from mossjax.infer.dialogue import Dialogue
        from mossjax.infer.voice_maker import open_voice
        from mossjax.models.lm import dialogue, machine

        rules, style = {
            'clean': (machine.CLEAN, dialogue.CLEAN),
            'upstream': (machine.UPSTREAM, dialogue.UPSTREAM),
        }[_RULES.value]
        chat = Chat.open(
            _MODEL.value, _CODEC.value, hears=_TEXT.value is None,
            speaks=_REPLY.value == 'speech',
            voice=open_voice(_VOICE.value, _CODEC.value) if _VOICE.value else None,
            longest=_LONGEST.value, rules=rules, style=style,
            put=int8('bfloat16') if _INT8.value else None, adapter=_ADAPTER.value,
        )
        if _GREEDY.value:
            chat = dataclasses.replace(chat, settings=chat.settings.greedy())
        kind = {'speech': 'audio', 'text': 'text'}[_REPLY.value]
        self.dialogue = Dialogue(chat, kind, system=_SYSTEM.value, say=talk.notice)

    def __call__(self, question: str | np.ndarray, number: int | None = None) -> int:
        """Answers; `number` is that of the reply in a dialogue. Returns the exit code."""
        reply = self.dialogue.ask(question, _SEED.value)
        if _GRID.value:
            _write_grid(_numbered(_GRID.value, number), reply)
        if _REPLY.value == 'text':
            print(reply.text, flush=True)
        elif reply.wav is not None:
            out = _numbered(_OUT.value, number)
            audio.save(out, reply.wav, OUTPUT_RATE)
            print(f'{out}: {len(reply.wav) / OUTPUT_RATE:.2f} s', flush=True)
        if reply.reason == 'length':
            talk.notice(
                f'the reply was cut at its limit of {len(reply.grid)} rows; --max_new_tokens sets '
                'another'
            )
        # The chat has said so where nothing was spoken.
        return int(_REPLY.value == 'speech' and reply.wav is None)


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

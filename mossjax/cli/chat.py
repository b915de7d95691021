"""answers a question, spoken or written, in speech or text.

  mossjax chat --model DIR --codec DIR (--wav FILE | --text WORDS) --reply speech --out FILE.wav

The codec is needed to hear and to speak; a written answer to a written question does without.
With neither --wav nor --text it is a dialogue: each line you type is a turn, or names a recording
if it ends in .wav; an empty line ends it. The replies of a dialogue are numbered: out-1.wav, ...

Examples:
  mossjax chat --model MOSS-Speech --codec MOSS-Speech-Codec --wav question.wav --out answer.wav
  mossjax chat --model MOSS-Speech --text "What is three plus four?" --reply text --greedy
"""

from collections.abc import Iterator
import json
import pathlib
import sys

from absl import flags

from mossjax.errors import InputError
from mossjax.files import replacing
from mossjax.infer import audio

INPUT_RATE, OUTPUT_RATE = 16000, 24000  # Hz

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
    'model', None, 'Language model directory: config.json, tokenizer.json, model.safetensors.',
    required=True, flag_values=FLAGS,
)
_CODEC = flags.DEFINE_string(
    'codec', None, 'Codec directory: speech tokenizer and flow decoder.', flag_values=FLAGS
)
_WAV = flags.DEFINE_string('wav', None, 'The question as a recording.', flag_values=FLAGS)
_TEXT = flags.DEFINE_string('text', None, 'The question as text.', flag_values=FLAGS)
_REPLY = flags.DEFINE_enum(
    'reply', 'speech', ['speech', 'text'], 'How to answer.', flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
    'out', None, 'WAV file for a spoken answer; replaced if it exists.', flag_values=FLAGS
)
_GRID = flags.DEFINE_string(
    'grid', None, 'JSON file for the token grids (rows of text id, audio id) of prompt and reply.',
    flag_values=FLAGS,
)
_GREEDY = flags.DEFINE_bool(
    'greedy', False, 'Always take the likeliest token instead of drawing.', flag_values=FLAGS
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the random draws.', flag_values=FLAGS)
_LONGEST = flags.DEFINE_integer(
    'max_new_tokens', None, 'Longest reply in grid rows, 12.5 a second of speech; the '
    "checkpoint's own limit by default.", flag_values=FLAGS,
)  # fmt: skip
_ADAPTER = flags.DEFINE_string(
    'adapter', None, "Directory of a LoRA adapter in PEFT's layout to answer with.",
    flag_values=FLAGS,
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
    if _TEXT.value is not None and not _TEXT.value.strip():
        raise InputError('--text is empty; write a question')
    if _REPLY.value == 'speech' and not (_CODEC.value and _OUT.value):
        raise InputError('a spoken reply needs --codec and --out; or ask with --reply text')
    if _WAV.value is not None and not _CODEC.value:
        raise InputError('--wav needs --codec to be heard')
    for name, flag in (('out', _OUT), ('grid', _GRID)):
        if flag.value and pathlib.Path(flag.value).is_dir():
            raise InputError(f'--{name} {flag.value} is a folder; give the name of a file in it')
    if _WAV.value is None and _TEXT.value is None:
        return _converse()
    question = _TEXT.value if _WAV.value is None else audio.load(_WAV.value, INPUT_RATE)
    return _Partner().answer(question, _OUT.value, _GRID.value)


class _Partner:
    """A chat with its dialogue so far; answers are shown and written as the flags say."""

    def __init__(self):
        from mossjax.convert.int8 import int8
        from mossjax.infer.chat import Chat
        from mossjax.models.lm import dialogue, machine

        rules, style = {
            'clean': (machine.CLEAN, dialogue.CLEAN),
            'upstream': (machine.UPSTREAM, dialogue.UPSTREAM),
        }[_RULES.value]
        put = int8('bfloat16') if _INT8.value else None
        self.chat = Chat.open(
            _MODEL.value, _CODEC.value, rules=rules, style=style, put=put,
            adapter=_ADAPTER.value,
        )
        self.settings = self.chat.settings
        if _GREEDY.value:
            self.settings = self.settings.greedy()
        if _LONGEST.value is not None:
            self.settings = self.settings.at_most(_LONGEST.value)
        self.turns = []

    def answer(self, question, out: str | None, grid: str | None) -> int:
        """Asks, shows and writes; returns the exit code."""
        from mossjax.models.lm.dialogue import Turn

        kind = {'speech': 'audio', 'text': 'text'}[_REPLY.value]
        asked = [*self.turns, Turn('user', question)]
        reply = self.chat.reply(asked, kind, self.settings, _SEED.value)
        self.turns = [*asked, reply.turn]
        if grid:
            content = {
                'prompt': reply.prompt.tolist(), 'grid': reply.grid.tolist(), 'text': reply.text,
                'codes': reply.codes.tolist(), 'reason': reply.reason,
            }  # fmt: skip
            with replacing(grid) as temporary:
                temporary.write_text(json.dumps(content, ensure_ascii=False) + '\n', 'utf-8')
        if kind == 'text':
            print(reply.text)
        elif reply.wav is None:
            return 1  # the chat has said so
        else:
            audio.save(out, reply.wav, OUTPUT_RATE)
            cut = ', cut at the length limit' if reply.reason == 'length' else ''
            print(f'{out}: {len(reply.wav) / OUTPUT_RATE:.2f} s{cut}')
        return 0


def _converse() -> int:
    partner = None
    for number, line in enumerate(_lines(), 1):
        try:
            question = _question(line)
        except InputError as error:
            if not sys.stdin.isatty():
                raise
            print(f'mossjax chat: {error}')  # a slip of the hand does not end a dialogue
            continue
        partner = partner or _Partner()
        code = partner.answer(
            question, _numbered(_OUT.value, number), _numbered(_GRID.value, number)
        )
        if code:
            return code
    return 0


def _question(line: str):
    """The words, or the samples of the recording that is named."""
    if not line.lower().endswith('.wav'):
        return line
    if not _CODEC.value:
        raise InputError(f'{line} needs --codec to be heard')
    return audio.load(line, INPUT_RATE)


def _lines() -> Iterator[str]:
    """What is typed, until an empty line or the end of the input."""
    while True:
        try:
            line = input('you> ').strip()
        except EOFError:
            return
        if not line:
            return
        yield line


def _numbered(path: str | None, number: int) -> str | None:
    """out.wav -> out-1.wav"""
    if path is None:
        return None
    path = pathlib.Path(path)
    return str(path.with_stem(f'{path.stem}-{number}'))

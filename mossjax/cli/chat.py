"""answers a question, spoken or written, in speech or text.

  mossjax chat --model DIR --codec DIR (--wav FILE | --text WORDS) --reply speech --out FILE.wav

The codec's speech tokenizer is needed to hear, its decoder (flow/) to speak; a written answer to a
written question does without both.

With --questions FILE.jsonl --answers DIR each line of the file, {"text": ...} or {"audio": ...}, is
asked by itself, several at once; the same command goes on where it was stopped.

With none of these it is a dialogue: each line is a turn, up to the end of the input or /quit; blank
lines are skipped. On a terminal lines can be edited, and earlier ones called back. A spoken reply
is in its file as far as it was made, and Ctrl-C ends it there: the dialogue goes on from that.
A line names a recording if it ends like an audio file (q.wav, 'my question.MP3', my\\ q.m4a) or is
a path (/, ./, ~/, file://), as a file that is dropped on the window is; all else is words. The
replies of a dialogue are numbered: out-1.wav, ... When it outgrows the model's context, its oldest
turns are left out.

Standard output holds the answers alone: written replies, or the names of the files.

Examples:
  mossjax chat --model MOSS-Speech --codec MOSS-Speech-Codec --wav question.wav --out answer.wav
  mossjax chat --model MOSS-Speech --text "What is three plus four?" --reply text --greedy
  mossjax chat --model MOSS-Speech --reply text --system "Answer in one word." < questions.txt
  mossjax chat --model MOSS-Speech --reply text --questions questions.jsonl --answers answered
"""

import contextlib
import dataclasses
import json
import os
import pathlib

from absl import flags, logging
import numpy as np

from mossjax import values
from mossjax.cli import compiled, lines, talk
from mossjax.cli.common import (
    AUTO,
    READ_FILE,
    READ_MODEL,
    WRITE_FILE,
    WRITE_FOLDER,
    auto_flag,
    number_flag,
    path_flag,
)
from mossjax.cli.live import Live
from mossjax.errors import InputError
from mossjax.files import replacing
from mossjax.infer import audio

OUTPUT_RATE = 24000  # Hz
KINDS = {'speech': 'audio', 'text': 'text'}

FLAGS = flags.FlagValues()
_MODEL = path_flag(
    'model', None, 'Language model directory: config.json, tokenizer.json, model.safetensors.',
    READ_MODEL, FLAGS, required=True,
)
_CODEC = path_flag(
    'codec', None, 'Codec directory: speech tokenizer (to hear) and flow decoder (to speak); or '
    'its Orbax form.', READ_MODEL, FLAGS,
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
_QUESTIONS = path_flag(
    'questions', None, 'JSONL file of questions, {"text": ...} or {"audio": ...} a line, each '
    'asked by itself, many at once; with --answers.', READ_FILE, FLAGS,
)  # fmt: skip
_ANSWERS = path_flag(
    'answers', None, 'Folder for the answers to --questions: answers.jsonl and recordings. The '
    'same command goes on where it was stopped.', WRITE_FOLDER, FLAGS,
)  # fmt: skip
_LANES = number_flag('lanes', 8, 'Questions of --questions asked at once.', values.SIZE, FLAGS)
_ADAPTER = path_flag(
    'adapter', None, "Directory of a LoRA adapter in PEFT's layout to answer with.", READ_MODEL,
    FLAGS,
)
_INT8 = auto_flag(
    'int8', 'Hold the language model in int8, quantised while it is read: half the memory. The '
    '9.1 B model then fits a chip of 16 GB. By default where it would not fit otherwise.', FLAGS,
)
_SMALL_CACHE = flags.DEFINE_bool(
    'int8_cache', False, 'Keep what the model has read in int8: dialogues of twice the length fit.',
    flag_values=FLAGS,
)
_RULES = flags.DEFINE_enum(
    'rules', 'clean', ['clean', 'upstream'],
    "'upstream' reproduces the prompts and decoding quirks of the released code, for comparisons.",
    flag_values=FLAGS,
)


# What an answer depends on beside its question.
_DECIDING = (
    _MODEL, _CODEC, _VOICE, _SYSTEM, _GREEDY, _LONGEST, _ADAPTER, _INT8, _SMALL_CACHE, _RULES,
)  # fmt: skip


def main(args: list[str]) -> int | None:
    if args:
        raise InputError(f'stray argument {args[0]!r}; put a question in quotes after --text')
    if _WAV.value is not None and _TEXT.value is not None:
        raise InputError('--wav and --text are both given; ask one question')
    for flag in (_TEXT, _SYSTEM):
        if flag.value is not None:
            lines.words(flag.value, f'--{flag.name}')
    if _QUESTIONS.value or _ANSWERS.value:
        return _answer_questions()
    if _REPLY.value == 'speech' and not (_CODEC.value and _OUT.value):
        raise InputError('a spoken reply needs --codec and --out; or ask with --reply text')
    if _WAV.value is not None and not _CODEC.value:
        raise InputError('--wav needs --codec to be heard')
    if _VOICE.value is not None and _REPLY.value == 'text':
        raise InputError('--voice speaks, and the reply is to be written; leave one of them out')
    _check_targets()
    with _fitting():
        if _WAV.value is None and _TEXT.value is None:
            return talk.converse(_Partner, _CODEC.value)
        question = _TEXT.value if _WAV.value is None else audio.load(_WAV.value, talk.INPUT_RATE)
        return _Partner()(question)


def _answer_questions() -> None:
    """A file of questions to a folder of answers."""
    import tqdm

    from mossjax.infer import questions

    if not (_QUESTIONS.value and _ANSWERS.value):
        raise InputError('--questions and --answers belong together; give both')
    for flag in (_WAV, _TEXT, _OUT, _GRID):
        if flag.value is not None:
            raise InputError(f'--{flag.name} is of one question; leave it out beside --questions')
    if _REPLY.value == 'speech' and not _CODEC.value:
        raise InputError('spoken replies need --codec; or ask with --reply text')
    asked = questions.read_questions(_QUESTIONS.value, bool(_CODEC.value))
    made_with = [str(flag.value) for flag in _DECIDING]
    job = questions.Job(
        asked, _ANSWERS.value, KINDS[_REPLY.value], _SEED.value, '\n'.join(made_with)
    )
    count = len(asked) - len(job.kept)
    with _fitting(), tqdm.tqdm(
        total=len(asked), initial=len(job.kept), unit='answer', disable=None
    ) as bar:
        for _ in job.run(_open(), _LANES.value, _SYSTEM.value) if count else ():
            bar.update()
    kept = f', {len(job.kept)} were there' if job.kept else ''
    print(f'{pathlib.Path(_ANSWERS.value) / questions.ANSWERS}: {count} answered{kept}')


@contextlib.contextmanager
def _fitting():
    """Says what would fit where the device's memory does not suffice."""
    try:
        yield
    except RuntimeError as error:  # of jax's own, which has no module that is meant to be named
        from mossjax.infer import fit

        if fit.FULL not in str(error):
            raise
        config = fit.read_config(_MODEL.value)
        quantised = fit.wants_int8(config) if _INT8.value == AUTO else _INT8.value
        raise InputError(f'{_MODEL.value}: {fit.advice(config, quantised)}') from error


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
        from mossjax.infer.dialogue import Dialogue
        from mossjax.infer.talk import Talk

        chat = _open()
        self.talk = Talk(
            Dialogue(chat, KINDS[_REPLY.value], system=_SYSTEM.value, say=talk.notice), chat.mouth
        )

    def __call__(self, question: str | np.ndarray, number: int | None = None) -> int:
        """Answers; `number` is that of the reply in a dialogue. Returns the exit code.

        Ctrl-C ends the reply. In a dialogue it goes on from what was heard by then.
        """
        try:
            self._speak(question, number)
        except KeyboardInterrupt:
            kept = self.talk.interrupt()
            stays = kept is not None and (len(kept.codes) or kept.text)
            if number is None or not lines.terminal() or not stays:
                raise
            talk.notice('interrupted; the dialogue goes on from here')
        reply = self.talk.last
        if _GRID.value:
            _write_grid(_numbered(_GRID.value, number), reply)
        if _REPLY.value == 'speech' and reply.wav is not None:
            print(
                f'{_numbered(_OUT.value, number)}: {len(reply.wav) / OUTPUT_RATE:.2f} s',
                flush=True,
            )
        if reply.reason == 'length':
            talk.notice(
                f'the reply was cut at its limit of {len(reply.grid)} rows; --max_new_tokens sets '
                'another'
            )
        # The chat has said so where nothing was spoken.
        return int(_REPLY.value == 'speech' and reply.wav is None)

    def _speak(self, question: str | np.ndarray, number: int | None) -> None:
        """Words to standard output, sound to the file, as they come."""
        from mossjax.infer.growing import GrowingSound

        said = self.talk.reply(question, _SEED.value)
        if _REPLY.value == 'text':
            self._write(said)
            return
        live = Live(OUTPUT_RATE)
        with GrowingSound(_numbered(_OUT.value, number), OUTPUT_RATE) as sound:
            try:
                for part in said:
                    sound.write(part.wave)
                    live.add(len(part.wave))
            finally:
                live.end()

    def _write(self, said) -> None:
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


def _open():
    """The chat that the flags name."""
    from mossjax.infer.chat import Chat
    from mossjax.infer.voice_maker import open_voice
    from mossjax.models.lm import dialogue, machine

    if folder := os.environ.get(compiled.VARIABLE):
        logging.info('compiled programs are kept in %s', folder)
    rules, style = {
        'clean': (machine.CLEAN, dialogue.CLEAN),
        'upstream': (machine.UPSTREAM, dialogue.UPSTREAM),
    }[_RULES.value]
    put, options, held = _held()
    chat = Chat.open(
        _MODEL.value, _CODEC.value, hears=_TEXT.value is None, speaks=_REPLY.value == 'speech',
        voice=open_voice(_VOICE.value, _CODEC.value) if _VOICE.value else None,
        longest=_LONGEST.value, rules=rules, style=style, put=put, adapter=_ADAPTER.value,
        streams=True, **options,
    )
    if held:
        talk.notice(held)
    if _GREEDY.value:
        chat = dataclasses.replace(chat, settings=chat.settings.greedy())
    return chat


def _held() -> tuple:
    """How parameters are held, the engine's options, and what to say of it ('': nothing): by the
    devices that are there."""
    from mossjax.convert.int8 import int8
    from mossjax.infer import fit, many_chips
    from mossjax.models.lm.cache import int8_rows

    options = {'store': int8_rows} if _SMALL_CACHE.value else {}
    # A directory without a configuration is refused when it is opened.
    if not (pathlib.Path(_MODEL.value) / 'config.json').is_file():
        return None, options, ''
    config = fit.read_config(_MODEL.value)
    mesh = None if _ADAPTER.value else many_chips.mesh_for(config)
    chips = mesh.devices.size if mesh else 1
    quantised = fit.wants_int8(config, chips) if _INT8.value == AUTO else _INT8.value
    held = [f'the model is divided over {chips} chips'] if mesh else []
    if quantised and _INT8.value == AUTO:
        held.append('the model is held in int8, or it would not fit this device; --noint8 tries')
    if mesh is None:
        return int8('bfloat16') if quantised else None, options, '; '.join(held)
    put = many_chips.put(config, mesh, quantised)
    return put, options | {'mesh': mesh}, '; '.join(held)


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

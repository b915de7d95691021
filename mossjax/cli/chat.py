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
import os
import pathlib

from absl import flags, logging

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
from mossjax.cli.partner import Partner
from mossjax.errors import InputError
from mossjax.infer import audio

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
    if _VOICE.value is not None and _REPLY.value == 'text':
        raise InputError('--voice speaks, and the reply is to be written; leave one of them out')
    if _QUESTIONS.value or _ANSWERS.value:
        return _answer_questions()
    if _REPLY.value == 'speech' and not (_CODEC.value and _OUT.value):
        raise InputError('a spoken reply needs --codec and --out; or ask with --reply text')
    if _WAV.value is not None and not _CODEC.value:
        raise InputError('--wav needs --codec to be heard')
    _check_targets()
    with _fitting():
        if _WAV.value is None and _TEXT.value is None:
            return talk.converse(_partner, _CODEC.value)
        question = _TEXT.value if _WAV.value is None else audio.load(_WAV.value, talk.INPUT_RATE)
        return _partner()(question)


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
        hears = any(question.recording for question in asked)
        for _ in job.run(_open(hears), _LANES.value, _SYSTEM.value) if count else ():
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
        raise InputError(f'{_MODEL.value}: {_held().advice()}') from error


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


def _partner() -> Partner:
    """A dialogue as the flags say."""
    return Partner(
        _open(hears=_TEXT.value is None), KINDS[_REPLY.value], out=_OUT.value, grid=_GRID.value,
        seed=_SEED.value, system=_SYSTEM.value,
    )  # fmt: skip


def _open(hears: bool):
    """The chat that the flags name.

    Args:
      hears: recordings may be asked with.
    """
    from mossjax.infer.chat import Chat
    from mossjax.infer.voice_maker import open_voice
    from mossjax.models.lm import dialogue, machine
    from mossjax.models.lm.cache import int8_rows

    if folder := os.environ.get(compiled.VARIABLE):
        logging.info('compiled programs are kept in %s', folder)
    rules, style = {
        'clean': (machine.CLEAN, dialogue.CLEAN),
        'upstream': (machine.UPSTREAM, dialogue.UPSTREAM),
    }[_RULES.value]
    held = _held()
    options = {'store': int8_rows} if _SMALL_CACHE.value else {}
    chat = Chat.open(
        _MODEL.value, _CODEC.value, hears=hears, speaks=_REPLY.value == 'speech',
        voice=open_voice(_VOICE.value, _CODEC.value) if _VOICE.value else None,
        longest=_LONGEST.value, rules=rules, style=style, put=held.put(), adapter=_ADAPTER.value,
        streams=True, mesh=held.mesh, **options,
    )
    if held.mesh is not None:
        talk.notice(f'the model is divided over {held.chips} chips')
    if held.quantised and _INT8.value == AUTO:
        talk.notice('the model is held in int8, or it would not fit this device; --noint8 tries')
    if _GREEDY.value:
        chat = dataclasses.replace(chat, settings=chat.settings.greedy())
    return chat


def _held():
    """How the language model is held: by the devices that are there. An adapter is for one."""
    from mossjax.infer import fit

    return fit.Held.here(
        fit.read_config(_MODEL.value), None if _INT8.value == AUTO else _INT8.value,
        divides=not _ADAPTER.value,
    )

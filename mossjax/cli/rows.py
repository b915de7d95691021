"""makes the packed rows that `mossjax train` reads, from recordings, dialogues or texts.

  mossjax rows (--folder DIR | --manifest F.jsonl) --codec DIR --model DIR --recipe R --out DIR

Recipes, and what each takes:
  sft          dialogues, in four modes: s2s, s2t, t2s, t2t (speech or text in, speech or text out);
               a mode needs speech, or text, of every turn on its side; the reply is learnt
  asr, tts     recordings (or turns) with text: write down what is said, say what is written; of
               dialogues tts takes what the assistant says
  interleaved  recordings with "words" (ends of words or phrases in seconds): pieces of 3 to 6 s
               that alternate between speech and text
  speech       recordings, with text or without
  text         documents, or the texts of recordings
What is longer than a row goes on in another (interleaved, speech, text) or is left out (sft, asr,
tts). System prompts are those of the model's generation_config.json, as in `mossjax chat`.

--folder: WAV, FLAC, OGG, MP3 files in it and below.
  Their words      a.txt beside a.wav; or a table in the folder: metadata.csv with columns
                   file_name and text (or the names Common Voice, DeepSpeech, ... use),
                   metadata.jsonl, LJSpeech's id|text|text. Of several give the path of one.
  Dialogues (sft)  001.user.wav and 001.assistant.wav, each with its .txt if you want text modes,
                   or a .txt alone for a turn in writing. Longer ones number their turns:
                   001.1.user.wav, 001.2.assistant.wav, 001.3.user.wav, ...

--manifest: a JSONL file, one object a line; paths are relative to it.
  {"audio": "a.wav", "text": "the answer is seven", "speaker": "ann",
   "words": [["the", 0.13], ["answer", 0.5], ["is", 0.62], ["seven", 1.1]]}
  {"turns": [{"role": "user", "audio": "q.wav", "text": "what is three plus four"},
             {"role": "assistant", "audio": "a.wav", "text": "the answer is seven"}]}
  {"text": "A document that nobody has spoken."}
Only "audio", "turns" or "text" is needed. Turns have the role system, user or assistant, and text,
or speech as "audio" or "codes", or both. Other keys are yours.

An interrupted job goes on when the same command is run again; a finished one is left alone, and
other settings want another --out. Recordings that cannot be read are left out and listed, and the
exit code is 2. What was left out, and why, is in OUT/left_out.jsonl.

Examples:
  mossjax rows --folder recordings --codec MOSS-Speech-Codec --model MOSS-Speech --recipe sft \\
      --out rows/own
  mossjax rows --manifest cv.jsonl --codec MOSS-Speech-Codec --model MOSS-Speech --recipe asr \\
      --versions 4 --out rows/asr
Then: mossjax train with config.data.rows = {'own': 'rows/own'} (experiments/own_voice/README.md).
"""

import dataclasses
import os
import pathlib

from absl import flags

from mossjax import paths, values
from mossjax.cli.common import (
    READ_FILE,
    READ_MODEL,
    WRITE_FILE,
    WRITE_FOLDER,
    number_flag,
    path_flag,
)
from mossjax.errors import InputError

TABLES = ('.csv', '.tsv', '.jsonl', '.txt')


def _folder_or_table(path: str, name: str) -> pathlib.Path:
    """The check of --folder."""
    table = pathlib.Path(path).suffix.lower() in TABLES and not pathlib.Path(path).is_dir()
    return (paths.file_to_read if table else paths.folder_to_read)(path, name)


FLAGS = flags.FlagValues()
_MANIFEST = path_flag(
    'manifest', None, 'JSONL of recordings, dialogues or documents.', READ_FILE, FLAGS
)
_FOLDER = path_flag(
    'folder', None, 'Folder of recordings, or the table in it that lists them; its manifest is '
    'written to OUT/manifest.jsonl.', _folder_or_table, FLAGS,
)
_CODEC = path_flag(
    'codec', None, 'Codec directory; only its speech tokenizer is used, and only for recordings.',
    READ_MODEL, FLAGS,
)
_MODEL = path_flag(
    'model', None, 'Language model directory: config.json, tokenizer.json, generation_config.json; '
    'its weights are not needed.', READ_MODEL, FLAGS, required=True,
)
_RECIPE = flags.DEFINE_enum(
    'recipe', None, ['sft', 'asr', 'tts', 'interleaved', 'speech', 'text'], 'What to make.',
    flag_values=FLAGS,
)  # fmt: skip
_OUT = path_flag(
    'out', None, 'Directory of the rows; made if missing.', WRITE_FOLDER, FLAGS, required=True
)
_LENGTH = number_flag(
    'length', None, "Positions of a row; a quarter of the model's by default (10,240 of the "
    'released one), at least 256 where it has them. Data sets that are trained together need one '
    'length.', values.Range(16, values.LARGEST, whole=True), FLAGS,
)
_VERSIONS = number_flag(
    'versions', 1, 'How often each recording is heard: once as it is, then shifted by up to 70 ms '
    'and noisy, which changes about half of its codes. Worth it for small corpora (8). For sft, '
    'asr, interleaved and speech; what a reply says is always the recording as it is.',
    values.Range(1, 1000, whole=True), FLAGS,
)
_MODES = flags.DEFINE_list('modes', ['s2s', 's2t', 't2s', 't2t'], 'Of sft.', flag_values=FLAGS)
_SEED = number_flag('seed', 0, 'Of everything that is drawn.', values.SEED, FLAGS)
_CODES = path_flag(
    'codes', None, 'File of the codes, OUT/codes.jsonl by default. Name one file for several '
    'recipes of the same recordings, and each is tokenized once.', WRITE_FILE, FLAGS,
)




def main(args: list[str]) -> None:
    if args:
        raise InputError(f'stray argument {args[0]!r}; name recordings with --folder')
    if not (_MANIFEST.value or _FOLDER.value):
        raise InputError('neither --folder nor --manifest is given; name your recordings')
    if not _RECIPE.value:
        raise InputError('--recipe is not given; --help says which there are')
    out = pathlib.Path(_OUT.value)

    from mossjax.data import job as jobs
    from mossjax.data.drafts import Recipe
    from mossjax.data.folder import read_folder
    from mossjax.data.format import Format
    from mossjax.data.manifest import read_manifest, write_manifest

    form, length = Format.open(_MODEL.value), _length()
    recipe = Recipe(_RECIPE.value, length=length, modes=tuple(_MODES.value))
    sources, rejects = [], []
    if _MANIFEST.value:
        folder = pathlib.Path(os.path.abspath(_MANIFEST.value)).parent
        sources.append(jobs.Source(read_manifest(_MANIFEST.value), folder))
    if _FOLDER.value:
        found = read_folder(_FOLDER.value)
        sources.append(jobs.Source(found.entries, found.root))
        rejects = found.rejects
    job = jobs.Job(
        sources, recipe, form, length, seed=_SEED.value, versions=_VERSIONS.value, rejects=rejects
    )
    if any(job.audio(entry) for entry, _ in job.entries()):
        job = dataclasses.replace(job, fingerprint=_checked_codec(form.ids.eosp))
    metadata = jobs.run(job, out, _open_encoder, codes=_CODES.value, bar=_bar)
    if _FOLDER.value:
        write_manifest(out / 'manifest.jsonl', found.entries)
    print('\n'.join([f'{out}:', *_lines(metadata)]))
    _refuse_unreadable(metadata['summary']['unreadable'], out)


def _length() -> int:
    """Of a row, where the model's config.json has been found to be good."""
    from mossjax.files import read_json

    most = read_json(pathlib.Path(_MODEL.value) / 'config.json')['max_position_embeddings']
    if _LENGTH.value is not None and _LENGTH.value > most:
        raise InputError(f'--length {_LENGTH.value}: the model has {most} positions; give fewer')
    return _LENGTH.value or max(most // 4, min(most, 256))


def _checked_codec(codes: int) -> str:
    """A hash of the speech tokenizer, which must know no more codes than the model."""
    from mossjax.convert.codec_directory import open_tokenizer_config
    from mossjax.data.job import fingerprint

    if not _CODEC.value:
        raise InputError('--codec is not given; recordings are tokenized with it')
    found = open_tokenizer_config(_CODEC.value).codes
    if found > codes:
        raise InputError(
            f'--codec {_CODEC.value} has {found} codes, the language model {codes}; take '
            'the codec it was trained with'
        )
    return fingerprint(_CODEC.value)


def _open_encoder():
    from mossjax.infer.speech_tokenizer import SpeechTokenizer

    return SpeechTokenizer.open(_CODEC.value)


def _bar(what: str, total: int):
    """A bar on a terminal, nothing elsewhere."""
    import tqdm

    bar = tqdm.tqdm(total=total, desc=what, disable=None)

    def advance(count: int) -> None:
        bar.update(count)
        if bar.n >= total:
            bar.close()  # what is printed next starts on a line of its own

    return advance


def _lines(metadata) -> list[str]:
    """What came of it, for people."""
    from mossjax.data.tally import describe

    summary, tokens = metadata['summary'], metadata['summary']['tokens']
    kinds = ', '.join(f'{kind} {count:,}' for kind, count in summary['examples'].items())
    lines = [
        f'  recordings  {summary["recordings"]:,}, {summary["hours"]:.3g} hours',
        f'  examples    {metadata["examples"]:,}: {kinds}',
        f'  tokens      {tokens["text"]:,} of text, {tokens["speech"]:,} of speech; to be learnt '
        f'{tokens["text targets"]:,} and {tokens["speech targets"]:,}',
        f'  rows        {metadata["rows"]:,} of {metadata["length"]:,} positions, '
        f'{100 * (1 - metadata["padding"]):.1f} % full',
    ]
    if summary['left_out']:
        lines += ['  left out', *(f'    {describe(left)}' for left in summary['left_out'])]
    return lines


def _refuse_unreadable(unreadable, out: pathlib.Path) -> None:
    """Raises InputError that lists recordings which gave nothing, where there are any."""
    if count := unreadable['recordings']:
        listed = ''.join(f'\n  {why}' for why in unreadable['why'])
        more = count - len(unreadable['why'])
        listed += f'\n  and {more} more, see {out}/left_out.jsonl' if more else ''
        raise InputError(
            f'{count} recordings cannot be read; the rows hold what the others give:{listed}'
        )

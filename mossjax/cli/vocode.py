"""turns speech codes into recordings at 24 kHz.

  mossjax vocode --codec DIR --codes FILE.jsonl --out DIR [--voice RECORDING or FILE]

Each line of the JSONL file holds {"codes": [5, 1023, ...]}, 12.5 of them a second, and becomes one
WAV in the folder, named after its "path" if it has one, as mossjax tokenize writes it. A line may
have 300 s, the voice's prompt included. What cannot be spoken is named before anything is.

Prints of each recording its length, its loudness (ITU-R BS.1770), and how many samples were
clipped, if any. Finished recordings are kept: the same command goes on where it was stopped, and
speaks again only what has other codes, another voice, seed or decoder by then.

Examples:
  mossjax vocode --codec MOSS-Speech-Codec --codes codes.jsonl --out spoken
  mossjax vocode --codec MOSS-Speech-Codec --codes codes.jsonl --out spoken --voice ann.flac
"""

from absl import flags

from mossjax import values
from mossjax.cli.common import READ_FILE, READ_FOLDER, WRITE_FOLDER, number_flag, path_flag
from mossjax.errors import InputError

FLAGS = flags.FlagValues()
_CODEC = path_flag(
    'codec', None, 'Codec directory with the decoder in it: flow/config.yaml, flow/flow.pt and '
    'flow/hift.pt (or .safetensors); for a --voice RECORDING the speech tokenizer as well.',
    READ_FOLDER, FLAGS, required=True,
)  # fmt: skip
_CODES = path_flag('codes', None, 'JSONL file of codes.', READ_FILE, FLAGS, required=True)
_OUT = path_flag(
    'out', None, 'Folder for the recordings; made if missing.', WRITE_FOLDER, FLAGS, required=True
)
_VOICE = path_flag(
    'voice', None, 'Who speaks: a recording of 80 ms to 30 s, or a file made by mossjax voice; by '
    'default the voice that the codec comes with.', READ_FILE, FLAGS,
)  # fmt: skip
_SEED = number_flag('seed', 0, "Of the noise in the vocoder's source.", values.SEED, FLAGS)


def main(args: list[str]) -> None:
    if args:
        raise InputError(f'stray argument {args[0]!r}; name the file of codes with --codes')

    import tqdm

    from mossjax.convert.codec_flow import open_config
    from mossjax.infer import vocode
    from mossjax.infer.speech_decoder import SpeechDecoder
    from mossjax.infer.voice_maker import open_voice

    config = open_config(_CODEC.value)
    lines = vocode.read_lines(_CODES.value, config)
    vocode.check_lengths(lines, config, 0, _CODES.value)
    vocode.check_folder(lines, _OUT.value)
    voice = open_voice(_VOICE.value, _CODEC.value) if _VOICE.value else None
    decoder = SpeechDecoder.open(_CODEC.value, voice=voice, seed=_SEED.value)
    vocode.check_lengths(lines, config, len(decoder.voice.codes), _CODES.value)
    made_with = vocode.made_with(_CODEC.value, decoder, _SEED.value)
    job = vocode.Job(lines, _OUT.value, made_with)
    found = []
    with tqdm.tqdm(
        total=len(lines), initial=len(job.kept), unit='line', disable=None  # none off a terminal
    ) as bar:
        for spoken in job.run(decoder):
            found.append(spoken)
            bar.write(str(spoken))
            bar.update()
    kept = f', {len(job.kept)} were there' if job.kept else ''
    clipped = sum(spoken.clipped > 0 for spoken in found)
    warning = f'; {clipped} clipped, which distorts where it is loudest' if clipped else ''
    seconds = sum(spoken.seconds for spoken in found)
    print(f'{_OUT.value}: {len(found)} made, {seconds:.1f} s{kept}{warning}')

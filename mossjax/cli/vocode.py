"""turns speech codes into recordings at 24 kHz.

  mossjax vocode --codec DIR --codes FILE.jsonl --out DIR [--voice RECORDING or FILE] [--stream]

Each line of the JSONL file holds {"codes": [5, 1023, ...]}, 12.5 of them a second, and becomes one
WAV in the folder, named after its "path" if it has one, as mossjax tokenize writes it. A line may
have 300 s, the voice's prompt included; with --stream any length. What cannot be spoken is named
before anything is.

Prints of each recording its length, its loudness (ITU-R BS.1770), and how many samples were
clipped, if any. Finished recordings are kept: the same command goes on where it was stopped, and
speaks again only what has other codes, another voice, seed or decoder by then.

With --stream each line is spoken as in a conversation, as if its codes came one by one: in steps
of constant cost, with flow/flow-chunk-N where the codec has it. Prints how soon the first sound
came, what a second of sound cost, and the memory a session takes.

Examples:
  mossjax vocode --codec MOSS-Speech-Codec --codes codes.jsonl --out spoken
  mossjax vocode --codec MOSS-Speech-Codec --codes codes.jsonl --out spoken --voice ann.flac
  mossjax vocode --codec MOSS-Speech-Codec --codes codes.jsonl --out streamed --stream --chunk 5
"""

from absl import flags

from mossjax import values
from mossjax.cli.common import READ_FILE, READ_MODEL, WRITE_FOLDER, number_flag, path_flag
from mossjax.errors import InputError

FLAGS = flags.FlagValues()
_CODEC = path_flag(
    'codec', None, 'Codec directory with the decoder in it: flow/config.yaml, flow/flow.pt and '
    'flow/hift.pt (or .safetensors); for a --voice RECORDING the speech tokenizer as well. Or its '
    'Orbax form.',
    READ_MODEL, FLAGS, required=True,
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
_STREAM = flags.DEFINE_bool(
    'stream', False, 'Speak in steps, as while codes are still being made.', flag_values=FLAGS
)
_CHUNK = number_flag(
    'chunk', None, 'With --stream: codes of a step, from the third on at the latest; a multiple of '
    "the codec's own chunk. By default 25, 2 s: the first steps are shorter.", values.SIZE, FLAGS,
)  # fmt: skip


def main(args: list[str]) -> None:
    if args:
        raise InputError(f'stray argument {args[0]!r}; name the file of codes with --codes')
    if _CHUNK.value and not _STREAM.value:
        raise InputError('--chunk is the length of the steps of --stream; add that flag')

    import tqdm

    from mossjax.convert.codec_directory import open_config
    from mossjax.convert.codec_flow import STEM
    from mossjax.infer import vocode, voice_maker
    from mossjax.infer.speech_decoder import SpeechDecoder
    from mossjax.infer.vocode_stream import StreamedSpeech, checked_hops, streaming_stem
    from mossjax.infer.voice import own

    config, hops, stem = open_config(_CODEC.value), (), STEM
    if _STREAM.value:
        hops, stem = checked_hops(config, _CHUNK.value), streaming_stem(_CODEC.value, config)
    lines = vocode.read_lines(_CODES.value, config)
    if not hops:
        vocode.check_lengths(lines, config, 0, _CODES.value)
    vocode.check_folder(lines, _OUT.value)
    if _VOICE.value:
        voice = voice_maker.choose(_VOICE.value, _CODEC.value)
    else:
        voice = voice_maker.Choice.of(own(_CODEC.value, config))
    made_with = vocode.made_with(_CODEC.value, voice.digest(), _SEED.value, stem, hops)
    job = vocode.Job(lines, _OUT.value, made_with)
    if len(job.kept) == len(lines):
        print(f'{_OUT.value}: nothing left to do, all {len(lines)} recordings are there')
        return
    decoder = SpeechDecoder.open(_CODEC.value, voice=voice.make(), seed=_SEED.value, stem=stem)
    if hops:
        decoder = StreamedSpeech(decoder, hops)
    else:
        vocode.check_lengths(lines, config, len(decoder.voice.codes), _CODES.value)
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
    if hops:
        print(decoder)

"""A codec that speaks in the voice of a folder of recordings, from one that speaks in another.

    python -m experiments.own_voice.voice --folder recordings --codec CODEC --workdir runs/voice \
        --out my-codec

Flow decoder and vocoder (where the codec has one) go on training on the recordings; the speech
tokenizer stays as it is, so that language models need no training. Of a folder of dialogues the
assistant's turns are taken. The codec's own voice becomes that of one of these recordings. Every
fifth is kept back: at the end the codec's speaker encoder says how alike these are to what the
codec makes of their codes: as it was, as it was but told the new voice, and trained. Interrupted,
the same command goes on.
"""

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
import shutil

from absl import flags
import jax
import numpy as np

from experiments.nano.script import start
from mossjax.convert import codec_directory, codec_speaker, codec_vocoder, kinds, transfer
from mossjax.convert.fingerprint import VOICE
from mossjax.data.codes import tokenize_recordings
from mossjax.data.folder import read_folder
from mossjax.data.job import fingerprint
from mossjax.data.manifest import Dialogue, Recording, write_manifest
from mossjax.errors import InputError
from mossjax.infer import audio
from mossjax.infer import voice as voices
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.speech_tokenizer import SpeechTokenizer
from mossjax.infer.voice import Voice
from mossjax.infer.voice_maker import SpeakerEncoder, VoiceMaker
from mossjax.models.speaker import fbank
from mossjax.models.tokenizer import mel as hearing
from mossjax.models.vocoder.discriminators import DiscriminatorConfig
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.ops.resample import resample
from mossjax.train import loop, tasks
from mossjax.train.config import check, defaults

KEPT = 5  # one recording in so many is not trained on
FEWEST = 4  # recordings: two to learn from and two to be judged by
OWN = 'own'  # the name of the speaker
PROMPT = 4.0, 8.0  # seconds that suit as a voice; what is taken of a long recording


@dataclasses.dataclass(frozen=True)
class Training:
    """How long and how fast: steps of each network, the largest learning rate."""

    steps: int
    peak_lr: float


def spoken(folder: str) -> tuple[list[Recording], list[Recording]]:
    """(to learn from, kept back), one speaker.

    Raises:
      InputError: there are no recordings, or too few.
    """
    found = []
    for entry in read_folder(folder).entries:
        if isinstance(entry, Dialogue):
            said = [turn for turn in entry.turns if turn.role == 'assistant' and turn.audio]
            found += [Recording(turn.audio, turn.text or '', OWN) for turn in said]
        else:
            found.append(dataclasses.replace(entry, speaker=OWN))
    if len(found) < FEWEST:
        raise InputError(
            f'{folder} has {len(found)} recordings of the voice; {FEWEST} are the fewest, some '
            'minutes of speech are better'
        )
    back = set(range(0, len(found), KEPT) if len(found) > KEPT else (0, 1))
    return (
        [r for i, r in enumerate(found) if i not in back],
        [r for i, r in enumerate(found) if i in back],
    )


def prepare(workdir: Path, recordings: Sequence[Recording], codec: str) -> None:
    """Writes the manifest and the codes of what is learnt from."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_manifest(workdir / 'manifest.jsonl', recordings)
    tokenize_recordings(
        SpeechTokenizer.open(codec), recordings, workdir / 'codes.jsonl', versions=4,
        fingerprint=fingerprint(codec),
    )  # fmt: skip


def flow_config(workdir: Path, codec: str, training: Training):
    """The flow decoder of the codec goes on, with and without prompt and vector of the voice."""
    config = _config(workdir, codec, training, 'flow')
    model, _ = codec_directory.open_flow(codec)
    config.model.update(dataclasses.asdict(model))
    config.data.codes = str(workdir / 'codes.jsonl')
    config.data.seconds = 32.0
    config.data.rows_multiple = jax.device_count()
    config.data.undisturbed = 0.5
    config.data.prompts = 0.5
    config.data.vectors, config.data.speaker = str(workdir / 'vectors.jsonl'), codec
    config.loss.chunk = 5
    config.loss.chunk_share = 0.5
    config.loss.mu_weight = 1.0
    return config


def vocoder_config(workdir: Path, codec: str, training: Training):
    """The vocoder of the codec goes on, against discriminators that are as wide beside it as the
    released ones are beside the released vocoder."""
    config = _config(workdir, codec, training, 'vocoder')
    model, _ = codec_directory.open_hift(codec)
    config.model.update(dataclasses.asdict(model))
    config.data.f0 = str(workdir / 'f0.jsonl')
    config.data.frames = 24
    config.data.rows = -(-8 // jax.device_count()) * jax.device_count()
    share, whole = model.channels / HiftConfig().channels, DiscriminatorConfig()
    config.loss.discriminators = {
        'period_channels': tuple(max(1, round(c * share)) for c in whole.period_channels),
        'resolution_channels': max(1, round(whole.resolution_channels * share)),
    }
    config.optim.b1, config.optim.b2 = 0.8, 0.99
    return config


def _config(workdir: Path, codec: str, training: Training, task: str):
    config = defaults()
    config.task = task
    config.steps = training.steps
    config.log_every = 20
    config.save_every = 100
    config.keep = 1
    config.init_from = codec
    config.data.manifest = str(workdir / 'manifest.jsonl')
    config.optim.peak_lr = training.peak_lr
    config.optim.final_lr = training.peak_lr / 10
    config.optim.warmup_steps = 20
    config.optim.weight_decay = 0.0
    return config


def train(workdir: Path, codec: str, config) -> Path:
    """Runs a configuration to its end; returns a codec with what it made, the rest as it was."""
    check(config)
    run = tasks.make(config)
    loop.fit(run.task, run.config, workdir / config.task, init_from=run.init_from)
    out = workdir / f'codec_{config.task}'
    if not out.exists():
        source = kinds.with_companions(kinds.open_source(workdir / config.task), codec)
        transfer.convert(source, out, transfer.Options(certify=False))
    return out


def make_voice(codec: str, recordings: Sequence[Recording]) -> Voice:
    """The voice in the recording that is nearest to four seconds: a window keeps that much of it.

    Raises:
      InputError: no voice can be made of it, see `voice_maker.check_recording`.
    """
    suits, most = PROMPT
    path = min(
        (r.audio for r in recordings), key=lambda path: abs(audio.read_header(path).seconds - suits)
    )
    rate = audio.read_header(path).rate
    wave = audio.load(path, rate)[: round(most * rate)]
    return VoiceMaker.open(codec).make(wave, rate, path)


def spoken_by(
    decoder: SpeechDecoder, codes: Sequence[np.ndarray], told: Voice | None = None
) -> list[np.ndarray]:
    """Codes as waves at 16 kHz.

    Args:
      told: in whose voice; by default the codec's own.
    """
    said = decoder.decode_many(codes, voice=told)
    return [resample(wave, SpeechDecoder.rate, fbank.RATE) for wave in said]


def likeness(
    judge: Callable[[np.ndarray], np.ndarray], one: Sequence[np.ndarray],
    other: Sequence[np.ndarray],
) -> float:  # fmt: skip
    """Mean cosine of what is heard of waves at 16 kHz, pair by pair."""
    return float(np.mean([cosine(judge(a), judge(b)) for a, b in zip(one, other, strict=True)]))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two vectors, in [-1, 1]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))


def teach(folder: str, codec: str, workdir: Path, out: Path, training: Training) -> dict:
    """The whole way; returns {'before', 'told', 'after'}, see `likeness`: the codec as it was, told
    the new voice, trained.

    Raises:
      InputError: see `spoken`; `out` is there; the codec has no speaker encoder, no flow decoder or
        no speech tokenizer.
    """
    if out.exists():
        raise InputError(f'{out} exists; remove it or name another')
    if not codec_directory.has(codec, codec_speaker.STEM):
        raise InputError(
            f'{codec} has no flow/campplus.onnx or .safetensors, and nothing else says how alike '
            'voices are; convert a speaker run into it (experiments/codec_24k/speaker.py)'
        )
    learnt, kept = spoken(folder)
    judge = SpeakerEncoder(*codec_directory.open_campp(codec))
    flow = flow_config(workdir, codec, training)
    own = make_voice(codec, learnt)
    prepare(workdir, learnt, codec)
    made = train(workdir, codec, flow)
    if codec_directory.has(codec, codec_vocoder.STEM):
        made = train(workdir, str(made), vocoder_config(workdir, codec, training))
    voices.save(made / VOICE, own)  # else it would speak in the voice of the codec it comes from
    heard = [audio.load(r.audio, hearing.RATE) for r in kept]
    codes = SpeechTokenizer.open(codec).encode(heard)
    old = SpeechDecoder.open(codec)
    said = {
        'before': spoken_by(old, codes), 'told': spoken_by(old, codes, own),
        'after': spoken_by(SpeechDecoder.open(str(made)), codes),
    }  # fmt: skip
    found = {name: likeness(judge, heard, waves) for name, waves in said.items()}
    shutil.move(made, out)
    return found


def main() -> None:
    given = flags.FLAGS
    found = teach(
        given.folder, given.codec, Path(given.workdir), Path(given.out),
        Training(given.steps, given.peak_lr),
    )  # fmt: skip
    print(
        f'{given.out}: likeness to the recordings that were kept back {found["after"]:.2f}, before '
        f'{found["before"]:.2f}, told the voice without training {found["told"]:.2f} (1 is the '
        'same voice)'
    )


if __name__ == '__main__':
    flags.DEFINE_string('folder', None, 'recordings of one person', required=True)
    flags.DEFINE_string('codec', None, 'codec directory to begin with', required=True)
    flags.DEFINE_string('workdir', None, 'directory for what lies between', required=True)
    flags.DEFINE_string('out', None, 'codec directory to write; must not exist', required=True)
    flags.DEFINE_integer('steps', 200, 'of training, of each network', lower_bound=1)
    flags.DEFINE_float('peak_lr', 3e-4, 'the largest learning rate', lower_bound=0.0)
    start(main)

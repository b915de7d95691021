"""Training the speaker encoder: CAM++ learns who speaks, and its vector is what it learnt it with.

Batch normalisation has two sets of numbers: those of the batch, which a step computes with, and the
moving averages that the encoder is used with. The averages are state that no gradient trains; the
parameters of the same names stay as they started and are replaced by them in the end (`encoder`).
"""

import dataclasses
import functools

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mossjax.convert.codec_meta import run_meta
from mossjax.convert.codec_parts import SAFETENSORS, Part
from mossjax.convert.codec_speaker import STEM
from mossjax.convert.source import DECODER
from mossjax.data.pipeline import Batches
from mossjax.data.segments import SpeakerBatches
from mossjax.errors import InputError
from mossjax.models.speaker import fbank
from mossjax.models.speaker.config import CamppConfig
from mossjax.models.speaker.loss import Classifier, margin_loss
from mossjax.nn.param import Network, describe
from mossjax.train import starts
from mossjax.train.config import options
from mossjax.train.recordings import Selected
from mossjax.train.starts import Run
from mossjax.train.task import FromBatches
from mossjax.values import SHARE, SIZE, Range, ranged

ENCODER = 'encoder'
STATISTICS = ('mean', 'var')


# `model` of a speaker run: every field of CamppConfig but `folded`, nothing is folded in training.
SpeakerModel = dataclasses.make_dataclass(
    'SpeakerModel',
    [(f.name, f.type, f.default) for f in dataclasses.fields(CamppConfig) if f.name != 'folded'],
    frozen=True,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeakerData(Selected):
    """`data` of a speaker run: of `Selected`, each recording with its "speaker", and

    Attributes:
      seconds: of a cut. rows: cuts in a global batch.
      speeds: at which recordings are played too; at each of them a speaker is another.
    """

    seconds: float = ranged(Range(0.2, 60), 3.0)
    rows: int = ranged(SIZE, 64)
    speeds: tuple[float, ...] = ranged(Range(0.5, 2), ())


@dataclasses.dataclass(frozen=True)
class SpeakerLoss:
    """`loss` of a speaker run.

    Attributes:
      margin: by which the cosine with the right speaker has to win; 0 is the plain softmax.
      decay: of the moving averages of batch normalisation.
    """

    margin: float = ranged(SHARE, 0.2)
    decay: float = ranged(Range(0, 1, below=True), 0.99)


@dataclasses.dataclass(frozen=True)
class SpeakerTask(FromBatches):
    """What the training loop needs to know about the speaker encoder.

    Attributes:
      config: the encoder's, no norm folded.
      batches: see `segments.SpeakerBatches`.
      speakers: how many there are.
    """

    config: CamppConfig
    batches: Batches
    speakers: int
    options: SpeakerLoss = SpeakerLoss()

    frozen = tuple(rf'{ENCODER}/.*/{name}' for name in STATISTICS)

    @functools.cached_property
    def network(self) -> Network:
        return describe(lambda rngs: Classifier(self.config, self.speakers, rngs=rngs))

    @property
    def model(self) -> dict:
        """What a checkpoint says of its parameters, so that it can be exported; see `kinds`."""
        part = Part(f'{DECODER}/{STEM}', SAFETENSORS, self.config)
        return run_meta(part, f'{ENCODER}/', STATISTICS)

    def init_extra(self, params: dict) -> dict:
        """The moving averages: the encoder's tree with its statistics alone."""
        return _nested({
            path: x for path, x in _flat(params[ENCODER]).items()
            if path.rpartition('/')[-1] in STATISTICS
        })

    def loss(self, params: dict, extra: dict, batch: dict, key: jax.Array):
        """(loss, (metrics, new extra))."""
        del key
        model = self.network.bind(params)
        model.train()
        banks = fbank.fbank(batch['audio'])
        lengths = jnp.full(len(banks), banks.shape[1])
        vectors = model.encoder(banks - jnp.mean(banks, axis=1, keepdims=True), lengths)
        seen = nnx.to_pure_dict(nnx.pop(model.encoder, nnx.Intermediate))
        seen = {path.replace('/batch/', '/'): x for path, x in _flat(seen).items()}
        decay = self.options.decay
        extra = _nested({
            path: decay * old + (1 - decay) * jax.lax.stop_gradient(seen[path].astype(old.dtype))
            for path, old in _flat(extra).items()
        })
        cosines = model.cosines(vectors)
        loss = margin_loss(cosines, batch['speakers'], self.options.margin)
        right = jnp.mean((jnp.argmax(cosines, axis=-1) == batch['speakers']).astype(jnp.float32))
        seconds = jnp.float32(batch['audio'].size / fbank.RATE)
        return loss, ({'accuracy': right, 'audio_seconds': seconds}, extra)

    def encoder(self, params: dict, extra: dict) -> dict:
        """Parameters of the trained `Campp`, what `save_campp` takes."""
        return _nested(_flat(params[ENCODER]) | _flat(extra))


def _flat(tree: dict) -> dict:
    return traverse_util.flatten_dict(tree, sep='/')


def _nested(flat: dict) -> dict:
    return traverse_util.unflatten_dict(flat, sep='/')


def run(config: ConfigDict, fresh: bool) -> Run:
    """A speaker run. See `tasks.make`."""
    data = options(config.data, SpeakerData, 'data')
    loss = options(config.loss, SpeakerLoss, 'loss')
    model = CamppConfig(**dataclasses.asdict(options(config.model, SpeakerModel, 'model')))
    if len({1, *data.speeds}) <= len(data.speeds):
        raise InputError(
            f'config.data.speeds = {data.speeds}: 1, which is always there, or a speed twice; its '
            'speakers would be others and the same. Leave it out'
        )
    batches = SpeakerBatches(
        data.clips(fbank.RATE), samples=round(data.seconds * fbank.RATE), rows=data.rows,
        seed=config.seed, skip=data.skip_rows, speeds=data.speeds,
    )  # fmt: skip
    if len(batches.speakers) < 2:
        raise InputError(
            f'{data.manifest}: {batches.speakers[0]} is the only speaker; who speaks is learnt '
            'from two or more'
        )
    task = SpeakerTask(model, batches, len(batches.speakers), loss)
    return Run(task, config, starts.speaker(config.init_from if fresh else '', task.network))


# What may be set in the open sections of a config.
SECTIONS = {'model': SpeakerModel, 'data': SpeakerData, 'loss': SpeakerLoss}

"""Training the vocoder: a generator that reads mels, and discriminators that hear what it makes.

Both players learn in one step from the same batch, each from a loss in which the other is a
constant: the sum of the two losses has the gradients of both. Each has gradients clipped by their
own norm (`apart`), and optimiser state of its own, as every parameter has.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os

from flax import traverse_util
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from mossjax import paths
from mossjax.convert.codec_meta import run_meta
from mossjax.convert.codec_parts import SAFETENSORS, Part
from mossjax.convert.codec_vocoder import STEM, stored_network
from mossjax.convert.source import DECODER
from mossjax.data import pitch, segments
from mossjax.data.manifest import Recording
from mossjax.data.pipeline import Batches
from mossjax.errors import InputError
from mossjax.models.flow.mel import HOP, RATE, log_mel
from mossjax.models.vocoder import losses
from mossjax.models.vocoder.discriminators import DiscriminatorConfig, Discriminators
from mossjax.models.vocoder.hift import source
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.nn import weight_norm
from mossjax.nn.param import Network, describe
from mossjax.train import starts
from mossjax.train.config import group, options, path
from mossjax.train.recordings import Selected
from mossjax.train.starts import Run
from mossjax.train.task import FromBatches
from mossjax.values import NOT_NEGATIVE, SIZE, Range, ranged

GENERATOR, DISCRIMINATORS = 'generator', 'discriminators'


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderData(Selected):
    """`data` of a vocoder run: of `Selected`, and

    Attributes:
      frames: of a cut, 20 ms each. rows: cuts in a global batch.
      f0: pitch store of the recordings (`data.pitch`); measured and written there if the file does
        not exist. '' where loss.f0 is 0. Recordings that it lacks train everything but pitch.
    """

    frames: int = ranged(Range(1, 3000, whole=True), 50)
    rows: int = ranged(SIZE, 16)
    f0: str = path(default='')


@dataclasses.dataclass(frozen=True)
class VocoderLoss:
    """`loss` of a vocoder run: weights, upstream's by default.

    Attributes:
      mel: of log-mels' distance. adversarial, feature: of what the discriminators say; where both
        are 0 there are none, which is a quick start for a run that has them. f0: of the distance
        in Hz.
      scales: (window = FFT size, hop, bins) of the mels that are compared, in samples.
      discriminators: `models.vocoder.discriminators.DiscriminatorConfig`.
    """

    mel: float = ranged(NOT_NEGATIVE, 45.0)
    adversarial: float = ranged(NOT_NEGATIVE, 1.0)
    feature: float = ranged(NOT_NEGATIVE, 2.0)
    f0: float = ranged(NOT_NEGATIVE, 1.0)
    scales: tuple[tuple[int, ...], ...] = ((1920, 480, 80),)
    discriminators: Mapping = group(DiscriminatorConfig)


@dataclasses.dataclass(frozen=True)
class Players:
    """The networks of a run as one: shapes, axes and initial law of {name: network}."""

    networks: Mapping[str, Network]

    @property
    def shapes(self) -> dict:
        return {name: net.shapes for name, net in self.networks.items()}

    @property
    def axes(self) -> dict:
        return {name: net.axes for name, net in self.networks.items()}

    def init(self, key: jax.Array) -> dict:
        return {
            name: net.init(jax.random.fold_in(key, i))
            for i, (name, net) in enumerate(self.networks.items())
        }


@dataclasses.dataclass(frozen=True)
class VocoderTask(FromBatches):
    """What the training loop needs to know about the vocoder.

    Attributes:
      config: the generator's.
      batches: see `segments.SegmentBatches`.
      weights: of the losses.
      judges: the discriminators'; None where there are none.
    """

    config: HiftConfig
    batches: Batches
    weights: VocoderLoss = VocoderLoss()
    judges: DiscriminatorConfig | None = DiscriminatorConfig()

    apart = True  # each network's gradients are clipped by their own norm

    @functools.cached_property
    def network(self) -> Players:
        return players(self.config, self.judges)

    @property
    def model(self) -> dict:
        """What a checkpoint says of its parameters, so that it can be exported; see `kinds`."""
        part = Part(f'{DECODER}/{STEM}', SAFETENSORS, self.config)
        return run_meta(part, f'{GENERATOR}/')

    def init_extra(self, params: dict) -> dict:
        """Nothing besides the parameters changes in training."""
        del params
        return {}

    def loss(self, params: dict, extra: dict, batch: dict, key: jax.Array):
        """(loss, (metrics, extra)); both players' losses, each with the other held constant."""
        real, fake, f0 = self.generated(params[GENERATOR], batch, key)
        found = {
            'mel': losses.mel_loss(real, fake, self.weights.scales),
            'f0': losses.f0_loss(f0, batch['f0']),
        }
        total = self.weights.mel * found['mel'] + self.weights.f0 * found['f0']
        if self.judges is not None:
            net, stop = self.network.networks[DISCRIMINATORS], jax.lax.stop_gradient
            learning = net.bind(params[DISCRIMINATORS])
            held = net.bind(stop(params[DISCRIMINATORS]))
            of_real, of_fake = learning(real), learning(stop(fake))
            heard = held(fake)
            found |= {
                'adversarial': losses.adversarial_loss(heard),
                'feature': losses.feature_loss(stop(of_real), heard),
                'judging': losses.judging_loss(of_real, of_fake),
            }
            total += (
                self.weights.adversarial * found['adversarial']
                + self.weights.feature * found['feature'] + found['judging']
            )
        seconds = jnp.float32(real.size / RATE)
        return total, (found | {'audio_seconds': seconds}, extra)

    def generated(
        self, params: dict, batch: dict, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(recorded, generated (b, w), predicted f0 (b, frames)) of a batch.

        The source is made of the measured pitch, of the predicted one (which gets no gradient
        from it) where nobody measured: while predictions are no good, a generator that hears a
        source made of them learns not to listen.
        """
        margin = segments.MARGIN * HOP
        mel = log_mel(batch['audio'])[:, segments.MARGIN : -segments.MARGIN]
        real = batch['audio'][:, margin:-margin]
        model = self.network.networks[GENERATOR].bind(params)
        lengths = jnp.full(mel.shape[0], mel.shape[1])
        f0 = model.pitch(mel, lengths)
        noise = source.noise(self.config, key, mel.shape[1])
        known = batch['f0'] > losses.UNKNOWN
        excited = model.source(jnp.where(known, batch['f0'], jax.lax.stop_gradient(f0)), noise)
        return real, model.wave(mel, excited, lengths), f0


def players(config: HiftConfig, judges: DiscriminatorConfig | None) -> Players:
    """The generator and, unless `judges` is None, its discriminators."""
    networks = {GENERATOR: stored_network(config)}
    if judges is not None:
        networks[DISCRIMINATORS] = discriminator_network(judges)
    return Players(networks)


@functools.cache  # describing takes a second
def discriminator_network(config: DiscriminatorConfig) -> Network:
    """Discriminators under weight normalisation, without which they learn much more slowly."""
    plain = describe(lambda rngs: Discriminators(config, rngs=rngs))
    flat = traverse_util.flatten_dict(plain.shapes, sep='/')
    kernels = {name: len(x.shape) - 1 for name, x in flat.items() if name.endswith('/kernel')}
    return weight_norm.normed(plain, kernels)


def run(config: ConfigDict, fresh: bool) -> Run:
    """A vocoder run; `model` has the fields of HiftConfig. See `tasks.make`."""
    data = options(config.data, VocoderData, 'data')
    weights = options(config.loss, VocoderLoss, 'loss')
    model = options(config.model, HiftConfig, 'model')
    weights = dataclasses.replace(weights, scales=tuple(map(_scale, weights.scales)))
    judges = None
    if weights.adversarial or weights.feature:
        judges = options(weights.discriminators, DiscriminatorConfig, 'loss.discriminators')
    _check_frames(data.frames, weights, judges)
    if weights.f0 and not data.f0:
        raise InputError(
            'config.data.f0 is not set; name the file of measured pitch (it is made where it does '
            'not exist), or set config.loss.f0 = 0 if the weights that the run begins with know '
            'pitch already'
        )
    clips = data.clips(RATE)
    start = starts.vocoder(config.init_from if fresh else '', players(model, judges))
    batches = segments.SegmentBatches(
        clips, _pitches(data.f0, clips.recordings) if data.f0 else {},
        frames=data.frames, rows=data.rows, seed=config.seed, skip=data.skip_rows,
    )  # fmt: skip
    return Run(VocoderTask(model, batches, weights, judges), config, start)


def _pitches(store: str, recordings: Sequence[Recording]) -> Mapping[str, np.ndarray]:
    """Measured pitch by recording; what takes long comes after everything else is known to fit."""
    if not os.path.lexists(store):
        pitch.measure(recordings, paths.file_to_write(store, 'config.data.f0'))
    return pitch.read(store)


def _scale(given: tuple) -> losses.Scale:
    if len(given) != 3 or min(given) < 1 or given[1] > given[0] or (given[0] - given[1]) % 2:
        raise InputError(
            f'config.loss.scales has {tuple(given)}; each is (window, hop, bins) in samples, the '
            'hop no longer than the window and both even or both odd'
        )
    return tuple(given)


def _check_frames(frames: int, weights: VocoderLoss, judges: DiscriminatorConfig | None) -> None:
    """Raises InputError for cuts in which not everything that listens hears a whole window."""
    needed = {f'the mel of window {s[0]}': s[0] for s in weights.scales}
    if judges is not None:
        needed['a discriminator'] = judges.shortest
    for what, samples in needed.items():
        if frames * HOP < samples:
            raise InputError(
                f'config.data.frames is {frames}, {frames * HOP} samples: {what} needs {samples}; '
                f'set it to {-(-samples // HOP)} or more'
            )


# What may be set in the open sections of a config.
SECTIONS = {'model': HiftConfig, 'data': VocoderData, 'loss': VocoderLoss}

"""Training the flow decoder: codes and 24 kHz mels of the same utterances.

Alignment: code i covers samples 1920 i .. 1920 (i + 1) of the 24 kHz wave; frames 4 i .. 4 i + 3 of
its mel lie around the middles of the quarters of that stretch. A recording is zero-padded on the
right to 1920 samples times its number of codes (the tokenizer rounds up); its mel then has exactly
four frames per code.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from mossjax import paths
from mossjax.convert.codec_flow import STEM
from mossjax.convert.codec_meta import run_meta
from mossjax.convert.codec_parts import TORCH, Part
from mossjax.convert.source import DECODER
from mossjax.data import speech, vectors
from mossjax.data.codes import CodesStore
from mossjax.data.manifest import Recording
from mossjax.data.pipeline import Batches
from mossjax.data.prompts import PromptedBatches
from mossjax.data.segments import by_speaker
from mossjax.errors import InputError
from mossjax.models.flow.config import OFFLINE, Context, FlowConfig
from mossjax.models.flow.loss import flow_loss, mu_loss
from mossjax.models.flow.mel import HOP, log_mel
from mossjax.models.flow.model import FlowDecoder
from mossjax.models.flow.scale import scale_to
from mossjax.nn.param import Network, describe
from mossjax.train import starts
from mossjax.train.config import choose, options
from mossjax.train.recordings import SpeechData
from mossjax.train.starts import Run
from mossjax.train.task import FromBatches
from mossjax.values import COUNT, NOT_NEGATIVE, SHARE, ranged

# (model, batch, key, context) -> (loss, metrics)
Loss = Callable[..., tuple[jax.Array, dict]]


@dataclasses.dataclass(frozen=True)
class FlowLoss:
    """`loss` of a decoder run.

    Attributes:
      objective: 'flow', or 'mu' for the encoder's warm start.
      mu_weight: of mu's distance from the mel beside the flow loss.
      chunk: codes per block of the attention mask (streaming); 0 sees everything.
      chunk_share: of steps that have that mask, by coin; the others see everything.
      scaled: start from weights that know the mel's scale (small networks).
    """

    objective: str = 'flow'
    mu_weight: float = ranged(NOT_NEGATIVE, 0.0)
    chunk: int = ranged(COUNT, 0)
    chunk_share: float = ranged(SHARE, 1.0)
    scaled: bool = False


@dataclasses.dataclass(frozen=True)
class FlowTask(FromBatches):
    """What the training loop needs to know about the flow decoder.

    Attributes:
      config: the network's.
      batches: {'codes' (b, n) int32, 'code_lengths' (b,) int32, and 'mel' (b, 4 n, 80) float32 or
        'audio' (b, 1920 n) float32 at 24 kHz, optionally 'xvector' (b, 192)}. Padding codes may be
        any valid id.
      objective: `flow_loss`, or `mu_loss` for the encoder's warm start.
      context: masks to train under: `Context()` sees all, `Context(chunk=config.chunk)` streams.
      statistics: (mean, std) of the mel per bin for a small network's start, see `scale_to`.
      remat: wraps the scanned layers, e.g. `jax.checkpoint`.
      context_share: of steps under `context`, by coin; the others see all.
    """

    config: FlowConfig
    batches: Batches
    objective: Loss = functools.partial(flow_loss, mu_weight=0.0)
    context: Context = OFFLINE
    statistics: tuple[np.ndarray, np.ndarray] | None = None
    remat: Callable = lambda f: f
    context_share: float = 1.0

    def __post_init__(self):
        if self.context.held:
            raise InputError('flow training: the context holds codes back; train with held = 0')

    @property
    def _always(self) -> bool:
        """Whether every step has the same mask."""
        return self.context == OFFLINE or self.context_share == 1

    @functools.cached_property
    def network(self) -> Network:
        net = describe(lambda rngs: FlowDecoder(self.config, remat=self.remat, rngs=rngs))
        if self.statistics is None:
            return net
        return _Scaled(net.make, net.graphdef, net.shapes, net.axes, self.statistics)

    @property
    def model(self) -> dict:
        """What a checkpoint says of its parameters, so that it can be exported; see `kinds`."""
        both = self.context.chunk is None or not self._always  # then it decodes either way
        stem = STEM if both else f'{STEM}-chunk-{self.context.chunk}'
        return run_meta(Part(f'{DECODER}/{stem}', TORCH, self.config))

    def init_extra(self, params: dict) -> dict:
        """Nothing besides the parameters changes in training."""
        del params
        return {}

    def loss(self, params: dict, extra: dict, batch: dict, key: jax.Array):
        """(loss, (metrics, extra)); mels of audio are computed here, on the device."""
        batch = dict(batch)
        if 'mel' not in batch:
            batch['mel'] = aligned_mel(batch['audio'], batch['codes'].shape[1], self.config)
        if 'xvector' not in batch:
            shape = (batch['codes'].shape[0], self.config.xvector_size)
            batch['xvector'] = jnp.zeros(shape, batch['mel'].dtype)
        model = self.network.bind(params)

        context = self.context
        if not self._always:
            # A key of its own: fold_in(key, 0) would be one of those that the loss splits off.
            coin_key, key = jax.random.split(key)
            coin = jax.random.uniform(coin_key) < self.context_share
            # A chunk as long as the row sees all. One program, of which the mask is data: with a
            # branch for each a step took four times as long on a CPU.
            everything = max(context.chunk, batch['codes'].shape[1])
            context = Context(chunk=jnp.where(coin, context.chunk, everything))
        loss, metrics = self.objective(model, batch, key, context=context)
        return loss, (metrics, extra)


@dataclasses.dataclass(frozen=True)
class _Scaled(Network):
    """A network whose fresh parameters know the mel's scale."""

    statistics: tuple[np.ndarray, np.ndarray]

    def init(self, key: jax.Array) -> dict:
        return scale_to(super().init(key), *self.statistics)


def aligned_mel(audio: jax.Array, codes: int, config: FlowConfig) -> jax.Array:
    """(b, w) at 24 kHz -> (b, ratio * codes, 80), zero-padded or cut on the right to the codes.

    Only the last frame of a row that ends early differs from the mel of that row alone: there the
    row meets its padding instead of its reflection, as it does when zero-padded to whole codes.
    """
    samples = HOP * config.ratio * codes
    audio = jnp.pad(audio, ((0, 0), (0, max(0, samples - audio.shape[1]))))[:, :samples]
    return log_mel(audio)


def run(config: ConfigDict, fresh: bool) -> Run:
    """A decoder run; `model` has the fields of FlowConfig. See `tasks.make`."""
    data = options(config.data, SpeechData, 'data')
    loss = options(config.loss, FlowLoss, 'loss')
    model = options(config.model, FlowConfig, 'model')
    if not data.codes:
        raise InputError('config.data.codes is not set; tokenize the recordings and name the file')
    clips, codes = data.clips(24_000), CodesStore.open(data.codes)
    make = speech.DecoderBatches
    if data.prompts or data.vectors:
        by_speaker(clips.recordings)
        for recording in clips.recordings:
            codes.versions(recording.audio)  # refused before vectors are measured, for minutes
        make = functools.partial(
            PromptedBatches, prompts=data.prompts, longest=data.prompt_codes,
            vectors=_vectors(data, clips.recordings, model) if data.vectors else None,
        )  # fmt: skip
    batches = make(
        clips, codes, undisturbed=data.undisturbed,
        **data.batching(config.seed),
    )
    objectives = {
        'flow': functools.partial(flow_loss, mu_weight=loss.mu_weight), 'mu': mu_loss
    }  # fmt: skip
    task = FlowTask(
        model,
        batches,
        objective=choose(objectives, loss.objective, 'loss.objective'),
        context=Context(chunk=loss.chunk or None),
        context_share=loss.chunk_share,
        statistics=mel_statistics(batches, model) if loss.scaled and fresh else None,
    )
    return Run(task, config, starts.decoder(config.init_from if fresh else ''))


def _vectors(
    data: SpeechData, recordings: Sequence[Recording], config: FlowConfig
) -> Mapping[str, np.ndarray]:
    """Speaker vectors by recording, measured if they are not.

    Raises:
      InputError: no codec is named, or the decoder takes vectors of another length.
    """
    if not data.speaker:
        raise InputError(
            'config.data.vectors names a store of speaker vectors, config.data.speaker no codec; '
            'name the one whose speaker encoder makes them'
        )
    store = data.vectors
    if not os.path.lexists(store):
        target = paths.file_to_write(store, 'config.data.vectors')
        vectors.measure(recordings, target, data.speaker)
    found = vectors.read(store, data.speaker)
    for path, vector in found.items():
        if len(vector) != config.xvector_size:
            raise InputError(
                f'{store}: the vector of {path} has {len(vector)} numbers, the decoder takes '
                f'config.model.xvector_size = {config.xvector_size}'
            )
    return found


def mel_statistics(
    batches: speech.DecoderBatches, config: FlowConfig, count: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std) per mel bin over the codes of a few batches."""
    frames = []
    for step in range(count):
        batch = batches.batch(step)
        mel = np.asarray(aligned_mel(batch['audio'], batch['codes'].shape[1], config))
        frames += [
            row[: n * config.ratio] for row, n in zip(mel, batch['code_lengths'], strict=True)
        ]
    frames = np.concatenate(frames)
    return frames.mean(axis=0), frames.std(axis=0)


# What may be set in the open sections of a config.
SECTIONS = {'model': FlowConfig, 'data': SpeechData, 'loss': FlowLoss}

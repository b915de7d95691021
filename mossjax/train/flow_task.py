"""Training task of the flow decoder: codes and 24 kHz mels of the same utterances.

Alignment: code i covers samples 1920 i .. 1920 (i + 1) of the 24 kHz wave; frames 4 i .. 4 i + 3 of
its mel lie around the middles of the quarters of that stretch. A recording is zero-padded on the
right to 1920 samples times its number of codes (the tokenizer rounds up); its mel then has exactly
four frames per code.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.data.pipeline import Batch, Batches
from mossjax.errors import InputError
from mossjax.models.flow.config import OFFLINE, Context, FlowConfig
from mossjax.models.flow.loss import flow_loss
from mossjax.models.flow.mel import HOP, log_mel
from mossjax.models.flow.model import FlowDecoder
from mossjax.models.flow.scale import scale_to
from mossjax.nn.param import Network, describe

# (model, batch, key, context) -> (loss, metrics)
Loss = Callable[..., tuple[jax.Array, dict]]


@dataclasses.dataclass(frozen=True)
class FlowTask:
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
    """

    config: FlowConfig
    batches: Batches
    objective: Loss = functools.partial(flow_loss, mu_weight=0.0)
    context: Context = OFFLINE
    statistics: tuple[np.ndarray, np.ndarray] | None = None
    remat: Callable = lambda f: f

    def __post_init__(self):
        if self.context.held:
            raise InputError('flow training: the context holds codes back; train with held = 0')

    @functools.cached_property
    def network(self) -> Network:
        net = describe(lambda rngs: FlowDecoder(self.config, remat=self.remat, rngs=rngs))
        if self.statistics is None:
            return net
        return _Scaled(net.make, net.graphdef, net.shapes, net.axes, self.statistics)

    def size(self, step: int) -> int:
        return self.batches.size(step)

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        return self.batches.batch(step, rows)

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
        loss, metrics = self.objective(model, batch, key, context=self.context)
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


def pad_batch(items: list[tuple[np.ndarray, np.ndarray]], codes: int) -> dict:
    """(codes, mel) pairs -> one batch padded to a common number of codes.

    Raises:
      InputError: a mel without four frames per code, or an item longer than the batch.
    """
    ratio = 4
    batch = {
        'codes': np.zeros((len(items), codes), np.int32),
        'code_lengths': np.array([len(c) for c, _ in items], np.int32),
        'mel': np.zeros((len(items), ratio * codes, items[0][1].shape[1]), np.float32),
    }
    for row, (ids, mel) in enumerate(items):
        if len(mel) != ratio * len(ids) or len(ids) > codes:
            raise InputError(
                f'item {row}: {len(ids)} codes and {len(mel)} mel frames do not fit a batch of '
                f'{codes} codes with {ratio} frames each; zero-pad its audio to 1920 samples a code'
            )
        batch['codes'][row, : len(ids)] = ids
        batch['mel'][row, : len(mel)] = mel
    return batch

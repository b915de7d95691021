"""Training the speech tokenizer: codes that a recogniser behind them can read.

Batch, all numpy arrays:
  audio (b, w) float32 or int16, 16 kHz, zero-padded, w a multiple of 1280
  lengths (b,) int32, samples
  phones (b, w / 320) int32 frame labels at 50 Hz, -1 for none     (objective 'frames')
  targets (b, u) int32, target_lengths (b,) int32                  (objective 'ctc')
  text (b, u) int32, -100 not supervised                           (objective 'text')
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import os
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mossjax.convert import kinds, tokenizer_rules
from mossjax.data import speech
from mossjax.data.clips import Clips
from mossjax.data.labels import Inventory, Transcripts
from mossjax.data.pipeline import Batches
from mossjax.errors import InputError
from mossjax.models.tokenizer import asr, mel, quantizer
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.models.tokenizer.quantizer import Codebook
from mossjax.nn.param import Network, describe
from mossjax.train import starts
from mossjax.train.augment import Inputs, distorted, plain
from mossjax.train.config import choose, options
from mossjax.train.recordings import SpeechData
from mossjax.train.starts import Run
from mossjax.train.task import FromBatches
from mossjax.values import COUNT, NOT_NEGATIVE, SIZE, ranged

# Vectors remembered per step while there is no codebook, and steps remembered.
ROWS_PER_STEP = 256
COMMITMENT = {
    'absolute': quantizer.absolute_commitment, 'relative': quantizer.relative_commitment
}  # fmt: skip
INPUTS = {'distorted': distorted, 'plain': plain}


@dataclasses.dataclass(frozen=True)
class TokenizerLoss:
    """`loss` of a tokenizer run, see `TokenizerTask`.

    Attributes:
      text: weight of the text decoder's cross-entropy (upstream's objective; needs data.tokenizer).
      ctc, frames: weights of the objectives on phones or characters.
      commitment: 'absolute' (upstream, from a trained encoder) or 'relative' (from nothing).
      penalty: weight of the mean square of the vectors.
      warmup: steps without a codebook. remembered: steps whose vectors then start it.
      threshold: see TokenizerTask.
      inputs: 'distorted' or 'plain'.
    """

    text: float = ranged(NOT_NEGATIVE, 0.0)
    ctc: float = ranged(NOT_NEGATIVE, 0.0)
    frames: float = ranged(NOT_NEGATIVE, 0.0)
    commitment: str = 'absolute'
    penalty: float = ranged(NOT_NEGATIVE, 0.0)
    warmup: int = ranged(COUNT, 0)
    remembered: int = ranged(SIZE, 32)
    threshold: float = ranged(NOT_NEGATIVE, 0.1)
    inputs: str = 'distorted'


class Objective(NamedTuple):
    """A head and what it is trained for.

    Attributes:
      weight: factor of its loss.
      make: (config, rngs=...) -> head module.
      loss: see `asr.HeadLoss`.
    """

    weight: float
    make: Callable[..., Any]
    loss: asr.HeadLoss


def objectives(
    *, text: float = 0.0, ctc: float = 0.0, frames: float = 0.0, phones: int = 0
) -> dict[str, Objective]:
    """The objectives of non-zero weight.

    Args:
      text: Whisper decoder on text ids (upstream's objective). ctc: CTC on `targets`.
      frames: each code classifies the phones of its own 80 ms.
      phones: number of symbols of `targets` and `phones`, the CTC blank not counted.
    """
    if (ctc or frames) and phones < 1:
        raise InputError('tokenizer training: objectives on phones need their number, phones > 0')

    def frame_head(config, rngs):
        return asr.PhoneHead(config, phones, config.pool, rngs=rngs)

    def ctc_head(config, rngs):
        return asr.PhoneHead(config, phones + 1, asr.CTC_FRAMES, rngs=rngs)

    chosen = {
        'text': Objective(text, asr.TextDecoder, asr.text_loss),
        'ctc': Objective(ctc, ctc_head, asr.ctc_loss),
        'frames': Objective(frames, frame_head, asr.frame_loss),
    }
    return {name: objective for name, objective in chosen.items() if objective.weight}


@dataclasses.dataclass(frozen=True)
class TokenizerTask(FromBatches):
    """What the training loop needs to know about the tokenizer.

    Attributes:
      config: the network's; its commitment, loss_scale, decay and restart_interval train the
        codebook.
      batches: the data; planning needs none.
      objectives: {name: Objective}.
      inputs: `distorted` or `plain`.
      commitment: `quantizer.absolute_commitment` (upstream, from a trained encoder) or
        `relative_commitment` (from nothing).
      penalty: weight of the mean square of the vectors, which bounds them where the commitment is
        relative.
      warmup: steps without a codebook; then it starts by k-means on recent vectors.
      remembered: steps whose vectors take part in that start.
      start: the codebook to begin with where warmup is 0; drawn at random by default.
      threshold: codes whose moving count falls below threshold * decay ** restart_interval are
        restarted.
      remat: wraps the scanned layers, e.g. `jax.checkpoint`.
    """

    config: TokenizerConfig
    batches: Batches
    objectives: Mapping[str, Objective]
    inputs: Callable[..., Inputs] = distorted
    commitment: Callable[..., jax.Array] = quantizer.absolute_commitment
    penalty: float = 0.0
    warmup: int = 0
    remembered: int = 32
    start: Codebook | None = None
    threshold: float = 0.1
    remat: Callable = lambda f: f

    # Parameters the optimiser must leave alone: stored positions get no gradient, but weight decay
    # would still move them.
    frozen = (r'encoder/positions/table', r'upper/positions/table')

    def __post_init__(self):
        kept = min(self.warmup, self.remembered) * ROWS_PER_STEP
        if self.warmup and kept < self.config.codes:
            raise InputError(
                f'tokenizer training: {kept} remembered vectors cannot start {self.config.codes} '
                f'codes; raise warmup and remembered to {-(-self.config.codes // ROWS_PER_STEP)} '
                'or more'
            )
        if not self.objectives:
            raise InputError('tokenizer training: no objective has a weight; give one')

    @functools.cached_property
    def network(self) -> Network:
        heads = {name: objective.make for name, objective in self.objectives.items()}
        return describe(lambda rngs: asr.Recogniser(
            self.config, heads, remat=self.remat, rngs=rngs
        ))

    @property
    def model(self) -> dict:
        """What a checkpoint says of its parameters, so that it can be exported; see `kinds`."""
        configs = dict(zip((kinds.CONFIG, kinds.PREPROCESSOR), self.config.to_hf(), strict=True))
        return {
            'kind': kinds.TOKENIZER, 'configs': configs, 'prefix': tokenizer_rules.PREFIXES[0],
            'trained': True,
        }  # fmt: skip

    def init_extra(self, params: dict) -> dict:
        """The codebook, the step, and the vectors remembered for the codebook's start."""
        del params
        book = self.start
        if book is None:
            shape = (self.config.codes, self.config.d)
            book = quantizer.from_codes(0.02 * jax.random.normal(jax.random.key(0), shape))
        extra = {'codebook': book, 'step': jnp.zeros((), jnp.int32)}
        if self.warmup:
            kept = min(self.warmup, self.remembered) * ROWS_PER_STEP
            extra['recent'] = jnp.zeros((kept, self.config.d), jnp.float32)
        return extra

    def loss(self, params: dict, extra: dict, batch: dict, key: jax.Array):
        """(loss, (metrics, new extra))."""
        keys = jax.random.split(key, 4)
        model = self.network.bind(params)
        features, mask, labels = self.inputs(self.config, batch, keys[0])
        # Codebook and commitment stay float32 where the network computes in bfloat16.
        vectors = model.encoder(features)
        p = vectors.astype(jnp.float32)
        on = extra['step'] >= self.warmup
        book = self._started(extra, keys[1])
        ids = quantizer.nearest(jax.lax.stop_gradient(p), book.codes)
        q = book.codes[ids]
        chosen = jnp.where(on, quantizer.straight_through(p, q), p)
        hidden = model.upper(chosen.astype(vectors.dtype))

        scale = self.config.commitment * self.config.loss_scale
        commitment = jnp.where(on, self.commitment(p, q, mask), 0.0)
        square = quantizer.masked_mean(jnp.mean(jnp.square(p), axis=-1), mask)
        total = scale * commitment + self.penalty * square
        metrics = {
            'commitment': scale * commitment, 'variance': quantizer.variance(p, mask),
            'audio_seconds': jnp.sum(mask) * (self.config.stride / mel.RATE),
        }
        for name, objective in self.objectives.items():
            value, more = objective.loss(model.heads[name], hidden, labels, mask)
            total += objective.weight * value
            metrics |= {name: value, **more}
        metrics |= _usage_metrics(ids, mask, self.config.codes)

        followed = self._followed(book, p, ids, mask, keys[2])
        new = {
            'codebook': jax.tree.map(lambda a, b: jnp.where(on, a, b), followed, book),
            'step': extra['step'] + 1,
        }
        if self.warmup:
            new['recent'] = self._remember(extra, p, mask, keys[3])
        return total, (metrics, jax.lax.stop_gradient(new))

    def _started(self, extra: dict, key: jax.Array) -> Codebook:
        """The codebook of this step; at the end of the warm-up, a fresh one by k-means."""
        if not self.warmup:
            return extra['codebook']
        start = functools.partial(
            quantizer.start_codebook, codes=self.config.codes,
            scale=ROWS_PER_STEP / extra['recent'].shape[0],
        )
        return jax.lax.cond(
            extra['step'] == self.warmup, start, lambda *_: extra['codebook'], extra['recent'], key
        )

    def _remember(self, extra: dict, p: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """A ring of random vectors of the last steps, written only during the warm-up."""
        recent = extra['recent']
        rows, _ = quantizer.draw_rows(key, mask, ROWS_PER_STEP)
        new = p.reshape(-1, p.shape[-1])[rows].astype(jnp.float32)
        at = extra['step'] * ROWS_PER_STEP % recent.shape[0]
        written = jax.lax.dynamic_update_slice(recent, new, (at, 0))
        return jnp.where(extra['step'] < self.warmup, written, recent)

    def _followed(self, book, p, ids, mask, key) -> Codebook:
        """The codebook after this step: moving average, and now and then restarts."""
        decay, interval = self.config.decay, self.config.restart_interval
        book = quantizer.follow(book, p, ids, mask, decay)
        restart = functools.partial(
            quantizer.restart, threshold=self.threshold * decay**interval
        )
        due = book.updates % interval == 0
        return jax.lax.cond(due, restart, lambda book, *_: book, book, p, mask, key)

    def tokenizer(self, params: dict, extra: dict) -> dict:
        """Parameters of the trained `Tokenizer`, what `save_tokenizer` takes."""
        return {'encoder': params['encoder'], 'codebook': extra['codebook'].codes}


def _usage_metrics(ids: jax.Array, mask: jax.Array, codes: int) -> dict:
    share = quantizer.usage(ids, mask, codes)
    active = jnp.sum(share > 0)
    share = share / jnp.maximum(jnp.sum(share), 1.0)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0.0))
    return {'active_codes': active.astype(jnp.float32), 'perplexity': jnp.exp(entropy)}


def run(config: ConfigDict, fresh: bool) -> Run:
    """A tokenizer run; `model` has the fields of TokenizerConfig. See `tasks.make`."""
    data = options(config.data, SpeechData, 'data')
    loss = options(config.loss, TokenizerLoss, 'loss')
    model = options(config.model, TokenizerConfig, 'model')
    transcripts = None
    if loss.text:
        if not data.tokenizer:
            raise InputError(
                'config.loss.text needs the ids of the texts: name the directory of their '
                'tokenizer.json in config.data.tokenizer'
            )
        transcripts = Transcripts(data.tokenizer, model.vocab, model.target_positions)
    _check_targets(loss, data)
    clips = data.clips(16_000)
    inventory = _inventory(data, clips)
    batches = speech.TokenizerBatches(
        clips, inventory, transcripts, room=data.room, **data.batching(config.seed)
    )
    chosen = objectives(
        text=loss.text, ctc=loss.ctc, frames=loss.frames, phones=len(inventory)
    )
    start, book = starts.tokenizer(config.init_from if fresh else '', model, chosen)
    task = TokenizerTask(
        model,
        batches,
        chosen,
        inputs=choose(INPUTS, loss.inputs, 'loss.inputs'),
        commitment=choose(COMMITMENT, loss.commitment, 'loss.commitment'),
        penalty=loss.penalty,
        warmup=loss.warmup,
        remembered=loss.remembered,
        start=book,
        threshold=loss.threshold,
    )
    return Run(task, config, start)


def _check_targets(loss: TokenizerLoss, data: SpeechData) -> None:
    """Raises InputError for an objective that no recording has targets for: it would be silent."""
    recordings = data.recordings()
    for name, keys in (('text', ['text']), ('ctc', ['times', 'text']), ('frames', ['times'])):
        having = sum(any(getattr(r, key) for key in keys) for r in recordings)
        if not getattr(loss, name) or having == len(recordings):
            continue
        if not having:
            raise InputError(
                f'config.loss.{name} = {getattr(loss, name):g} would train nothing: no recording '
                f'of {data.manifest} has "{keys[0]}"; set it to 0, or write "{keys[0]}" into the '
                'manifest'
            )
        logging.info('loss.%s: %d of %d recordings have targets', name, having, len(recordings))


def _inventory(data: SpeechData, clips: Clips) -> Inventory:
    if not data.inventory:
        return Inventory.of(clips.recordings)
    if os.path.lexists(data.inventory):
        return Inventory.open(data.inventory)
    inventory = Inventory.of(clips.recordings)
    inventory.save(data.inventory)
    return inventory


# What may be set in the open sections of a config.
SECTIONS = {'model': TokenizerConfig, 'data': SpeechData, 'loss': TokenizerLoss}

"""Training the language model: its options, its task on packed rows, its runs.

Batch: `data.rows`, int32 tokens (r, t, 2), labels (r, t, 2), segments (r, t), positions (r, t).
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from pathlib import Path
import re

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from mossjax import buckets
from mossjax.convert import kinds
from mossjax.data.builder import open_rows
from mossjax.data.chunks import CODES_PER_SECOND
from mossjax.data.format import check_rows
from mossjax.data.pipeline import Batches, FixedRows, RowBatches
from mossjax.data.rows import IGNORE, Row
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.models.lm import flops as flops_lib
from mossjax.models.lm import loss as loss_lib
from mossjax.models.lm.bounds import bounded
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.matrices import matrix
from mossjax.models.lm.model import TEXT, keep_all, network
from mossjax.models.lm.text import TextTokenizer
from mossjax.nn.flash import flash
from mossjax.nn.lora import Lora, adapt
from mossjax.nn.param import Network
from mossjax.nn.remat import remat
from mossjax.nn.splash import splash
from mossjax.ops.attention import attention
from mossjax.paths import in_bucket
from mossjax.train import optim, starts
from mossjax.train.config import choose, group, options, path
from mossjax.train.starts import Run
from mossjax.train.task import FromBatches
from mossjax.values import COUNT, NOT_NEGATIVE, POSITIVE, SIZE, Range, ranged

MEAN = {'joint': loss_lib.joint, 'channel': loss_lib.per_channel}
CORRUPT = {'stop': False, 'skip': True}
ATTENTION = {'reference': attention, 'flash': flash, 'splash': splash}


@functools.cache
def _settings(folder: str, name: str) -> str:
    """A folder on this machine with the JSON files of one that may be in a bucket."""
    if not in_bucket(folder):
        return folder
    return str(buckets.fetched(folder, name, lambda key: re.fullmatch(r'[^/]+\.json', key)))


@dataclasses.dataclass(frozen=True)
class LMModel:
    """`model` of a language model run.

    Attributes:
      config: a Hugging Face directory (its config.json is read), or 'released' (9.1 B).
      tokenizer: directory of tokenizer.json; with it the loss of replies is logged by itself.
      attention: 'reference', or 'flash': on a TPU our kernels, on a GPU cuDNN's ('splash' is the
        kernel for TPUs that jax ships).
      remat: 'none', 'projections', 'heads', 'attention' or 'full', see `nn.remat`.
      lora: fields of `nn.lora.Lora` (rank, alpha, targets) to train adapters only; {} trains the
        weights themselves.
    """

    config: str = path()
    tokenizer: str = path(default='')
    attention: str = 'reference'
    remat: str = 'none'
    lora: Mapping = group(Lora)

    def read(self) -> LMConfig:
        if self.config == 'released':
            return LMConfig.released()
        file = Path(_settings(self.config, 'config.model.config')) / 'config.json'
        return LMConfig.from_hf(read_json(file), where=str(file))

    def open_tokenizer(self) -> TextTokenizer | None:
        if not self.tokenizer:
            return None
        return TextTokenizer.open(_settings(self.tokenizer, 'config.model.tokenizer'))


@dataclasses.dataclass(frozen=True)
class LMData:
    """`data` of a language model run.

    Attributes:
      rows: name -> directory of packed rows (`data.builder`).
      weights: name -> share of the rows of a batch.
      batch_size: rows of a global batch.
      context: positions of a row, for which the run is laid out: others are refused; 0 for any.
      held_out: name -> directory of rows to evaluate on (config.held_out_every), held_out_rows: how
        many of each, from its start.
      skip_rows: name -> numbers of rows that train nothing, e.g. {'dialogues': (12, 13)}: blank
        ones stand in their places.
      corrupt: 'stop' at a row that cannot be read or has an id outside the vocabulary, or 'skip'
        it, with a warning.
    """

    rows: Mapping[str, str] = path()
    weights: Mapping[str, float] = ranged(POSITIVE)
    batch_size: int = ranged(Range(1, 1_000_000, whole=True))
    context: int = ranged(COUNT, 0)
    held_out: Mapping[str, str] = path(default_factory=dict)
    held_out_rows: int = ranged(SIZE, 64)
    skip_rows: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    corrupt: str = 'stop'


@dataclasses.dataclass(frozen=True)
class LMLoss:
    """`loss` of a language model run, see `models.lm.loss.loss`.

    Attributes:
      text_weight, audio_weight: of the channels. One of weight 0 is not built, and its branch, norm
        and head are not trained.
      mean: 'joint' for the mean over the targets of both channels, or 'channel' for the sum of a
        mean over each.
      z_weight: of the z-loss.
      chunk: positions whose logits exist at a time.
    """

    text_weight: float = ranged(NOT_NEGATIVE, 1.0)
    audio_weight: float = ranged(NOT_NEGATIVE, 1.0)
    mean: str = 'joint'
    z_weight: float = ranged(NOT_NEGATIVE, 0.0)
    chunk: int = ranged(SIZE, 2048)


@dataclasses.dataclass(frozen=True)
class LMTask(FromBatches):
    """What the training loop needs to know about the language model.

    Attributes:
      config: the network's.
      batches: the data; planning needs none.
      attend, remat: see `models.lm.model.LanguageModel`.
      text_weight, audio_weight, mean, z_weight: see `LMLoss` and `models.lm.loss`.
      chunk: positions of one device whose logits exist at a time.
      reply: the two text ids that open the assistant's turn (`<|im_start|>`, `assistant`). Given,
        the loss of the replies is logged by itself: in rows that are supervised whole it drowns
        among question codes, which nothing can predict.
      held_out: rows to evaluate on, if any.
      lora: train adapters on frozen weights; parameters are then {'base': ..., 'lora': ...}.
    """

    config: LMConfig
    batches: Batches
    attend: Callable = attention
    remat: Callable = keep_all
    text_weight: float = 1.0
    audio_weight: float = 1.0
    mean: loss_lib.Mean = loss_lib.joint
    z_weight: float = 0.0
    chunk: int = 2048
    reply: tuple[int, int] | None = None
    lora: Lora | None = None
    held_out: FixedRows | None = None

    @functools.cached_property
    def network(self) -> Network:
        net = network(self.config, attend=self.attend, remat=self.remat)
        return net if self.lora is None else adapt(net, self.lora, matrix)

    def __post_init__(self):
        if not self.weights:
            raise InputError(
                'config.loss.text_weight and audio_weight are both 0: nothing would be trained'
            )

    @property
    def weights(self) -> dict[str, float]:
        """Of the channels that are built."""
        weights = {'text': self.text_weight, 'audio': self.audio_weight}
        return {channel: weight for channel, weight in weights.items() if weight}

    @property
    def frozen(self) -> tuple[str, ...]:
        """Weights under adapters are never trained, nor is a channel that is not built."""
        base = () if self.lora is None else ('base/.*',)
        idle = [channel for channel in loss_lib.CHANNELS if channel not in self.weights]
        return (*base, *(rf'(base/)?{channel}_(branch|norm|head)/.*' for channel in idle),
                *(rf'lora/{channel}_.*' for channel in idle if self._adapted(channel)))  # fmt: skip

    def _adapted(self, channel: str) -> bool:
        return self.lora is not None and any(
            name.startswith(f'{channel}_') for name in self.network.shapes['lora']
        )

    @property
    def model(self) -> dict:
        """What a checkpoint says of its parameters, so that it can be exported; see `kinds`."""
        adapted = {} if self.lora is None else {'lora': dataclasses.asdict(self.lora)}
        configs = {kinds.CONFIG: self.config.to_hf()}
        return {'kind': kinds.LANGUAGE_MODEL, 'configs': configs, **adapted}

    def init_extra(self, params: dict) -> dict:
        del params
        return {}

    def consumed(self, step: int) -> int | None:
        """Rows of all batches before a step, where the batches can go on from any row."""
        return self.batches.consumed(step) if isinstance(self.batches, RowBatches) else None

    def at(self, step: int, rows: int) -> 'LMTask':
        """The task whose batches before `step` have consumed so many rows."""
        return dataclasses.replace(self, batches=self.batches.at(step, rows))

    def loss(self, params, extra, batch, key):
        return self.part(params, extra, batch, key, self.counts(batch))

    def counts(self, batch: dict) -> dict:
        """See `task.Task`."""
        return loss_lib.count(batch, self.weights, self._watched(batch))

    def part(self, params, extra, batch, key, counts):
        """See `task.Task`."""
        del key
        loss, metrics = loss_lib.loss(
            self.network.bind(params), batch, weights=self.weights, mean=self.mean,
            z_weight=self.z_weight, chunk=self.chunk, watch=self._watched(batch), counts=counts,
        )
        if self.attend is flash:  # which road the kernel is sure to take, see `models.lm.bounds`
            base = params if self.lora is None else params['base']
            sure = jnp.concatenate(list(bounded(base).values())).astype(jnp.float32)
            here, all_of_it = (
                sum(of[name.format(channel)] for channel in self.weights)
                for of, name in ((metrics, '{}_count'), (counts, '{}'))
            )
            # Metrics of parts of a batch are added up.
            metrics['attention_known_maximum'] = jnp.mean(sure) * here / jnp.maximum(all_of_it, 1.0)
        real = batch['segments'] > 0
        speech = real & (batch['tokens'][..., TEXT] == self.config.modality_pad_token_id)
        metrics['tokens'] = jnp.sum(real, dtype=jnp.float32)
        metrics['audio_seconds'] = jnp.sum(speech, dtype=jnp.float32) / CODES_PER_SECOND
        return loss, (metrics, extra)

    def flops(self, batch: dict, frozen: tuple[str, ...]) -> tuple[float, float]:
        """See `task.Task`."""
        context = batch['tokens'].shape[1]
        trainable, _ = optim.split(self.network.shapes, (*frozen, *self.frozen))
        trainable, adapters = trainable['lora'] if self.lora else trainable, 0
        if self.lora:  # the gradient of an adapted head is made whole, that of other weights never
            heads = {name: x for name, x in trainable.items() if name.endswith('_head')}
            adapters = optim.count(trainable) - optim.count(heads)
            trainable = heads
        parts = set(trainable)
        parts |= {'embed'} if parts & {'text_embed', 'audio_embed'} else set()
        return flops_lib.convention(self.config, context), flops_lib.done(
            self.config, context, parts.__contains__, tuple(self.weights), adapters
        )

    def _watched(self, batch: dict) -> dict[str, jax.Array]:
        return {'reply': reply_positions(batch, *self.reply)} if self.reply else {}


def reply_positions(batch: dict, turn: int, assistant: int) -> jax.Array:
    """(r, t) bool: positions whose last opened turn, in their own segment, is the assistant's.

    Args:
      turn: text id that opens any turn; the id after it names the speaker.
      assistant: that name.
    """
    text, segments = batch['tokens'][..., TEXT], batch['segments']
    t = text.shape[1]
    opened = jax.lax.cummax(jnp.where(text == turn, jnp.arange(t), -1), axis=1)
    at = jnp.maximum(opened, 0)
    speaker = jnp.take_along_axis(text, jnp.minimum(at + 1, t - 1), axis=1)
    own = jnp.take_along_axis(segments, at, axis=1) == segments
    return (opened >= 0) & own & (speaker == assistant) & (jnp.arange(t) > opened)


def row_fault(config: LMConfig, row: Row) -> str | None:
    """What is wrong with a packed row: ids outside the vocabularies of the model."""
    sizes = np.array([config.vocab_size, config.audio_vocab_size])
    tokens, labels = row['tokens'], row['labels']
    for name, x, good in (
        ('tokens', tokens, (tokens >= 0) & (tokens < sizes)),
        ('labels', labels, (labels >= 0) & (labels < sizes) | (labels == IGNORE)),
    ):
        if not good.all():
            at, channel = np.argwhere(~good)[0]
            return f'{name}[{at}, {channel}] is {x[at, channel]}, the vocabulary {sizes[channel]}'
    return None


def make_task(config, batches: Batches | None) -> LMTask:
    """The task of a language model config on given batches (planning needs none)."""
    model = options(config.model, LMModel, 'model')
    attend = choose(ATTENTION, model.attention, 'model.attention')
    reply, tokenizer = None, model.open_tokenizer()
    if tokenizer:
        reply = (tokenizer.im_start, tokenizer.encode_plain('assistant')[0])
    loss = dataclasses.asdict(options(config.loss, LMLoss, 'loss'))
    loss['mean'] = choose(MEAN, loss['mean'], 'loss.mean')
    return LMTask(
        model.read(), batches, attend=attend, remat=remat(model.remat),
        reply=reply, lora=_lora(model.lora), **loss,
    )  # fmt: skip


def _lora(given: Mapping) -> Lora | None:
    if not given:  # `options` has left out what is not set
        return None
    lora = options(given, Lora, 'model.lora')
    return dataclasses.replace(lora, targets=tuple(lora.targets))


def run(config: ConfigDict, fresh: bool) -> Run:
    data = options(config.data, LMData, 'data')
    model = options(config.model, LMModel, 'model')
    options(config.loss, LMLoss, 'loss')  # refused before data is opened
    sources, held_out = (
        {name: open_rows(directory) for name, directory in rows.items()}
        for rows in (data.rows, data.held_out)
    )
    task = make_task(config, None)
    batches = RowBatches(
        sources, data.batch_size, config.seed, weights=dict(data.weights),
        skip_rows=data.skip_rows, fault=functools.partial(row_fault, task.config),
        skip_corrupt=choose(CORRUPT, data.corrupt, 'data.corrupt'),
    )
    task = dataclasses.replace(
        task, batches=batches,
        held_out=FixedRows(held_out, data.batch_size, data.held_out_rows) if held_out else None,
    )  # fmt: skip
    tokenizer = model.open_tokenizer()
    for name, source in (*sources.items(), *held_out.items()):
        check_rows(source.metadata, name, task.config, tokenizer)
        if data.context and source.metadata['length'] != data.context:
            raise InputError(
                f'rows {name} have {source.metadata["length"]} positions, config.data.context is '
                f'{data.context}: pack them anew to that, or change it (and look whether a step '
                'still fits the memory of a chip)'
            )
    start = None
    if fresh:
        begin = starts.language_model if task.lora is None else starts.adapters
        start = begin(config.init_from, task.config, task.network, config.seed)
    return Run(task, config, start)


# What may be set in the open sections of a config.
SECTIONS = {'model': LMModel, 'data': LMData, 'loss': LMLoss}

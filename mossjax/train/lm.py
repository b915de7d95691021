"""Training the language model: its options, its task on packed rows, its runs.

Batch: `data.rows`, int32 tokens (r, t, 2), labels (r, t, 2), segments (r, t), positions (r, t).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mossjax.convert import kinds
from mossjax.data.builder import open_rows
from mossjax.data.format import check_rows
from mossjax.data.pipeline import Batch, Batches, RowBatches
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.models.lm import loss as loss_lib
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.matrices import matrix
from mossjax.models.lm.model import TEXT, keep_all, network
from mossjax.models.lm.text import TextTokenizer
from mossjax.nn.lora import Lora, adapt
from mossjax.nn.param import Network
from mossjax.nn.remat import remat
from mossjax.nn.splash import splash
from mossjax.ops.attention import attention
from mossjax.train import starts
from mossjax.train.config import group, options, path
from mossjax.train.starts import Run
from mossjax.values import NOT_NEGATIVE, POSITIVE, SIZE, Range, ranged

ATTENTION = {'reference': attention, 'splash': splash}


@dataclasses.dataclass(frozen=True)
class LMModel:
    """`model` of a language model run.

    Attributes:
      config: a Hugging Face directory (its config.json is read), or 'released' (9.1 B).
      tokenizer: directory of tokenizer.json; with it the loss of replies is logged by itself.
      attention: 'reference', or 'splash' on TPU.
      remat: 'none', 'attention' or 'full', see `nn.remat`.
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
        file = Path(self.config) / 'config.json'
        return LMConfig.from_hf(read_json(file), where=str(file))

    def open_tokenizer(self) -> TextTokenizer | None:
        return TextTokenizer.open(self.tokenizer) if self.tokenizer else None


@dataclasses.dataclass(frozen=True)
class LMData:
    """`data` of a language model run.

    Attributes:
      rows: name -> directory of packed rows (`data.builder`).
      weights: name -> share of the rows of a batch.
      batch_size: rows of a global batch.
    """

    rows: Mapping[str, str] = path()
    weights: Mapping[str, float] = ranged(POSITIVE)
    batch_size: int = ranged(Range(1, 1_000_000, whole=True))


@dataclasses.dataclass(frozen=True)
class LMLoss:
    """`loss` of a language model run, see `models.lm.loss.loss`."""

    text_weight: float = ranged(NOT_NEGATIVE, 1.0)
    audio_weight: float = ranged(NOT_NEGATIVE, 1.0)
    chunk: int = ranged(SIZE, 2048)


@dataclasses.dataclass(frozen=True)
class LMTask:
    """What the training loop needs to know about the language model.

    Attributes:
      config: the network's.
      batches: the data; planning needs none.
      attend, remat: see `models.lm.model.LanguageModel`.
      text_weight, audio_weight: of the two channels in the loss.
      chunk: positions whose logits exist at a time.
      reply: the two text ids that open the assistant's turn (`<|im_start|>`, `assistant`). Given,
        the loss of the replies is logged by itself: in rows that are supervised whole it drowns
        among question codes, which nothing can predict.
      lora: train adapters on frozen weights; parameters are then {'base': ..., 'lora': ...}.
    """

    config: LMConfig
    batches: Batches
    attend: Callable = attention
    remat: Callable = keep_all
    text_weight: float = 1.0
    audio_weight: float = 1.0
    chunk: int = 2048
    reply: tuple[int, int] | None = None
    lora: Lora | None = None

    @functools.cached_property
    def network(self) -> Network:
        net = network(self.config, attend=self.attend, remat=self.remat)
        return net if self.lora is None else adapt(net, self.lora, matrix)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Weights under adapters are never trained."""
        return () if self.lora is None else ('base/.*',)

    @property
    def model(self) -> dict:
        """What a checkpoint says of its parameters, so that it can be exported; see `kinds`."""
        adapted = {} if self.lora is None else {'lora': dataclasses.asdict(self.lora)}
        configs = {kinds.CONFIG: self.config.to_hf()}
        return {'kind': kinds.LANGUAGE_MODEL, 'configs': configs, **adapted}

    def init_extra(self, params: dict) -> dict:
        del params
        return {}

    def size(self, step: int) -> int:
        return self.batches.size(step)

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        return self.batches.batch(step, rows)

    def loss(self, params, extra, batch, key):
        del key
        watch = {'reply': reply_positions(batch, *self.reply)} if self.reply else {}
        loss, metrics = loss_lib.loss(
            self.network.bind(params), batch, text_weight=self.text_weight,
            audio_weight=self.audio_weight, chunk=self.chunk, watch=watch,
        )
        metrics['tokens'] = jnp.sum(batch['segments'] > 0).astype(jnp.float32)
        return loss, (metrics, extra)


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


def make_task(config, batches: Batches | None) -> LMTask:
    """The task of a language model config on given batches (planning needs none)."""
    model = options(config.model, LMModel, 'model')
    if model.attention not in ATTENTION:
        known = ', '.join(ATTENTION)
        raise InputError(f'config.model.attention is {model.attention!r}; choose one of {known}')
    reply, tokenizer = None, model.open_tokenizer()
    if tokenizer:
        reply = (tokenizer.im_start, tokenizer.encode_plain('assistant')[0])
    return LMTask(
        model.read(), batches, attend=ATTENTION[model.attention], remat=remat(model.remat),
        reply=reply, lora=_lora(model.lora),
        **dataclasses.asdict(options(config.loss, LMLoss, 'loss')),
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
    sources = {name: open_rows(directory) for name, directory in data.rows.items()}
    batches = RowBatches(sources, data.batch_size, config.seed, weights=dict(data.weights))
    task = make_task(config, batches)
    tokenizer = model.open_tokenizer()
    for name, source in sources.items():
        check_rows(source.metadata, name, task.config, tokenizer)
    start = None
    if fresh:
        begin = starts.language_model if task.lora is None else starts.adapters
        start = begin(config.init_from, task.config, task.network, config.seed)
    return Run(task, config, start)


# What may be set in the open sections of a config.
SECTIONS = {'model': LMModel, 'data': LMData, 'loss': LMLoss}

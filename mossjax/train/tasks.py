"""From the config of a run to its task and its starting point, for each network.

`model`, `data` and `loss` of a config (`train.config`) are read by the dataclasses below and in
`train.codec_tasks`, named after the network: what is documented there is what may be set.
"""

from collections.abc import Callable, Mapping
import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from mossjax.data.builder import open_rows
from mossjax.data.format import check_rows
from mossjax.data.pipeline import Batches, RowBatches
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.text import TextTokenizer
from mossjax.nn.lora import Lora
from mossjax.nn.remat import remat
from mossjax.nn.splash import splash
from mossjax.ops.attention import attention
from mossjax.train import codec_tasks, starts
from mossjax.train.config import complete, expand, group, options, path
from mossjax.train.lm_task import LMTask
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


def lm_task(config, batches: Batches | None) -> LMTask:
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


def _language_model(config, fresh: bool) -> Run:
    data = options(config.data, LMData, 'data')
    model = options(config.model, LMModel, 'model')
    options(config.loss, LMLoss, 'loss')  # refused before data is opened
    sources = {name: open_rows(directory) for name, directory in data.rows.items()}
    batches = RowBatches(sources, data.batch_size, config.seed, weights=dict(data.weights))
    task = lm_task(config, batches)
    tokenizer = model.open_tokenizer()
    for name, source in sources.items():
        check_rows(source.metadata, name, task.config, tokenizer)
    start = None
    if fresh:
        begin = starts.language_model if task.lora is None else starts.adapters
        start = begin(config.init_from, task.config, task.network, config.seed)
    return Run(task, config, start)


FACTORIES: dict[str, Callable[..., Run]] = {
    'lm': _language_model,
    'tokenizer': codec_tasks.tokenizer,
    'flow': codec_tasks.flow,
}
# What may be set in the open sections of each task's config.
SECTIONS: dict[str, Mapping[str, type]] = {
    'lm': {'model': LMModel, 'data': LMData, 'loss': LMLoss},
    'tokenizer': codec_tasks.TOKENIZER,
    'flow': codec_tasks.FLOW,
}


def make(config: ConfigDict, *, fresh: bool = True) -> Run:
    """The task of a checked config (`train.config.check`).

    Args:
      fresh: False for a run that has a checkpoint: `init_from` is not opened, it may be gone.

    Raises:
      InputError: an unknown task, an unknown or missing option, data that is not there.
    """
    if config.task not in FACTORIES:
        known = ', '.join(FACTORIES)
        raise InputError(f'config.task is {config.task!r}; choose one of {known}')
    config = config.copy_and_resolve_references()
    complete(config, SECTIONS.get(config.task, {}))
    config.init_from = expand(config.init_from, 'config.init_from') if fresh else config.init_from
    return FACTORIES[config.task](config, fresh)

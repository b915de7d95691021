"""From the config of a run to its task and its starting point: the table of networks.

`model`, `data` and `loss` of a config (`train.config`) are read by the dataclasses of `train.lm`,
`train.tokenizer`, `train.flow`, `train.vocoder` and `train.speaker`: what is documented there is
what may be set.
"""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from mossjax.errors import InputError
from mossjax.train import flow, lm, speaker, tokenizer, vocoder
from mossjax.train.config import complete, expand
from mossjax.train.starts import Run

FACTORIES: dict[str, Callable[..., Run]] = {
    'lm': lm.run,
    'tokenizer': tokenizer.run,
    'flow': flow.run,
    'vocoder': vocoder.run,
    'speaker': speaker.run,
}
# What may be set in the open sections of each task's config.
SECTIONS: dict[str, Mapping[str, type]] = {
    'lm': lm.SECTIONS,
    'tokenizer': tokenizer.SECTIONS,
    'flow': flow.SECTIONS,
    'vocoder': vocoder.SECTIONS,
    'speaker': speaker.SECTIONS,
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
    config.compilation_cache = expand(config.compilation_cache, 'config.compilation_cache')
    return FACTORIES[config.task](config, fresh)

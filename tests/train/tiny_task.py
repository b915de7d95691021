"""A language model task on random rows, for tests of training: seconds on a CPU."""

import dataclasses

import numpy as np

from mossjax.data.pipeline import Whole
from mossjax.models.lm.config import LMConfig
from mossjax.train.config import defaults
from mossjax.train.lm import LMTask
from tests.tiny_lm import tiny_config, tiny_grid


def rows(config: LMConfig, seed: int, batch: int = 8, t: int = 12):
    """step -> packed rows of two segments and padding, a pure function of (seed, step)."""

    def make(step: int) -> dict:
        tokens = tiny_grid(config, batch, t, seed=1000 * seed + step)
        labels = np.roll(tokens, -1, axis=1)
        speech = labels[..., :1] == config.modality_pad_token_id
        labels = np.where(np.concatenate([speech, ~speech], -1), -100, labels)
        cut = 4 + np.arange(batch)[:, None] % 3
        at = np.arange(t)[None]
        segments = np.where(at < cut, 1, np.where(at < t - 2, 2, 0))
        labels = np.where((segments == np.roll(segments, -1, 1))[..., None], labels, -100)
        labels[segments == 0] = -100
        positions = np.where(at < cut, at, np.where(segments == 2, at - cut, 0))
        whole = {'tokens': tokens, 'labels': labels, 'segments': segments, 'positions': positions}
        return {name: x.astype(np.int32) for name, x in whole.items()}

    return make


def tiny_task(seed: int = 0, **changes) -> LMTask:
    """Sizes divide by 2 where the presets divide them."""
    config = tiny_config(num_attention_heads=4)
    return dataclasses.replace(LMTask(config, Whole(rows(config, seed))), **changes)


def tiny_run(**changes):
    """A config of 4 steps; changes are dotted keys."""
    config = defaults()
    config.steps, config.log_every, config.save_every = 4, 1, 2
    config.optim.warmup_steps, config.optim.peak_lr = 2, 1e-2
    config.update_from_flattened_dict(changes)
    return config

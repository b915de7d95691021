"""The program that a config trains with, on a slice: the real step, from shapes alone."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mossjax.data.builder import open_rows
from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.parallel import rules
from mossjax.train import lm, state, step
from mossjax.train.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step on a mesh.

    Attributes:
      lowered: for TPU. layout: of its state (`train.state.Layout`).
      model: of its network. rows, context: on each part of the mesh that holds rows, at a time.
      parts: that a batch is taken in.
      done: operations a token, see `models.lm.flops.done`.
    """

    lowered: Any
    layout: state.Layout
    model: LMConfig
    rows: int
    context: int
    parts: int
    done: float

    @property
    def tokens(self) -> int:
        """Positions of a step on one device, tensor parts counted as one."""
        return self.rows * self.context * self.parts

    @property
    def work(self) -> float:
        """Operations of a step on one device; where all is trained, those of the convention."""
        return self.done * self.tokens / self.tensor

    @property
    def tensor(self) -> int:
        return self.layout.mesh.shape['tensor']


def training(config: ConfigDict, mesh, rows: int, context: int, parts: int) -> Program:
    """The step of a language model config.

    Args:
      mesh: of devices that are not there, or an abstract one.
      rows: on each part of the mesh that holds rows, at a time. context: positions of a row.
      parts: that the batch is taken in, each of so many rows.

    Raises:
      InputError: see `task_and_layout`.
    """
    task, layout = task_and_layout(config, mesh)
    make = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    grid = (rows * parts * mesh.shape['data'] * mesh.shape['fsdp'], context)
    batch = {
        'tokens': make((*grid, 2)), 'labels': make((*grid, 2)),
        'segments': make(grid), 'positions': make(grid),
    }  # fmt: skip
    lowered = step.lower(task, layout, jnp.dtype(config.compute_dtype), batch, parts)
    return Program(
        lowered, layout, task.config, rows, context, parts, done(config, task, context)
    )  # fmt: skip


def done(config: ConfigDict, task: lm.LMTask, context: int) -> float:
    """Operations a token of what a config leaves to train."""
    tokens = {'tokens': jax.ShapeDtypeStruct((1, context, 2), jnp.int32)}
    return task.flops(tokens, config.optim.frozen)[1]


def check_task(config: ConfigDict) -> None:
    """
    Raises:
      InputError: the config is not of a language model.
    """
    if config.task != 'lm':
        raise InputError(
            f'config.task is {config.task!r}: only steps of the language model are planned; '
            'the tokenizer and the decoder fit one chip'
        )


def model_of(config: ConfigDict) -> LMConfig:
    """The network of a language model config.

    Raises:
      InputError: the config is of another network, or names no model.
    """
    check_task(config)
    return lm.make_task(config, batches=None).config


def task_and_layout(config: ConfigDict, mesh) -> tuple[lm.LMTask, state.Layout]:
    """What a language model config trains, and how that lies on a mesh.

    Raises:
      InputError: the config is of another network, or cannot be used.
    """
    check_task(config)
    task = lm.make_task(config, batches=None)
    layout = state.layout(
        task, OptimConfig(**config.optim), config.steps, mesh, rules.preset(config.rules)
    )
    return task, layout


def row_length(rows: Mapping[str, str]) -> int:
    """Positions of the packed rows in these directories.

    Raises:
      InputError: there are none, or of different lengths.
    """
    lengths = {name: open_rows(path).metadata['length'] for name, path in rows.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f'config.data.rows: rows of one length are needed, found {lengths}')
    return next(iter(lengths.values()))

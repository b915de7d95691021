"""What a network must say about itself to be trained by `train.loop.fit`."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax

from mossjax.data.pipeline import Batch, Batches
from mossjax.nn.param import Network


class Task(Protocol):
    """One network with its loss and its data.

    Attributes:
      network: shapes, axes and structure of the parameters (`nn.param.describe`).

    A task may also have
      frozen: path patterns (see `train.optim`) of parameters that are never trained, whatever the
        config says: constants stored among the weights.
      apart: True where the branches at the top of its parameters are networks beside each other,
        each with gradients that are clipped by their own norm.
      model: what a checkpoint says of its parameters, see `convert.kinds`.
      names(step): what to call the rows of a batch, for messages.
      counts(batch), part(params, extra, batch, key, counts): where a batch may be taken in parts.
        `counts` is a tree of what the whole batch is divided by; `part` is `loss` of some of its
        rows, and loss and metrics of the parts add up to those of the batch. Such a task has no
        extra state.
      held_out: batches of rows that are not trained on, `pipeline.FixedRows`.
      flops(batch, frozen): operations a token, (by the convention, really done), of a batch of this
        shape with what `frozen` and the task leave to train, see `models.lm.flops`.
      consumed(step), at(step, rows): rows of all batches before a step (None where that is not
        known), and the task whose batches go on from there.
    """

    network: Network

    def init_extra(self, params: dict) -> Any:
        """State that is not trained by gradients (a running codebook, say); {} when there is none.

        Runs under jit; the result is replicated on every device.
        """

    def loss(self, params: dict, extra: Any, batch: Batch, key: jax.Array):
        """-> (loss, (metrics, new extra)), pure, traced once.

        Args:
          params: in the compute dtype of the run.
          extra: what `init_extra` or the step before returned.
          batch: arrays as `batch` returned them, now on devices.
          key: a random key of this step alone.

        Returns:
          A float32 scalar, and a dict of float32 scalars to log. A metric named 'tokens' or
          'audio_seconds' is the amount of data in this batch: it is logged as a rate.
        """

    def size(self, step: int) -> int:
        """Rows of the global batch of step `step`."""

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        """The rows of the global batch with these numbers (all by default), as numpy arrays.

        A pure function of (seed, step, row): position in the data is a number, so a run that is
        resumed sees exactly what it would have seen, on whichever devices it goes on. Every array
        has the rows as first axis.
        """


class FromBatches:
    """The half of a task that is its data: `batches` says it."""

    batches: Batches

    def size(self, step: int) -> int:
        return self.batches.size(step)

    def names(self, step: int) -> list[str]:
        return self.batches.names(step)

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        return self.batches.batch(step, rows)

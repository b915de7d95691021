"""The loss on rows that are not trained on, the same ones each time."""

import jax

from mossjax.errors import InputError
from mossjax.nn.shard import sharding_scope
from mossjax.parallel import rules as rules_lib
from mossjax.parallel.rows import Rows
from mossjax.train.state import Layout, TrainState
from mossjax.train.step import compute_copy


class HeldOut:
    """Evaluates a task on its `held_out` batches.

    Args:
      dtype: of the computation, as in training.

    Raises:
      InputError: the task has none.
    """

    def __init__(self, task, layout: Layout, dtype):
        self._batches = getattr(task, 'held_out', None)
        if not self._batches:
            raise InputError(
                'config.held_out_every is set and there are no rows to evaluate; name some in '
                'config.data.held_out (language model), or set it to 0'
            )
        self._rows = Rows.of(layout.mesh, layout.rules)
        key = jax.random.key(0)

        def evaluate(params: dict, extra, batch: dict) -> dict:
            with sharding_scope(layout.mesh, rules_lib.resolver(layout.rules)):
                _, (metrics, _) = task.loss(compute_copy(params, dtype), extra, batch, key)
            return metrics

        everywhere = layout.abstract.step.sharding
        self._evaluate = jax.jit(evaluate, out_shardings=everywhere)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """held_out_CHANNEL_loss: means over all targets of the channel that are held out."""
        found = []
        for step in range(self._batches.steps):
            size = self._batches.size(step)
            batch = self._batches.batch(step, self._rows.held(size))
            found.append(self._evaluate(state.params, state.extra, self._rows.put(batch, size)))
            if jax.default_backend() == 'cpu':
                jax.block_until_ready(found[-1])  # see `loop`
        found = jax.device_get(found)
        counts = [name for name in found[0] if name.endswith('_count')]
        values = {}
        for name in counts:
            loss = name.removesuffix('count') + 'loss'
            total = sum(float(x[name]) for x in found)
            if total:
                values[f'held_out_{loss}'] = sum(float(x[loss] * x[name]) for x in found) / total
        return values

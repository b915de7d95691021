"""One training step: the loss in the compute dtype, gradients of what is trained, the update."""

import functools

import jax
import jax.numpy as jnp
import optax

from mossjax.errors import InputError
from mossjax.nn.shard import constrain, sharding_scope
from mossjax.parallel import options, rows
from mossjax.parallel import rules as rules_lib
from mossjax.train import optim
from mossjax.train.clock import Clock
from mossjax.train.state import Layout, TrainState


def compute_copy(params: dict, dtype) -> dict:
    """float32 leaves in the compute dtype, others as they are.

    The cast stands before the layers are gathered from their shards, so the network moves and
    multiplies the short numbers; the gradient of a cast is a cast back, so updates are float32.
    """
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, params)


def update(
    task, layout: Layout, dtype, parts: int, state: TrainState, batch: dict, key: jax.Array
):
    """(state, batch, run key) -> (state, metrics); pure, the function that `compiled_step` jits.

    Args:
      parts: that the batch is taken in, one after another; the update is that of the whole.
    """
    trainable, frozen = optim.split(state.params, layout.frozen)
    key = jax.random.fold_in(key, state.step)

    def gradients(batch, *counts):
        """((loss, (metrics, extra)), gradients) of a batch, or of a part of it."""
        call = task.part if counts else task.loss

        def loss_of(trainable):
            params = optim.join(compute_copy(trainable, dtype), compute_copy(frozen, dtype))
            return call(params, state.extra, batch, key, *counts)

        return jax.value_and_grad(loss_of, has_aux=True)(trainable)

    with sharding_scope(layout.mesh, rules_lib.resolver(layout.rules)):
        if parts == 1:
            (loss, (metrics, extra)), grads = gradients(batch)
        else:
            loss, metrics, grads = _accumulated(task, gradients, trainable, batch, parts)
            extra = state.extra
    thawed = state.step // layout.thaw_every if layout.thaw_every else 0
    grads = optim.hold(grads, layout.layers, thawed)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, opt_state = layout.tx.update(grads, state.opt_state, trainable)
    updates = optim.hold(updates, layout.layers, thawed)  # weight decay would move them
    updated = optax.apply_updates(trainable, updates), opt_state, extra
    # A step that is not finite changes nothing. On the device: the host learns of it later.
    trainable, opt_state, extra = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), updated,
        (trainable, state.opt_state, state.extra),
    )  # fmt: skip
    metrics = metrics | {'loss': loss, 'grad_norm': grad_norm, 'finite': finite}
    state = TrainState(state.step + 1, optim.join(trainable, frozen), opt_state, extra)
    return state, metrics


def _accumulated(task, gradients, trainable: dict, batch: dict, parts: int):
    """(loss, metrics, gradients) of a batch taken in parts: float32 sums over them."""
    counts = task.counts(batch)

    def cut(x):
        # Part i has the rows i, i + parts, ...: each device works on its own rows in every part.
        x = jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
        return constrain(x, (None, 'batch', *[None] * (x.ndim - 2)))

    def body(sums, part):
        (loss, (metrics, _)), grads = gradients(part, counts)
        # The TPU compiler moves reductions out of such a loop, and fails where it half can.
        grads = jax.lax.optimization_barrier(grads)
        return jax.tree.map(jnp.add, sums, grads), (loss, metrics)

    zeros = jax.tree.map(jnp.zeros_like, trainable)
    grads, each = jax.lax.scan(body, zeros, jax.tree.map(cut, batch))
    loss, metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), each)
    return loss, metrics, grads


def check_parts(task, rows: int, holders: int, parts: int) -> None:
    """
    Args:
      rows: of a batch. holders: pieces that it is cut into among the devices.

    Raises:
      InputError: the batch cannot be taken in so many parts.
    """
    if parts > 1 and not hasattr(task, 'part'):
        raise InputError(
            f'config.accumulate is {parts}: only batches of the language model are taken in parts; '
            'set it to 1, and lower config.data.seconds if memory is short'
        )
    if rows % (holders * parts):
        raise InputError(
            f'config.accumulate is {parts}: a batch of {rows} rows does not divide into as many '
            f'parts with rows for each of the {holders} row-holding parts of the mesh; make '
            f'config.data.batch_size a multiple of {holders * parts}'
        )


def batch_shardings(batch: dict, layout: Layout) -> dict:
    """First axis over all devices that hold different rows, the others whole."""
    where = rows.sharding(layout.mesh, layout.rules)
    return {name: where for name in batch}


def compiled_step(task, layout: Layout, dtype, batch: dict, parts: int = 1):
    """The jitted step: donates the state, keeps its layout; metrics are replicated scalars.

    Compiled with the options of `parallel.options` for the devices of the mesh.

    Args:
      batch: arrays or shapes of one batch, for their names only.
      parts: see `update`.
    """
    shardings = layout.shardings
    everywhere = shardings.step

    def train_step(state: TrainState, batch: dict, key: jax.Array):
        return update(task, layout, dtype, parts, state, batch, key)

    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_shardings(batch, layout), everywhere),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
        compiler_options=options.options(options.generation(layout.mesh), options.TRAIN) or None,
    )


class Step:
    """`compiled_step`, compiled once for every shape of a batch, in the clock's own bucket.

    Args:
      dtype: of the computation. parts: see `update`.
    """

    def __init__(self, task, layout: Layout, dtype, parts: int, clock: Clock):
        self._make = functools.partial(compiled_step, task, layout, dtype, parts=parts)
        self._clock, self._compiled = clock, {}

    def __call__(self, state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, dict]:
        shapes = tuple(sorted((name, x.shape, str(x.dtype)) for name, x in batch.items()))
        if shapes not in self._compiled:
            before = self._clock.switch('compile')
            self._compiled[shapes] = self._make(batch).lower(state, batch, key).compile()
            self._clock.switch(before)
        return self._compiled[shapes](state, batch, key)


def lower(task, layout: Layout, dtype, batch: dict, parts: int = 1):
    """The step lowered for TPU from shapes alone; `batch` holds global shapes.

    The mesh may be one of devices that are not there, or a `jax.sharding.AbstractMesh`.
    """
    where = batch_shardings(batch, layout)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[name])
        for name, x in batch.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = compiled_step(task, layout, dtype, batch, parts).trace(layout.abstract, batch, key)
    return traced.lower(lowering_platforms=('tpu',))

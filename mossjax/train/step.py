"""One training step: the loss in the compute dtype, gradients of what is trained, the update."""

import jax
import jax.numpy as jnp
import optax

from mossjax.nn.shard import sharding_scope
from mossjax.parallel import rows
from mossjax.parallel import rules as rules_lib
from mossjax.train import optim
from mossjax.train.state import Layout, TrainState


def compute_copy(params: dict, dtype) -> dict:
    """float32 leaves in the compute dtype, others as they are.

    The cast stands before the layers are gathered from their shards, so the network moves and
    multiplies the short numbers; the gradient of a cast is a cast back, so updates are float32.
    """
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, params)


def update(task, layout: Layout, dtype, state: TrainState, batch: dict, key: jax.Array):
    """(state, batch, run key) -> (state, metrics); pure, the function that `compiled_step` jits."""
    trainable, frozen = optim.split(state.params, layout.frozen)
    key = jax.random.fold_in(key, state.step)

    def loss_of(trainable):
        params = optim.join(compute_copy(trainable, dtype), compute_copy(frozen, dtype))
        return task.loss(params, state.extra, batch, key)

    with sharding_scope(layout.mesh, rules_lib.resolver(layout.rules)):
        (loss, (metrics, extra)), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable)
    updates, opt_state = layout.tx.update(grads, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    grad_norm = optax.tree.norm(grads)
    metrics = metrics | {
        'loss': loss,
        'grad_norm': grad_norm,
        'finite': jnp.isfinite(loss) & jnp.isfinite(grad_norm),
    }
    state = TrainState(state.step + 1, optim.join(trainable, frozen), opt_state, extra)
    return state, metrics


def batch_shardings(batch: dict, layout: Layout) -> dict:
    """First axis over all devices that hold different rows, the others whole."""
    where = rows.sharding(layout.mesh, layout.rules)
    return {name: where for name in batch}


def compiled_step(task, layout: Layout, dtype, batch: dict):
    """The jitted step: donates the state, keeps its layout; metrics are replicated scalars.

    Args:
      batch: arrays or shapes of one batch, for their names only.
    """
    shardings = layout.shardings
    everywhere = shardings.step

    def train_step(state: TrainState, batch: dict, key: jax.Array):
        return update(task, layout, dtype, state, batch, key)

    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_shardings(batch, layout), everywhere),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )


def lower(task, layout: Layout, dtype, batch: dict):
    """The step lowered for TPU from shapes alone; `batch` holds global shapes.

    The mesh may be one of devices that are not there, or a `jax.sharding.AbstractMesh`.
    """
    where = batch_shardings(batch, layout)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[name])
        for name, x in batch.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = compiled_step(task, layout, dtype, batch).trace(layout.abstract, batch, key)
    return traced.lower(lowering_platforms=('tpu',))

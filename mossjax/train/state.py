"""The training state: plain dicts, described abstractly first, allocated already sharded."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mossjax.nn.param import Network
from mossjax.parallel import sharding
from mossjax.train import optim


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['step', 'params', 'opt_state', 'extra'],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What one step takes and returns.

    Attributes:
      step: int32 scalar, steps done, skipped ones among them.
      params: nested dict of float32 arrays.
      opt_state: optimiser state of the trainable parameters only.
      extra: the task's own state that no gradient trains ({} for most).
    """

    step: jax.Array
    params: dict
    opt_state: Any
    extra: Any

    def items(self) -> dict:
        """The parts that a checkpoint stores."""
        return {'params': self.params, 'opt_state': self.opt_state, 'extra': self.extra}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the state of one run is made and laid out.

    Attributes:
      tx: the update rule.
      frozen: path patterns of parameters that are not trained.
      layers: path -> frozen layers of trained parameters, see `optim.frozen_layers`.
      thaw_every: see `optim.OptimConfig`.
      abstract: TrainState of ShapeDtypeStructs that carry their shardings.
      mesh, rules: where things live.
    """

    tx: optax.GradientTransformation
    frozen: tuple[str, ...]
    layers: dict[str, tuple[int, int]]
    thaw_every: int
    abstract: TrainState
    mesh: jax.sharding.Mesh
    rules: dict

    @property
    def shardings(self) -> TrainState:
        return jax.tree.map(lambda x: x.sharding, self.abstract)


def layout(task, config: optim.OptimConfig, total_steps: int, mesh, rules) -> Layout:
    """Shapes and shardings of the whole training state; nothing is allocated.

    Args:
      task: a `train.task.Task`.
      rules: logical axis -> mesh axes, one of `parallel.rules.PRESETS`.
    """
    network: Network = task.network
    frozen = config.frozen + tuple(getattr(task, 'frozen', ()))
    placed = sharding.shard(network.shapes, network.axes, mesh, rules)
    trainable, _ = optim.split(placed, frozen)
    axes, _ = optim.split(network.axes, frozen)
    clip = optim.clip_apart if getattr(task, 'apart', False) else optax.clip_by_global_norm
    tx = optim.optimizer(config, axes, total_steps, clip)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def put(x, where=everywhere):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    opt_state = optax.tree_utils.tree_map_params(
        tx,
        lambda moment, weight: put(moment, weight.sharding),
        jax.eval_shape(tx.init, trainable),
        trainable,
        transform_non_params=put,
    )
    extra = jax.tree.map(put, jax.eval_shape(task.init_extra, network.shapes))
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    layers = optim.frozen_layers(trainable, axes, frozen)
    abstract = TrainState(step, placed, opt_state, extra)
    return Layout(tx, frozen, layers, config.thaw_every, abstract, mesh, rules)


def init(task, made: Layout, key: jax.Array, params: dict | None = None) -> TrainState:
    """A fresh state, created in place on the devices; with the given parameters if there are any.

    Args:
      params: nested dict of numpy or jax arrays of exactly the network's names and shapes.

    Raises:
      InputError: params lack a name, have one too many, or one of another shape.
    """
    shardings = made.shardings
    if params is None:
        params = jax.jit(
            task.network.init, out_shardings=shardings.params, compiler_options=_quick(made.mesh)
        )(key)
    else:
        sharding.check_shapes(params, task.network.shapes, 'the given parameters')
        params = jax.tree.map(_put, params, made.abstract.params)

    def rest(params):
        trainable, _ = optim.split(params, made.frozen)
        return TrainState(
            jnp.zeros((), jnp.int32), {}, made.tx.init(trainable), task.init_extra(params)
        )

    rest_shardings = dataclasses.replace(shardings, params={})
    state = jax.jit(rest, out_shardings=rest_shardings)(params)
    return dataclasses.replace(state, params=params)


def _quick(mesh) -> dict | None:
    """The initial law runs once: on a CPU compiling it well takes longer than running it."""
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    return {'xla_backend_optimization_level': 0} if on_cpu else None


def from_items(items: dict, step: int, made: Layout) -> TrainState:
    """The state of a checkpoint's items."""
    return TrainState(_put(np.int32(step), made.abstract.step), **items)


def _put(x, like) -> jax.Array:
    """An array that every process holds whole (or that is laid out already) as `like` says."""
    if not isinstance(x, jax.Array) or (x.is_fully_addressable and jax.process_count() > 1):
        x = np.asarray(x)  # from the host, each process can supply its own part
    return jax.device_put(x.astype(like.dtype), like.sharding)



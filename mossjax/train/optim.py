"""AdamW with warm-up and cosine decay; freezing by path, without optimiser state for it.

Paths are slash-joined keys of the parameter tree ('trunk/attn/q'); patterns are regular
expressions that must match a whole path.
"""

import dataclasses

from flax import traverse_util
import jax
import jax.numpy as jnp
import optax

from mossjax.errors import InputError
from mossjax.nn.param import matching
from mossjax.values import COUNT, NOT_NEGATIVE, POSITIVE, Range, ranged

_DECAY = Range(0, 1, below=True)  # of a moving average


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Everything the optimiser needs (defaults: paper section 5 where it says, else usual).

    Attributes:
      peak_lr, final_lr: learning rate after warm-up and at the last step.
      warmup_steps: linear from peak / warmup_steps; cut to the length of the run.
      b1, b2, eps, weight_decay: AdamW.
      clip_norm: largest global norm of the gradients.
      frozen: patterns of parameters that are not trained. 'trunk/.*@0:24' freezes the layers 0 to
        23 of stacked parameters: their gradients are computed and dropped, so this saves neither
        time nor memory.
      thaw_every: steps after which the last of the layers frozen so is trained as well, and after
        as many again the one before it, from the back to the front; 0 for never.
      no_decay: patterns of parameters without weight decay, beside all those with one axis.
    """

    peak_lr: float = ranged(NOT_NEGATIVE, 1e-3)
    final_lr: float = ranged(NOT_NEGATIVE, 0.0)
    warmup_steps: int = ranged(COUNT, 100)
    b1: float = ranged(_DECAY, 0.9)
    b2: float = ranged(_DECAY, 0.95)
    eps: float = ranged(POSITIVE, 1e-8)
    weight_decay: float = ranged(NOT_NEGATIVE, 0.1)
    clip_norm: float = ranged(POSITIVE, 1.0)
    frozen: tuple[str, ...] = ()
    thaw_every: int = ranged(COUNT, 0)
    no_decay: tuple[str, ...] = (r'(.*/)?[^/]*(bias|scale)[^/]*',)


def learning_rate(config: OptimConfig, total_steps: int):
    """step (0 for the first update) -> learning rate, float32.

    Linear warm-up over w = min(warmup_steps, total_steps) steps, then
    final + (peak - final) (1 + cos(pi p)) / 2 with p = (step - w) / (total_steps - w).
    """
    warmup = min(config.warmup_steps, total_steps)
    decay = max(total_steps - warmup, 1)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / decay, 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        decayed = config.final_lr + (config.peak_lr - config.final_lr) * cosine
        return jnp.where(step < warmup, config.peak_lr * (step + 1) / max(warmup, 1), decayed)

    return schedule


def split(params: dict, frozen: tuple[str, ...]) -> tuple[dict, dict]:
    """params -> (trainable, frozen): two nested dicts that share no leaf; `join` undoes it.

    Raises:
      InputError: a pattern matches no parameter, or nothing is left to train.
    """
    flat = traverse_util.flatten_dict(params, sep='/')
    whole = [p for p in frozen if '@' not in p]
    held = {path for p in whole for path in matching(p, list(flat), 'optim.frozen:')}
    if len(held) == len(flat):
        raise InputError('optim.frozen matches every parameter: nothing is left to train')

    def pick(keep):
        return traverse_util.unflatten_dict({p: x for p, x in flat.items() if keep(p)}, sep='/')

    return pick(lambda p: p not in held), pick(lambda p: p in held)


def frozen_layers(
    trainable: dict, axes: dict, frozen: tuple[str, ...]
) -> dict[str, tuple[int, int]]:
    """Path -> (first, end) of the layers that the patterns with an '@' freeze.

    Args:
      trainable: arrays or shapes, see `split`. axes: their logical axes.

    Raises:
      InputError: a pattern matches no stacked parameter, or the layers are not there.
    """
    flat = traverse_util.flatten_dict(trainable, sep='/')
    names = traverse_util.flatten_dict(axes, sep='/')
    stacked = [path for path in flat if names[path][0] == 'layers']
    found = {}
    for entry in (p for p in frozen if '@' in p):
        pattern, _, layers = entry.rpartition('@')
        first, _, end = layers.partition(':')
        for path in matching(pattern, stacked, 'optim.frozen, layers of:'):
            size = flat[path].shape[0]
            if not (first.isdigit() and end.isdigit() and int(first) < int(end) <= size):
                raise InputError(
                    f'optim.frozen: {entry!r} ends with layers that {path} does not have; write '
                    f'@FIRST:END with 0 <= FIRST < END <= {size}'
                )
            found[path] = int(first), int(end)
    return found


def hold(tree: dict, layers: dict[str, tuple[int, int]], thawed: jax.Array | int) -> dict:
    """Gradients or updates with 0 in the frozen layers.

    Args:
      layers: see `frozen_layers`. thawed: of each, how many are trained again, from the last.
    """
    if not layers:
        return tree
    flat = traverse_util.flatten_dict(tree, sep='/')
    for path, (first, end) in layers.items():
        x = flat[path]
        index = jnp.arange(x.shape[0]).reshape(-1, *[1] * (x.ndim - 1))
        flat[path] = jnp.where((index >= first) & (index < end - thawed), 0, x)
    return traverse_util.unflatten_dict(flat, sep='/')


def join(trainable: dict, frozen: dict) -> dict:
    """The nested dict that `split` took apart, with its keys sorted as jax sorts them."""
    flat = traverse_util.flatten_dict(trainable, sep='/')
    flat |= traverse_util.flatten_dict(frozen, sep='/')
    return traverse_util.unflatten_dict(flat, sep='/')


def decays(axes: dict, config: OptimConfig) -> dict:
    """Which parameters are decayed: True where there are two axes or more beside 'layers'."""
    flat = traverse_util.flatten_dict(axes, sep='/')
    spared = {
        path for pattern in config.no_decay
        for path in matching(pattern, list(flat), 'optim.no_decay:', needed=False)
    }
    wide = {path: len([a for a in names if a != 'layers']) > 1 for path, names in flat.items()}
    return traverse_util.unflatten_dict(
        {path: wide[path] and path not in spared for path in flat}, sep='/'
    )


def clip_apart(norm: float) -> optax.GradientTransformation:
    """Each branch at the top of the tree is clipped by its own global norm."""
    clip = optax.clip_by_global_norm(norm)
    return optax.stateless(
        lambda updates, _: {name: clip.update(x, optax.EmptyState())[0]
                            for name, x in updates.items()}
    )  # fmt: skip


def optimizer(
    config: OptimConfig, axes: dict, total_steps: int, clip=optax.clip_by_global_norm
) -> optax.GradientTransformation:
    """The update rule of the trainable parameters (`axes`: logical axes of the trainable tree).

    Args:
      clip: largest norm -> how gradients are clipped; `clip_apart` for networks side by side.
    """
    return optax.chain(
        clip(config.clip_norm),
        optax.adamw(
            learning_rate(config, total_steps), config.b1, config.b2, config.eps,
            weight_decay=config.weight_decay, mask=decays(axes, config),
        ),
    )


def count(tree) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(x.size for x in jax.tree.leaves(tree))

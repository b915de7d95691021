"""Attention by our Pallas TPU kernels, on one device's block.

The scores never exist in HBM, keys and values are not repeated for the heads that share them, and
blocks that the mask empties are not visited (causal, chunks, segments, hidden keys and a query
offset alike). Same arguments as `ops.attention.attention`. Under a mesh use `nn.flash`, which runs
this once per device.

Sources of the method: FlashAttention (arXiv 2205.14135), its backward pass (arXiv 2307.08691).
"""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from mossjax.errors import InputError
from mossjax.ops import flash_backward, flash_blocks, flash_forward, flash_mask
from mossjax.ops.attention import Mask
from mossjax.ops.flash_blocks import LANES, Blocks
from mossjax.ops.flash_mask import Sight

# What the backward kernel needs of the forward one: a remat policy that saves this name avoids a
# second forward kernel. The same name as `ops.splash.RESIDUALS`: one policy serves both.
RESIDUALS = 'attention_residuals'


def flash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    blocks: tuple[Blocks, Blocks] | None = None,
    interpret=False,
) -> jax.Array:
    """See `ops.attention.attention` for shapes; any t and s, heads of up to 128.

    Products of bfloat16 operands are summed in float32; probabilities and the gradients of scores
    are rounded to the operands' type before they are multiplied on.

    Args:
      blocks: sizes of the forward and the backward kernel; those of the TPU at hand by default.
      interpret: True or `pltpu.InterpretParams` to run the kernels without a TPU.

    Raises:
      InputError: a bias, a head size above 128, or operands that are not all float32 or bfloat16.
    """
    seen = flash_mask.sight(mask, q.shape[1], k.shape[1])
    return attend(
        q, k, v, seen, bias=bias, scale=scale, blocks=blocks, interpret=interpret
    )[0]


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: Sight, *,
    bias: jax.Array | None = None, scale: float | None = None,
    blocks: tuple[Blocks, Blocks] | None = None, interpret=False,
) -> tuple[jax.Array, jax.Array]:
    """`flash` under a mask as arrays: all masks of one shape are one program.

    Returns:
      (what `flash` returns, and which of its tiles of queries took a bound on their scores for
      the maximum: (b, k, tiles) bool, see `ops.flash_forward`).
    """
    check(q, k, v, bias)
    h = q.shape[3]
    scale = h**-0.5 if scale is None else scale
    if blocks is None:
        here = flash_blocks.generation()
        blocks = flash_blocks.FORWARD[here], flash_blocks.BACKWARD[here]
    size = -(-h // LANES) * LANES
    static = q.shape[2], size, scale, blocks, interpret
    out, known = _attend(static, *(merge(x) for x in (q, k, v)), seen)
    return out.reshape(*q.shape[:3], size)[..., :h], known


def check(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> None:
    """Refuses what the kernels do not do.

    Raises:
      InputError: saying what, and that `ops.attention.attention` does it.
    """
    types = {str(x.dtype) for x in (q, k, v)}
    faults = {
        'a bias': bias is not None,
        f'a head size of {q.shape[3]} (at most {LANES})': q.shape[3] > LANES,
        f'operands of {" and ".join(sorted(types))}': types not in ({'float32'}, {'bfloat16'}),
        f'{q.shape[2]} query heads on {k.shape[2]} key-value heads': q.shape[2] % k.shape[2] != 0,
    }
    if found := [what for what, at_fault in faults.items() if at_fault]:
        raise InputError(
            f'flash attention cannot take {" and ".join(found)}; use ops.attention.attention'
        )


def merge(x: jax.Array) -> jax.Array:
    """(b, t, n, h) -> (b, t, n * h), heads padded to whole registers: no head is transposed, a
    kernel reads its heads as columns."""
    b, t, n, h = x.shape
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -h % LANES))).reshape(b, t, -1)


def lengthen(x: jax.Array, length: int, axis: int = 1) -> jax.Array:
    """Padded with zeros to a length."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, widths)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, q, k, v, seen):
    out, _, known = _forward(static, q, k, v, seen)
    return out, known


def _fit(static, q, k, v, seen, blocks):
    """(sizes, schedule) of a kernel."""
    heads, h, *_ = static
    fit = blocks.fit(heads * h // k.shape[2], q.shape[1], k.shape[1])
    return fit, flash_mask.schedule(seen, fit)


def _forward(static, q, k, v, seen):
    _, h, scale, (blocks, _), interpret = static
    fit, plan = _fit(static, q, k, v, seen, blocks)
    queries = lengthen(q, fit.t)
    source = flash_forward.Merged((lengthen(k, fit.s), lengthen(v, fit.s)), h)
    out, log_sum, known = flash_forward.forward(
        queries, source, plan, fit, scale=scale, vmem=blocks.vmem, interpret=interpret
    )
    return out[:, : q.shape[1]], log_sum[..., : q.shape[1]], known


def _keep(static, q, k, v, seen):
    out, log_sum, known = _forward(static, q, k, v, seen)
    out, log_sum = checkpoint_name(out, RESIDUALS), checkpoint_name(log_sum, RESIDUALS)
    return (out, known), (q, k, v, seen, out, log_sum)


def _backward(static, kept, gradients):
    _, h, scale, (_, blocks), interpret = static
    q, k, v, seen, out, log_sum = kept
    d_out = gradients[0].astype(q.dtype)
    fit, plan = _fit(static, q, k, v, seen, blocks)
    dq, dk, dv = flash_backward.backward(
        lengthen(q, fit.t), lengthen(k, fit.s), lengthen(v, fit.s), lengthen(out, fit.t),
        lengthen(d_out, fit.t), lengthen(log_sum, fit.t, 3), plan, fit, h=h, scale=scale,
        outer=blocks.outer, orders=blocks.orders, vmem=blocks.vmem, interpret=interpret,
    )  # fmt: skip
    return dq[:, : q.shape[1]], dk[:, : k.shape[1]], dv[:, : k.shape[1]], None


_attend.defvjp(_keep, _backward)

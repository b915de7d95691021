"""The residual blocks of a stage as few large operations, for compilers that take long over many.

A stage of the released vocoder has 18 convolutions beside each other's results and 6 on the source;
the TPU compiler needs seconds for each. Here the blocks of a stage are one batch, their kernels
padded to the widest, and their units one loop with the dilation as data: two matrix products are
left. Values are those of `blocks.apart` but for the order of sums; a third of the products is with
zeros, which costs a TPU less than small operations do.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def together(blocks: Sequence, x: jax.Array, valid: jax.Array) -> jax.Array:
    """The mean of residual blocks of equal dilations on x (b, t, c); see `blocks.apart`."""
    units = [[getattr(block, f'unit{i}') for i in range(block.depth)] for block in blocks]
    dilations = [unit.conv1.dilation for unit in units[0]]
    widest = max(unit.conv1.kernel.shape[0] for row in units for unit in row)
    side = widest // 2 * max(dilations)
    valid = valid[None]

    def stacked(read):
        """(units, blocks, ...)."""
        return jnp.stack([jnp.stack([read(row[i]) for row in units]) for i in range(len(units[0]))])

    def kernel(conv):
        """(k, c, d) -> (widest * c, d), centred."""
        room = (widest - conv.kernel.shape[0]) // 2
        padded = jnp.pad(conv.kernel[...], ((room, room), (0, 0), (0, 0)))
        return padded.reshape(-1, padded.shape[-1])

    def part(number):
        """A snake and the convolution behind it."""
        return (
            stacked(lambda unit: getattr(unit, f'snake{number}').alpha[...]),
            stacked(lambda unit: kernel(getattr(unit, f'conv{number}'))),
            stacked(lambda unit: getattr(unit, f'conv{number}').bias[...]),
        )  # fmt: skip

    def go(y, alpha, kernel, bias, dilation):
        alpha, bias = alpha[:, None, None], bias[:, None, None]
        y = y + jnp.square(jnp.sin(y * alpha)) / (alpha + 1e-9)
        y = jnp.pad(jnp.where(valid, y, 0), ((0, 0), (0, 0), (side, side), (0, 0)))
        starts = side + (jnp.arange(widest) - widest // 2) * dilation
        size = y.shape[2] - 2 * side
        taps = [jax.lax.dynamic_slice_in_dim(y, starts[i], size, axis=2) for i in range(widest)]
        return jnp.einsum('gbtk,gkd->gbtd', jnp.concatenate(taps, axis=-1), kernel) + bias

    def unit(y, given):
        first, second, dilation = given
        return y + go(go(y, *first, dilation), *second, 1), None

    y = jnp.broadcast_to(x, (len(blocks), *x.shape))
    y, _ = jax.lax.scan(unit, y, (part(1), part(2), jnp.array(dilations)))
    return jnp.mean(y, axis=0)

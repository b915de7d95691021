"""Causal attention by the Pallas TPU kernel that ships with jax ("splash"), on one device's block.

The scores never exist in HBM, and blocks above the diagonal are not computed. Same arguments as
`ops.attention.attention`, of which it takes what packed training needs: causal masks and segments.
Under a mesh use `nn.splash`, which runs this once per device.
"""

import functools

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from mossjax.errors import InputError
from mossjax.ops.attention import Mask

# What the backward pass needs of the forward kernel (its output and log-sum-exp) carries this
# name: a remat policy that saves it avoids a second forward kernel. Saving the attention output
# by a name of its own does not.
RESIDUALS = 'attention_residuals'
LANES = 128
# Larger blocks overflow the scoped VMEM in the backward pass on v6e and compile for half an hour.
BLOCK = 1024


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    block: int = BLOCK,
    interpret: bool = False,
) -> jax.Array:
    """See `ops.attention.attention` for shapes; t and s are equal and a multiple of 128.

    Args:
      block: positions per tile, halved until it divides t.
      interpret: run the kernel's steps as plain jax operations (tests, without a TPU).

    Raises:
      InputError: a bias, or a mask other than causal with or without segments.
    """
    check(q, k, mask, bias)
    b, t, n, h = q.shape
    scale = h**-0.5 if scale is None else scale
    run = _kernel(n, t, _divisor(t, block), interpret)
    by_head = (x.swapaxes(1, 2) for x in (q * scale, k, v))
    if mask.q_segments is None:
        out = jax.vmap(run)(*by_head)
    else:
        segments = kernel.SegmentIds(mask.q_segments, mask.kv_segments)
        out = jax.vmap(run)(*by_head, segments)
    return out.swapaxes(1, 2)


def check(q: jax.Array, k: jax.Array, mask: Mask, bias: jax.Array | None = None) -> None:
    """Refuses what the kernel does not do.

    Raises:
      InputError: saying what, and that `ops.attention.attention` does it.
    """
    t, s = q.shape[1], k.shape[1]
    offset = not isinstance(mask.q_offset, int) or mask.q_offset != 0
    faults = {
        'a bias': bias is not None,
        'a mask that is not causal': not mask.causal,
        'a chunked mask': mask.chunk is not None,
        'hidden keys (kv_valid)': mask.kv_valid is not None,
        'a query offset': offset,
        f'{t} queries on {s} keys': t != s,
        f'{t} positions, which is no multiple of {LANES}': t % LANES != 0,
    }
    if found := [what for what, at_fault in faults.items() if at_fault]:
        raise InputError(
            f'splash attention cannot take {" and ".join(found)}; use ops.attention.attention '
            '(or pad the rows)'
        )


def _divisor(t: int, block: int) -> int:
    while t % block:
        block //= 2
    return block


def _kernel(n: int, t: int, block: int, interpret: bool):
    sizes = kernel.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    make = functools.partial(kernel.make_splash_mha, head_shards=1, q_seq_shards=1)
    return make(
        masks.MultiHeadMask([masks.CausalMask((t, t))] * n), block_sizes=sizes,
        residual_checkpoint_name=RESIDUALS, interpret=interpret,
    )

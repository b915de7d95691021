"""Multi-head attention with biases, as Whisper, the conformer and the flow estimator use it."""

from flax import nnx
import jax

from mossjax.nn.param import fan_in, param, zeros
from mossjax.ops import attention as attention_ops
from mossjax.ops.attention import Mask
from mossjax.ops.contract import contract


class MultiHeadAttention(nnx.Module):
    """Self- or cross-attention, n heads of size h; which projections carry a bias is data.

    Args:
      biases: names out of 'q', 'k', 'v', 'o' that have a bias (Whisper: 'qvo').
      attend: the implementation, see `ops.attention.attention`.
    """

    def __init__(
        self, d: int, n: int, h: int, *, biases: str, attend=attention_ops.attention,
        rngs: nnx.Rngs,
    ):
        self.attend = attend
        head_axes = ('embed', 'heads', 'head_dim')
        self.q = param(rngs, (d, n, h), head_axes, fan_in())
        self.k = param(rngs, (d, n, h), head_axes, fan_in())
        self.v = param(rngs, (d, n, h), head_axes, fan_in())
        self.o = param(rngs, (n, h, d), ('heads', 'head_dim', 'embed'), fan_in(axes=(0, 1)))

        def bias(name, shape, axes):
            return param(rngs, shape, axes, zeros) if name in biases else None

        self.q_bias = bias('q', (n, h), head_axes[1:])
        self.k_bias = bias('k', (n, h), head_axes[1:])
        self.v_bias = bias('v', (n, h), head_axes[1:])
        self.o_bias = bias('o', (d,), ('embed',))

    def heads(self, x: jax.Array, name: str) -> jax.Array:
        """(b, t, d) -> (b, t, n, h) by the projection 'q', 'k' or 'v'."""
        y = contract(x, getattr(self, name)[...], 'btd,dnh->btnh')
        bias = getattr(self, f'{name}_bias')
        return y if bias is None else y + bias[...].astype(x.dtype)

    def merge(self, y: jax.Array) -> jax.Array:
        """(b, t, n, h) -> (b, t, d) by the output projection."""
        # One axis to sum over: of two, an einsum would turn both operands around in memory.
        wide, kernel = y.reshape(*y.shape[:2], -1), self.o[...]
        out = contract(wide, kernel.reshape(-1, kernel.shape[-1]), 'btf,fd->btd')
        return out if self.o_bias is None else out + self.o_bias[...].astype(y.dtype)

    def __call__(self, x: jax.Array, mask: Mask, source: jax.Array | None = None) -> jax.Array:
        """x (b, t, d) attends to source (b, s, d), to itself by default."""
        source = x if source is None else source
        y = self.attend(
            self.heads(x, 'q'), self.heads(source, 'k'), self.heads(source, 'v'), mask
        )
        return self.merge(y)

"""The Qwen3 decoder layer: pre-norm, grouped-query attention with QK-norm, gated MLP.

Source: `transformers.models.qwen3` (reference for every rounding in bfloat16).
"""

from collections.abc import Callable

from flax import nnx
import jax

from mossjax.nn.linear import RMSNorm
from mossjax.nn.param import normal, param
from mossjax.nn.shard import constrain
from mossjax.ops import rope
from mossjax.ops.attention import Mask
from mossjax.ops.contract import contract

Rotation = tuple[jax.Array, jax.Array]  # cos, sin as made by `ops.rope.rotation`
KeysValues = tuple[jax.Array, jax.Array]  # (b, s, k, h) each


def as_computed(keys: jax.Array, values: jax.Array) -> KeysValues:
    """What a layer attends to when there is no cache: the keys and values of this very input."""
    return keys, values


class Attention(nnx.Module):
    """Grouped-query attention; RMS norm of queries and keys per head, before the rotation.

    Args:
      d, n, k, h: model width, query heads, key-value heads, head size.
      eps, init_std: of the norms, of the fresh kernels.
      attend: see `ops.attention.attention`.
    """

    def __init__(
        self, d: int, n: int, k: int, h: int, *, eps: float, init_std: float, attend: Callable,
        rngs: nnx.Rngs,
    ):
        self.attend = attend
        init = normal(init_std)
        self.q = param(rngs, (d, n, h), ('embed', 'heads', 'head_dim'), init)
        self.k = param(rngs, (d, k, h), ('embed', 'kv_heads', 'head_dim'), init)
        self.v = param(rngs, (d, k, h), ('embed', 'kv_heads', 'head_dim'), init)
        self.o = param(rngs, (n, h, d), ('heads', 'head_dim', 'embed'), init)
        self.q_norm = RMSNorm(h, eps=eps, rngs=rngs)
        self.k_norm = RMSNorm(h, eps=eps, rngs=rngs)

    def __call__(
        self, x: jax.Array, rotation: Rotation, mask: Mask, recall: Callable
    ) -> tuple[jax.Array, KeysValues]:
        q = self.q_norm(contract(x, self.q[...], 'btd,dnh->btnh'))
        k = self.k_norm(contract(x, self.k[...], 'btd,dkh->btkh'))
        v = contract(x, self.v[...], 'btd,dkh->btkh')
        keys, values = recall(rope.rotate(k, *rotation), v)
        y = self.attend(rope.rotate(q, *rotation), keys, values, mask)
        return contract(y, self.o[...], 'btnh,nhd->btd'), (keys, values)


class GatedMLP(nnx.Module):
    """down(silu(gate x) * up x), widths d -> f -> d."""

    def __init__(self, d: int, f: int, *, init_std: float, rngs: nnx.Rngs):
        init = normal(init_std)
        self.gate = param(rngs, (d, f), ('embed', 'mlp'), init)
        self.up = param(rngs, (d, f), ('embed', 'mlp'), init)
        self.down = param(rngs, (f, d), ('mlp', 'embed'), init)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = jax.nn.silu(contract(x, self.gate[...], 'btd,df->btf'))
        up = contract(x, self.up[...], 'btd,df->btf')
        return contract(gate * up, self.down[...], 'btf,fd->btd')


class Block(nnx.Module):
    """One decoder layer, (b, t, d) -> (b, t, d)."""

    def __init__(
        self, d: int, f: int, n: int, k: int, h: int, *, eps: float, init_std: float,
        attend: Callable, rngs: nnx.Rngs,
    ):
        self.attn_norm = RMSNorm(d, eps=eps, rngs=rngs)
        self.attn = Attention(d, n, k, h, eps=eps, init_std=init_std, attend=attend, rngs=rngs)
        self.mlp_norm = RMSNorm(d, eps=eps, rngs=rngs)
        self.mlp = GatedMLP(d, f, init_std=init_std, rngs=rngs)

    def __call__(
        self, x: jax.Array, rotation: Rotation, mask: Mask, recall: Callable = as_computed
    ) -> tuple[jax.Array, KeysValues]:
        """Runs the layer.

        Args:
          x: (b, t, d).
          rotation: cos and sin at the positions of x.
          mask: over the keys that `recall` returns.
          recall: (new keys, new values) -> all keys and values to attend to; a cache writes the
            new ones into its buffers here.

        Returns:
          (output, what `recall` returned).
        """
        y, keys_values = self.attn(self.attn_norm(x), rotation, mask, recall)
        x = x + y
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, ('batch', 'time', None)), keys_values

"""The Qwen3 decoder layer: pre-norm, grouped-query attention with QK-norm, gated MLP.

Source: `transformers.models.qwen3` (reference for every rounding in bfloat16).
"""

from collections.abc import Callable

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name

from mossjax.nn.heads import Rotation, norm_rope
from mossjax.nn.linear import RMSNorm
from mossjax.nn.param import normal, param
from mossjax.nn.shard import constrain, row_major
from mossjax.ops.contract import contract

KeysValues = tuple[jax.Array, jax.Array]  # (b, s, k, h) each
STREAM = 'batch', 'time', None  # logical axes of what flows from layer to layer
HEADS = 'heads'  # name of the attention's four projections, for remat policies


# (queries (b, t, n, h), keys (b, t, k, h), values) -> attended (b, t, n, h)
Look = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Attention(nnx.Module):
    """Grouped-query attention; RMS norm of queries and keys per head, before the rotation.

    Args:
      d, n, k, h: model width, query heads, key-value heads, head size.
      eps, init_std: of the norms, of the fresh kernels.
    """

    def __init__(
        self, d: int, n: int, k: int, h: int, *, eps: float, init_std: float, rngs: nnx.Rngs
    ):
        init = normal(init_std)
        self.q = param(rngs, (d, n, h), ('embed', 'heads', 'head_dim'), init)
        self.k = param(rngs, (d, k, h), ('embed', 'kv_heads', 'head_dim'), init)
        self.v = param(rngs, (d, k, h), ('embed', 'kv_heads', 'head_dim'), init)
        self.o = param(rngs, (n, h, d), ('heads', 'head_dim', 'embed'), init)
        self.q_norm = RMSNorm(h, eps=eps, rngs=rngs)
        self.k_norm = RMSNorm(h, eps=eps, rngs=rngs)

    def __call__(
        self, x: jax.Array, rotation: Rotation, look: Look
    ) -> tuple[jax.Array, KeysValues]:
        def project(x, weight, spec):
            y = contract(x, weight, spec)
            # Kept as it is multiplied out, head beside head: no kernel reads it otherwise.
            return checkpoint_name(y.reshape(*y.shape[:2], -1), HEADS).reshape(y.shape)

        q = norm_rope(project(x, self.q[...], 'btd,dnh->btnh'), self.q_norm, rotation)
        k = norm_rope(project(x, self.k[...], 'btd,dkh->btkh'), self.k_norm, rotation)
        v = project(x, self.v[...], 'btd,dkh->btkh')
        y = look(q, k, v)
        return project(y, self.o[...], 'btnh,nhd->btd'), (k, v)


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
        rngs: nnx.Rngs,
    ):
        self.attn_norm = RMSNorm(d, eps=eps, rngs=rngs)
        self.attn = Attention(d, n, k, h, eps=eps, init_std=init_std, rngs=rngs)
        self.mlp_norm = RMSNorm(d, eps=eps, rngs=rngs)
        self.mlp = GatedMLP(d, f, init_std=init_std, rngs=rngs)

    def __call__(
        self, x: jax.Array, rotation: Rotation, look: Look
    ) -> tuple[jax.Array, KeysValues]:
        """Runs the layer.

        Args:
          x: (b, t, d).
          rotation: cos and sin at the positions of x.
          look: attention; what the queries see beside these keys (a mask, a cache) is its own
            business.

        Returns:
          (output, keys after norm and rotation and values of x).
        """
        y, keys_values = self.attn(self.attn_norm(x), rotation, look)
        x = row_major(x + y, STREAM)
        x = row_major(x + self.mlp(self.mlp_norm(x)), STREAM)
        return constrain(x, STREAM), keys_values

"""Linear maps, embeddings and norms with their weights."""

from flax import nnx
import jax

from mossjax.nn.lookup import lookup
from mossjax.nn.param import fan_in, ones, param, zeros
from mossjax.ops import norms
from mossjax.ops.contract import contract


class Linear(nnx.Module):
    """y = x W (+ b), W (d_in, d_out)."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        axes: tuple[str | None, str | None] = ('embed', 'embed_out'),
        bias: bool = True,
        init=fan_in(),  # noqa: B008  (a pure factory)
        rngs: nnx.Rngs,
    ):
        self.kernel = param(rngs, (d_in, d_out), axes, init)
        self.bias = param(rngs, (d_out,), (axes[1],), zeros) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = contract(x, self.kernel[...], '...d,de->...e')
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Embedding(nnx.Module):
    """Rows of a (v, d) table by id; ids must lie in [0, v)."""

    def __init__(self, vocab: int, d: int, *, init, axes=('vocab', 'embed'), rngs: nnx.Rngs):
        self.axes = axes
        self.table = param(rngs, (vocab, d), axes, init)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return lookup(self.table[...], ids, self.axes)


class LayerNorm(nnx.Module):
    def __init__(self, d: int, *, eps: float = 1e-5, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = param(rngs, (d,), ('norm',), ones)
        self.bias = param(rngs, (d,), ('norm',), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        return norms.layer_norm(x, self.scale[...], self.bias[...], eps=self.eps)


class RMSNorm(nnx.Module):
    def __init__(self, d: int, *, eps: float = 1e-6, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = param(rngs, (d,), ('norm',), ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        return norms.rms_norm(x, self.scale[...], eps=self.eps)

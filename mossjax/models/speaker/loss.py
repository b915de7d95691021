"""A speaker encoder as a classifier of the speakers it is trained on.

Softmax over scaled cosines between a recording's vector and one direction a speaker, of which the
right one has to win by a margin (additive margin, arXiv 1801.05599; plain where it is 0).
"""

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.models.speaker.config import CamppConfig
from mossjax.models.speaker.model import Campp
from mossjax.nn.param import fan_in, param

SCALE = 30.0  # of the cosines


class Classifier(nnx.Module):
    """An encoder and the directions of its speakers."""

    def __init__(self, config: CamppConfig, speakers: int, *, rngs: nnx.Rngs):
        self.encoder = Campp(config, rngs=rngs)
        self.directions = param(rngs, (speakers, config.embedding), (None, None), fan_in(axes=1))

    def cosines(self, vectors: jax.Array) -> jax.Array:
        """(b, embedding) of any length -> (b, speakers), float32."""
        return _unit(vectors) @ _unit(self.directions[...]).T


def margin_loss(
    cosines: jax.Array, speakers: jax.Array, margin: float, scale: float = SCALE
) -> jax.Array:
    """Mean cross-entropy of (b, speakers) cosines, the right one lowered by the margin."""
    right = jax.nn.one_hot(speakers, cosines.shape[-1], dtype=cosines.dtype)
    scores = jax.nn.log_softmax(scale * (cosines - margin * right))
    return -jnp.mean(jnp.sum(right * scores, axis=-1))


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)

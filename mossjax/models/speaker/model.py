"""Who speaks: filter bank -> speaker vector. Upstream: `campplus.onnx` (CAM++ of 3D-Speaker)."""

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.models.speaker.blocks import DenseLayer, Divisor, Head, norm, own_frames
from mossjax.models.speaker.config import CamppConfig
from mossjax.nn.convnet import Conv1d
from mossjax.nn.linear import Linear


class Campp(nnx.Module):
    """The encoder. Padding of a batch changes no row.

    Args:
      divisor: how the last segment of a recording is averaged, see `blocks.own_frames`.
    """

    def __init__(self, config: CamppConfig, *, divisor: Divisor = own_frames, rngs: nnx.Rngs):
        self.config = config
        axes = ('conv_in', 'conv_out')
        self.head = Head(config, rngs=rngs)
        c_in = config.head * config.mels // 8
        self.tdnn = Conv1d(
            c_in, config.width, 5, stride=2, left=2, right=2, bias=False, rngs=rngs
        )
        self.tdnn_norm = norm(config, 'tdnn_norm', config.width, rngs=rngs)
        for i, (layers, dilation) in enumerate(zip(config.layers, config.dilations, strict=True)):
            before, after = config.block_widths(i)
            for j in range(layers):
                name, c = f'block{i}_{j}', before + j * config.growth
                layer = DenseLayer(config, name, c, dilation, divisor=divisor, rngs=rngs)
                setattr(self, name, layer)
            setattr(self, f'transit_norm{i}', norm(config, f'transit_norm{i}', after, rngs=rngs))
            transit = Linear(after, after // 2, axes=axes, bias=False, rngs=rngs)
            setattr(self, f'transit{i}', transit)
        last = after // 2
        self.out_norm = norm(config, 'out_norm', last, rngs=rngs)
        self.embed = Linear(2 * last, config.embedding, axes=axes, bias=False, rngs=rngs)
        self.embed_norm = norm(config, 'embed_norm', config.embedding, affine=False, rngs=rngs)

    def __call__(self, features: jax.Array, lengths: jax.Array) -> jax.Array:
        """Args:
          features: (b, t, mels) filter bank of `fbank.fbank`, its mean over time subtracted.
          lengths: (b,) frames that exist, 3 or more.

        Returns:
          (b, embedding), of any length.
        """
        x = self.head(features, _exists(features.shape[1], lengths))
        x = jax.nn.relu(self.tdnn_norm(self.tdnn(x)))
        valid = _exists(x.shape[1], (lengths + 1) // 2)
        for i, layers in enumerate(self.config.layers):
            for j in range(layers):
                x = getattr(self, f'block{i}_{j}')(x, valid)
            x = jax.nn.relu(getattr(self, f'transit_norm{i}')(x))
            x = getattr(self, f'transit{i}')(x)
        x = jax.nn.relu(self.out_norm(x))
        return self.embed_norm(self.embed(_statistics(x, valid)))


def _statistics(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean and unbiased deviation over the frames that exist, (b, t, c) -> (b, 2c)."""
    count = valid.sum(axis=1)
    mean = jnp.where(valid, x, 0).sum(axis=1) / jnp.maximum(count, 1)
    squares = jnp.where(valid, jnp.square(x - mean[:, None]), 0).sum(axis=1)
    return jnp.concatenate([mean, jnp.sqrt(squares / jnp.maximum(count - 1, 1))], axis=-1)


def _exists(frames: int, lengths: jax.Array) -> jax.Array:
    return (jnp.arange(frames) < lengths[:, None])[..., None]

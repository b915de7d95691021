"""The parts of CAM++: norms, the two-dimensional head, dense layers with context masks."""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.models.speaker.config import CamppConfig
from mossjax.nn.convnet import Conv1d
from mossjax.nn.linear import Linear
from mossjax.nn.param import fan_in, ones, param, zeros
from mossjax.ops.conv import conv2d

SEGMENT = 100  # frames of a context segment
# (frames that exist in a segment) -> what its sum is divided by.
Divisor = Callable[[jax.Array], jax.Array]


def own_frames(count: jax.Array) -> jax.Array:
    """The last, shorter segment is averaged over its own frames, as torch does."""
    return jnp.maximum(count, 1)


def all_frames(count: jax.Array) -> jax.Array:
    """The last, shorter segment is divided by a whole one's frames.

    So did onnxruntime up to 1.23 (AveragePool with ceil_mode), which upstream pins; embeddings of
    upstream's own pipeline carry it.
    """
    return jnp.full_like(count, SEGMENT)


class BatchNorm(nnx.Module):
    """Batch normalisation over the last axis, with the statistics of training.

    In training (`Module.train()`) with those of the batch, which has no padding then; they are left
    as `nnx.Intermediate`s under the names of the parameters that follow them.
    """

    def __init__(self, c: int, *, affine: bool = True, rngs: nnx.Rngs):
        self.mean = param(rngs, (c,), ('norm',), zeros)
        self.var = param(rngs, (c,), ('norm',), ones)
        self.scale = param(rngs, (c,), ('norm',), ones) if affine else None
        self.bias = param(rngs, (c,), ('norm',), zeros) if affine else None
        self.use_running_average = True

    def __call__(self, x: jax.Array) -> jax.Array:
        mean, var = self.mean[...], self.var[...]
        if not self.use_running_average:
            axes = tuple(range(x.ndim - 1))
            mean, var = jnp.mean(x, axis=axes), jnp.var(x, axis=axes)
            self.batch = nnx.Intermediate({'mean': mean, 'var': var})
        y = (x - mean) * jax.lax.rsqrt(var + 1e-5)
        return y if self.scale is None else y * self.scale[...] + self.bias[...]


class Shift(nnx.Module):
    """What is left of a norm whose scale stands in the weights before it."""

    def __init__(self, c: int, *, rngs: nnx.Rngs):
        self.bias = param(rngs, (c,), ('norm',), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.bias[...]


def norm(config: CamppConfig, path: str, c: int, *, affine: bool = True, rngs: nnx.Rngs):
    """The norm at this place: folded or not."""
    if path in config.folded:
        return Shift(c, rngs=rngs)
    return BatchNorm(c, affine=affine, rngs=rngs)


class Conv2d(nnx.Module):
    """(b, f, t, c_in) -> (b, f / stride, t, c_out), zeros around, stride along frequency only."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, rngs: nnx.Rngs):
        self.stride, self.pad = stride, kernel // 2
        axes = ('kernel', None, 'conv_in', 'conv_out')
        init = fan_in(axes=(0, 1, 2))
        self.kernel = param(rngs, (kernel, kernel, c_in, c_out), axes, init)

    def __call__(self, x: jax.Array) -> jax.Array:
        return conv2d(x, self.kernel[...], stride=(self.stride, 1), pad=(self.pad, self.pad))


class Residual(nnx.Module):
    """Two 3 x 3 convolutions around a shortcut, which has a 1 x 1 one where the stride is 2."""

    def __init__(self, config: CamppConfig, path: str, *, stride: int, rngs: nnx.Rngs):
        c = config.head
        self.conv1 = Conv2d(c, c, 3, stride=stride, rngs=rngs)
        self.norm1 = norm(config, f'{path}/norm1', c, rngs=rngs)
        self.conv2 = Conv2d(c, c, 3, rngs=rngs)
        self.norm2 = norm(config, f'{path}/norm2', c, rngs=rngs)
        wide = stride > 1
        self.shortcut = Conv2d(c, c, 1, stride=stride, rngs=rngs) if wide else None
        self.shortcut_norm = norm(config, f'{path}/shortcut_norm', c, rngs=rngs) if wide else None

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """x (b, f, t, c), zero where valid (b, 1, t, 1) is False; so is the result."""
        y = jnp.where(valid, jax.nn.relu(self.norm1(self.conv1(x))), 0)
        y = self.norm2(self.conv2(y))
        y = y + (x if self.shortcut is None else self.shortcut_norm(self.shortcut(x)))
        return jnp.where(valid, jax.nn.relu(y), 0)


class Head(nnx.Module):
    """The filter bank seen as an image, frequency divided by 8 (upstream: `FCM`)."""

    def __init__(self, config: CamppConfig, *, rngs: nnx.Rngs):
        c = config.head
        self.conv1 = Conv2d(1, c, 3, rngs=rngs)
        self.norm1 = norm(config, 'head/norm1', c, rngs=rngs)
        for i in (1, 2):
            for j, stride in enumerate((2, 1)):
                name = f'layer{i}_{j}'
                setattr(self, name, Residual(config, f'head/{name}', stride=stride, rngs=rngs))
        self.conv2 = Conv2d(c, c, 3, stride=2, rngs=rngs)
        self.norm2 = norm(config, 'head/norm2', c, rngs=rngs)

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """(b, t, f), valid (b, t, 1) -> (b, t, c * f / 8), channels outermost."""
        valid = valid[:, None]
        x = jnp.where(valid, jnp.swapaxes(x, 1, 2)[..., None], 0)
        x = jnp.where(valid, jax.nn.relu(self.norm1(self.conv1(x))), 0)
        for name in ('layer1_0', 'layer1_1', 'layer2_0', 'layer2_1'):
            x = getattr(self, name)(x, valid)
        x = jnp.where(valid, jax.nn.relu(self.norm2(self.conv2(x))), 0)
        b, f, t, c = x.shape
        return x.transpose(0, 2, 3, 1).reshape(b, t, c * f)


def segment_means(x: jax.Array, valid: jax.Array, divisor: Divisor) -> jax.Array:
    """The mean of each frame's segment, (b, t, c), valid (b, t, 1) -> (b, t, c)."""
    b, t, c = x.shape
    segments = -(-t // SEGMENT)
    pad = ((0, 0), (0, segments * SEGMENT - t), (0, 0))
    x, valid = jnp.pad(jnp.where(valid, x, 0), pad), jnp.pad(valid, pad)
    total = x.reshape(b, segments, SEGMENT, c).sum(axis=2)
    count = valid.reshape(b, segments, SEGMENT, 1).sum(axis=2)
    return jnp.repeat(total / divisor(count), SEGMENT, axis=1)[:, :t]


class DenseLayer(nnx.Module):
    """Adds `growth` channels: a bottleneck, a dilated convolution, a mask from the context."""

    def __init__(
        self, config: CamppConfig, path: str, c_in: int, dilation: int, *, divisor: Divisor,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        c, grown = config.bottleneck, config.growth
        self.divisor = divisor
        axes = ('conv_in', 'conv_out')
        self.norm1 = norm(config, f'{path}/norm1', c_in, rngs=rngs)
        self.narrow = Linear(c_in, c, axes=axes, bias=False, rngs=rngs)
        self.norm2 = norm(config, f'{path}/norm2', c, rngs=rngs)
        self.local = Conv1d(
            c, grown, 3, left=dilation, right=dilation, dilation=dilation, bias=False, rngs=rngs
        )
        self.context_in = Linear(c, c // 2, axes=axes, rngs=rngs)
        self.context_out = Linear(c // 2, grown, axes=axes, rngs=rngs)

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """(b, t, c_in), valid (b, t, 1) -> (b, t, c_in + growth)."""
        y = self.narrow(jax.nn.relu(self.norm1(x)))
        y = jnp.where(valid, jax.nn.relu(self.norm2(y)), 0)
        mean = y.sum(axis=1, keepdims=True) / jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
        context = mean + segment_means(y, valid, self.divisor)
        mask = jax.nn.sigmoid(self.context_out(jax.nn.relu(self.context_in(context))))
        return jnp.concatenate([x, self.local(y) * mask], axis=-1)

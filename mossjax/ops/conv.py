"""Convolutions on channels-last activations, with torch's padding semantics."""

import functools

import jax
import jax.numpy as jnp

LANES = 128  # of a TPU: channels that are computed side by side


def conv1d(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, left: int = 0, right: int = 0,
    dilation: int = 1,
) -> jax.Array:
    """Correlation along time: y[m] = sum_k x[stride * m + dilation * k - left] kernel[k].

    Where it is compiled for a TPU and the channels do not fill its lanes, it is one matrix product:
    over a second of samples that compiler takes minutes for a convolution of few channels.

    Args:
      x: (b, t, c_in). kernel: (k, c_in, c_out).
      left, right: zeros put before and after. A causal convolution has left = k - 1, right = 0.

    Returns:
      (b, t_out, c_out), t_out = (t + left + right - dilation * (k - 1) - 1) // stride + 1.
    """
    kernel = kernel.astype(x.dtype)
    plain = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(stride,), padding=((left, right),),
        rhs_dilation=(dilation,), dimension_numbers=('NWC', 'WIO', 'NWC'),
    )  # fmt: skip
    if stride > 1 or x.shape[-1] >= LANES:
        return plain(x, kernel)
    product = functools.partial(_product, left=left, right=right, dilation=dilation)
    return jax.lax.platform_dependent(x, kernel, tpu=product, default=plain)


def _product(x: jax.Array, kernel: jax.Array, *, left: int, right: int, dilation: int) -> jax.Array:
    """`conv1d` of stride 1: what each sum is of side by side, times the kernel."""
    x = jnp.pad(x, ((0, 0), (left, right), (0, 0)))
    count = x.shape[1] - dilation * (len(kernel) - 1)
    seen = [x[:, dilation * k : dilation * k + count] for k in range(len(kernel))]
    return jnp.concatenate(seen, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def conv_transpose1d(x: jax.Array, kernel: jax.Array, *, stride: int, cut: int) -> jax.Array:
    """The transpose of `conv1d`: y[stride * i + k - cut] += x[i] kernel[k], ends cut off.

    Made of one matrix product and an overlap-add, so no zero is ever multiplied.

    Args:
      x: (b, t, c_in). kernel: (k, c_in, c_out), k >= stride.
      cut: samples taken off either end (torch's padding), k - stride = 2 * cut.

    Returns:
      (b, stride * t, c_out).
    """
    size, c_in, c_out = kernel.shape
    if size - stride != 2 * cut:
        raise ValueError(f'kernel {size}, stride {stride} and cut {cut} change the length')
    parts = -(-size // stride)
    kernel = jnp.pad(kernel, ((0, parts * stride - size), (0, 0), (0, 0)))
    frames = jnp.einsum('btc,kcd->btkd', x, kernel.astype(x.dtype))
    return overlap_add(frames, stride)[:, cut : cut + stride * x.shape[1]]


def conv2d(
    x: jax.Array, kernel: jax.Array, *, stride: tuple[int, int] = (1, 1),
    pad: tuple[int, int] = (0, 0),
) -> jax.Array:
    """Correlation over two axes, each padded with zeros on both sides.

    Where it is compiled for a CPU, strides are folded into channels: gradients of strided
    convolutions are several times slower there.

    Args:
      x: (b, h, w, c_in). kernel: (kh, kw, c_in, c_out).

    Returns:
      (b, h_out, w_out, c_out), h_out = (h + 2 * pad - kh) // stride + 1.
    """
    kernel = kernel.astype(x.dtype)
    plain = functools.partial(_conv2d, stride=stride, pad=pad)
    if stride == (1, 1):
        return plain(x, kernel)
    folded = functools.partial(_folded, stride=stride, pad=pad)
    return jax.lax.platform_dependent(x, kernel, cpu=folded, default=plain)


def _conv2d(x, kernel, *, stride=(1, 1), pad=(0, 0)) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, window_strides=stride, padding=[(p, p) for p in pad],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def _folded(
    x: jax.Array, kernel: jax.Array, *, stride: tuple[int, int], pad: tuple[int, int]
) -> jax.Array:
    """`conv2d` without a stride: the places that a stride steps over side by side, as channels."""
    b, *sizes, c_in = x.shape
    taps = [-(-k // s) for k, s in zip(kernel.shape, stride, strict=False)]
    counts = [  # folded places: of the outputs, and those that the last one sees beyond its own
        (n + 2 * p - k) // s + tap
        for n, p, k, s, tap in zip(sizes, pad, kernel.shape, stride, taps, strict=False)
    ]
    # What no output sees is cut off: a negative padding.
    ends = [
        (p, s * count - p - n, 0)
        for n, p, s, count in zip(sizes, pad, stride, counts, strict=True)
    ]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    kernel = jnp.pad(kernel, [
        *((0, s * tap - k) for k, s, tap in zip(kernel.shape, stride, taps, strict=False)),
        (0, 0), (0, 0),
    ])  # fmt: skip
    (v, u), (s, r) = counts, stride
    x = x.reshape(b, v, s, u, r, c_in).swapaxes(2, 3).reshape(b, v, u, s * r * c_in)
    (v, u), c_out = taps, kernel.shape[-1]
    kernel = kernel.reshape(v, s, u, r, c_in, c_out).swapaxes(1, 2)
    return _conv2d(x, kernel.reshape(v, u, s * r * c_in, c_out))


def overlap_add(frames: jax.Array, hop: int) -> jax.Array:
    """(b, t, k, ...) -> (b, hop * (t - 1) + k, ...): frame i is added from position hop * i on.

    k must be a multiple of the hop.
    """
    b, t, k, *rest = frames.shape
    parts = k // hop
    if parts * hop != k:
        raise ValueError(f'frames of {k} are no multiple of the hop, {hop}')
    blocks = frames.reshape(b, t, parts, hop, *rest)
    ends = [(0, 0)] * (blocks.ndim - 3)
    shifted = (
        jnp.pad(blocks[:, :, i], [(0, 0), (i, parts - 1 - i), *ends]) for i in range(parts)
    )
    return sum(shifted).reshape(b, (t + parts - 1) * hop, *rest)

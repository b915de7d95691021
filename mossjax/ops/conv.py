"""One-dimensional convolution on channels-last activations, with torch's padding semantics."""

import jax


def conv1d(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, left: int = 0, right: int = 0,
    dilation: int = 1,
) -> jax.Array:
    """Correlation along time: y[m] = sum_k x[stride * m + dilation * k - left] kernel[k].

    Args:
      x: (b, t, c_in). kernel: (k, c_in, c_out).
      left, right: zeros put before and after. A causal convolution has left = k - 1, right = 0.

    Returns:
      (b, t_out, c_out), t_out = (t + left + right - dilation * (k - 1) - 1) // stride + 1.
    """
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), window_strides=(stride,), padding=((left, right),),
        rhs_dilation=(dilation,), dimension_numbers=('NWC', 'WIO', 'NWC'),
    )

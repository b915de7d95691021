"""Convolutions as they are compiled for a TPU and for a CPU, against sums in float64."""

import numpy as np
import pytest

from mossjax.ops import conv


@pytest.mark.parametrize(
    ('size', 'dilation', 'left', 'right'), [(1, 1, 0, 0), (3, 1, 2, 0), (7, 3, 9, 9), (11, 5, 0, 4)]
)
def test_the_product_is_the_convolution(size, dilation, left, right, rng):
    x, kernel = rng.normal(size=(2, 60, 5)), rng.normal(size=(size, 5, 3))
    padded = np.pad(x, ((0, 0), (left, right), (0, 0)))
    wanted = np.zeros((2, 60 + left + right - dilation * (size - 1), 3))
    for m in range(wanted.shape[1]):
        for k in range(size):
            wanted[:, m] += padded[:, m + dilation * k] @ kernel[k]
    x, kernel = x.astype('f'), kernel.astype('f')
    given = {'left': left, 'right': right, 'dilation': dilation}
    for run in (conv.conv1d, conv._product):
        np.testing.assert_allclose(run(x, kernel, **given), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ('kernel', 'stride', 'pad'),
    [((3, 9), (1, 2), (1, 4)), ((3, 3), (2, 1), (1, 1)), ((1, 1), (2, 1), (0, 0)),
     ((4, 5), (3, 2), (0, 1))],
)  # fmt: skip
def test_a_folded_stride_is_a_stride(kernel, stride, pad, rng):
    x, weights = rng.normal(size=(2, 11, 14, 3)), rng.normal(size=(*kernel, 3, 2))
    padded = np.pad(x, ((0, 0), (pad[0],) * 2, (pad[1],) * 2, (0, 0)))
    sizes = [
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(x.shape[1:3], pad, kernel, stride, strict=True)
    ]
    wanted = np.zeros((2, *sizes, 2))
    for i, j in np.ndindex(*kernel):
        seen = padded[:, i :: stride[0], j :: stride[1]][:, : sizes[0], : sizes[1]]
        wanted += seen @ weights[i, j]
    x, weights = x.astype('f'), weights.astype('f')
    for run in (conv._conv2d, conv._folded):
        found = run(x, weights, stride=stride, pad=pad)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)

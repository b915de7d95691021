"""The convolution as it is compiled for a TPU, against sums in float64."""

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

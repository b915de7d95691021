"""Transposed, dilated and two-dimensional convolutions against torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mossjax.ops import conv


@pytest.mark.parametrize('kernel, stride', [(16, 8), (11, 5), (7, 3), (4, 4), (3, 1)])
def test_transposed(kernel, stride, rng):
    x = rng.normal(size=(2, 9, 6)).astype(np.float32)
    w = rng.normal(size=(6, 4, kernel)).astype(np.float32)
    cut = (kernel - stride) // 2
    expected = F.conv_transpose1d(
        torch.tensor(x).mT, torch.tensor(w), stride=stride, padding=cut
    ).mT.numpy()
    found = conv.conv_transpose1d(x, w.transpose(2, 0, 1), stride=stride, cut=cut)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert found.shape == (2, 9 * stride, 4)


@pytest.mark.parametrize('kernel, dilation', [(3, 5), (11, 3)])
def test_dilated(kernel, dilation, rng):
    x = rng.normal(size=(2, 40, 6)).astype(np.float32)
    w = rng.normal(size=(4, 6, kernel)).astype(np.float32)
    side = dilation * (kernel - 1) // 2
    expected = F.conv1d(torch.tensor(x).mT, torch.tensor(w), padding=side, dilation=dilation)
    found = conv.conv1d(x, w.T, left=side, right=side, dilation=dilation)
    np.testing.assert_allclose(found, expected.mT.numpy(), rtol=0, atol=2e-5)


def test_two_dimensional(rng):
    x = rng.normal(size=(2, 8, 11, 3)).astype(np.float32)
    w = rng.normal(size=(5, 3, 3, 3)).astype(np.float32)
    expected = F.conv2d(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(w), None, (2, 1), 1)
    found = conv.conv2d(x, w.transpose(2, 3, 1, 0), stride=(2, 1), pad=(1, 1))
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-5)


def test_frames_of_a_wrong_length_are_refused(rng):
    with pytest.raises(ValueError, match='no multiple of the hop'):
        conv.overlap_add(rng.normal(size=(1, 2, 7)), 3)
    with pytest.raises(ValueError, match='change the length'):
        conv.conv_transpose1d(rng.normal(size=(1, 2, 3)), np.ones((8, 3, 2)), stride=3, cut=2)

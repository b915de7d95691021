"""The torch-free reader against torch: whatever torch.save writes today comes back bit by bit."""

import collections

import numpy as np
import pytest
import torch

from mossjax.convert.torch_reader import TorchReader

TYPES = ['float64', 'float32', 'float16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool']


def test_state_dict(tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv1d(3, 5, 2), torch.nn.LayerNorm(4), torch.nn.LSTM(3, 4)
    )
    torch.save(module.state_dict() | {'epoch': 3, 'name': 'x'}, tmp_path / 'x.pt')
    reader = TorchReader(tmp_path / 'x.pt')
    assert set(reader.shapes) == set(module.state_dict())
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(reader.read(name), value.numpy())


@pytest.mark.parametrize('dtype', TYPES)
def test_types_and_views(dtype, tmp_path):
    whole = (torch.randn(6, 7) * 10).to(getattr(torch, dtype))
    tensors = collections.OrderedDict(
        whole=whole, turned=whole.t(), cut=whole[1:4, 2:5], every_other=whole[::2],
        wide=whole[:1].expand(3, 7), empty=whole[:0], point=whole[2, 3],
    )  # fmt: skip
    torch.save(tensors, tmp_path / 'x.pt')
    reader = TorchReader(tmp_path / 'x.pt')
    for name, value in tensors.items():
        found = reader.read(name)
        assert found.dtype == value.numpy().dtype
        np.testing.assert_array_equal(found, value.numpy())

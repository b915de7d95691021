"""The decoder's half of a codec directory: tensor names, round trips, torch files without torch."""

import collections
import io
import math
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from mossjax.convert import rules
from mossjax.convert.codec_flow import flow_network, open_flow, save_flow
from mossjax.convert.flow_rules import flow_rules
from mossjax.convert.torch_reader import TorchReader
from mossjax.errors import InputError
from mossjax.models.flow.config import FlowConfig, released

SMALL = FlowConfig(
    vocab_size=97, input_size=64, width=64, heads=4, ff_width=128, blocks=2, up_blocks=2,
    channels=32, head_dim=16, estimator_heads=4, transformers=2, mid_blocks=2,
)  # fmt: skip


def test_the_released_decoder_has_upstream_s_tensors():
    expected = rules.expected_tensors(flow_rules(), flow_network(released()).shapes)
    assert len(expected) == 1121
    assert sum(math.prod(shape) for shape in expected.values()) == 120_724_464
    assert expected['encoder.encoders.5.self_attn.linear_pos.weight'] == (512, 512)
    assert expected['decoder.estimator.mid_blocks.11.1.3.ff.net.0.proj.weight'] == (1024, 256)
    assert expected['decoder.estimator.up_blocks.0.0.res_conv.weight'] == (256, 512, 1)
    assert expected['decoder.estimator.down_blocks.0.0.block1.block.0.weight'] == (256, 320, 3)


def test_tensors_to_parameters_and_back_is_exact(golden):
    tensors = golden('decoder/flow_state.safetensors')
    params = rules.to_params(flow_rules(), tensors.__getitem__, flow_network(SMALL).shapes)
    back = rules.to_tensors(flow_rules(), params)
    assert set(back) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)
    # A stack of stacks is not transposed: mid block 1, transformer 0.
    np.testing.assert_array_equal(
        params['estimator']['mid']['transformers']['ff_norm']['scale'][1, 0],
        tensors['decoder.estimator.mid_blocks.1.1.0.norm3.weight'],
    )


def test_directory_round_trip(golden, tmp_path):
    tensors = golden('decoder/flow_state.safetensors')
    params = rules.to_params(flow_rules(), tensors.__getitem__, flow_network(SMALL).shapes)
    save_flow(tmp_path, SMALL, params)
    config, again = open_flow(tmp_path)
    assert config == SMALL
    before, after = rules.flatten(params), rules.flatten(again)
    assert list(before) == list(after)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)


def test_weights_of_another_size_are_refused(golden, tmp_path):
    (tmp_path / 'flow').mkdir()
    shutil.copy(golden('decoder/tensors.pt'), tmp_path / 'flow' / 'flow.pt')
    with pytest.raises(InputError, match=r'(?s)flow\.pt: .*missing: input_embedding\.weight'):
        open_flow(tmp_path)  # no config.yaml: the released configuration
    with pytest.raises(InputError, match=r'neither flow-chunk-5\.safetensors nor'):
        open_flow(tmp_path, stem='flow-chunk-5')


def test_torch_file(golden):
    """Views, a parameter, half types and plain numbers, against the values torch itself saw."""
    reader = TorchReader(golden('decoder/tensors.pt'))
    expected = golden('decoder/tensors.safetensors')
    assert set(reader.shapes) == set(expected)  # epoch and step are dropped
    for name, value in expected.items():
        found = reader.read(name)
        assert reader.shapes[name] == found.shape == value.shape
        np.testing.assert_array_equal(found.astype(np.float32), value)
    assert reader.read('long').dtype == np.int64


class _Call:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def archive(path, value=None, data=None):
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('x/data.pkl', pickle.dumps(value) if data is None else data)
    return path


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda p: {'w': _Call(os.system, f'touch {p}')}, r'asks for (posix|nt)\.system'),
        (lambda p: {'w': _Call(eval, '1')}, r'asks for builtins\.eval'),
        (lambda p: {'w': _Call(collections.Counter, 'a')}, r'collections\.Counter'),
        (lambda p: [1, 2], 'holds a list'),
        (lambda p: {'model': {'w': 1}}, "entry 'model' is a container"),
    ],
)
def test_anything_but_tensors_is_refused_and_not_run(make, message, tmp_path):
    marker = tmp_path / 'executed'
    with pytest.raises(InputError, match=message):
        TorchReader(archive(tmp_path / 'x.pt', make(marker)))
    assert not marker.exists()


def test_damaged_files_are_refused(golden, tmp_path):
    path = tmp_path / 'x.pt'
    path.write_bytes(b'not a zip')
    with pytest.raises(InputError, match='no zip archive'):
        TorchReader(path)
    with pytest.raises(InputError, match='refused'):
        TorchReader(archive(path, data=b'\x80\x02garbage'))
    with zipfile.ZipFile(golden('decoder/tensors.pt')) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        for name, raw in entries.items():
            file.writestr(name, raw[:4] if '/data/' in name else raw)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r'plain\.weight: .*download the file again'):
        TorchReader(path).read('plain.weight')

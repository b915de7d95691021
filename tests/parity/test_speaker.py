"""CAM++ against torch: both poolings, padded batches, and weights out of and into ONNX graphs."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest
import torch

from mossjax.convert import campp_onnx, rules
from mossjax.convert.campp_onnx import OnnxTensors
from mossjax.convert.campp_rules import campp_rules
from mossjax.convert.codec_speaker import campp_network, open_campp, save_campp
from mossjax.errors import InputError
from mossjax.models.speaker import blocks
from mossjax.models.speaker.config import CamppConfig
from tests.parity import campp_torch

CONFIG = CamppConfig(
    width=12, growth=4, bottleneck=10, head=4, embedding=16, layers=(2, 1, 3)
)
FOLDED = 12 + 1 + 6 + 1  # norms behind convolutions: head, first layer, dense layers, the last


@pytest.fixture(scope='module')
def network():
    return campp_torch.random(CONFIG)


@pytest.fixture(scope='module')
def tensors(network):
    found = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return {name: x for name, x in found.items() if not name.endswith('num_batches_tracked')}


@pytest.fixture(scope='module')
def features():
    torch.manual_seed(2)
    return torch.randn(1, 330, 80)


@pytest.fixture(scope='module')
def graph(network, features, tmp_path_factory):
    """A graph as torch's exporter makes it, norms folded."""
    return export(network, features, tmp_path_factory.mktemp('onnx') / 'campplus.onnx')


def export(network, features, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch's own, about its exporter
        torch.onnx.export(
            network, (features,), path, dynamo=False, input_names=['input'],
            output_names=['output'], dynamic_axes={'input': {1: 'frames'}}, opset_version=17,
            **options,
        )  # fmt: skip
    return path


@pytest.mark.parametrize('pooling', ['own_frames', 'all_frames'])
def test_vectors_alone_and_padded(pooling, network, tensors, features, monkeypatch):
    """165 and 68 frames after the first layer: a last segment of 65, and one of 68 alone."""
    monkeypatch.setattr(campp_torch.Context, 'pool', staticmethod(getattr(campp_torch, pooling)))
    with torch.no_grad():
        expected = [network(features)[0], network(features[:, :135])[0]]
    ours = campp_network(CONFIG, divisor=getattr(blocks, pooling))
    params = rules.to_params(campp_rules(CONFIG), tensors.__getitem__, ours.shapes)
    run = jax.jit(lambda params, x, lengths: ours.bind(params)(x, lengths))
    rows = np.full((2, 352, 80), np.nan, np.float32)
    rows[0, :330], rows[1, :135] = features[0], features[0, :135]
    found = run(params, rows, np.array([330, 135]))
    for row, vector in zip(found, expected, strict=True):
        np.testing.assert_allclose(row, vector, rtol=0, atol=1e-5)
    # The two poolings are not the same: what is compared here can fail.
    monkeypatch.undo()
    with torch.no_grad():
        moved = (network(features[:, :135])[0] - expected[1]).abs().max()
    assert moved > 1e-4 if pooling == 'all_frames' else moved == 0


def test_the_released_size():
    shapes = campp_network(CamppConfig()).shapes
    expected = rules.expected_tensors(campp_rules(CamppConfig()), shapes)
    with torch.device('meta'):
        theirs = campp_torch.Campp(CamppConfig()).state_dict()
    theirs = {k: tuple(v.shape) for k, v in theirs.items() if not k.endswith('batches_tracked')}
    assert len(expected) == 815 and expected == theirs


def place(graph, directory):
    (directory / 'flow').mkdir(exist_ok=True)
    (directory / 'flow' / 'campplus.onnx').write_bytes(graph.read_bytes())
    return directory


def vector(directory, features) -> np.ndarray:
    config, params = open_campp(directory)
    run = jax.jit(lambda p, x: campp_network(config).bind(p)(x, np.array([x.shape[1]])))
    return np.asarray(run(params, np.asarray(features)))


def refill(path, graph, config, params):
    """Writes the graph with these parameters in it, as a conversion does."""
    found = rules.to_tensors(campp_rules(config), jax.tree.map(np.asarray, params))
    shapes = {name: tensor.shape for name, tensor in found.items()}
    campp_onnx.replace(graph, path, shapes, found.__getitem__)


def test_a_graph_with_folded_norms(graph, network, features, tmp_path):
    config, params = open_campp(place(graph, tmp_path))
    assert len(config.folded) == FOLDED
    assert config == dataclasses.replace(CONFIG, folded=config.folded)
    with torch.no_grad():
        expected = network(features)
    np.testing.assert_allclose(vector(tmp_path, features), expected, rtol=0, atol=1e-4)
    # Out and in again: nothing moved, so the same bytes; and as safetensors.
    again = tmp_path / 'again.onnx'
    refill(again, graph, config, params)
    assert again.read_bytes() == graph.read_bytes()
    save_campp(tmp_path, config, params)
    found = open_campp(tmp_path)  # the .safetensors goes before the .onnx
    assert found[0] == config
    jax.tree.map(np.testing.assert_array_equal, found[1], params)


def test_weights_are_replaced_in_the_graph(graph, network, features, tmp_path):
    """Other weights in the same graph: onnx's own evaluator computes with them what we do."""
    config, params = open_campp(place(graph, tmp_path))
    other = jax.tree.map(lambda x: (x * np.float32(1.01) + np.float32(1e-3)), params)
    refill(tmp_path / 'flow' / 'campplus.onnx', graph, config, other)
    import onnx.reference

    session = onnx.reference.ReferenceEvaluator(str(tmp_path / 'flow' / 'campplus.onnx'))
    short = features[:, :200]  # one whole segment; evaluators differ in what they make of others
    expected = session.run(None, {'input': short.numpy()})[0]
    np.testing.assert_allclose(vector(tmp_path, short), expected, rtol=0, atol=1e-4)
    with torch.no_grad():
        assert np.abs(network(short).numpy() - expected).max() > 1e-3


def test_a_graph_without_folding(network, tensors, features, tmp_path):
    path = export(
        network, features, tmp_path / 'x.onnx', do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    found = OnnxTensors(path)
    assert set(found.shapes) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found.read(name), value)


def rename(graph, path, rename_node, rename_tensor):
    """The graph with other names of nodes and of stored tensors."""
    import onnx

    model = onnx.load(graph)
    names = {x.name: rename_tensor(i, x.name) for i, x in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for i, node in enumerate(model.graph.node):
        node.name = rename_node(i, node.name)
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(model, path)
    return path


def test_convolutions_without_names_are_known_by_their_order(graph, tmp_path):
    """As exporters before the year 2022 left them; norms kept theirs."""
    path = rename(
        graph, tmp_path / 'x.onnx', lambda i, name: f'Conv_{i}',
        lambda i, name: name if 'batchnorm' in name else str(1000 + i),
    )
    named, nameless = OnnxTensors(graph), OnnxTensors(path)
    assert dict(named.shapes) == dict(nameless.shapes)
    for name in named.shapes:
        np.testing.assert_array_equal(nameless.read(name), named.read(name))


def test_equal_tensors_kept_once_are_written_apart(graph, tmp_path):
    """Exporters store equal tensors once, and nodes that need them pass the one on."""
    import onnx

    model = onnx.load(graph)
    norm = 'xvector.block1.tdnnd1.nonlinear1.batchnorm'
    kept, given_up = f'{norm}.running_var', f'{norm}.weight'
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    stored[kept].CopyFrom(onnx.numpy_helper.from_array(np.ones(12, np.float32), kept))
    model.graph.initializer.remove(stored[given_up])
    model.graph.node.insert(0, onnx.helper.make_node('Identity', [kept], [given_up]))
    onnx.save(model, tmp_path / 'shared.onnx')
    tensors, value = OnnxTensors(tmp_path / 'shared.onnx'), np.arange(12, dtype=np.float32)
    np.testing.assert_array_equal(tensors.read(given_up), np.ones(12))
    tensors.write(given_up, value)
    tensors.save(tmp_path / 'again.onnx')
    onnx.checker.check_model(tmp_path / 'again.onnx')
    again = OnnxTensors(tmp_path / 'again.onnx')
    np.testing.assert_array_equal(again.read(given_up), value)
    np.testing.assert_array_equal(again.read(kept), np.ones(12))


def test_other_graphs_and_torn_files_are_refused(graph, tmp_path, features, monkeypatch):
    place(graph, tmp_path)
    path = tmp_path / 'flow' / 'campplus.onnx'
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match='not a whole ONNX file|another network'):
        open_campp(tmp_path)
    path.write_bytes(b'version https://git-lfs.github.com/spec/v1\n')
    with pytest.raises(InputError, match='not a whole ONNX file|another network'):
        open_campp(tmp_path)
    small = torch.nn.Sequential(torch.nn.Conv1d(80, 4, 3)).eval()
    export(small, features.mT, path)
    with pytest.raises(InputError, match=r'1 convolutions, expected \d+; this is another network'):
        open_campp(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match='neither campplus.onnx nor campplus.safetensors'):
        open_campp(tmp_path)
    place(graph, tmp_path)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'mossjax\[onnx\]'"):
        open_campp(tmp_path)


def test_parameters_of_another_network_do_not_go_into_a_graph(graph, tmp_path):
    other = dataclasses.replace(CONFIG, growth=6)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), campp_network(other).shapes)
    with pytest.raises(InputError, match='does not have the tensors of these parameters'):
        refill(tmp_path / 'x.onnx', graph, other, params)
    assert not (tmp_path / 'x.onnx').exists()

"""HiFT against torch at another size, in every spelling of weight norm, there and back."""

import jax
import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize

from mossjax.convert import rules
from mossjax.convert.codec_vocoder import (
    hift_network,
    open_hift,
    open_stored,
    save_hift,
    stored_network,
)
from mossjax.convert.hift_rules import NEW, OLD, convolutions, hift_rules, spellings
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.nn.weight_norm import fold
from tests.parity import hift_torch

CONFIG = HiftConfig(channels=24, f0_width=20)


@pytest.fixture(scope='module')
def network():
    return hift_torch.random(CONFIG)


def state(network) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


def old(network) -> dict[str, np.ndarray]:
    """As torch before 2.0 called them."""
    ends = zip(NEW, OLD, strict=True)
    tensors = state(network)
    for new, before in ends:
        tensors = {name.replace(new, before): x for name, x in tensors.items()}
    return tensors


def folded(network, but: str = '') -> dict[str, np.ndarray]:
    """Weight norm taken out by torch, except of modules whose name begins with `but`."""
    copy = hift_torch.random(CONFIG)
    for name, module in copy.named_modules():
        if parametrize.is_parametrized(module) and not (but and name.startswith(but)):
            parametrize.remove_parametrizations(module, 'weight')
    return state(copy)


STATES = {
    'new': state, 'old': old, 'folded': folded,
    'folded but the pitch': lambda network: folded(network, 'f0_predictor'),
}  # fmt: skip


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    def make(tensors, suffix='.pt'):
        root = tmp_path_factory.mktemp('codec')
        (root / 'flow').mkdir()
        torch.save({k: torch.tensor(v) for k, v in tensors.items()}, root / 'flow' / 'hift.pt')
        return root

    return make


def test_pitch_source_and_wave(network, directory):
    config, params = open_hift(directory(state(network)))
    assert config == CONFIG
    ours = hift_network(config).bind(jax.tree.map(jax.numpy.asarray, params))
    torch.manual_seed(5)
    mel, noise, length = 3 * torch.randn(1, 80, 30) - 3, torch.randn(1, 14400, 9), np.array([30])
    with torch.no_grad():
        f0 = network.f0(mel)
        source = network.source(f0, noise)
        wave = network(mel, source)
    assert (f0 > 100).any() and (f0 < 10).any() and 0.01 < wave.std() < 0.5
    mel, noise = mel.mT.numpy(), noise.mT.numpy()
    found = jax.jit(lambda m, x: m.pitch(x, length))(ours, mel)
    np.testing.assert_allclose(found, f0, rtol=0, atol=5e-3)
    np.testing.assert_allclose(ours.source(f0.numpy(), noise), source, rtol=0, atol=2e-3)
    found = jax.jit(lambda m, x, s: m.wave(x, s, length))(ours, mel, source.numpy())
    np.testing.assert_allclose(found, wave, rtol=0, atol=1e-4)


@pytest.mark.parametrize('kind', STATES)
def test_every_spelling_is_the_same_network_and_comes_back_as_it_was(kind, network, directory):
    tensors = STATES[kind](network)
    root = directory(tensors)
    config, params = open_stored(root)
    kernels = rules.flatten(fold(params))
    expected = rules.flatten(open_hift(directory(folded(network)))[1])
    for path, value in expected.items():
        np.testing.assert_allclose(kernels[path], value, rtol=0, atol=1e-6)
    # Byte for byte, into a file that torch reads without running anything.
    save_hift(root, config, params, normed=OLD if kind == 'old' else NEW)
    again = torch.load(root / 'flow' / 'hift.pt', weights_only=True)
    assert set(again) == set(tensors)
    for name, value in tensors.items():
        assert again[name].numpy().tobytes() == value.tobytes(), name
    assert (root / 'flow' / 'config.yaml').is_file() and open_stored(root)[0] == config


def test_plain_kernels_are_written_as_torch_has_them_after_removal(network, directory):
    root = directory(state(network))
    config, params = open_hift(root)
    save_hift(root, config, params, suffix='.safetensors')
    assert not (root / 'flow' / 'hift.pt').exists()  # no second, older truth beside it
    copy = hift_torch.random(CONFIG, seed=1)
    for module in list(copy.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, 'weight')
    from safetensors.torch import load_file

    copy.load_state_dict(load_file(root / 'flow' / 'hift.safetensors'))  # strict
    mel, source = torch.randn(1, 80, 8), torch.zeros(1, 3840)
    with torch.no_grad():
        np.testing.assert_allclose(copy(mel, source), network(mel, source), rtol=0, atol=1e-5)


def test_gradients_reach_length_and_direction(network):
    """Training goes through the fold: its gradients are torch's."""
    tensors = state(network)
    table = hift_rules(CONFIG, spellings(CONFIG, tensors))
    stored = stored_network(CONFIG, tensors)
    params = rules.to_params(table, tensors.__getitem__, stored.shapes)
    mel, source = torch.randn(1, 80, 4), torch.randn(1, 1920) * 0.1
    network.zero_grad()
    network(mel, source).square().sum().backward()
    theirs = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    @jax.jit
    @jax.grad
    def gradient(params):
        wave = stored.bind(params).wave(mel.mT.numpy(), source.numpy(), np.array([4]))
        return jax.numpy.sum(jax.numpy.square(wave))

    ours = rules.to_tensors(table, gradient(params))
    norms = [c for c in convolutions(CONFIG) if f'{c.name}.{NEW[0]}' in theirs]
    assert len(norms) == 77
    for conv in norms:
        for end in NEW:
            expected = theirs[f'{conv.name}.{end}'].numpy()
            scale = np.abs(expected).max() + 1e-6
            np.testing.assert_allclose(ours[f'{conv.name}.{end}'] / scale, expected / scale,
                                       rtol=0, atol=2e-3, err_msg=conv.name)

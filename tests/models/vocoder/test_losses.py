"""Discriminators and losses of the vocoder against torch, gradients of the wave included."""

import dataclasses

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mossjax.models.vocoder import losses
from mossjax.models.vocoder.discriminators import DiscriminatorConfig, Discriminators
from mossjax.nn.param import describe

CONFIG = DiscriminatorConfig(
    periods=(2, 3), period_channels=(4, 6), n_ffts=(64, 32), windows=(40, 32), hops=(10, 8),
    resolution_channels=3,
)  # fmt: skip
SAMPLES = 205  # no multiple of a period, nor of a hop


@pytest.fixture(scope='module')
def waves():
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(2, SAMPLES)).astype(np.float32) * 0.3 for _ in range(2))


@pytest.fixture(scope='module')
def net():
    return describe(lambda rngs: Discriminators(CONFIG, rngs=rngs))


@pytest.fixture(scope='module')
def params(net):
    """Biases that are not zero, so that they are compared too."""
    leaves, tree = jax.tree.flatten(net.init(jax.random.key(1)))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return tree.unflatten([
        x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)
    ])


def _conv(x, layer, **options):
    kernel = torch.tensor(np.asarray(layer['kernel'])).movedim((-1, -2), (0, 1))
    run = {3: F.conv1d, 4: F.conv2d}[kernel.ndim]
    return run(x, kernel, torch.tensor(np.asarray(layer['bias'])), **options)


def _period(layers, period, wave):
    """HiFi-GAN's form: a plane of periods, kernels of 5 x 1."""
    x = F.pad(wave[:, None], (0, -wave.shape[-1] % period), 'reflect')
    x = x.reshape(len(wave), 1, -1, period)
    seen = []
    for name, stride in (('conv0', 3), ('conv1', 1)):
        tall = {'kernel': np.asarray(layers[name]['kernel'])[:, None], 'bias': layers[name]['bias']}
        x = F.leaky_relu(_conv(x, tall, stride=(stride, 1), padding=(2, 0)), 0.1)
        seen.append(x)
    tall = {'kernel': np.asarray(layers['out']['kernel'])[:, None], 'bias': layers['out']['bias']}
    return _conv(x, tall, padding=(1, 0)), seen


def _resolution(layers, n_fft, window, hop, wave):
    x = F.pad(wave[:, None], (window // 2, window // 2), 'reflect')[:, 0]
    frames = x.unfold(-1, window, hop) * torch.hann_window(window)
    x = torch.sqrt(torch.fft.rfft(frames, n_fft).abs().square() + 1e-9)[:, None]
    seen = []
    for i, stride in enumerate((1, 2, 2, 2)):
        x = _conv(x, layers[f'conv{i}'], stride=(1, stride), padding=(1, 4))
        x = F.leaky_relu(x, 0.1)
        seen.append(x)
    x = F.leaky_relu(_conv(x, layers['conv4'], padding=1), 0.1)
    seen.append(x)
    return _conv(x, layers['out'], padding=1), seen


def _judge(params, wave):
    found = [_period(params[f'period{p}'], p, wave) for p in CONFIG.periods]
    sizes = zip(CONFIG.n_ffts, CONFIG.windows, CONFIG.hops, strict=True)
    return found + [_resolution(params[f'resolution{i}'], *s, wave) for i, s in enumerate(sizes)]


def test_players_losses_and_gradients(net, params, waves):
    """The generator's loss by its wave, the discriminators' by one of their biases."""
    real, fake = waves

    @jax.jit
    def ours(params, fake):
        heard, said = net.bind(params)(real), net.bind(params)(fake)
        return losses.adversarial_loss(said) + 2 * losses.feature_loss(heard, said), (
            losses.judging_loss(heard, said)
        )

    theirs_fake = torch.tensor(fake, requires_grad=True)
    heard, said = _judge(params, torch.tensor(real)), _judge(params, theirs_fake)
    generator = sum((s - 1).square().mean() for s, _ in said) + 2 * sum(
        (a - b).abs().mean()
        for (_, x), (_, y) in zip(heard, said, strict=True) for a, b in zip(x, y, strict=True)
    )  # fmt: skip
    judging = sum(
        (r - 1).square().mean() + f.square().mean()
        for (r, _), (f, _) in zip(heard, said, strict=True)
    )
    found = ours(params, fake)
    np.testing.assert_allclose(found[0], generator.item(), rtol=2e-5)
    np.testing.assert_allclose(found[1], judging.item(), rtol=2e-5)

    generator.backward(retain_graph=True)
    slope = jax.jit(jax.grad(lambda x: ours(params, x)[0]))(fake)
    np.testing.assert_allclose(slope, theirs_fake.grad, rtol=2e-3, atol=2e-6)


def test_mel_loss_and_its_gradient(waves):
    """Two scales; torch's transform with librosa's own bank."""
    wide = [np.tile(x, 4) for x in waves]
    real, fake = torch.tensor(wide[0]), torch.tensor(wide[1], requires_grad=True)

    def log_mel(wave, window, hop, bins):
        side = (window - hop) // 2
        x = F.pad(wave[:, None], (side, side), 'reflect')[:, 0]
        frames = x.unfold(-1, window, hop) * torch.hann_window(window)
        magnitude = torch.sqrt(torch.fft.rfft(frames).abs().square() + 1e-9)
        bank = librosa.filters.mel(sr=24000, n_fft=window, n_mels=bins, fmin=0, fmax=12000)
        return torch.log(torch.clamp(magnitude @ torch.tensor(bank.T), min=1e-5))

    scales = ((256, 64, 10), (64, 16, 5))
    loss = sum((log_mel(real, *s) - log_mel(fake, *s)).abs().mean() for s in scales) / 2
    loss.backward()
    found, slope = jax.jit(jax.value_and_grad(lambda x: losses.mel_loss(wide[0], x, scales)))(
        wide[1]
    )
    np.testing.assert_allclose(found, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(slope, fake.grad, rtol=2e-3, atol=1e-7)


def test_pitch_loss_counts_what_was_measured():
    f0, target = jnp.array([[100.0, 90.0, 7.0]]), jnp.array([[110.0, 0.0, losses.UNKNOWN]])
    loss, slope = jax.value_and_grad(losses.f0_loss)(f0, target)
    assert loss == (10 + 90) / 2
    np.testing.assert_array_equal(slope, [[-0.5, 0.5, 0]])
    assert losses.f0_loss(f0, jnp.full((1, 3), losses.UNKNOWN)) == 0


def test_the_shortest_wave_is_judged_as_torch_judges_it(net, params, waves):
    """Reflections at both ends are then longest beside it; longer ones torch would refuse."""
    assert CONFIG.shortest == max(CONFIG.windows)
    assert dataclasses.replace(CONFIG, periods=(2, 30)).shortest == 60
    wave = waves[0][:, : CONFIG.shortest]
    found, wanted = net.bind(params)(wave), _judge(params, torch.tensor(wave))
    for (score, _), (theirs, _) in zip(found, wanted, strict=True):
        scores = [np.sort(np.asarray(x).ravel()) for x in (score, theirs)]  # places are laid apart
        np.testing.assert_allclose(*scores, rtol=0, atol=2e-5)

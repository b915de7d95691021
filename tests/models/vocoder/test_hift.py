"""HiFT against upstream's recorded outputs, and padding that no row may hear."""

import dataclasses

import jax
import numpy as np
import pytest

from mossjax.convert.codec_vocoder import hift_network
from mossjax.models.vocoder.hift import source
from tests.tiny_codec import HIFT

WIDE = dataclasses.replace(HIFT, channels=128)  # of four channels each says too much


@pytest.fixture(scope='module')
def mel(hift_io):
    return np.swapaxes(hift_io['mel'], 1, 2)


def test_pitch(hift, hift_io, mel):
    f0 = hift.pitch(mel, np.array([40]))
    np.testing.assert_allclose(f0, hift_io['f0'], rtol=0, atol=5e-3)


def test_source(hift, hift_io):
    """Each sample has noise of its own, so every 40th one can be compared alone."""
    noise = np.zeros((1, 9, 19200), np.float32)
    noise[:, :, ::40] = np.swapaxes(hift_io['noise'], 1, 2)
    found = hift.source(hift_io['f0'], noise)[:, ::40]
    np.testing.assert_allclose(found, hift_io['source'], rtol=0, atol=2e-3)
    voiced = np.repeat(hift_io['f0'] > 10, 12, axis=1)
    assert 0 < (~voiced).sum() < voiced.sum()  # both kinds are in it


def test_wave_of_a_given_source(hift, hift_io, mel):
    """Alone, and between others in a batch with rubbish behind each row's end."""
    run = jax.jit(lambda model, mel, given, lengths: model.wave(mel, given, lengths))
    found = run(hift, mel[:, :12], hift_io['given_source'], np.array([12]))
    np.testing.assert_allclose(found, hift_io['given_wave'], rtol=0, atol=1e-4)

    lengths = np.array([20, 12, 1, 0])
    mels, sources = np.full((4, 20, 80), np.nan, 'f'), np.full((4, 9600), np.nan, 'f')
    mels[0], sources[0] = mel[0, 20:], 0.1
    mels[1, :12], sources[1, :5760] = mel[0, :12], hift_io['given_source'][0]
    mels[2, :1], sources[2, :480] = mel[0, :1], hift_io['given_source'][0, :480]
    rows = np.asarray(run(hift, mels, sources, lengths))
    np.testing.assert_allclose(rows[1, :5760], hift_io['given_wave'][0], rtol=0, atol=1e-4)
    for row, length in zip(rows, lengths, strict=True):
        assert np.isfinite(row).all() and not row[480 * length :].any()


def test_a_padded_batch_gives_what_each_row_gives_alone(hift, mel):
    """Pitch, source and wave together, noise by absolute sample."""
    key = jax.random.key(3)

    @jax.jit
    def run(model, mel, lengths):
        noise = source.noise(model.config, key, mel.shape[1])
        f0 = model.pitch(mel, lengths)
        return f0, model.source(f0, noise), model(mel, lengths, noise)

    rows = np.full((2, 24, 80), np.inf, np.float32)
    rows[0], rows[1, :16] = mel[0, 16:], mel[0, :16]
    f0, sources, waves = run(hift, rows, np.array([24, 16]))
    alone = run(hift, mel[:, :16], np.array([16]))
    np.testing.assert_allclose(f0[1:, :16], alone[0], rtol=0, atol=1e-3)
    np.testing.assert_allclose(sources[1:, :7680], alone[1], rtol=0, atol=1e-4)
    # Phase errors of 1e-4 grow in these random weights, as upstream's do.
    np.testing.assert_allclose(waves[1:, :7680], alone[2], rtol=0, atol=3e-3)
    assert np.isfinite(waves).all()


def test_a_fresh_generator_neither_shouts_nor_is_silent(mel):
    """Where it is clipped it has no slope, and what has learnt silence never speaks again."""
    network = hift_network(WIDE)
    params = jax.jit(network.init)(jax.random.key(0))
    lengths, noise = np.array([12]), np.zeros((1, 9, 5760), 'f')
    wave = jax.jit(lambda params: network.bind(params)(mel[:, :12], lengths, noise))(params)
    assert 1e-4 < np.std(wave) < 0.1 and np.abs(wave).max() < 0.5


def test_a_fresh_generator_speaks_at_the_pitch_that_it_is_told(mel):
    """Most of its sound lies at multiples of the pitch."""
    network = hift_network(WIDE)
    params = jax.jit(network.init)(jax.random.key(0))
    lengths, noise = np.array([24]), np.zeros((1, 9, 11520), 'f')
    still = np.repeat(mel[:, 12:13], 24, axis=1)

    @jax.jit
    def speak(params):
        model = network.bind(params)
        return model.wave(still, model.source(np.full((1, 24), 125.0, 'f'), noise), lengths)

    # 0.4 s far from the ends: bins of 2.5 Hz, every fiftieth at the pitch.
    power = np.abs(np.fft.rfft(np.asarray(speak(params))[0, 960:10560])) ** 2
    share = power[50::50].sum() / power[1:].sum()
    assert share > 0.8, share  # 0.5 where it hardly hears its source

"""The tokenizer's stream against the whole recording: values and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.convert.codec_tokenizer import open_tokenizer, tokenizer_network
from mossjax.models.tokenizer import mel
from mossjax.models.tokenizer.stream import EncoderStream
from tests.contract import verify_contract, verify_gradients

CODE = 1280  # samples
PEAK = 3.0  # louder than anything here


@pytest.fixture(scope='module')
def parts(codec_dir):
    """(config, params, network) of the recorded tokenizer, which cuts after 2 s here."""
    config, params = open_tokenizer(codec_dir)
    config = dataclasses.replace(config, seconds=2)
    return config, jax.tree.map(jnp.asarray, params), tokenizer_network(config)


@pytest.fixture(scope='module')
def rows(golden):
    """Speech: over two pieces, of whole codes to the end of a piece, of less than a code."""
    wave = golden('tokenizer/small_speech_cn.npz')['wav0_i16'].astype(np.float32) / 32768
    return [wave[: 29 * CODE + 77], wave[9000 : 9000 + 25 * CODE], wave[3000:3130]]


def running(log):
    """(t, m) -> (t,) the loudest value up to the last frame of each frame's code.

    A code's frames are the one before its 80 ms and the first seven of them.
    """
    peaks = log.max(axis=1)
    return np.array([peaks[: (f + 1) // 8 * 8 + 7].max() for f in range(len(log))])


def test_steps_are_the_whole_with_a_running_maximum(parts, rows):
    config, params, network = parts
    log_of = jax.jit(lambda audio: mel._log_of(audio, config.mels)[0])
    run = jax.jit(lambda features: network.bind(params).encoder(features[None])[0])

    def whole(row):
        """Each 2 s piece by itself, the floor of every frame by the rule."""
        found = []
        for start in range(0, len(row), config.piece):
            piece = row[start : start + config.piece]
            log = np.asarray(log_of(np.pad(piece, (0, config.piece - len(piece)))[None]))
            features = (np.maximum(log, running(log)[:, None] - 8) + 4) / 4
            found.append(run(features)[: -(-len(piece) // CODE)])
        return np.concatenate(found)

    verify_contract(EncoderStream(network.bind(params).encoder, config), rows, whole, atol=2e-5)


def test_gradients(parts, rows):
    config, params, network = parts
    row = jnp.asarray(rows[0][: 27 * CODE])

    def make(params):
        return EncoderStream(network.bind(params).encoder, config)

    def whole(params, row):
        pieces = jnp.pad(row, (0, 23 * CODE)).reshape(2, config.piece)
        log = mel._log_of(pieces, config.mels)
        vectors = network.bind(params).encoder(mel.normalised(log, jnp.full(2, PEAK)))
        return vectors.reshape(50, config.d)[:27]

    start = make(params).start(1, np.full((1, 2), PEAK))
    verify_gradients(make, params, row, whole, rtol=1e-4, state=start)


def test_what_a_session_keeps(parts):
    """The keys and values of one piece, and less than a tenth of a second of the rest."""
    config, params, network = parts
    state = EncoderStream(network.bind(params).encoder, config).start(1)
    sizes = {name: np.prod(x.shape) * 4 for name, x in state._asdict().items()}
    assert sizes['keys'] + sizes['values'] == 2 * config.layers * 100 * config.d * 4
    assert sum(sizes.values()) - sizes['keys'] - sizes['values'] < 3000

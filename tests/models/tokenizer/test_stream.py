"""The tokenizer's stream against the whole recording, with the maximum known and running."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.convert.codec_tokenizer import open_tokenizer, tokenizer_network
from mossjax.models.tokenizer import mel, quantizer
from mossjax.models.tokenizer.stream import NEVER, EncoderStream, TokenizerStream
from tests.contract import verify_contract, verify_gradients

CODE = 1280  # samples


@pytest.fixture(scope='module')
def parts(codec_dir):
    """(config, params, network) of the recorded tokenizer, which cuts after 2 s here."""
    config, params = open_tokenizer(codec_dir)
    config = dataclasses.replace(config, seconds=2)
    return config, jax.tree.map(jnp.asarray, params), tokenizer_network(config)


@pytest.fixture(scope='module')
def rows(golden):
    """Speech: over three pieces, of whole codes to the end of a piece, of less than a code."""
    wave = golden('tokenizer/small_speech_cn.npz')['wav0_i16'].astype(np.float32) / 32768
    return [wave[: 53 * CODE + 77], wave[9000 : 9000 + 25 * CODE], wave[3000:3130], wave[: 7 * CODE]]


def pieces(config, row):
    """The 2 s pieces, each zero-padded to whole codes."""
    for start in range(0, len(row), config.piece):
        piece = row[start : start + config.piece]
        yield np.pad(piece, (0, -len(piece) % CODE))[None]


def known(config, row):
    return np.array([mel.loudest(piece, config.mels)[0] for piece in pieces(config, row)])


def running(log):
    """(t, m) of a piece: each frame's floor is 8 below the loudest up to its code's last frame.

    A code's frames are the one before its 80 ms and the first seven of them.
    """
    peaks = log.max(axis=1)
    return np.array([peaks[: (f + 1) // 8 * 8 + 7].max() for f in range(len(log))])


def offline(model, config, row, rule):
    """Vectors of the whole, features by a rule: log-mel (t, m) of a piece -> peak per frame (t,)."""
    found = []
    for piece in pieces(config, row):
        log = np.asarray(mel.log_mel(piece, config.mels)[0]) * 4 - 4
        raw = np.asarray(mel._log_of(piece, config.mels)[0])
        np.testing.assert_allclose(log, np.maximum(raw, raw.max() - 8), atol=1e-5)
        features = (np.maximum(raw, rule(raw)[:, None] - 8) + 4) / 4
        found.append(model.encoder(features[None].astype(np.float32))[0])
    return np.concatenate(found)


def test_vectors_with_the_maximum_known_are_those_of_the_whole(parts, rows):
    config, params, network = parts
    model = network.bind(params)
    table = np.full((4, 3), NEVER, np.float32)
    for i, row in enumerate(rows):
        peaks = known(config, row)
        table[i, : len(peaks)] = peaks
    stream = EncoderStream(model.encoder, config)
    verify_contract(
        stream, rows, lambda row: offline(model, config, row, lambda log: np.full(len(log), log.max())),
        atol=2e-5, start=lambda indices: stream.start(len(indices), table[np.array(indices)]),
    )  # fmt: skip


def test_codes_with_a_running_maximum(parts, rows):
    config, params, network = parts
    model = network.bind(params)

    def whole(row):
        return quantizer.nearest(offline(model, config, row, running), model.codebook[...])

    verify_contract(TokenizerStream(model, config), rows, whole, atol=1e-5)


def test_gradients(parts, rows):
    config, params, network = parts
    row = rows[0][: 28 * CODE]
    peaks = known(config, row)

    def make(params):
        return EncoderStream(network.bind(params).encoder, config)

    def whole(params, row):
        encoder, found = network.bind(params).encoder, []
        for i, start in enumerate(range(0, len(row), config.piece)):
            log = mel._log_of(row[None, start : start + config.piece], config.mels)
            found.append(encoder(mel.normalised(log, peaks[i : i + 1]))[0])
        return jnp.concatenate(found)

    start = make(params).start(1, peaks[None])
    verify_gradients(make, params, jnp.asarray(row), whole, rtol=1e-4, state=start)


def test_what_a_session_keeps(parts):
    """The keys and values of one piece, and less than a tenth of a second of the rest."""
    config, _, network = parts
    state = jax.eval_shape(lambda p: EncoderStream(network.bind(p).encoder, config).start(1), parts[1])
    sizes = {name: np.prod(x.shape) * 4 for name, x in state._asdict().items()}
    assert sizes['keys'] + sizes['values'] == 2 * config.layers * 100 * config.d * 4
    assert sum(sizes.values()) - sizes['keys'] - sizes['values'] < 3000

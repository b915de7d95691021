"""Log-mel, encoder and codebook against the recorded stages of upstream's encoder."""

import itertools

import jax
import numpy as np
import pytest

from mossjax.convert.codec_tokenizer import open_tokenizer, tokenizer_network
from mossjax.models.tokenizer import mel, quantizer
from mossjax.models.tokenizer.encoder import causal_layers, sinusoids
from mossjax.ops import spectral


def close(actual, wanted, relative):
    """Within so much of the largest magnitude of the array."""
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=relative * np.abs(wanted).max())


@pytest.fixture(scope='module')
def small(codec_dir):
    config, params = open_tokenizer(codec_dir)
    return config, tokenizer_network(config).bind(params)


def audio_of(recorded, rows):
    """int16 recordings as a zero-padded float32 batch, padded to whole codes."""
    wavs = [recorded[f'wav{i}_i16'].astype(np.float32) / 32768 for i in range(rows)]
    width = -(-max(map(len, wavs)) // 1280) * 1280
    return np.stack([np.pad(wav, (0, width - len(wav))) for wav in wavs])


@pytest.mark.parametrize(
    ('name', 'rows'),
    [('synth', 1), ('speech_cn', 1), ('batch', 6), ('edge_silence', 1), ('edge_one_sample', 1),
     ('edge_loud_then_quiet', 1), ('edge_clip', 1)],
)  # fmt: skip
def test_log_mel(golden, name, rows):
    recorded = golden(f'tokenizer/small_{name}.npz')
    ours = mel.log_mel(audio_of(recorded, rows), 128)
    np.testing.assert_allclose(np.moveaxis(ours, 1, 2), recorded['logmel'], atol=1e-4)


def test_filters_and_window(golden):
    recorded = golden('tokenizer/mel_constants.npz')
    np.testing.assert_allclose(
        spectral.mel_filters(16000, 400, 128, 0.0, 8000.0), recorded['mel_filters'], atol=1e-7
    )
    # The recorded window was computed in float32; angles up to 2 pi cost it a few units.
    np.testing.assert_allclose(spectral.hann(400), recorded['hann_window'], atol=5e-7)


def test_each_row_has_its_own_dynamic_range(rng):
    loud = rng.normal(size=(1, 2560)).astype(np.float32)
    quiet = 1e-3 * rng.normal(size=(1, 2560)).astype(np.float32)
    both = mel.log_mel(np.concatenate([loud, quiet]), 80)
    np.testing.assert_allclose(both[1:], mel.log_mel(quiet, 80), atol=1e-6)
    # The range is that of the frames asked for: a louder end does not raise the floor.
    ended = np.concatenate([1e-6 * loud[:, :1280], loud[:, 1280:]], axis=1)
    first = mel.log_mel(ended, 80, np.array([4]))[:, :4]
    np.testing.assert_allclose(first, mel.log_mel(ended[:, :1280], 80)[:, :4], atol=1e-6)
    assert np.abs(first - mel.log_mel(ended, 80)[:, :4]).max() > 0.1


def test_stages(golden, small):
    recorded = golden('tokenizer/small_synth.npz')
    model = small[1]
    stages = model.encoder.stages(np.moveaxis(recorded['logmel'], 1, 2))
    close(np.moveaxis(stages['conv1'], 1, 2), recorded['conv1_pre_gelu'], 1e-4)
    close(np.moveaxis(stages['conv2'], 1, 2), recorded['conv2_pre_gelu'], 1e-4)
    close(stages['embedded'], recorded['layer0_in'], 1e-4)
    for i in range(2):
        close(stages['layers'][i], recorded[f'layer{i}_out'], 1e-4)
    close(stages['pooled'], recorded['pooled'], 1e-4)
    codes = model.codebook[...]
    close(quantizer.distances(stages['pooled'], codes), recorded['distances'], 1e-3)
    np.testing.assert_array_equal(quantizer.nearest(stages['pooled'], codes), recorded['token_ids'])


@pytest.mark.parametrize(('name', 'rows'), [('speech_cn', 1), ('batch', 6)])
def test_pooled_vectors_and_all_ids(golden, small, name, rows):
    """From audio, padding rows included."""
    recorded = golden(f'tokenizer/small_{name}.npz')
    model = small[1]
    pooled = model.encoder(mel.log_mel(audio_of(recorded, rows), 128))
    close(pooled, recorded['pooled'], 1e-4)
    np.testing.assert_array_equal(
        quantizer.nearest(pooled, model.codebook[...]), recorded['token_ids']
    )


def test_both_pieces_of_a_long_recording(golden, small):
    """37 s: cut at 30 s, each piece with its own dynamic range."""
    recorded = golden('tokenizer/small_long.npz')
    config, model = small
    wav = recorded['wav_i16'].astype(np.float32) / 32768
    pieces = wav[: config.piece], wav[config.piece :]
    first, second = (
        np.moveaxis(mel.log_mel(np.pad(x, (0, -len(x) % 1280))[None], 128), 1, 2)[0] for x in pieces
    )
    for i, piece in enumerate((first, second)):
        head, tail = recorded[f'logmel_chunk{i}_head'], recorded[f'logmel_chunk{i}_tail']
        np.testing.assert_allclose(piece[:, :32], head, atol=1e-4)
        np.testing.assert_allclose(piece[:, -32:], tail, atol=1e-4)
    for i, piece in enumerate((first, second)):
        pooled = model.encoder(np.moveaxis(piece, 0, 1)[None])[0]
        close(pooled[: -(-len(pieces[i]) // 1280)],
              recorded['pooled'][i][: -(-len(pieces[i]) // 1280)], 1e-4)


def test_stored_positions_are_whispers_sinusoids(small):
    # The stored ones were made from float32 angles, off by half a unit in the last place of 1500.
    config, model = small
    np.testing.assert_allclose(
        model.encoder.positions.table[...], sinusoids(config.positions, config.d), atol=1.3e-4
    )


def test_no_code_hears_what_comes_after_it(small, rng):
    """Code k depends on samples below 1280 k + 1160 of its piece, the dynamic range apart."""
    config, model = small
    audio = 0.1 * rng.normal(size=(1, 8 * 1280)).astype(np.float32)
    audio[:, :160] *= 10.0  # the loudest frame comes first, so the range is settled

    @jax.jit
    def pooled(audio):
        return model.encoder(mel.log_mel(audio, config.mels))

    before = pooled(audio)
    for k in (2, 5):
        changed = audio.copy()
        changed[:, 1280 * k + 1160 :] *= -0.5
        after = pooled(changed)
        np.testing.assert_allclose(after[:, : k + 1], before[:, : k + 1], atol=1e-5)
        changed[:, 1280 * k + 1000 :] *= -0.5
        assert np.abs(pooled(changed) - before)[:, k].max() > 1e-3


def test_scanned_layers_are_the_layers_one_by_one(small, rng):
    layers = small[1].encoder.layers
    x = rng.normal(size=(2, 12, small[0].d)).astype(np.float32)
    _, outputs = causal_layers(layers, x)
    from mossjax.ops.attention import Mask

    for i in range(2):
        x = jax.tree.map(lambda a, i=i: a[i], layers)(x, Mask(causal=True))
        np.testing.assert_allclose(outputs[i], x, atol=1e-4)


def test_distances_against_float64(rng):
    p, codes = rng.normal(size=(2, 3, 5)), rng.normal(size=(7, 5))
    wanted = ((p[:, :, None] - codes) ** 2).sum(-1)
    ours = quantizer.distances(p.astype(np.float32), codes.astype(np.float32))
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    codes[4] = codes[1]
    assert quantizer.nearest(codes[4].astype(np.float32), codes.astype(np.float32)) == 1


def test_straight_through_is_exact_forward_and_transparent_backward(rng):
    p, q = (rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(quantizer.straight_through(p * 1e4, q), q)
    weights = rng.normal(size=(4, 3)).astype(np.float32)
    grads = jax.grad(lambda p, q: (quantizer.straight_through(p, q) * weights).sum(), (0, 1))(p, q)
    np.testing.assert_allclose(grads[0], weights)
    np.testing.assert_array_equal(grads[1], 0.0)


def test_relative_commitment_cannot_be_lowered_by_shrinking(rng):
    p = rng.normal(size=(2, 8, 4)).astype(np.float32)
    q = p + 0.1 * rng.normal(size=p.shape).astype(np.float32)
    mask = np.arange(8) < np.array([[8], [5]])
    one, half = (quantizer.relative_commitment(s * p, s * q, mask) for s in (1.0, 0.5))
    np.testing.assert_allclose(one, half, rtol=1e-5)
    error = ((p - q) ** 2).mean(-1)[mask].mean()
    np.testing.assert_allclose(quantizer.absolute_commitment(p, q, mask), error, rtol=1e-5)
    np.testing.assert_allclose(one, error / p[mask].var(axis=0).mean(), rtol=1e-4)


def test_restarts_use_each_vector_once_and_wait_when_there_are_too_few(rng):
    p = rng.normal(size=(1, 6, 3)).astype(np.float32)
    mask = np.array([[True, False, True, True, False, False]])
    book = quantizer.from_codes(np.zeros((5, 3)))._replace(
        count=np.array([0.0, 1.0, 0.0, 0.0, 0.0], np.float32)
    )
    after = quantizer.restart(book, p, mask, jax.random.key(0), threshold=0.5)
    moved = np.asarray(after.codes)[[0, 2, 3]]
    found = [int(np.where((p[0] == row).all(-1))[0][0]) for row in moved]
    assert sorted(found) == [0, 2, 3]  # the three unmasked ones
    np.testing.assert_array_equal(np.asarray(after.codes)[[1, 4]], 0.0)
    np.testing.assert_array_equal(after.count, [1.0, 1.0, 1.0, 1.0, 0.0])


def test_k_means_finds_separated_clusters(rng):
    centres = np.array(list(itertools.product([0.0, 10.0], repeat=3)))
    vectors = (centres[:, None] + 0.1 * rng.normal(size=(8, 40, 3))).reshape(-1, 3)
    book = quantizer.start_codebook(
        vectors.astype(np.float32), jax.random.key(0), 16, steps=20, scale=0.25
    )
    nearest = np.abs(np.asarray(book.codes)[None] - centres[:, None]).sum(-1).min(axis=1)
    assert nearest.max() < 0.5  # every cluster has a code in it
    np.testing.assert_allclose(book.total, book.codes * book.count[:, None], rtol=1e-5)
    assert 0.25 * 320 <= book.count.sum() <= 0.25 * (320 + 16)

"""The flow decoder against upstream's recorded outputs: all modes, prompt, padding."""

import jax
import numpy as np
import pytest

from mossjax.models.flow import solver

MODES = {  # name: (streaming, finalize)
    'offline': (False, True),
    'chunk': (True, True),
    'chunk_ctx': (True, False),
    'full_ctx': (False, False),
}


def channels_last(x):
    return np.swapaxes(x, 1, 2)


@pytest.fixture(scope='module')
def codes(flow_io):
    return np.concatenate([flow_io['prompt_codes'], flow_io['codes']], axis=1)


@jax.jit
def _mu(model, codes, lengths):
    return model.mu(codes, lengths)


@pytest.mark.parametrize('mode', MODES)
def test_mu_and_mel(mode, flow_model, flow_config, flow_io, codes):
    streaming, finalize = MODES[mode]
    context = flow_config.context(streaming=streaming, finalize=finalize)
    noise = solver.noise(4 * (codes.shape[1] - context.held))

    @jax.jit
    def run(model, codes, lengths, xvector, prompt):
        mel = model(codes, lengths, xvector, prompt, noise, context=context)
        return model.mu(codes, lengths, context), mel

    mu, mel = run(
        flow_model, codes, np.array([codes.shape[1]]), flow_io['xvector'], flow_io['prompt_mel']
    )
    np.testing.assert_allclose(mu, flow_io[f'{mode}/mu'], rtol=0, atol=1e-4)
    expected = channels_last(flow_io[f'{mode}/mel_full'])
    np.testing.assert_allclose(mel, expected, rtol=0, atol=5e-4)


def test_without_prompt_and_with_another_guidance(flow_model, flow_io):
    @jax.jit
    def run(model, codes, guidance):
        xvector, prompt = np.zeros((1, 192), 'f'), np.zeros((1, 0, 80), 'f')
        lengths, noise = np.array([24]), solver.noise(96)
        return model(codes, lengths, xvector, prompt, noise, guidance=guidance)

    expected = channels_last(flow_io['noprompt/mel'])
    found = run(flow_model, flow_io['codes'], flow_model.config.guidance)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4)
    # The tolerance is tight enough to catch a guidance wrong by 0.01.
    assert np.abs(run(flow_model, flow_io['codes'], 0.69) - expected).max() > 5e-3


def test_speaker_is_normalised_and_zero_is_the_bias(flow_model, flow_params, flow_io):
    speaker = flow_model.speaker(3 * flow_io['xvector'])
    np.testing.assert_allclose(speaker, flow_io['offline/spk'], rtol=0, atol=1e-6)
    zero = flow_model.speaker(np.zeros((1, 192), 'f'))
    np.testing.assert_array_equal(zero[0], flow_params['speaker_proj']['bias'])


@pytest.mark.parametrize('mask, chunk', [('offline', None), ('chunk', 20)])
def test_velocity(mask, chunk, flow_model, estimator_io):
    def rows(name):  # with and without conditions
        x = estimator_io[name]
        return np.concatenate([x, np.zeros_like(x)])

    @jax.jit
    def run(model, valid, t):
        x = np.repeat(channels_last(estimator_io['x']), 2, axis=0)
        mu, cond = channels_last(rows('mu')), channels_last(rows('cond'))
        return model.estimator(x, valid, mu, t, rows('spk'), cond, chunk=chunk)

    everything = np.ones((2, 124), bool)
    for time in ('t0', 't1', 't2', 't3'):
        found = run(flow_model, everything, np.repeat(estimator_io[time], 2))
        expected = channels_last(estimator_io[f'{time}/out_{mask}'])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    valid = estimator_io['masked/mask'][:, 0] > 0
    assert not valid.all()
    found = run(flow_model, valid, np.repeat(estimator_io['t1'], 2))
    expected = channels_last(estimator_io[f'masked/out_{mask}'])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_padding_is_invisible_to_mu(flow_model, flow_io, codes):
    """Rows of other lengths beside it, and rubbish codes past its end."""
    padded = np.full((3, 40), 5, np.int32)
    padded[1, :31] = codes
    mu = _mu(flow_model, padded, np.array([40, 31, 2]))
    np.testing.assert_allclose(mu[1:2, :124], flow_io['offline/mu'], rtol=0, atol=1e-4)


def test_chunks_depend_on_no_later_code(flow_model, flow_config, flow_io, codes):
    """What makes streaming possible: later chunks leave the mu of earlier ones unchanged."""
    context = flow_config.context(streaming=True, finalize=False)
    run = jax.jit(lambda model, codes, lengths: model.mu(codes, lengths, context))
    long = run(flow_model, codes, np.array([31]))
    changed = codes.copy()
    changed[0, 23:] = 1  # after four chunks and three look-ahead codes
    short = run(flow_model, changed, np.array([31]))
    np.testing.assert_allclose(short[:, :80], long[:, :80], rtol=0, atol=1e-5)
    assert np.abs(flow_io['offline/mu'][:, :80] - long[:, :80]).max() > 1e-2


def test_negative_codes_count_as_zero(flow_model, codes):
    wrong = codes.copy()
    wrong[0, 4] = -3
    zero = codes.copy()
    zero[0, 4] = 0
    np.testing.assert_array_equal(flow_model.embed(wrong), flow_model.embed(zero))

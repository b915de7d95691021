"""The training loss against float64 numpy, and the laws of its random part."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.convert.codec_flow import flow_network
from mossjax.models.flow.config import OFFLINE, Context, FlowConfig
from mossjax.models.flow.loss import Draws, draw, flow_loss, matching_loss, mu_loss
from mossjax.models.flow.scale import scale_to


def toy_velocity(x, valid, mu, t, speaker, cond):
    """Every argument with a weight of its own."""
    return 0.5 * x + 2 * mu + 3 * speaker[:, None] - cond + t[:, None, None]


@pytest.fixture
def case(rng):
    b, t, m, lengths = 3, 10, 4, np.array([10, 7, 4])
    return {
        'mel': rng.normal(size=(b, t, m)), 'mu': rng.normal(size=(b, t, m)),
        'speaker': rng.normal(size=(b, m)), 'noise': rng.normal(size=(b, t, m)),
        'valid': np.arange(t) < lengths[:, None], 't': np.array([0.1, 0.6, 0.9]),
        'keep': np.array([True, False, True]), 'known': np.array([3, 2, 0]),
    }  # fmt: skip


def run(case, sigma_min):
    draws = Draws(*(jnp.asarray(case[k], jnp.float32 if k in ('t', 'noise') else None)
                    for k in ('t', 'noise', 'keep', 'known')))  # fmt: skip
    mel, mu, speaker = (jnp.asarray(case[k], jnp.float32) for k in ('mel', 'mu', 'speaker'))
    return matching_loss(
        toy_velocity, mel, jnp.asarray(case['valid']), mu, speaker, draws, sigma_min=sigma_min
    )


def test_matching_loss_in_float64(case):
    s, total, count = 0.05, 0.0, 0
    for i in range(3):
        for frame in range(10):
            if not case['valid'][i, frame]:
                continue
            x, z, t = case['mel'][i, frame], case['noise'][i, frame], case['t'][i]
            y = (1 - (1 - s) * t) * z + t * x
            velocity = 0.5 * y + t
            if case['keep'][i]:
                velocity = velocity + 2 * case['mu'][i, frame] + 3 * case['speaker'][i]
                if frame < case['known'][i]:
                    velocity = velocity - x
            total += np.sum((velocity - (x - (1 - s) * z)) ** 2)
            count += x.size
    assert float(run(case, s)) == pytest.approx(total / count, rel=1e-5)


def test_padding_does_not_enter_the_loss(case):
    before = run(case, 1e-6)
    for name in ('mel', 'mu', 'noise'):
        case[name] = np.where(case['valid'][..., None], case[name], 1e3)
    np.testing.assert_allclose(run(case, 1e-6), before, rtol=1e-6)


def test_draws_follow_their_laws(flow_config):
    b = 4000
    frames = jnp.full((b,), 40)
    draws = draw(jax.random.key(1), jnp.zeros((b, 2, 3)), frames, flow_config)
    assert float(draws.t.mean()) == pytest.approx(1 - 2 / np.pi, abs=0.02)
    assert float((draws.t < 1 - np.cos(np.pi / 4)).mean()) == pytest.approx(0.5, abs=0.03)
    assert float(draws.keep.mean()) == pytest.approx(0.8, abs=0.02)
    assert int(draws.known.max()) == 12  # 30 % of 40
    # Half have no prefix, and one in 13 of the others draws the length 0.
    assert float((draws.known == 0).mean()) == pytest.approx(0.5 + 0.5 / 13, abs=0.03)
    assert float(draws.noise.std()) == pytest.approx(1, abs=0.03)


def test_flow_loss_joins_the_parts(flow_model, flow_config, rng):
    """The whole loss from the model's own mu and velocity, averaged in float64.

    The second row begins with a voice's prompt of three codes, the first draws what is known.
    """
    codes = rng.integers(0, 97, (2, 8)).astype(np.int32)
    lengths = np.array([8, 6])
    mel = rng.normal(-5, 2, (2, 32, 80)).astype(np.float32)
    mel[1, 24:] = np.nan  # padding may hold anything
    batch = {'codes': codes, 'code_lengths': lengths, 'mel': mel,
             'prompt_lengths': np.array([0, 3], np.int32),
             'xvector': rng.normal(size=(2, 192)).astype('f')}  # fmt: skip
    context, key = Context(chunk=5), jax.random.key(3)
    model = _without_dropout(flow_model)
    loss, metrics = jax.jit(
        lambda m, b: flow_loss(m, b, key, context=context, mu_weight=0.5)
    )(model, batch)

    grads = jax.jit(jax.grad(
        lambda m: flow_loss(m, batch, key, context=context, mu_weight=0.5)[0], allow_int=True
    ))(model)
    assert all(
        np.isfinite(g).all() for g in jax.tree.leaves(grads) if g.dtype != jax.dtypes.float0
    )

    clean = np.nan_to_num(mel)
    valid = np.arange(32) < 4 * lengths[:, None]
    mu = np.asarray(jax.jit(lambda m: m.mu(codes, lengths, context))(model))
    l1 = np.abs(mu - clean)[valid].astype(np.float64).mean()
    draws = draw(jax.random.split(key)[0], clean, jnp.asarray(4 * lengths), flow_config)
    t, z = np.asarray(draws.t)[:, None, None], np.asarray(draws.noise)
    keep = np.asarray(draws.keep)
    known = np.array([draws.known[0], 4 * 3])
    assert keep[1] and known[1] != draws.known[1]
    cond = clean * (np.arange(32) < known[:, None])[..., None]
    path = (1 - (1 - 1e-6) * t) * z + t * clean
    speaker = model.speaker(batch['xvector']) * keep[:, None]
    given = mu * keep[:, None, None], draws.t, speaker, cond * keep[:, None, None]
    found = jax.jit(lambda m: m.estimator(path, valid, *given, chunk=20))(model)
    error = (np.asarray(found) - (clean - (1 - 1e-6) * z))[valid].astype(np.float64)
    assert float(metrics['mu_l1']) == pytest.approx(l1, rel=1e-5)
    assert float(metrics['flow_loss']) == pytest.approx((error**2).mean(), rel=1e-4)
    assert float(loss) == pytest.approx((error**2).mean() + 0.5 * l1, rel=1e-4)


def test_dropout_needs_a_key_and_changes_mu(flow_model, rng):
    codes, lengths = rng.integers(0, 97, (1, 6)), np.array([6])
    run = jax.jit(lambda model, key: model.mu(codes, lengths, OFFLINE, key))
    still = run(flow_model, None)
    shaken = [run(flow_model, jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(shaken[0], shaken[1])
    assert np.abs(shaken[0] - still).max() > 1e-2
    assert np.abs(shaken[0] - shaken[2]).max() > 1e-2


def test_scale_to_is_an_exact_change_of_units(flow_model, flow_params, rng):
    """With spread s and mean c: mu' = s mu + c, and the estimator reads and writes those units."""
    mean, std = rng.normal(-6, 1, 80).astype('f'), rng.uniform(1, 3, 80).astype('f')
    scaled = scale_to(flow_params, mean, std)
    model = flow_network(flow_model.config).bind(scaled)
    hidden = rng.normal(size=(1, 5, 64)).astype('f')
    expected = flow_model.mu_proj(hidden) * std + mean
    np.testing.assert_allclose(model.mu_proj(hidden), expected, rtol=0, atol=1e-4)
    hidden = hidden[..., :32]
    expected = flow_model.estimator.final(hidden) * std + mean
    np.testing.assert_allclose(model.estimator.final(hidden), expected, rtol=0, atol=1e-4)

    path, mu, speaker, cond = rng.normal(size=(4, 1, 6, 80)).astype('f')
    plain = np.concatenate([path, mu, speaker, cond], axis=-1)
    # Halfway between noise and mel the path's mean is half the mel's.
    units = [path * std + mean / 2, mu * std + mean, speaker, cond * std]
    before, after = flow_model.estimator.down.resnet, model.estimator.down.resnet
    given = np.concatenate(units, axis=-1)
    np.testing.assert_allclose(after.shortcut(given), before.shortcut(plain), rtol=0, atol=1e-4)
    # The zeros before frame 0 are no mean: the first two frames see them.
    found, expected = after.block1.conv(given)[:, 2:], before.block1.conv(plain)[:, 2:]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert not np.array_equal(flow_params['mu_proj']['bias'], scaled['mu_proj']['bias'])


def test_a_fresh_wide_estimator_starts_along_mu_minus_path(rng):
    """Its velocity follows mu - path bin by bin, common level of a frame included."""
    config = FlowConfig(
        vocab_size=10, input_size=8, width=8, heads=2, ff_width=8, blocks=1, up_blocks=1,
        channels=96, head_dim=16, estimator_heads=2, transformers=1, mid_blocks=1,
    )  # fmt: skip
    mean, std = rng.normal(-6, 1, 80).astype('f'), rng.uniform(2, 3, 80).astype('f')
    net = flow_network(config)
    params = scale_to(jax.jit(net.init)(jax.random.key(0)), mean, std)
    level = rng.normal(size=(2, 30, 1))  # loud and soft frames
    mu = (mean + std * (0.8 * level + 0.6 * rng.normal(size=(2, 30, 80)))).astype('f')
    noise = rng.normal(size=mu.shape).astype('f')
    path = 0.7 * noise + 0.3 * mu
    given = (
        path, np.ones((2, 30), bool), mu, np.full(2, 0.3, 'f'), np.zeros((2, 80), 'f'), 0 * mu
    )  # fmt: skip
    found = np.asarray(jax.jit(lambda p: net.bind(p).velocity(OFFLINE)(*given))(params))
    want = mu - path

    def correlation(a, b):
        return np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1]

    assert correlation(found, want) > 0.8
    assert correlation(found.mean(-1), want.mean(-1)) > 0.8
    # and each bin's own part, where the noise is
    assert correlation(found - found.mean(-1, keepdims=True),
                       want - want.mean(-1, keepdims=True)) > 0.7
    assert np.corrcoef(found.reshape(-1), noise.reshape(-1))[0, 1] < -0.15


def _without_dropout(model):
    config = dataclasses.replace(model.config, dropout=0.0)
    return flow_network(config).bind(nnx.to_pure_dict(nnx.state(model)))


def test_mu_loss_is_the_masked_distance(flow_model, rng):
    codes, lengths = rng.integers(0, 97, (2, 5)), np.array([5, 3])
    mel = rng.normal(size=(2, 20, 80)).astype('f')
    model = _without_dropout(flow_model)
    batch = {'codes': codes, 'code_lengths': lengths, 'mel': mel}

    @jax.jit
    def run(model):
        return mu_loss(model, batch, jax.random.key(0), context=OFFLINE), model.mu(codes, lengths)

    (loss, metrics), mu = run(model)
    distance = np.abs(np.asarray(mu) - mel)
    expected = np.concatenate([distance[0], distance[1, :12]]).astype(np.float64).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics['mu_l1']) == float(loss)

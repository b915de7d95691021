"""The flow decoder's task: it learns, audio and mel agree frame by frame."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mossjax.data.pipeline import Whole
from mossjax.errors import InputError
from mossjax.infer import audio
from mossjax.models.flow.config import OFFLINE, Context, FlowConfig
from mossjax.models.flow.loss import flow_loss, mu_loss
from mossjax.models.flow.mel import log_mel
from mossjax.train import tasks
from mossjax.train.config import defaults
from mossjax.train.flow import FlowTask, aligned_mel

CONFIG = FlowConfig(
    vocab_size=8, input_size=16, width=16, heads=2, ff_width=32, blocks=1, up_blocks=1,
    dropout=0.0, channels=32, head_dim=16, estimator_heads=2, transformers=1, mid_blocks=1,
)  # fmt: skip


def make_batch(step):
    """Every code has its own spectrum of 8 bins."""
    rng = np.random.default_rng(step)
    shapes = np.random.default_rng(0).normal(-6, 2, (8, 8)).astype(np.float32)
    lengths = np.array([6, 4, 6, 5, 6, 4, 6, 5], np.int32)
    batch = {
        'codes': np.zeros((8, 6), np.int32), 'code_lengths': lengths,
        'mel': np.zeros((8, 24, 8), np.float32),
    }  # fmt: skip
    for row, n in enumerate(lengths):
        codes = rng.integers(0, 8, n)
        batch['codes'][row, :n] = codes
        batch['mel'][row, : 4 * n] = np.repeat(shapes[codes], 4, axis=0)
    return batch


STATISTICS = np.full(8, -6.0, 'f'), np.full(8, 2.0, 'f')


def test_training_lowers_both_losses():
    config = dataclasses.replace(CONFIG, mels=8)
    task = FlowTask(
        config, Whole(make_batch), functools.partial(flow_loss, mu_weight=1.0), Context(chunk=5),
        STATISTICS,
    )  # fmt: skip
    params = jax.jit(task.network.init)(jax.random.key(0))
    optimizer = optax.adam(1.5e-3, b2=0.98)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch, key):
        (_, (metrics, extra)), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, task.init_extra(params), batch, key
        )
        assert extra == {}
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, metrics

    history = []
    for i in range(130):
        params, state, metrics = step(params, state, task.batch(i), jax.random.key(i))
        history.append((float(metrics['flow_loss']), float(metrics['mu_l1'])))
    # What the best constant per bin would reach; a network that ignores its codes stays above.
    mel = np.concatenate([task.batch(i)['mel'][0] for i in range(40)])
    constant = np.abs(mel - np.median(mel, axis=0)).mean(), 1 + mel.var(axis=0).mean()
    assert np.mean(history[:5], axis=0)[1] < 4  # the statistics put mu near the mel at once
    last_flow, last_mu = np.mean(history[-20:], axis=0)
    assert last_mu < 0.85 * constant[0]
    assert last_flow < 0.85 * constant[1]


def test_audio_becomes_the_mel_of_the_same_frames(rng):
    """Two codes and a half of audio, three codes: as if padded with silence to the third."""
    wave = rng.uniform(-0.3, 0.3, (1, 4800)).astype(np.float32)
    mel = aligned_mel(wave, 3, CONFIG)
    assert mel.shape == (1, 12, 80)
    padded = np.pad(wave, ((0, 0), (0, 960)))
    np.testing.assert_allclose(mel, log_mel(padded), rtol=0, atol=1e-4)
    np.testing.assert_allclose(mel[:, :8], log_mel(wave)[:, :8], rtol=0, atol=1e-4)

    codes, lengths = np.array([[1, 2, 3]], np.int32), np.array([3])
    task = FlowTask(CONFIG, Whole(make_batch), mu_loss)
    params = jax.jit(task.network.init)(jax.random.key(0))
    loss = jax.jit(lambda batch: task.loss(params, {}, batch, jax.random.key(0))[0])
    common = {'codes': codes, 'code_lengths': lengths}
    by_mel, by_audio = loss(common | {'mel': mel}), loss(common | {'audio': wave})
    assert float(by_audio) == pytest.approx(float(by_mel), rel=1e-5)


def test_a_context_that_holds_codes_back_is_refused():
    with pytest.raises(InputError, match='train with held = 0'):
        FlowTask(CONFIG, Whole(make_batch), context=Context(held=3))


def test_the_mask_goes_by_a_coin_that_the_loss_does_not_see():
    def objective(model, batch, key, *, context):
        drawn = jax.random.uniform(jax.random.split(key)[0])
        return drawn, {'chunk': jnp.float32(context.chunk == 5)}

    task = FlowTask(CONFIG, Whole(make_batch), objective, Context(chunk=5), context_share=0.3)
    params, batch = task.network.init(jax.random.key(0)), make_batch(0)
    keys = jax.random.split(jax.random.key(1), 1000)
    drawn, (metrics, _) = jax.vmap(lambda key: task.loss(params, {}, batch, key))(keys)
    chunk = np.asarray(metrics['chunk'])
    assert chunk.mean() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 1000) ** 0.5)
    assert abs(np.corrcoef(chunk, drawn)[0, 1]) < 4 / 1000**0.5


def test_either_side_of_the_coin_is_the_loss_under_its_mask():
    """Against both masks as constants, with the key that the coin leaves."""
    task = FlowTask(
        dataclasses.replace(CONFIG, mels=8), Whole(make_batch),
        functools.partial(flow_loss, mu_weight=1.0), Context(chunk=2), context_share=0.5,
    )  # fmt: skip
    rng, batch = np.random.default_rng(0), make_batch(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), task.network.shapes
    )

    def loss(task):
        return jax.jit(lambda key: task.loss(params, {}, batch, key)[0])

    tossed = loss(task)
    masked, seeing = (
        loss(dataclasses.replace(task, context=context, context_share=1.0))
        for context in (Context(chunk=2), OFFLINE)
    )
    sides = set()
    for seed in range(6):
        coin_key, key = jax.random.split(jax.random.key(seed))
        heads = float(jax.random.uniform(coin_key)) < 0.5
        want, other = (masked(key), seeing(key))[:: 1 if heads else -1]
        assert float(tossed(jax.random.key(seed))) == pytest.approx(float(want), rel=1e-6)
        assert abs(float(want) - float(other)) > 2e-5 * float(want)
        sides.add(heads)
    assert sides == {True, False}


def test_vectors_are_measured_when_all_else_is_known_to_fit(tmp_path):
    """Who lacks codes, or says no speaker, hears of it before a codec is opened for vectors."""
    for name in 'ab':
        audio.save(tmp_path / f'{name}.wav', np.full(24_000, 0.1, np.float32), 24_000)
    config = defaults()
    config.task = 'flow'
    config.data.update(
        manifest=str(tmp_path / 'm.jsonl'), codes=str(tmp_path / 'codes.jsonl'), seconds=4.0,
        vectors=str(tmp_path / 'vectors.jsonl'), speaker=str(tmp_path / 'nowhere'),
    )  # fmt: skip
    (tmp_path / 'codes.jsonl').write_text(json.dumps({'path': 'a.wav', 'codes': [1] * 13}) + '\n')
    for speaker, said in (({}, '2 of 2 recordings have no "speaker"'),
                          ({'speaker': 'ann'}, 'no codes of .*b.wav')):  # fmt: skip
        lines = [json.dumps({'audio': f'{name}.wav', **speaker}) + '\n' for name in 'ab']
        (tmp_path / 'm.jsonl').write_text(''.join(lines))
        with pytest.raises(InputError, match=said):
            tasks.make(config)

"""The tokenizer's training step: upstream's two recorded steps, and the start from nothing."""

import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.convert import rules, tokenizer_rules
from mossjax.convert.codec_tokenizer import open_recogniser
from mossjax.data.pipeline import Whole
from mossjax.errors import InputError
from mossjax.models.tokenizer import asr, quantizer
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.train import tokenizer
from mossjax.train.tokenizer import Inputs, TokenizerTask, objectives

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/tokenizer'


@pytest.fixture(scope='module')
def upstream(golden, tmp_path_factory):
    """(task, params, recorded arrays) of upstream's recognition model."""
    root = tmp_path_factory.mktemp('asr')
    for source, name in (
        ('asr_vq_config.json', 'config.json'), ('asr_vq_model.safetensors', 'model.safetensors'),
    ):
        shutil.copyfile(GOLDEN / source, root / name)
    # The recorded model has 400 positions: pieces of 8 s.
    (root / 'preprocessor_config.json').write_text('{"chunk_length": 8}')
    config, params, book = open_recogniser(root)
    recorded = golden('tokenizer/asr_vq_train.npz')

    def inputs(config, batch, key):
        return Inputs(batch['features'], batch['mask'], batch)

    batch = {
        'features': recorded['input_features'].transpose(0, 2, 1),
        'mask': recorded['token_mask'].astype(bool),
        'text': recorded['labels'],
    }
    task = TokenizerTask(
        config, Whole(lambda step: batch), objectives(text=1.0), inputs=inputs, start=book
    )
    return task, params, recorded


@pytest.fixture(scope='module')
def two_steps(upstream):
    """[(loss, metrics, extra, gradients)] of two forwards, no optimiser step between them."""
    task, params, _ = upstream
    step = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    extra, results = task.init_extra(params), []
    for i in range(2):
        (loss, (metrics, extra)), gradients = step(params, extra, task.batch(i), jax.random.key(i))
        results.append((loss, metrics, extra, gradients))
    return results


@pytest.mark.parametrize('i', [0, 1])
def test_losses_and_usage(upstream, two_steps, i):
    recorded, (loss, metrics, _, _) = upstream[2], two_steps[i]
    name = f'step{i + 1}_'
    np.testing.assert_allclose(loss, recorded[name + 'loss'], rtol=1e-5)
    np.testing.assert_allclose(metrics['commitment'], recorded[name + 'quantize_loss'], rtol=1e-5)
    np.testing.assert_allclose(metrics['text'], recorded[name + 'ce_loss'], rtol=1e-5)
    assert metrics['active_codes'] == recorded[name + 'num_active']


@pytest.mark.parametrize('i', [0, 1])
def test_gradients(upstream, two_steps, i):
    task, params, recorded = upstream
    table = tokenizer_rules.recogniser_rules('model.encoder.', 'model.decoder.', task.config.layers)
    ours = rules.to_tensors(table, jax.tree.map(np.asarray, two_steps[i][3]))
    prefix = f'step{i + 1}_grad:'
    names = [name for name in recorded if name.startswith(prefix)]
    assert len(names) == 7
    for name in names:
        wanted = recorded[name]
        np.testing.assert_allclose(
            ours[name.removeprefix(prefix)], wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=name
        )
    assert not np.any(ours['model.encoder.embed_positions.weight'])
    assert not np.any(ours['model.encoder.embed_positions2.weight'])


def test_moving_averages_of_the_first_step(upstream, two_steps):
    book, recorded = two_steps[0][2]['codebook'], upstream[2]
    np.testing.assert_allclose(book.count, recorded['step1_ema_count'], atol=2e-6)
    np.testing.assert_allclose(book.total, recorded['step1_ema_weight'], atol=2e-4)
    np.testing.assert_allclose(book.codes, recorded['step1_codebook'], atol=2e-4)


def test_restart_given_upstreams_choice_of_rows(upstream, two_steps):
    """The codes restarted are the recorded ones; with the recorded rows, so is the codebook."""
    task, _, recorded = upstream
    before, after = two_steps[0][2]['codebook'], two_steps[1][2]['codebook']
    mask, p = recorded['token_mask'].astype(bool), recorded['step2_pooled']
    followed = quantizer.follow(before, p, recorded['step2_ids'], mask, task.config.decay)
    dead = np.isin(np.arange(task.config.codes), recorded['step2_restarted_codes'])
    rows = np.zeros_like(recorded['step2_codebook'])
    flat = p.reshape(-1, p.shape[-1])
    rows[recorded['step2_restarted_codes']] = flat[recorded['step2_restart_source_rows']]
    expected = quantizer.replace(followed, dead, rows)
    np.testing.assert_allclose(expected.count, recorded['step2_ema_count'], atol=2e-6)
    np.testing.assert_allclose(expected.codes, recorded['step2_codebook'], atol=2e-4)
    np.testing.assert_allclose(expected.total, recorded['step2_ema_weight'], atol=2e-4)
    # Ours drew other rows: distinct ones, unmasked, for the same codes.
    same = ~dead
    np.testing.assert_allclose(after.codes[same], recorded['step2_codebook'][same], atol=2e-4)
    np.testing.assert_array_equal(after.count[dead], 1.0)
    np.testing.assert_allclose(after.total[dead], after.codes[dead])
    gaps = np.abs(flat[:, None] - np.asarray(after.codes)[dead]).max(axis=-1)
    sources = gaps.argmin(axis=0)
    assert gaps.min(axis=0).max() < 1e-4 and len(set(sources)) == dead.sum()
    assert mask.reshape(-1)[sources].all()


def test_forward_of_the_recogniser(upstream):
    """Logits and encoder states with the recorded ids put in by hand."""
    task, params, recorded = upstream
    model = task.network.bind(params)
    batch = task.batch(0)
    p = jax.jit(model.encoder)(batch['features'])
    np.testing.assert_allclose(p, recorded['step1_pooled'], atol=1e-4)
    codes = task.start.codes
    np.testing.assert_array_equal(
        np.asarray(quantizer.nearest(p, codes))[batch['mask']],
        recorded['step1_ids'][batch['mask']],
    )
    hidden = jax.jit(model.upper)(codes[recorded['step1_ids']])
    np.testing.assert_allclose(hidden, recorded['step1_encoder_last_hidden'], atol=1e-4)
    head = model.heads['text']
    logits = head.logits(head(batch['text'], hidden, batch['mask']))
    np.testing.assert_allclose(logits, recorded['step1_logits'], atol=1e-4)


# A network that starts from nothing: tiny, phones as tones.

TINY = TokenizerConfig(
    d=32, heads=2, ffn=64, layers=1, encoder_layers=2, mels=40, positions=100, seconds=2, codes=16,
    decay=0.9, restart_interval=5, decoder_layers=1, decoder_heads=2, decoder_ffn=64, vocab=50,
    commitment=0.5, loss_scale=1.0,
)


def tones(step: int, b: int = 8, codes: int = 8) -> dict:
    """Rows of 160 ms tones of four pitches; phone = pitch."""
    rng = np.random.default_rng(step)
    pitch = rng.integers(0, 4, (b, codes // 2))
    hz = np.repeat(300.0 * 2.0**pitch, 2560, axis=1)
    audio = 0.3 * np.sin(2 * np.pi * np.arange(codes * 1280) / 16000 * hz)
    lengths = rng.integers(codes * 640, codes * 1280 + 1, b).astype(np.int32)
    audio[np.arange(audio.shape[1]) >= lengths[:, None]] = 0.0
    return {
        'audio': (audio * 32767).astype(np.int16), 'lengths': lengths,
        'phones': np.repeat(pitch, 8, axis=1).astype(np.int32),
        'targets': pitch.astype(np.int32),
        'target_lengths': (lengths // 2560).astype(np.int32),
    }


def from_nothing(**changes) -> TokenizerTask:
    settings = {
        'objectives': objectives(ctc=0.3, frames=1.0, phones=4),
        'commitment': quantizer.relative_commitment, 'penalty': 3e-3, 'warmup': 30,
        'remembered': 4,
    }
    return TokenizerTask(TINY, Whole(tones), **(settings | changes))


@pytest.fixture(scope='module')
def fresh():
    """Fresh parameters; all tasks `from_nothing` share them."""
    return jax.jit(from_nothing().network.init)(jax.random.key(0))


@pytest.fixture(scope='module')
def plain_loss():
    """(task without distortion and warm-up, its compiled loss)."""
    task = from_nothing(inputs=tokenizer.plain, warmup=0)
    return task, jax.jit(task.loss)


def test_learns_tones_through_the_codebook(fresh):
    import optax

    task, params = from_nothing(), fresh
    extra = task.init_extra(params)
    adam = optax.adam(3e-3)
    opt = adam.init(params)

    @jax.jit
    def step(params, opt, extra, batch, key):
        (_, (metrics, extra)), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, extra, batch, key
        )
        updates, opt = adam.update(grads, opt)
        return optax.apply_updates(params, updates), opt, extra, metrics

    log = []
    for i in range(90):
        before = params, opt, extra
        params, opt, extra, metrics = step(*before, task.batch(i), jax.random.key(i))
        log.append(jax.tree.map(float, metrics))
    assert log[29]['commitment'] == 0.0 and log[30]['commitment'] > 0.0
    assert extra['codebook'].updates == 60
    assert log[-1]['active_codes'] >= 5
    # Four pitches: chance is .25; all of it must pass through 16 codes.
    assert np.mean([m['phone_accuracy'] for m in log[-5:]]) > 0.7
    assert np.mean([m['ctc'] for m in log[-5:]]) < 0.6 * log[0]['ctc']
    # A step is a function of its arguments, the key among them.
    again = step(*before, task.batch(89), jax.random.key(89))
    jax.tree.map(np.testing.assert_array_equal, again, (params, opt, extra, metrics))
    assert step(*before, task.batch(89), jax.random.key(90))[3]['ctc'] != metrics['ctc']


def test_padding_changes_nothing(fresh, plain_loss):
    """More zeros behind the audio leave the loss and the codebook alone."""
    task, loss = plain_loss
    batch = tones(0)
    # The rows end in 80 ms of silence, so that the last frame reflects silence either way.
    batch['lengths'] = np.minimum(batch['lengths'], 7 * 1280)
    batch['audio'][:, 7 * 1280 :] = 0
    wide = dict(
        batch, audio=np.pad(batch['audio'], ((0, 0), (0, 2560))),
        phones=np.pad(batch['phones'], ((0, 0), (0, 8)), constant_values=3),
    )
    extra = task.init_extra(fresh)
    (a, (_, short)), (b, (_, long)) = (
        loss(fresh, extra, x, jax.random.key(0)) for x in (batch, wide)
    )
    np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(short['codebook'].codes, long['codebook'].codes, atol=1e-5)


def test_bfloat16_network_keeps_a_float32_codebook(fresh, plain_loss):
    task, loss = plain_loss
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), fresh)
    extra = task.init_extra(fresh)
    vectors = jax.eval_shape(task.network.bind(low).encoder, jnp.zeros((1, 8, TINY.mels)))
    assert vectors.dtype == jnp.bfloat16
    (a, (_, exact)), (b, (metrics, rough)) = (
        loss(p, extra, task.batch(0), jax.random.key(0)) for p in (fresh, low)
    )
    assert all(x.dtype == jnp.float32 for x in (b, *metrics.values()))
    assert rough['codebook'].codes.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=0.03)
    np.testing.assert_allclose(exact['codebook'].count.sum(), rough['codebook'].count.sum())


def test_ctc_against_enumeration():
    """Two symbols and blank over three frames: sum over all paths that collapse to the target."""
    import itertools

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 4, 3)).astype(np.float32)
    logp = np.asarray(jax.nn.log_softmax(logits))[0]

    def collapse(path):
        return [s for s, before in zip(path, (None, *path), strict=False) if s != before and s != 2]

    def head(hidden):
        return jnp.asarray(hidden)

    head.frames = 2
    for target in ([0, 1], [1, 1]):
        total = np.logaddexp.reduce([
            sum(logp[t, s] for t, s in enumerate(path))
            for path in itertools.product(range(3), repeat=4) if collapse(path) == target
        ])
        batch = {'targets': np.array([target]), 'target_lengths': np.array([2])}
        loss, _ = asr.ctc_loss(head, logits, batch, jnp.ones((1, 2), bool))
        np.testing.assert_allclose(loss, -total / 2, rtol=1e-5)
    # Impossible: two equal symbols need three frames, one code gives two.
    loss, _ = asr.ctc_loss(head, logits, batch, jnp.array([[True, False]]))
    assert loss == 0.0


@pytest.mark.parametrize(
    'make, said',
    [
        (lambda: objectives(ctc=1.0), 'phones > 0'),
        (lambda: dataclasses.replace(from_nothing(), config=dataclasses.replace(TINY, codes=5000)),
         'cannot start 5000 codes'),
        (lambda: from_nothing(objectives={}), 'no objective has a weight'),
    ],
)  # fmt: skip
def test_refusals(make, said):
    with pytest.raises(InputError, match=said):
        make()

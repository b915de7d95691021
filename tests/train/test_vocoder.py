"""The vocoder's run: two players in one step, resumed to the last bit, exported."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax import checkpoint
from mossjax.convert import flow_config, kinds, transfer
from mossjax.convert.codec_vocoder import open_hift
from mossjax.data.pipeline import Whole
from mossjax.errors import InputError
from mossjax.infer import audio
from mossjax.models.flow.config import FlowConfig
from mossjax.models.flow.mel import log_mel
from mossjax.models.vocoder.discriminators import DiscriminatorConfig
from mossjax.models.vocoder.hift import source
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.models.vocoder.losses import UNKNOWN
from mossjax.nn import weight_norm
from mossjax.train import loop, starts, tasks
from mossjax.train.config import check, defaults
from mossjax.train.vocoder import VocoderLoss, VocoderTask

# One stage of upsampling: all that training knows of the generator is in it.
CONFIG = HiftConfig(
    channels=4, f0_width=4, harmonics=1, rates=(120,), kernels=(120,), source_kernels=(3,),
    block_kernels=(3,), dilations=(1,),
)  # fmt: skip
JUDGES = DiscriminatorConfig(
    periods=(2,), period_channels=(4,), n_ffts=(64,), windows=(64,), hops=(16,),
    resolution_channels=2,
)  # fmt: skip
LOSS = VocoderLoss(scales=((64, 16, 6),))


def make_batch(step):
    t = np.arange(9 * 480) / 24000
    f0 = 100.0 + 10 * step + 50 * np.arange(2)[:, None]
    return {
        'audio': (0.3 * np.sin(2 * np.pi * f0 * t)).astype(np.float32),
        'f0': np.broadcast_to(f0, (2, 5)).astype(np.float32),
    }


TASK = VocoderTask(CONFIG, Whole(make_batch), LOSS, JUDGES)


def configured():
    config = defaults()
    config.steps, config.save_every, config.keep, config.log_every = 2, 1, 2, 1
    config.optim.warmup_steps = 1
    check(config)
    return config


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(workdir, last state) of two steps."""
    workdir = tmp_path_factory.mktemp('vocoder')
    return workdir, loop.fit(TASK, configured(), workdir, devices=jax.devices()[:1])


def test_each_player_has_the_gradient_of_its_own_loss():
    """The sum of both losses, against each loss with the other player's weights left out."""
    params = jax.jit(TASK.network.init)(jax.random.key(0))
    key, batch = jax.random.key(1), make_batch(0)

    def metrics(params):
        return TASK.loss(params, {}, batch, key)[1][0]

    def generator(own):
        found = metrics(params | {'generator': own})
        return 45 * found['mel'] + found['f0'] + found['adversarial'] + 2 * found['feature']

    @jax.jit
    def slopes(params):
        both = jax.grad(lambda p: TASK.loss(p, {}, batch, key)[0])(params)
        judging = jax.grad(lambda own: metrics(params | {'discriminators': own})['judging'])
        mel = jax.grad(lambda own: metrics(params | {'generator': own})['mel'])
        return (
            both, jax.grad(generator)(params['generator']), judging(params['discriminators']),
            mel(params['generator'])['f0'],
        )  # fmt: skip

    both, own, judging, pitch = slopes(params)
    for found, wanted in ((both['generator'], own), (both['discriminators'], judging)):
        most = max(float(abs(x).max()) for x in jax.tree.leaves(wanted))
        assert most > 1e-3
        jax.tree.map(
            lambda a, b, atol=2e-6 * most: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol),
            found, wanted,
        )  # fmt: skip
    # Pitch learns from measured pitch alone.
    assert not any(x.any() for x in jax.tree.leaves(pitch))


def test_measured_pitch_makes_the_source():
    """The predicted one where nobody measured."""
    params = jax.jit(TASK.network.init)(jax.random.key(0))['generator']
    key, batch = jax.random.key(1), make_batch(0)
    batch['f0'] = batch['f0'].copy()
    batch['f0'][1] = UNKNOWN

    @jax.jit
    def both(params):
        _, fake, f0 = TASK.generated(params, batch, key)
        model = TASK.network.networks['generator'].bind(params)
        mel = log_mel(batch['audio'])[:, 2:-2]
        told = jnp.stack([jnp.full(5, 100.0), f0[1]])
        excited = model.source(told, source.noise(CONFIG, key, 5))
        return fake, model.wave(mel, excited, jnp.array([5, 5]))

    fake, wanted = both(params)
    np.testing.assert_allclose(fake, wanted, rtol=1e-5, atol=1e-6)


def test_a_run_that_lost_its_last_step_ends_in_the_same_bits(trained, tmp_path):
    workdir, state = trained
    shutil.copytree(workdir, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '2')
    again = loop.fit(TASK, configured(), tmp_path / 'run', devices=jax.devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, again.items(), state.items())


def test_it_is_exported_beside_a_codec_that_has_no_vocoder(trained, tmp_path):
    workdir, state = trained
    codec = tmp_path / 'codec'
    (codec / 'flow').mkdir(parents=True)
    flow_config.write_config(codec / 'flow' / 'config.yaml', FlowConfig())
    source = kinds.with_companions(kinds.open_source(workdir), codec)
    transfer.convert(source, tmp_path / 'out')
    config, params = open_hift(tmp_path / 'out')
    assert config == CONFIG
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        params, weight_norm.fold(jax.tree.map(np.asarray, state.params['generator'])),
    )  # fmt: skip
    # Another run begins with it; discriminators, which a codec has not, begin anew.
    start = starts.vocoder(str(tmp_path / 'out'), TASK.network)(state.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        weight_norm.fold(start['generator']), params,
    )  # fmt: skip
    fresh = TASK.network.init(jax.random.key(0))['discriminators']
    jax.tree.map(np.testing.assert_array_equal, start['discriminators'], fresh)


def test_another_run_begins_with_the_players_that_are_there(trained, tmp_path):
    """Both, or the generator of a run that had no discriminators: these then begin anew."""
    workdir, state = trained
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.params
    )
    start = starts.vocoder(str(workdir), TASK.network)(abstract)
    jax.tree.map(np.testing.assert_array_equal, start, state.params)
    saved = checkpoint.Checkpoints(tmp_path / 'checkpoints')
    alone = {'generator': state.params['generator']}
    saved.save(1, {'params': alone, 'opt_state': {}, 'extra': {}}, {})
    saved.close()
    start = starts.vocoder(str(tmp_path), TASK.network)(abstract)
    fresh = TASK.network.init(jax.random.key(0))['discriminators']
    jax.tree.map(np.testing.assert_array_equal, start, alone | {'discriminators': fresh})
    saved = checkpoint.Checkpoints(tmp_path / 'other' / 'checkpoints')
    saved.save(1, {'params': {'encoder': alone}, 'opt_state': {}, 'extra': {}}, {})
    saved.close()
    with pytest.raises(InputError, match='other is a run of no vocoder, it has encoder; config'):
        starts.vocoder(str(tmp_path / 'other'), TASK.network)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'frames': 2}, 'data.frames is 2, 960 samples: the mel of window 1920 needs 1920'),
        ({'frames': 2, 'scale': 512}, 'a discriminator needs 1200; set it to 3'),
        ({}, 'data.f0 is not set'),
    ],
)
def test_refusals(changes, message, tmp_path):
    manifest = tmp_path / 'manifest.jsonl'
    manifest.write_text(json.dumps({'audio': 'a.wav'}) + '\n')
    config = defaults()
    config.task = 'vocoder'
    config.data.manifest = str(manifest)
    config.data.frames = changes.get('frames', 50)
    config.loss.scales = ((changes.get('scale', 1920), 64, 10),)
    with pytest.raises(InputError, match=message):
        tasks.make(config)


def test_pitch_is_measured_when_all_else_is_known_to_fit(tmp_path):
    """A recording whose store says 200 Hz in its first half and nothing of another."""
    for name in 'ab':
        audio.save(tmp_path / f'{name}.wav', np.full(24_000, 0.1, np.float32), 24_000)
    manifest = tmp_path / 'manifest.jsonl'
    manifest.write_text(''.join(json.dumps({'audio': f'{x}.wav'}) + '\n' for x in 'ab'))
    config = defaults()
    config.task, config.init_from = 'vocoder', str(tmp_path / 'nowhere')
    config.data.update(manifest=str(manifest), f0=str(tmp_path / 'f0.jsonl'), frames=50, rows=2)
    with pytest.raises(InputError, match='nowhere'):
        tasks.make(config)
    assert not (tmp_path / 'f0.jsonl').exists()
    config.init_from, config.data.f0 = '', str(tmp_path / 'a.wav' / 'f0.jsonl')
    with pytest.raises(InputError, match='config.data.f0 .* is a file, not a folder'):
        tasks.make(config)
    config.data.f0 = str(tmp_path / 'f0.jsonl')
    entry = {'path': 'a.wav', 'f0': [200.0] * 25 + [0.0] * 25}
    (tmp_path / 'f0.jsonl').write_text(json.dumps(entry) + '\n')
    task = tasks.make(config).task
    found = {tuple(row) for row in task.batch(0)['f0']}
    assert found == {tuple(entry['f0']), (-1.0,) * 50} and len(task.names(0)) == 2

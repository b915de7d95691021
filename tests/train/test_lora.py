"""LoRA: the adapted model is the dense one with W + scale down up, trained alone, kept whole."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.cli import convert as command
from mossjax.cli import main as cli
from mossjax.convert import kinds, peft
from mossjax.convert.directories import save_lm
from mossjax.convert.lm_rules import LM_RULES
from mossjax.convert.placement import open_lm, place
from mossjax.convert.transfer import convert
from mossjax.convert.weight_files import open_tensors
from mossjax.errors import InputError
from mossjax.models.lm.matrices import matrix
from mossjax.models.lm.model import network
from mossjax.nn import lora as lora_lib
from mossjax.nn.lora import Lora, adapt
from mossjax.ops.attention import Mask
from mossjax.train import starts
from mossjax.train.loop import fit
from tests.tiny_lm import close, tiny_grid, tiny_params
from tests.train.tiny_task import tiny_run, tiny_task

TARGETS = (r'.*/attn/[qo]', r'trunk/mlp/down', 'audio_head/kernel')
SETTINGS = Lora(rank=3, alpha=6.0, targets=TARGETS)
TASK = tiny_task(lora=SETTINGS)
CONFIG = TASK.config
PLAIN = network(CONFIG)


def adapters_of(rng) -> dict:
    """Lively ones: both factors random."""
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.1, TASK.network.shapes['lora']
    )


def dense(params, adapters) -> dict:
    """W + 2 down up, layer by layer, in float64."""

    def adapted(path, leaf):
        parts = adapters
        for key in path:
            parts = parts.get(key.key, {}) if isinstance(parts, dict) else {}
        if not parts:
            return leaf
        down, up = (parts[name].astype(np.float64) for name in ('down', 'up'))
        layered = path[0].key != 'audio_head'
        delta = np.stack([np.tensordot(d, u, 1) for d, u in zip(down, up, strict=True)]) \
            if layered else np.tensordot(down, up, 1)
        return (leaf + 2.0 * delta).astype(np.float32)

    return jax.tree_util.tree_map_with_path(adapted, params)


def logits(net, params):
    tokens = tiny_grid(CONFIG, 2, 12)
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    return jax.jit(lambda p: net.bind(p)(tokens, positions, Mask(causal=True)))(params)


def test_adapted_is_dense(rng):
    params, adapters = tiny_params(CONFIG), adapters_of(rng)
    want = dense(params, adapters)
    merged = lora_lib.merge(params, adapters, SETTINGS, matrix)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), merged, want)
    got = logits(TASK.network, {'base': params, 'lora': adapters})
    for a, b, c in zip(got, logits(PLAIN, want), logits(PLAIN, params), strict=True):
        close(a, b)
        assert np.abs(np.asarray(b) - c).max() > 1e-2


def test_fresh_adapters_change_nothing_and_only_they_train(tmp_path):
    save_lm(tmp_path / 'model', CONFIG, tiny_params(CONFIG))
    start = starts.adapters(str(tmp_path / 'model'), CONFIG, TASK.network, seed=0)
    config = tiny_run(**{'optim.weight_decay': 0.0})
    state = fit(TASK, config, tmp_path / 'run', init_from=start)
    jax.tree.map(np.testing.assert_array_equal, state.params['base'], tiny_params(CONFIG))
    fresh = start(jax.tree.map(lambda x: x, _placed()))['lora']
    for path, x in jax.tree_util.tree_leaves_with_path(fresh):
        assert path[-1].key != 'up' or not np.any(x)
    for got, want in zip(logits(TASK.network, {'base': tiny_params(CONFIG), 'lora': fresh}),
                         logits(PLAIN, tiny_params(CONFIG)), strict=True):
        close(got, want, 1e-6)
    moved = [bool(np.any(np.asarray(x))) for p, x in
             jax.tree_util.tree_leaves_with_path(state.params['lora']) if p[-1].key == 'up']
    assert all(moved) and len(moved) == 8
    trained = sum(x.size for x in jax.tree.leaves(state.params['lora']))
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == 2 * trained


def _placed():
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), TASK.network.shapes
    )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A finished LoRA run and its last state."""
    root = tmp_path_factory.mktemp('lora')
    save_lm(root / 'model', CONFIG, tiny_params(CONFIG))
    start = starts.adapters(str(root / 'model'), CONFIG, TASK.network, seed=0)
    return root, fit(TASK, tiny_run(), root / 'run', init_from=start)


def test_a_run_is_exported_with_its_adapters_worked_in(run, tmp_path):
    root, state = run
    convert(kinds.open_source(root / 'run'), tmp_path / 'merged')
    _, got = open_lm(tmp_path / 'merged')
    want = dense(*(jax.tree.map(np.asarray, state.params[k]) for k in ('base', 'lora')))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_peft_round_trip_is_bit_equal(run, tmp_path):
    root, state = run
    source = kinds.open_source(root / 'run')
    assert source.adapters.lora == SETTINGS  # they travel with the checkpoint
    peft.save(tmp_path / 'adapter', source.adapters)
    again = peft.load(tmp_path / 'adapter', PLAIN.shapes)
    jax.tree.map(np.testing.assert_array_equal, again.tree(),
                 jax.tree.map(np.asarray, state.params['lora']))
    assert (again.lora.rank, again.lora.alpha) == (3, 6.0)
    got = logits(PLAIN, lora_lib.attach(tiny_params(CONFIG), again.tree(), again.lora))
    for a, b in zip(got, logits(TASK.network, state.params), strict=True):
        close(a, b)


@pytest.mark.parametrize('side', ['', '--text_side'])
def test_the_command_writes_adapters_alone(run, tmp_path, capsys, side):
    """q and o of all 7 (text side: 5) layers, down of 3, and the audio head."""
    root, state = run
    for name in command.FLAGS:
        command.FLAGS[name].unparse()
    flags = ['--adapter', *([side] if side else [])]
    assert cli.main(['convert', *flags, str(root / 'run'), str(tmp_path / 'a')]) == 0
    assert 'rank 3, alpha 6' in capsys.readouterr().out
    content = json.loads((tmp_path / 'a' / peft.CONFIG).read_text())
    file = open_tensors(tmp_path / 'a' / peft.WEIGHTS)
    layers = 5 if side else 7
    assert len(content['target_modules']) == 2 * layers + 3 + (not side)
    name = ('model.layers.4' if side else 'model.text_block.layers.1') + '.self_attn.q_proj'
    np.testing.assert_array_equal(
        file.read(f'base_model.model.{name}.lora_A.weight'),
        np.asarray(state.params['lora']['text_branch']['attn']['q']['down'][1]).T,
    )


def test_merged_weights_are_read_as_they_are_written(run):
    """`Merged` gives every tensor; those without adapters to the bit."""
    source = kinds.open_source(run[0] / 'run')
    params = place(LM_RULES, source.tensors, PLAIN.shapes)
    np.testing.assert_array_equal(
        params['trunk']['mlp']['up'], tiny_params(CONFIG)['trunk']['mlp']['up']
    )


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    'targets, said',
    [
        (('trunk/attn/qq',), "'trunk/attn/qq' matches no parameter"),
        (('trunk/attn_norm/scale',), 'is no matrix'),
        (('text_embed/table',), 'is no matrix of a linear map'),
    ],
)
def test_wrong_targets(targets, said):
    with pytest.raises(InputError, match=said):
        adapt(PLAIN, Lora(targets=targets), matrix)


def test_adapters_need_weights():
    with pytest.raises(InputError, match='init_from'):
        starts.adapters('', CONFIG, TASK.network, seed=0)


def test_settings_of_peft_that_mean_something_else_are_refused(run, tmp_path):
    peft.save(tmp_path / 'a', kinds.open_source(run[0] / 'run').adapters)
    content = json.loads((tmp_path / 'a' / peft.CONFIG).read_text())
    for key, value, said in (
        ('use_dora', True, 'use_dora is True'),
        ('rank_pattern', {'q_proj': 4}, 'this model wants'),
        ('r', None, "no 'r'"),
    ):
        (tmp_path / 'a' / peft.CONFIG).write_text(json.dumps({**content, key: value}))
        with pytest.raises(InputError, match=said):
            peft.load(tmp_path / 'a', PLAIN.shapes)
    (tmp_path / 'a' / peft.CONFIG).write_text(json.dumps({**content, 'r': 4}))
    with pytest.raises(InputError, match='this model wants'):
        peft.load(tmp_path / 'a', PLAIN.shapes)

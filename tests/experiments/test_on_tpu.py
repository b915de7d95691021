"""The command for whoever has a TPU, by its parts: the kernels interpreted, a step on the CPU."""

import jax
import pytest

from experiments.benchmarks import on_tpu, on_tpu_cache
from mossjax.errors import InputError
from mossjax.nn import flash_cache
from mossjax.nn.flash import interpreted
from mossjax.ops.cached_attention import at_once
from mossjax.parallel import chips
from mossjax.plan import hlo
from mossjax.train import lm
from tests.plan.test_estimate import PROGRAM
from tests.tiny_lm import tiny_config

SMALL = {'t': 128, 'heads': 2, 'kv_heads': 1}


def test_without_a_tpu_it_says_where_to_run_it(capsys):
    with pytest.raises(SystemExit) as caught:
        on_tpu.main([])
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("on_tpu: no TPU here: the first device is 'cpu'. Run this on a TPU VM")


def test_right_kernels_pass_and_wrong_ones_do_not(monkeypatch):
    monkeypatch.delitem(on_tpu.WITHIN, 'bfloat16')  # interpreting takes its time
    found = on_tpu.check_kernels(interpreted, **SMALL)
    assert found['float32']['within']
    assert max(found['float32']['xla'].values()) <= on_tpu.WITHIN['float32']

    def wrong(q, k, v, mask):
        return on_tpu.attention(q, k, v, mask) * 1.01

    assert on_tpu.off(wrong, 'float32', **SMALL)['out'] == pytest.approx(0.01, rel=1e-3)


def test_ways_to_read_the_cache_are_told_right_from_wrong(monkeypatch):
    for name, few in (('HEADS', 4), ('KV_HEADS', 1)):  # interpreting takes its time
        monkeypatch.setattr(on_tpu_cache, name, few)
    small = {'slots': 130, 'lengths': (0, 129), 'new': {'some': 2}}
    assert on_tpu_cache.check_cache(flash_cache.interpreted, **small)['some']['within']

    def one_too_many(pair, lengths, first):
        return at_once(pair, lengths + 1, first)

    found = on_tpu_cache.check_cache(one_too_many, **small)['some']
    assert not found['within'] and min(found['bfloat16'], found['int8']) > 0.05


def test_a_step_is_measured_and_stands_beside_its_estimate():
    small = tiny_config(num_shared_layers=1, num_modality_layers=1, num_hidden_layers=2)
    task = lm.LMTask(small, None)
    found = on_tpu.run_step(task, jax.devices()[:1], context=16)
    assert found['seconds'] > 0 and 1 < found['loss'] < 20
    assert found['chips'] == 1 and found['layers'] == 1 + 2
    made = on_tpu.beside(found, task, hlo.parse(PROGRAM), 'v5p')
    took = made['estimated_seconds']['online']
    assert made['measured_over_estimated'] == pytest.approx(found['seconds'] / took)
    assert made['share_of_peak'] * found['seconds'] == pytest.approx(
        made['estimated_share_of_peak'] * took
    )
    assert 'measured_over_estimated: ' in on_tpu.shown(made)


def test_the_model_of_the_step_grows_with_the_memory():
    layers = [
        on_tpu.fitting(chips.CHIPS[name].memory, count, 'attention').num_shared_layers
        for name, count in (('v5e', 1), ('v6e', 1), ('v5p', 1), ('v5p', 4))
    ]
    assert layers == sorted(layers) and layers[0] >= 1 and layers[-1] == 32
    with pytest.raises(InputError, match=r'1 chips of 4\.0 GiB hold no layer'):
        on_tpu.fitting(4 * chips.GIB, 1, 'attention')

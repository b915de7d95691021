"""What one watches in a run: speed, utilisation, where the time goes, held-out rows, a profile."""

import contextlib
import functools
import math

import jax
from jax.interpreters import partial_eval as pe
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.data.pipeline import FixedRows
from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.flops import convention, done
from mossjax.models.lm.model import network
from mossjax.nn.lora import Lora
from mossjax.train import loop, metrics, optim
from mossjax.train.clock import Clock
from mossjax.train.log import Log
from mossjax.train.metrics import Speed
from mossjax.train.skips import Skips
from tests.tiny_lm import tiny_params
from tests.train.tiny_task import tiny_run, tiny_task
from tests.train.toy_task import D, ToyTask, toy_config


@pytest.mark.parametrize('context, published', [(8192, 58.49e9), (14336, 64.5e9)])
def test_the_convention_is_the_dense_formula(context, published):
    """6 x weights of matrices + 6 x layers x width of attention x context, from the shapes."""
    config = LMConfig.released()
    flat = jax.tree_util.tree_leaves_with_path(network(config).shapes)
    matrices = sum(
        math.prod(x.shape) for path, x in flat
        if not any(word in jax.tree_util.keystr(path) for word in ('norm', 'embed'))
    )  # fmt: skip
    attention = 6 * 40 * 4096 * context
    assert convention(config, context) == 6 * matrices + attention
    assert convention(config, context) == pytest.approx(published, rel=1e-3)


def matmuls(jaxpr, times=1):
    """Operations of all matrix products of a program, bodies of scans as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            x = equation.invars[0].aval.shape
            size = math.prod(equation.outvars[0].aval.shape)
            total += 2 * times * size * math.prod(x[i] for i in contracted)
        inside = times * equation.params['length'] if equation.primitive.name == 'scan' else times
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
        ):  # fmt: skip
            inner = getattr(inner, 'jaxpr', inner)
            if hasattr(inner, 'eqns'):
                total += matmuls(inner, inside)
    return total


ADAPTERS = Lora(rank=2, alpha=4.0, targets=('.*/attn/[qkvo]', '.*/mlp/.*'))


@pytest.mark.parametrize('changes, frozen', [
    ({}, ()),
    ({'text_weight': 0.0}, ('trunk/.*', 'text_embed/.*')),  # stage 1
    ({'text_weight': 0.0}, ('trunk/.*', '.*_embed/.*')),  # the gradient stops above the trunk
    ({}, ('trunk/.*', '.*_embed/.*', 'text_branch/.*', 'text_norm/.*')),
    ({'lora': ADAPTERS}, ()),
    ({'lora': Lora(3, 6.0, ('.*/attn/[qo]', 'audio_head/kernel'))}, ()),
    ({'lora': Lora(3, 6.0, ('.*_head/kernel',))}, ()),  # the gradient stops at the heads
])  # fmt: skip
def test_what_is_done_is_what_the_program_multiplies(changes, frozen):
    task = tiny_task(**changes)
    batch = task.batch(0)
    b, t = batch['segments'].shape
    trainable, rest = optim.split(task.network.shapes, (*frozen, *task.frozen))

    def total(trainable, rest):
        return task.loss(optim.join(trainable, rest), {}, batch, None)[0]

    program = jax.make_jaxpr(jax.grad(total))(trainable, rest).jaxpr
    # As compiled: without the products that nothing needs, a head's of what is frozen.
    program, _ = pe.dce_jaxpr(program, [True] * len(program.outvars))
    got = matmuls(program) / (b * t)
    found, real = task.flops(batch, frozen)
    assert found == convention(task.config, t)
    # Reference attention computes the whole square; nothing is computed again.
    square = real - _without_attention(task, t, frozen)
    adapted = [x['kernel']['up'].shape for name, x in trainable.get('lora', {}).items()
               if name.endswith('_head')]  # fmt: skip
    once = sum(6 * rank * task.config.hidden_size * vocab for rank, vocab in adapted)
    assert got == pytest.approx(real + square + once / (b * t), rel=1e-9)


def _without_attention(task, t, frozen):
    """Attention is linear in the context: what is left at none."""
    at = [task.flops({'tokens': np.zeros((1, n, 2))}, frozen)[1] for n in (t, 2 * t)]
    return 2 * at[0] - at[1]


def test_adapters_do_two_thirds():
    task = tiny_task(lora=ADAPTERS)
    full, real = task.flops(task.batch(0), ())
    config, t = task.config, 12
    count = sum(x.size for x in jax.tree.leaves(task.network.shapes['lora']))
    attention = 6 * 7 * config.num_attention_heads * config.head_dim * t
    assert real == pytest.approx((full - attention) * 2 / 3 + attention + 6 * count, rel=1e-12)


def test_speed_is_by_chip_and_leaves_out_what_comes_once():
    seconds = dict.fromkeys(Clock().take(), 1.0) | {'compile': 50.0, 'step': 4.0}
    steps = [{'finite': True, 'tokens': 40.0, 'loss': 1.0}, {'finite': False, 'tokens': 1e9,
             'loss': np.nan}, {'finite': True, 'tokens': 60.0, 'loss': 3.0}]  # fmt: skip
    found = metrics.summarise(steps, seconds, Speed(4, 1000.0, 30.0, 20.0))
    working = 1.0 + 4.0 + 1.0 + 1.0  # data, step, log, save
    assert found['tokens_per_chip_second'] == pytest.approx(100 / working / 4)
    assert found['mfu'] == pytest.approx(100 / working / 4 * 30 / 1000)
    assert found['mfu_done'] == pytest.approx(100 / working / 4 * 20 / 1000)
    assert found['seconds_per_step'] == pytest.approx(working / 3) and found['loss'] == 2.0
    everything = metrics.summarise(steps, seconds, Speed(4, 1000.0, 30.0, 30.0))
    assert 'mfu_done' not in everything
    assert not {'mfu', 'mfu_done'} & metrics.summarise(steps, seconds, Speed(4)).keys()


class Ticking(Clock):
    """A clock that counts how often it is read."""

    made = []

    def __init__(self):
        self.ticks, self.taken = 0, []
        super().__init__(self.tick)
        Ticking.made.append(self)

    def tick(self):
        self.ticks += 1
        return float(self.ticks)

    def take(self):
        found = super().take()
        self.taken.append((self.ticks, found))
        return found


def test_every_second_is_in_one_bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, 'Clock', Ticking)
    loop.fit(ToyTask(), toy_config(6, log_every=2, save_every=3), tmp_path)
    clock = Ticking.made.pop()
    lines = metrics.read(tmp_path / 'metrics.jsonl')
    spent = [{k: v for k, v in line.items() if k.startswith('seconds_') and k != 'seconds_per_step'}
             for line in lines]  # fmt: skip
    last, rest = clock.taken[-1]  # after the last line: the last save
    assert sum(sum(each.values()) for each in (*spent, rest)) == last - 1  # since the first reading
    assert sum(clock.total().values()) == clock.ticks - 1
    assert {'seconds_start', 'seconds_compile', 'seconds_data', 'seconds_step'} <= spent[0].keys()
    assert any('seconds_save' in each for each in spent) and rest['save'] > 0
    assert 'seconds_compile' not in spent[-1]
    line = lines[-1]
    assert line['tokens_per_chip_second'] * 8 * line['seconds_per_step'] == pytest.approx(8 * D)


class Later:
    """A number of a step that is still being computed: whoever asks for it would wait."""

    def __init__(self, value, ready):
        self.value, self.ready = value, ready

    def __array__(self, *_, **__):
        assert self.ready, 'waited for'
        return np.asarray(self.value)


def test_the_log_never_waits_for_the_step_just_dispatched(tmp_path):
    with contextlib.ExitStack() as stack:
        skips = Skips(5, 1.0, lambda step: [])
        config = toy_config(6, log_every=2)
        written = Log(tmp_path, 0, config, Clock(), skips, Speed(1), stack)
        pending = []
        for step in range(1, 7):
            for value in pending:
                value.ready = True  # dispatched before: the devices have it behind them
            values = [Later(True, False), Later(float(step), False)]
            written.add(step, dict(zip(('finite', 'loss'), values, strict=True)))
            pending = values
            lines = metrics.read(tmp_path / 'metrics.jsonl')
            assert [line['step'] for line in lines] == [s for s in (2, 4) if s < step]
        with pytest.raises(AssertionError, match='waited for'):
            written.flush()
    assert [line['loss'] for line in lines] == [1.5, 3.5]


def test_a_run_logs_its_utilisation_and_held_out_rows_and_records_a_profile(tmp_path):
    """One small run with all of it; parameters do not move, so that losses can be computed."""
    plain = tiny_task()
    rows = [{k: x[i] for k, x in plain.batch(7).items()} for i in range(5)]
    task = tiny_task(held_out=FixedRows({'a': rows[:3], 'b': rows[3:]}, 8, 3), text_weight=0.5)
    params = tiny_params(task.config)
    config = tiny_run(**{
        'held_out_every': 2, 'profile_from': 3, 'profile_steps': 1, 'peak_flops': 1e9,
        'optim.peak_lr': 0.0, 'log_every': 2,
    })  # fmt: skip
    loop.fit(task, config, tmp_path, init_from=params)
    lines = metrics.read(tmp_path / 'metrics.jsonl')
    held_out = [line for line in lines if 'held_out_text_loss' in line]
    assert [line['step'] for line in held_out] == [2, 4]
    whole = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
    _, (want, _) = jax.jit(functools.partial(task.loss, key=None))(
        jax.tree.map(jnp.asarray, params), {}, whole
    )
    for line in held_out:
        for channel in ('text', 'audio'):
            assert line[f'held_out_{channel}_loss'] == pytest.approx(
                float(want[f'{channel}_loss']), rel=1e-5
            )
    trained = [line for line in lines if 'loss' in line]
    flops = done(task.config, 12, lambda part: True, ('text', 'audio'))
    for line in trained:
        assert line['mfu'] == pytest.approx(line['tokens_per_chip_second'] * flops / 1e9)
        assert 'mfu_done' not in line and line['audio_seconds_per_chip_second'] > 0
    assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


def test_held_out_rows_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match='no rows to evaluate; name some in config.data.held_out'):
        loop.fit(ToyTask(), toy_config(held_out_every=2), tmp_path)

"""Reading the compiler's answers, and the proof of the 9.1 B step against the program as it is."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from experiments.proofs import flow_stream, record, tpu_attention, tpu_decode_step, tpu_train_step
from mossjax.plan import compile as plan

RECORD = pathlib.Path(tpu_train_step.__file__).with_suffix('.json')
KERNELS = record.read(pathlib.Path(tpu_attention.__file__).with_suffix('.json')).get('cases', {})
PROVEN = record.read(RECORD).get('cases', {})


@pytest.mark.parametrize('name', PROVEN)
def test_recorded_proof_is_about_the_program_of_today(name):
    """Lowers the 9.1 B step for a pod from shapes alone; no TPU compiler is needed.

    After a change of the step: python -m experiments.proofs.run tpu_train_step
    """
    case = tpu_train_step.CASES[name]
    mesh = tpu_train_step.abstract_mesh(case)
    with jax.default_matmul_precision(None):  # the tests' own setting is no part of the program
        program = tpu_train_step.lowered(case, mesh)
    text = program.as_text()
    assert text.count('@tpu_custom_call(') >= 2  # attention forward and backward are kernels
    # Layouts are asked for inside each device: outside, the compiler gathers the whole batch.
    laid_out = re.findall(r'@LayoutConstraint.*\(tensor<(\d+)x', text)
    assert set(laid_out) == {str(case.rows)}
    assert 'tensor<32x4096x12288xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}, {"fsdp"}' in text
    found = PROVEN[name]
    limit = {'v5p': 95.7, 'v5e': 15.75, 'v6e': 31.2}[case.generation]
    assert 2 < found['gib_per_chip'] < limit
    if found['jax'] == jax.__version__:  # another jax lowers to another text
        assert found['program_sha256'] == plan.program_hash(program)


@pytest.mark.parametrize('name', tpu_attention.CASES)
def test_recorded_attention_kernels_are_those_of_today(name):
    """After a change of them: python -m experiments.proofs.run tpu_attention"""
    generation, context = tpu_attention.CASES[name]
    with jax.default_matmul_precision(None):
        traced = tpu_attention.traced(context, tpu_attention.abstract_mesh(generation))
        digest = tpu_attention.program_hash(traced)
    found = KERNELS[name]
    if found['jax'] == jax.__version__:
        assert found['program_sha256'] == digest


def test_hash_follows_the_program_and_not_its_place():
    def digest(source):
        scope = {'jnp': jnp}
        exec(source, scope)
        return plan.program_hash(jax.jit(scope['f']).lower(jnp.ones(3)))

    here = digest('def f(x):\n    return x + 1')
    assert digest('\n\n\ndef f(x):\n\n    return x + 1') == here
    assert digest('def f(x):\n    return x + 2') != here
    call = r'@tpu_custom_call(%0) {backend_config = "{\22body\22: \22TUzvUg+/=\22, \22n\22: 1}"'
    assert plan.without_kernels(call) == call.replace('TUzvUg+/=', '')


def test_memory_refusals_are_typed():
    said = (
        'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of '
        'memory in memory space hbm. Used 57.50G of 31.25G hbm. Exceeded hbm capacity by 26.25G.'
    )
    error = plan._typed(RuntimeError(said), 'v6e:8x8')
    assert isinstance(error, plan.OutOfMemory)
    assert (error.needed, error.limit) == (57.5 * 2**30, 31.25 * 2**30)
    assert 'v6e:8x8' in str(error) and 'HBM' in str(error)
    other = RuntimeError('INTERNAL: no')
    assert plan._typed(other, 'v6e:8x8') is other


@pytest.mark.tpu_compile
def test_the_compiler_refuses_what_does_not_fit():
    device = plan.devices('v6e:1x1')[0]
    one = jax.sharding.SingleDeviceSharding(device)

    def lowered(n):
        x = jax.ShapeDtypeStruct((n, n), jnp.float32, sharding=one)
        return jax.jit(lambda x: x @ x).lower(x)

    memory, _ = plan.compile_for(lowered(1024), 'v6e:1x1')
    assert memory.arguments == memory.outputs == 4 * 1024**2
    with pytest.raises(plan.OutOfMemory) as caught:
        plan.compile_for(lowered(81920), 'v6e:1x1')
    assert caught.value.needed > caught.value.limit > 30 * 2**30


@pytest.mark.parametrize('case', tpu_decode_step.CASES, ids=lambda case: case.name)
def test_recorded_speaking_step_is_the_one_of_today(case):
    """The engine's program on the 9.1 B model, lowered from shapes alone, as it was compiled.

    It fits its chip, answers faster than a code lasts, and its loop sorts and copies nothing large.
    After a change of it: python -m experiments.proofs.run tpu_decode_step
    """
    with jax.default_matmul_precision(None):
        program = tpu_decode_step.lowered(case)
    text = program.as_text()
    assert ('tensor<32x4096x12288xi8>' in text) == (case.kind == 'int8')
    found = json.loads(pathlib.Path(tpu_decode_step.__file__).with_suffix('.json').read_text())
    found = found['cases'][case.name]
    assert 9 < found['gib'] < {'v5e': 15.75, 'v6e': 31.2}[case.chip]
    if case.chip == 'v5e':
        assert found['gib'] + tpu_decode_step.codec_bytes() / 2**30 < 15.75
    if not case.piece:
        most = (1.3 if case.lanes > 1 else 1.5) * found['roofline_ms']
        if case.chip == 'v5e':
            most = {8192: 16, 1024: 20}[case.rows]
        assert found['step_ms'] <= most and found['faults'] == []
    if found['jax'] == jax.__version__:
        assert found['program_sha256'] == plan.program_hash(program)


@pytest.mark.parametrize('network', flow_stream.NETWORKS)
def test_recorded_streaming_step_of_the_codec_is_the_one_of_today(network):
    """Of the released sizes; all of it on a v5e is faster than the gate asks.

    After a change of it: python -m experiments.proofs.run flow_stream
    """
    found = record.read(pathlib.Path(flow_stream.__file__).with_suffix('.json'))
    assert flow_stream.v5e(found) <= flow_stream.GATE == 0.1
    with jax.default_matmul_precision(None):
        digest = flow_stream.program_hash(network)
    for topology in flow_stream.TOPOLOGIES:
        case = found[f'{network}@{topology}']
        assert case['program_sha256'] == digest or case['jax'] != jax.__version__

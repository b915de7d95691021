"""Reading the compiler's answers, and the proof of the 9.1 B step against the program as it is."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from experiments.proofs import tpu_decode_step, tpu_train_step
from mossjax.plan import compile as plan

RECORD = pathlib.Path(tpu_train_step.__file__).with_suffix('.json')


@pytest.mark.parametrize('stage', tpu_train_step.STAGES)
def test_recorded_proof_is_about_the_program_of_today(stage):
    """Lowers the 9.1 B step for 64 chips from shapes alone; no TPU compiler is needed.

    After a change of the step: python -m experiments.proofs.run tpu_train_step
    """
    with jax.default_matmul_precision(None):  # the tests' own setting is no part of the program
        program = tpu_train_step.lowered(stage, tpu_train_step.abstract_mesh())
    text = program.as_text()
    assert text.count('@tpu_custom_call(') >= 2  # attention forward and backward are kernels
    assert 'tensor<32x4096x12288xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}, {"fsdp"}' in text
    cases = json.loads(RECORD.read_text())['cases']
    for topology in tpu_train_step.TOPOLOGIES:
        case = cases[f'{stage}@{topology}']
        assert 2 < case['gib_per_chip'] < {'v5p': 95.7, 'v6e': 31.2}[topology.split(':')[0]]
        if case['jax'] == jax.__version__:  # another jax lowers to another text
            assert case['program_sha256'] == plan.program_hash(program)


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


@pytest.mark.parametrize('name', tpu_decode_step.CASES)
def test_recorded_speaking_step_is_the_one_of_today(name):
    """The 9.1 B speaking loop, lowered from shapes alone; it fits the chip it was compiled for.

    After a change of it: python -m experiments.proofs.run tpu_decode_step
    """
    kind, topology = tpu_decode_step.CASES[name]
    with jax.default_matmul_precision(None):
        program = tpu_decode_step.lowered(kind)
    text = program.as_text()
    assert ('tensor<32x4096x12288xi8>' in text) == (kind == 'int8')
    case = json.loads(pathlib.Path(tpu_decode_step.__file__).with_suffix('.json').read_text())
    case = case['cases'][name]
    assert 9 < case['gib'] < {'v5e:1x1': 15.75, 'v6e:1x1': 31.2}[topology]
    if case['jax'] == jax.__version__:
        assert case['program_sha256'] == plan.program_hash(program)

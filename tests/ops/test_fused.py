"""What a network's attention runs on: our kernels on a TPU, others elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.nn import flash, shard
from mossjax.ops import fused
from mossjax.ops.attention import Mask, attention
from mossjax.parallel import chips, rules
from mossjax.parallel.mesh import AXES


def operands(dtype=jnp.bfloat16, t=64, h=64):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(k, (2, t, n, h), dtype) for k, n in zip(keys, (4, 2, 2), strict=True)]


class Gpu:
    def __init__(self, capability):
        self.compute_capability = capability


@pytest.mark.parametrize(
    ('capability', 'changes', 'takes'),
    [
        ('9.0', {}, True),
        ('8.0', {}, True),
        ('7.5', {}, False),
        ('gfx942', {}, False),
        ('9.0', {'dtype': jnp.float32}, False),
        ('9.0', {'t': 63}, False),
        ('9.0', {'h': 60}, False),
        ('9.0', {'h': 136}, False),
    ],
)
def test_what_cudnn_takes_is_what_its_documentation_says(capability, changes, takes):
    shapes = jax.eval_shape(lambda: operands(**changes))
    assert fused.takes(*shapes, device=Gpu(capability)) == takes
    assert not fused.takes(*shapes, bias=shapes[0], device=Gpu(capability))


def test_without_a_gpu_the_reference_answers():
    q, k, v = operands()
    segments = jnp.asarray(np.arange(64) // 20)[None].repeat(2, 0)
    mask = Mask(causal=True, q_segments=segments, kv_segments=segments)
    assert np.array_equal(flash.flash(q, k, v, mask), attention(q, k, v, mask))


def test_a_mesh_of_absent_tpus_gets_the_kernels():
    mesh = chips.abstract_mesh('v5e', (1, 2, 1), AXES)

    def run(q, k, v):
        with shard.sharding_scope(mesh, rules.resolver(rules.preset('fsdp'))):
            return flash.flash(q, k, v, Mask(causal=True))

    program = jax.jit(run).trace(*operands()).lower(lowering_platforms=('tpu',))
    assert '@tpu_custom_call(' in program.as_text()

"""Attention on the GPU at hand: milliseconds of our entry beside cuDNN's and XLA's own.

Run by `python -m experiments.benchmarks.attention --gpu --out FILE`. The shapes are those of one
layer of the 9.1 B model, bfloat16: 32 heads of 128 on 8 key-value heads, one row, causal, with and
without the segments of a packed row. 'cudnn' and 'xla' are `jax.nn.dot_product_attention`, told
how; 'ours' is what a network gets on this device (`nn.flash`). Each time is the median of many,
forward alone and with the gradients of q, k and v; each result is compared with float32 by the
reference. TFLOP/s count the lower triangle only, the backward pass as 2.5 times the forward one.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from experiments.benchmarks.passes import median_seconds, passes
from mossjax.nn.flash import flash
from mossjax.ops.attention import Mask, attention

HEADS, KV_HEADS, HEAD = 32, 8, 128
CONTEXTS = (2048, 8192, 14336)
# XLA keeps the scores of all heads in float32, several times over.
LARGEST_OF_XLA = 8192
DOCUMENTS = 6  # of a packed row
ROUNDS, WARM = 21, 3
SMALL = 512  # positions of the comparison with float32


def library(q, k, v, mask: Mask, implementation: str) -> jax.Array:
    """What jax offers, asked for by name."""
    seen = None
    if mask.q_segments is not None:
        seen = (mask.q_segments[:, :, None] == mask.kv_segments[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=seen, is_causal=mask.causal, implementation=implementation
    )


ROADS: dict[str, Callable] = {
    'ours': flash,
    'cudnn': functools.partial(library, implementation='cudnn'),
    'xla': functools.partial(library, implementation='xla'),
}


def inputs(t: int, packed: bool):
    """(q, k, v, weights of the outputs, Mask)."""
    keys = jax.random.split(jax.random.key(t), 4)
    q, k, v, weights = (
        jax.random.normal(key, (1, t, n, HEAD), jnp.bfloat16)
        for key, n in zip(keys, (HEADS, KV_HEADS, KV_HEADS, HEADS), strict=True)
    )
    segments = (jnp.arange(t) * DOCUMENTS // t)[None] if packed else None
    return q, k, v, weights, Mask(causal=True, q_segments=segments, kv_segments=segments)


def off(attend: Callable) -> dict[str, float]:
    """||difference|| / ||float32 reference|| of the output and the gradients of q, k, v."""
    *arrays, mask = inputs(SMALL, packed=True)
    got = passes(attend)['forward_backward'](*arrays, mask)
    with jax.default_matmul_precision('highest'):
        exact = [x.astype(jnp.float32) for x in arrays]
        want = passes(attention)['forward_backward'](*exact, mask)
    norm = jnp.linalg.norm
    return {
        name: float(f'{float(norm((g - w).ravel()) / norm(w.ravel())):.2e}')
        for name, g, w in zip(('out', 'dq', 'dk', 'dv'), got, want, strict=True)
    }


def case(attend: Callable, t: int, packed: bool) -> dict[str, float]:
    """Milliseconds and TFLOP/s of one road at one shape."""
    *arrays, mask = inputs(t, packed)
    forward = 2 * HEADS * HEAD * t**2  # two products, half of the square
    found = {}
    for name, run in passes(attend).items():
        ms = 1e3 * median_seconds(functools.partial(run, *arrays, mask), ROUNDS, WARM)
        work = forward * (1 if name == 'forward' else 3.5)
        found |= {f'{name}_ms': round(ms, 3), f'{name}_tflops': round(work / ms / 1e9, 1)}
    return found


def measure() -> dict:
    """What the record holds of the device at hand."""
    device = jax.devices()[0]
    found = {'device': device.device_kind, 'off': {}, 'cases': {}}
    for road, attend in ROADS.items():
        found['off'][road] = _said(lambda attend=attend: off(attend))
        print(road, found['off'][road], flush=True)
    for t in CONTEXTS:
        for packed in (False, True):
            name = f'{t} {"packed" if packed else "causal"}'
            found['cases'][name] = {}
            for road, attend in ROADS.items():
                if road == 'xla' and t > LARGEST_OF_XLA:
                    continue
                made = _said(lambda attend=attend, t=t, packed=packed: case(attend, t, packed))
                found['cases'][name][road] = made
                print(f'{name:14} {road:6} {made}', flush=True)
    return found


def _said(run: Callable) -> dict:
    """Its result, or what the library said against it."""
    try:
        return run()
    except Exception as error:  # a road that does not exist here is a finding
        return {'refused': f'{type(error).__name__}: {str(error).splitlines()[0][:200]}'}

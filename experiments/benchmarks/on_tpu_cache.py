"""Are the kernels that read the cache right on the TPU at hand? A part of `on_tpu`."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.passes import HEAD, HEADS, KV_HEADS, WITHIN, exact
from mossjax.nn.flash_cache import in_kernel
from mossjax.ops.cached_attention import Recall
from mossjax.ops.quant import Int8, quantise_rows

LAYERS, SLOTS = 2, 2304
LENGTHS = 0, 700, 2048  # of the lanes from the second on
NEW = {'a step': 1, 'a piece of a prompt': 256}


def expected(q, new, cache) -> np.ndarray:
    """Queries (t, n, h) of one lane over its filled slots (k, s, h) and the new ones (t, k, h)."""
    keys, values = (
        np.concatenate([old.swapaxes(0, 1), x])[None] for old, x in zip(cache, new, strict=True)
    )
    seen = np.tri(len(q), keys.shape[1], keys.shape[1] - len(q), dtype=bool)
    return exact(q[None], keys, values, np.zeros_like(q[None]), seen)[0][0]


def off(recall: Recall, positions: int, small: bool, slots: int, lengths) -> float:
    """||difference|| / ||float64|| of bfloat16 queries on a cache in bfloat16 or in int8."""
    rng = np.random.default_rng(positions)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)

    count = len(lengths)
    q = draw(count, positions, HEADS, HEAD)
    new = tuple(draw(count, positions, KV_HEADS, HEAD) for _ in range(2))
    cache = tuple(draw(LAYERS, count + 1, KV_HEADS, slots, HEAD) for _ in range(2))
    if small:
        cache = tuple(Int8(*quantise_rows(x)) for x in cache)

    @jax.jit
    def run(q, new, cache, lengths):
        layers, attend = recall(cache, lengths, 1)
        return attend(q, new, jax.tree.map(lambda x: x[-1], layers))

    found = np.asarray(run(q, new, cache, jnp.asarray(lengths)), np.float64)
    q, *new = (np.asarray(x, np.float64) for x in (q, *new))
    held = [np.asarray(x.astype(jnp.float32), np.float64)[-1, 1:] for x in cache]
    want = np.stack([
        expected(q[i], [x[i] for x in new], [x[i, :, :length] for x in held])
        for i, length in enumerate(lengths)
    ])  # fmt: skip
    return float(np.linalg.norm(found - want) / np.linalg.norm(want))


def check_cache(recall: Recall = in_kernel, slots: int = SLOTS, lengths=LENGTHS, new=None) -> dict:
    """What `off` says of steps and pieces, and whether that is within WITHIN."""
    found = {}
    for name, positions in (new or NEW).items():
        ours = {
            held: off(recall, positions, held == 'int8', slots, lengths)
            for held in ('bfloat16', 'int8')
        }
        found[name] = ours | {'within': max(ours.values()) <= WITHIN['bfloat16']}
    return found

"""Are the kernels that read the cache right on the TPU at hand? A part of `on_tpu`."""

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.nn.flash_cache import in_kernel
from mossjax.ops.cached_attention import Recall
from mossjax.ops.quant import Int8, quantise_rows

LAYERS, SLOTS = 2, 2304
LENGTHS = 0, 700, 2048  # of the lanes from the second on
KV_HEADS, GROUP, HEAD = 8, 4, 128
NEW = {'a step': 1, 'a piece of a prompt': 256}
WITHIN = 5e-3  # of ||difference|| / ||reference||


def exact(q, new, cache) -> np.ndarray:
    """Queries (t, n, h) of one lane over its filled slots (k, s, h) and the new ones (t, k, h)."""
    t, n, h = q.shape
    out = np.zeros(q.shape)
    late = np.triu(np.ones((t, t), bool), 1)
    for head in range(n):
        of = head // (n // cache[0].shape[0])
        keys, values = (
            np.concatenate([old[of], x[:, of]]) for old, x in zip(cache, new, strict=True)
        )
        scores = q[:, head] @ keys.T / h**0.5
        scores[:, len(keys) - t :][late] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = weights @ values / weights.sum(-1, keepdims=True)
    return out


def off(recall: Recall, positions: int, small: bool, slots: int, lengths) -> float:
    """||difference|| / ||float64|| of bfloat16 queries on a cache in bfloat16 or in int8."""
    rng = np.random.default_rng(positions)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)

    count = len(lengths)
    q = draw(count, positions, KV_HEADS * GROUP, HEAD)
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
        exact(q[i], [x[i] for x in new], [x[i, :, :length] for x in held])
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
        found[name] = ours | {'within': max(ours.values()) <= WITHIN}
    return found

"""A piece of a prompt over a cache, by the flash kernel: many queries, a length per lane.

The piece attends twice, to the slots that its lane fills and to itself from its own offset on, and
the two are joined by their log-sum-exp. The scores never exist in HBM, blocks of slots behind a
length are neither fetched nor visited, and the cache is read where it lies, in int8 too: a block is
scaled once it has come.
"""

import dataclasses

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from mossjax.ops import flash_blocks, flash_forward, flash_mask
from mossjax.ops.attention import Mask
from mossjax.ops.flash import lengthen, merge
from mossjax.ops.flash_blocks import LANES, Blocks, Fit
from mossjax.ops.flash_mask import Sight
from mossjax.ops.quant import Int8

RESIDENT = 2048  # slots of a head in VMEM at once: the grain at which empty ones are not fetched
ANY = 1e30  # no key is longer: the kernel finds the maximum


@dataclasses.dataclass(frozen=True)
class Held:
    """Keys and values of one layer and some lanes of a whole cache, see `flash_forward.Merged`.

    Attributes:
      operands: keys and values (l, lanes, k, s, h), and where they are int8 a scale for every
        slot, (l, lanes, k, 1, s) float32.
      scalars: (layer, first lane).
      lanes: how many are read.
    """

    operands: tuple[jax.Array, ...]
    scalars: tuple[jax.Array, ...]
    lanes: int

    @classmethod
    def of(cls, cache, layer: jax.Array, first: jax.Array | int, lanes: int) -> 'Held':
        place = jnp.stack([layer, first]).astype(jnp.int32)
        if isinstance(cache[0], Int8):
            cache = *(x.values for x in cache), *(x.scale.swapaxes(3, 4) for x in cache)
        return cls(tuple(cache), (place,), lanes)

    @property
    def heads(self) -> int:
        return self.operands[0].shape[2]

    @property
    def slots(self) -> int:
        return self.operands[0].shape[3]

    @property
    def size(self) -> int:
        return self.operands[0].shape[4]

    def longest(self) -> jax.Array:
        return jnp.full((self.lanes, self.heads), ANY)

    def specs(self, fit: Fit, load) -> list[pl.BlockSpec]:
        def at(x, rest):
            place = rest[-1]
            lane = place[1] + lax.div(x, self.heads)
            return place[0], lane, lax.rem(x, self.heads), load(x, *rest)

        def rows(x, *rest):
            return *at(x, rest), 0

        def scales(x, *rest):
            *head, number = at(x, rest)
            return *head, 0, number

        block = pl.BlockSpec((None, None, None, fit.resident, self.size), rows)
        scale = pl.BlockSpec((None, None, None, 1, fit.resident), scales)
        return [block, block, scale, scale][: len(self.operands)]

    def scratch(self, fit: Fit, dtype) -> list:
        return [pltpu.VMEM((fit.resident, self.size), dtype)] * (len(self.operands) == 4)

    def bring(self, fit: Fit, operands, scratch, values_t, part) -> None:
        keys, values, *scales = operands

        def block(number, _):
            at = pl.ds(pl.multiple_of(number * fit.keys, fit.keys), fit.keys)
            turned = values[at].astype(jnp.float32).T if scales else values[at].T
            if scales:
                by_row, across = (x[:, at] for x in scales)
                turned = turned * across
                wide = jnp.broadcast_to(by_row, (self.size, fit.keys)).T
                scratch[0][at] = (keys[at].astype(jnp.float32) * wide).astype(scratch[0].dtype)
            if fit.s > self.slots:  # behind the last slot lies what nobody has written
                slot = lax.broadcasted_iota(jnp.int32, turned.shape, 1) + number * fit.keys
                turned = jnp.where(slot + part * fit.resident < self.slots, turned, 0)
            values_t[: self.size, at] = turned.astype(values_t.dtype)

        lax.fori_loop(0, fit.visits, block, None)

    def keys(self, operands, scratch):
        return scratch[0] if scratch else operands[0]


def blocks_of(generation: str) -> Blocks:
    """Sizes of the kernel."""
    return dataclasses.replace(flash_blocks.FORWARD[generation], resident=RESIDENT)


def takes(q: jax.Array, cache: jax.Array | Int8) -> bool:
    """Whether the kernel can read this cache (l, lanes, k, s, h) for queries (b, t, n, h)."""
    held = q.dtype if isinstance(cache, Int8) else cache.dtype
    return cache.shape[4] == LANES and q.dtype == held and held in (jnp.float32, jnp.bfloat16)


def attend(
    q: jax.Array, new: tuple[jax.Array, jax.Array],
    cache: tuple[jax.Array | Int8, jax.Array | Int8], lengths: jax.Array, layer: jax.Array,
    first: jax.Array | int = 0, *, blocks: Blocks | None = None, interpret=False,
) -> jax.Array:  # fmt: skip
    """As `ops.cached_attention.cached_attention`, of one layer and some lanes of a whole cache.

    Args:
      q: (b, t, n, h), h = 128. new: keys and values (b, t, k, h).
      cache: keys and values (l, lanes, k, s, h), as q or in int8.
      lengths: (b,) int32, slots that are real of lanes first to first + b - 1.
      layer, first: int32.
      blocks: sizes of the kernel; those of the TPU at hand by default.

    Returns:
      (b, t, n, h) in q.dtype.
    """
    b, t, n, h = q.shape
    blocks = blocks or blocks_of(flash_blocks.generation())
    held = Held.of(cache, layer, first, b)

    def attended(seen: Sight, source_for, name: str):
        fit = blocks.fit(n // held.heads, t, seen.kv_segments.shape[1])
        out, logs, _ = flash_forward.forward(
            lengthen(merge(q), fit.t), source_for(fit), flash_mask.schedule(seen, fit), fit,
            scale=h**-0.5, vmem=blocks.vmem, name=name, interpret=interpret,
        )  # fmt: skip
        logs = logs[..., :t].reshape(b, n, t, 1).swapaxes(1, 2)
        return out[:, :t].reshape(q.shape).astype(jnp.float32), logs

    def fresh(fit: Fit):
        return flash_forward.Merged(tuple(lengthen(merge(x), fit.s) for x in new), h)

    own, own_log = attended(flash_mask.sight(Mask(causal=True), t, t), fresh, 'flash_prefill_own')
    past, log = attended(_filled(lengths, t, held.slots), lambda fit: held, 'flash_prefill_past')
    log = jnp.where(log == flash_forward.NOTHING, -flash_forward.NOTHING, log)
    top = jnp.maximum(own_log, log)
    own_share, share = jnp.exp2(own_log - top), jnp.exp2(log - top)
    return ((own * own_share + past * share) / (own_share + share)).astype(q.dtype)


def _filled(lengths: jax.Array, t: int, slots: int) -> Sight:
    """t queries of each lane see the slots that it fills."""
    limit = jnp.broadcast_to(lengths.astype(jnp.int32)[:, None], (len(lengths), t))
    return Sight(jnp.zeros_like(limit), jnp.zeros((len(lengths), slots), jnp.int32), limit)

"""What the kernels that read the cache cost: VLIW bundles of a block of slots.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.decode \
        --out experiments/benchmarks/decode.json

The 9.1 B model's 32 query heads on 8 of 128, compiled by the TPU compiler for chips that are not
there, a cache in bfloat16 and one in int8. Of the decoding kernel, for one position: a block of all
heads of a lane, whole or cut by its length, and what a lane costs besides. Its keys and values take
`memory` cycles to come: a step is as fast as the memory while a block costs less. Of the kernel for
pieces of a prompt: `bring`, what it does to a block of one head when it comes; the rest of it is
the flash kernel's, in `attention.json`. `mossjax.plan.kernels` charges these figures. Not measured:
any time on a TPU.
"""

import json
import os
import subprocess
import sys
import tempfile

from absl import app, flags
import jax
import jax.numpy as jnp

from experiments.benchmarks import bundles
from experiments.proofs import record
from experiments.proofs.tpu_attention import TOPOLOGIES
from mossjax.ops import flash_decode, flash_prefill
from mossjax.ops.quant import Int8
from mossjax.parallel.chips import CHIPS
from mossjax.plan import compile as plan

LANES, KV_HEADS, GROUP, HEAD, SLOTS, PIECE = 8, 8, 4, 128, 4352, 256
HELD = 'bfloat16', 'int8'  # the cache


def compile_kernel(kernel, positions: int, held: str, device) -> None:
    """A kernel alone; the dump is what is wanted."""
    place = jax.sharding.SingleDeviceSharding(device)

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    def ints(*sizes):
        return shape(*sizes, dtype=jnp.int32)

    new = shape(LANES, positions, KV_HEADS, HEAD)
    queries = shape(LANES, positions, KV_HEADS * GROUP, HEAD)
    rows = 2, LANES, KV_HEADS, SLOTS
    cache = shape(*rows, HEAD)
    if held == 'int8':
        cache = Int8(shape(*rows, HEAD, dtype=jnp.int8), shape(*rows, 1, dtype=jnp.float32))
    jax.jit(kernel.attend).trace(
        queries, (new, new), (cache, cache), ints(LANES), ints(), ints()
    ).lower(lowering_platforms=('tpu',)).compile()


def measure(generation: str, kernel: str, held: str, dump: str) -> dict:
    """What the record holds of one kernel and cache on one generation."""
    device = plan.devices(TOPOLOGIES[generation])[0]
    if kernel == 'prefill':
        compile_kernel(flash_prefill, PIECE, held, device)
        loops = bundles.read(dump, 'flash_prefill_past').stretches
        plain = (x.bundles for x in loops if x.kind == 'loop' and not x.matrix)
        return {'bring': next(plain, None)}
    compile_kernel(flash_decode, 1, held, device)
    program = bundles.read(dump, 'flash_decode')
    inner = [
        x.bundles for x in program.stretches
        if not any(x.start < y.start < x.start + x.bundles for y in program.stretches)
    ]  # fmt: skip
    _, whole, cut, *_ = inner  # a lane begins, blocks, a lane ends
    return {
        'whole': whole, 'cut': cut, 'rest': program.bundles - whole - cut,
        'memory': _memory(generation, held),
    }  # fmt: skip


def _memory(generation: str, held: str) -> int | None:
    """Cycles that a block's bytes take to come."""
    chip = CHIPS.get(generation)
    row = {'bfloat16': 2 * HEAD, 'int8': HEAD + 4}[held]
    size = 2 * flash_decode.SLOTS * KV_HEADS * row
    return chip and round(size / (chip.bandwidth / chip.cores) * chip.clock)


def in_process_of_its_own(generation: str, kernel: str, held: str) -> dict:
    """libtpu reads where to dump only once."""
    with tempfile.TemporaryDirectory() as dump:
        said = subprocess.run(
            [sys.executable, '-m', 'experiments.benchmarks.decode',
             f'--measure={generation},{kernel},{held}', f'--dump={dump}'],
            env={**os.environ, **bundles.ENVIRONMENT,
                 'LIBTPU_INIT_ARGS': bundles.DUMP.format(dump)},
            check=True, text=True, stdout=subprocess.PIPE,
        ).stdout  # fmt: skip
    return json.loads(said.splitlines()[-1])


def main(argv: list[str]) -> None:
    del argv
    args = flags.FLAGS
    if args.measure:
        print(json.dumps(measure(*args.measure.split(','), args.dump)))
        return
    if not args.out:
        sys.exit('--out FILE.json is missing')
    found = {
        generation: {
            held: {
                name: cost for kernel in ('decode', 'prefill')
                for name, cost in in_process_of_its_own(generation, kernel, held).items()
            }
            for held in HELD
        }
        for generation in TOPOLOGIES
    }  # fmt: skip
    command = 'JAX_PLATFORMS=cpu python -m experiments.benchmarks.decode'
    sizes = {'slots': flash_decode.SLOTS, 'kv_heads': KV_HEADS, 'group': GROUP, 'head': HEAD}
    record.write(args.out, command, {'block': sizes, 'bundles': found})


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    flags.DEFINE_string('measure', '', 'Internal: generation, kernel and cache of this process.')
    flags.DEFINE_string('dump', '', 'Internal: where libtpu dumps.')
    app.run(main)

"""What the decoding kernel costs: VLIW bundles of a block of slots of all heads of a lane.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.decode \
        --out experiments/benchmarks/decode.json

One position of 32 query heads on 8 of 128 (the 9.1 B model), bfloat16, compiled by the TPU
compiler for chips that are not there. A block's keys and values are 2 MiB, which take `memory`
cycles to come: a step is as fast as the memory while a block costs less. `mossjax.plan.kernels`
charges these figures. Not measured: any time on a TPU.
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
from mossjax.ops import flash_decode
from mossjax.parallel.chips import CHIPS
from mossjax.plan import compile as plan

TOPOLOGIES = {
    'v4': 'v4:2x2x1', 'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2',
    'tpu7x': 'tpu7x:2x2x1',
}  # fmt: skip
LANES, KV_HEADS, GROUP, HEAD, SLOTS = 8, 8, 4, 128, 4352


def compile_kernel(device) -> None:
    """The kernel alone; the dump is what is wanted."""
    place = jax.sharding.SingleDeviceSharding(device)

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    def ints(*sizes):
        return shape(*sizes, dtype=jnp.int32)

    new, cache = shape(LANES, 1, KV_HEADS, HEAD), shape(2, LANES, KV_HEADS, SLOTS, HEAD)
    queries = shape(LANES, 1, KV_HEADS * GROUP, HEAD)
    jax.jit(flash_decode.attend).trace(
        queries, (new, new), (cache, cache), ints(LANES), ints(), ints()
    ).lower(lowering_platforms=('tpu',)).compile()


def measure(generation: str, dump: str) -> dict:
    """What the record holds of one generation."""
    compile_kernel(plan.devices(TOPOLOGIES[generation])[0])
    kernel = bundles.read(dump, 'flash_decode')
    inner = [
        x.bundles for x in kernel.stretches
        if not any(x.start < y.start < x.start + x.bundles for y in kernel.stretches)
    ]  # fmt: skip
    _, whole, cut, *_ = inner  # a lane begins, blocks, a lane ends
    return {
        'whole': whole, 'cut': cut, 'rest': kernel.bundles - whole - cut,
        'memory': _memory(generation),
    }  # fmt: skip


def _memory(generation: str) -> int | None:
    """Cycles that a block's bytes take to come."""
    chip = CHIPS.get(generation)
    size = 2 * flash_decode.SLOTS * KV_HEADS * HEAD * 2
    return chip and round(size / (chip.bandwidth / chip.cores) * chip.clock)


def in_process_of_its_own(generation: str) -> dict:
    """libtpu reads where to dump only once."""
    with tempfile.TemporaryDirectory() as dump:
        said = subprocess.run(
            [sys.executable, '-m', 'experiments.benchmarks.decode', f'--measure={generation}',
             f'--dump={dump}'],
            env={**os.environ, **bundles.ENVIRONMENT,
                 'LIBTPU_INIT_ARGS': bundles.DUMP.format(dump)},
            check=True, text=True, stdout=subprocess.PIPE,
        ).stdout  # fmt: skip
    return json.loads(said.splitlines()[-1])


def main(argv: list[str]) -> None:
    del argv
    args = flags.FLAGS
    if args.measure:
        print(json.dumps(measure(args.measure, args.dump)))
        return
    if not args.out:
        sys.exit('--out FILE.json is missing')
    found = {generation: in_process_of_its_own(generation) for generation in TOPOLOGIES}
    command = 'JAX_PLATFORMS=cpu python -m experiments.benchmarks.decode'
    sizes = {'slots': flash_decode.SLOTS, 'kv_heads': KV_HEADS, 'group': GROUP, 'head': HEAD}
    record.write(args.out, command, {'block': sizes, 'bundles': found})


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    flags.DEFINE_string('measure', '', 'Internal: the generation this process measures.')
    flags.DEFINE_string('dump', '', 'Internal: where libtpu dumps.')
    app.run(main)

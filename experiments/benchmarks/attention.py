"""Our attention kernels beside JAX's splash: VLIW bundles of a block of 1024 x 1024 scores.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.attention \
        --out experiments/benchmarks/attention.json [--only v6e,v5p]
    ... --choose v6e    (tries other block sizes for it and prints the best, changes nothing)
    ... --gpu           (on a machine with a GPU: times, see `attention_gpu`)

Both are compiled in one process by the TPU compiler for a chip that is not there: heads of 128,
groups of four, rows of 8,192 positions, causal with segments, splash in blocks of 1024. A block
that the mask cuts and one that it leaves whole are apart, and so are the two roads of the forward
kernel (`mossjax.ops.flash_forward`); 'tile' is what a tile of queries costs besides its blocks.
Bundles times blocks visited (`flash_mask.visited`) are a kernel's time without stalls. Beside them
what makes queries and keys ready (`mossjax.ops.norm_rope`): bundles of 1024 positions of a head.
Not measured: any time on a TPU. Exit code 1 if a ratio is above its gate.
"""

import dataclasses
import itertools
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile

from absl import app, flags
import jax
import jax.numpy as jnp

from experiments.benchmarks import attention_gpu, bundles
from experiments.proofs import record
from mossjax.ops import flash, flash_mask, norm_rope, splash
from mossjax.ops.attention import Mask
from mossjax.ops.flash_blocks import BACKWARD, FORWARD, Blocks

TOPOLOGIES = {
    'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2', 'tpu7x': 'tpu7x:2x2x1',
}  # fmt: skip
CONTEXT, GROUP, HEAD, SPLASH_BLOCK = 8192, 4, 128, 1024
# Largest allowed bundles beside splash's compute region.
GATES = {
    'v5e': {'bound': 0.9, 'bound_whole': 0.9, 'online': 0.9, 'backward': 1.0},
    'v5p': {'bound': 0.9, 'bound_whole': 0.9, 'online': 0.9, 'backward': 1.0},
    'v6e': {'bound': 0.62, 'bound_whole': 0.53, 'online': 0.80, 'backward': 0.85},
    'tpu7x': {'bound': 0.62, 'bound_whole': 0.62},
}
# Tried by --choose, on top of the sizes in the table.
FORWARD_CHOICES = {'strip': (256, 512, 1024), 'rows': (256, 512)}
BACKWARD_CHOICES = {
    'strip': (512, 1024),
    'order': tuple(
        (*first, 'd_scores', *rest)
        for first in (('scores', 'd_weights'), ('d_weights', 'scores'))
        for rest in itertools.permutations(('dv', 'dk', 'dq'))
    ),
}


def compile_gradient(attend, device) -> None:
    """Forward and backward of one key-value head's group; the dump is what is wanted."""
    place = jax.sharding.SingleDeviceSharding(device)

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    def loss(q, k, v, segments):
        mask = Mask(causal=True, q_segments=segments, kv_segments=segments)
        return attend(q, k, v, mask).astype(jnp.float32).sum()

    keys = shape(1, CONTEXT, 1, HEAD)
    jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(
        shape(1, CONTEXT, GROUP, HEAD), keys, keys, shape(1, CONTEXT, dtype=jnp.int32)
    ).compile()


def per_block(count: int, fit) -> int:
    """Bundles of a visit (fit.keys x fit.columns scores) as those of 1024 x 1024."""
    return round(count * 2**20 / (fit.keys * fit.columns))


def ours(device, dump: str, forward: Blocks, backward: Blocks) -> dict:
    """Bundles of our kernels, see the module's docstring."""

    def attend(q, k, v, mask):
        return flash.flash(q, k, v, mask, blocks=(forward, backward))

    compile_gradient(attend, device)
    found = {}
    roads = {'flash_forward': ('bound', 'bound_whole', 'online', 'online_whole'),
             'flash_backward': ('backward', 'backward_whole')}  # fmt: skip
    for (kernel, names), blocks in zip(roads.items(), (forward, backward), strict=True):
        fit = blocks.fit(GROUP, CONTEXT, CONTEXT)
        program = bundles.read(dump, kernel)
        loops = [loop for loop in program.loops() if loop.bundles > 300]
        if len(loops) != len(names):
            raise RuntimeError(f'{kernel}: {len(loops)} loops, {len(names)} were expected')
        found |= {n: per_block(x.bundles, fit) for n, x in zip(names, loops, strict=True)}
        # Of a tile of 1024 columns; of the forward kernel both roads' together, so an upper bound.
        rest = program.bundles - sum(x.bundles for x in loops)
        found[f'{kernel}_tile'] = round(rest * 1024 / fit.columns)
        full, cut = flash_mask.visited(Mask(causal=True), fit, CONTEXT, CONTEXT)
        found[f'{kernel}_visits'] = {
            'keys': fit.keys, 'columns': fit.columns, 'cut': int(cut[0]), 'whole': int(full[0])
        }
    return found


def made_ready(device, dump: str) -> dict:
    """Bundles of norm and rotation, see the module's docstring."""
    place = jax.sharding.SingleDeviceSharding(device)

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    def run(x, scale, cos, sin, weights):
        def ready(x, scale):
            return norm_rope.norm_rope(x, scale, cos, sin, eps=1e-6)

        out, back = jax.vjp(ready, x, scale)
        return out, back(weights)

    x, angles = shape(1, CONTEXT, 2 * GROUP, HEAD), shape(1, CONTEXT, 1, HEAD // 2)
    jax.jit(run).lower(x, shape(HEAD), angles, angles, x).compile()
    positions, heads = norm_rope.block(x)
    return {
        name: round(bundles.read(dump, name).step() * 1024 / positions / heads)
        for name in ('norm_rope_forward', 'norm_rope_backward')
    }


def beside(device, dump: str) -> dict:
    """Bundles of splash: its compute region, and a whole step of its grid."""
    compile_gradient(splash.splash, device)
    found = {}
    for name, kernel in (('forward', 'splash_mha_fwd'), ('backward', 'splash_mha_dkv')):
        program = bundles.read(dump, kernel)
        found[name] = program.innermost().bundles
        found[f'{name}_step'] = program.step()
    return found


def measure(generation: str, dump: str) -> dict:
    """What the record holds of one generation."""
    device = _device(generation)
    forward, backward = FORWARD[generation], BACKWARD[generation]
    own, reference = ours(device, dump, forward, backward), beside(device, dump)
    own |= made_ready(device, dump)
    ratios = {
        name: round(own[name] / reference['backward' if 'backward' in name else 'forward'], 3)
        for name in ('bound', 'bound_whole', 'online', 'online_whole', 'backward', 'backward_whole')
    }
    gates = GATES[generation]
    return {
        'ours': own,
        'splash': reference,
        'ratios': ratios,
        'gates': gates,
        'within': all(ratios[name] <= gate for name, gate in gates.items()),
        'forward_blocks': dataclasses.asdict(forward),
        'backward_blocks': dataclasses.asdict(backward),
    }


def choose(generation: str, dump: str) -> dict:
    """The sizes with the fewest bundles for a causal row, of each kernel, and all that were
    tried (bundles by sizes)."""
    device = _device(generation)
    table = {'forward': FORWARD[generation], 'backward': BACKWARD[generation]}
    tried = {'forward': {}, 'backward': {}}
    for kernel, choices in (('forward', FORWARD_CHOICES), ('backward', BACKWARD_CHOICES)):
        for values in itertools.product(*choices.values()):
            sizes = dict(zip(choices, values, strict=True))
            _clear(dump)
            blocks = {**table, kernel: dataclasses.replace(table[kernel], **sizes)}
            try:
                own = ours(device, dump, **blocks)
            except (jax.errors.JaxRuntimeError, RuntimeError) as error:
                print(f'{kernel} {sizes}: {str(error).splitlines()[0][:100]}', flush=True)
                continue
            cost = row_cost(own, kernel)
            tried[kernel][json.dumps(sizes)] = cost
            print(f'{kernel} {sizes}: {cost}', flush=True)
    best = {kernel: min(costs, key=costs.get) for kernel, costs in tried.items()}
    return {'best': best, 'tried': tried}


def row_cost(own: dict, kernel: str) -> int:
    """Bundles of a causal row of one group; the online road, which is never refused."""
    road = 'online' if kernel == 'forward' else 'backward'
    visits = own[f'flash_{kernel}_visits']
    scale = visits['keys'] * visits['columns'] / 2**20
    blocks = visits['cut'] * own[road] + visits['whole'] * own[f'{road}_whole']
    return round(blocks * scale + own[f'flash_{kernel}_tile'] * GROUP * CONTEXT / 1024)


def _device(generation: str):
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        platform='tpu', topology_name=TOPOLOGIES[generation]
    ).devices[0]


def _clear(dump: str) -> None:
    for file in Path(dump).iterdir():
        file.unlink()


def in_process_of_its_own(mode: str, generation: str) -> dict:
    """libtpu reads where to dump only once."""
    with tempfile.TemporaryDirectory() as folder:
        answer, dump = Path(folder) / 'answer.json', Path(folder) / 'dump'
        dump.mkdir()
        subprocess.run(
            [sys.executable, '-m', 'experiments.benchmarks.attention', f'--{mode}={generation}',
             f'--answer={answer}', f'--dump={dump}'],
            env={**os.environ, **bundles.ENVIRONMENT,
                 'LIBTPU_INIT_ARGS': bundles.DUMP.format(dump)},
            check=True,
        )  # fmt: skip
        return json.loads(answer.read_text())


def main(argv: list[str]) -> None:
    del argv
    args = flags.FLAGS
    if args.answer:
        run, generation = (choose, args.choose) if args.choose else (measure, args.measure)
        Path(args.answer).write_text(json.dumps(run(generation, args.dump)))
        return
    cases = record.read(args.out).get('generations', {}) if args.out else {}
    command = 'JAX_PLATFORMS=cpu python -m experiments.benchmarks.attention'
    if args.gpu:
        found = attention_gpu.measure()
        if args.out:
            command = 'python -m experiments.benchmarks.attention --gpu'
            record.write(args.out, command, found)
        return
    if args.choose:
        found = in_process_of_its_own('choose', args.choose)
        print(json.dumps(found['best'], indent=1))
        if args.out:
            cases[args.choose] = cases.get(args.choose, {}) | {'choice': found}
            record.write(args.out, command, {'generations': cases})
        return
    wanted = args.only or list(TOPOLOGIES)
    if unknown := sorted(set(wanted) - set(TOPOLOGIES)):
        sys.exit(f'no generation {unknown[0]!r}; there are {", ".join(TOPOLOGIES)}')
    for generation in wanted:
        case = in_process_of_its_own('measure', generation)
        cases[generation] = {**case, 'choice': cases.get(generation, {}).get('choice')}
        print(f'{generation}: {case["ratios"]} within the gates: {case["within"]}', flush=True)
        if args.out:
            record.write(args.out, command, {'generations': cases})
    sys.exit(0 if all(cases[name]['within'] for name in wanted) else 1)


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    flags.DEFINE_list('only', [], 'Generations to measure, all by default.')
    flags.DEFINE_bool('gpu', False, 'Time attention on the GPU at hand instead.')
    flags.DEFINE_string('choose', '', 'A generation whose block sizes are to be searched.')
    flags.DEFINE_string('measure', '', 'Internal: the generation this process measures.')
    flags.DEFINE_string('answer', '', 'Internal: where this process leaves its answer.')
    flags.DEFINE_string('dump', '', 'Internal: where libtpu dumps.')
    app.run(main)

"""Where the time of the 9.1 B training step goes, estimated for a pod that is not there.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.step --case 'stage2@v5p:4x4x4' \
        --dump DIR --out experiments/benchmarks/step.json [--read]

Compiles a case of `experiments.proofs.tpu_train_step` (with --read what DIR already holds of it is
taken), and adds up the compiler's own estimates (`mossjax.plan.estimate`). The attention kernels
are charged the bundles of `experiments/benchmarks/attention.json` times the blocks they visit, on
the online road; what the bound for a maximum would save stands beside it. Share of peak: 58.49
GFLOP a token at 8,192 positions, as `mossjax.models.lm.flops` counts them. Nothing here was
measured on a TPU.
"""

from collections import defaultdict
from pathlib import Path
import sys

from absl import app, flags

from experiments.benchmarks import attention
from experiments.proofs import record
from experiments.proofs import tpu_train_step as proof
from mossjax.models.lm import flops
from mossjax.models.lm.config import LMConfig
from mossjax.ops import flash_mask
from mossjax.ops.attention import Mask
from mossjax.ops.flash_blocks import BACKWARD, FORWARD
from mossjax.parallel import chips
from mossjax.plan import estimate as estimates
from mossjax.plan import hlo

CORES = {'v5p': 2}  # that share a device's kernels, 1 of the others
ATTENTION = Path(attention.__file__).with_suffix('.json')


def kernel_cycles(case: proof.Case, config: LMConfig, road: str) -> dict[str, float]:
    """Cycles of one call of each attention kernel, on the road 'online' or 'bound'."""
    measured = record.read(ATTENTION)['generations'][case.generation]['ours']
    group = config.num_attention_heads // config.num_key_value_heads
    calls = config.num_key_value_heads * case.rows / CORES.get(case.generation, 1)
    found = {}
    for kernel, blocks, name in (
        ('flash_forward', FORWARD, road), ('flash_backward', BACKWARD, 'backward'),
    ):  # fmt: skip
        fit = blocks[case.generation].fit(group, case.context, case.context)
        full, cut = flash_mask.visited(Mask(causal=True), fit, case.context, case.context)
        size = fit.keys * fit.columns / 2**20
        blocks_cycles = int(cut[0]) * measured[name] + int(full[0]) * measured[f'{name}_whole']
        tiles = measured[f'{kernel}_tile'] * group * case.context / 1024
        found[kernel] = calls * (blocks_cycles * size + tiles)
    return found


def group_of(part: estimates.Part) -> str:
    """The row of the table that an instruction belongs to."""
    again = 'rematted' in part.origin
    if part.kind == 'kernel':
        return 'attention kernels'
    if part.kind == 'collective':
        return 'collectives of the layers' if part.runs > 1 else 'other collectives'
    if 'losses.py' in part.where:
        return 'loss: matmuls' if part.kind == 'matmul' else 'loss: the rest'
    if part.kind == 'matmul':
        return 'layers: matmuls again' if again else 'layers: matmuls'
    if 'lookup.py' in part.where or 'quant.py' in part.where:
        return 'embedding'
    if part.runs == 1:
        return 'optimiser, casts'
    for name in ('norms', 'rope', 'flash', 'param'):
        if f'/{name}' in part.where.partition(' < ')[0]:
            names = {'flash': 'around the kernels', 'param': 'slices of the scan'}
            return f'layers: {names.get(name, name)}'
    return 'layers: the rest'


def account(case: proof.Case, dump: str) -> dict:
    """What the record holds of one case."""
    config, module = LMConfig.released(), hlo.read(dump)
    chip = chips.CHIPS[case.generation]
    made = {
        road: estimates.estimate(module, chip, kernel_cycles(case, config, road))
        for road in ('online', 'bound')
    }
    tokens = case.rows * case.context
    work = flops.convention(config, case.context) * tokens
    by_group: dict[str, float] = defaultdict(float)
    for part in made['online'].parts:
        by_group[group_of(part)] += part.seconds * 1e3
    wires: dict[str, list] = defaultdict(lambda: [0, 0.0])
    for x in made['online'].collectives:
        name = f'{x.kind} of {x.bytes / 2**20:.1f} MiB' + (' beside others' if x.beside else '')
        wires[name] = [wires[name][0] + x.runs, wires[name][1] + x.seconds * 1e3]
    dearest = sorted(wires.items(), key=lambda x: -x[1][1])[:12]
    return {
        **case._asdict(),
        'seconds': {road: round(x.seconds, 4) for road, x in made.items()},
        'share_of_peak': {
            road: round(work / x.seconds / chip.flops, 4) for road, x in made.items()
        },
        'tokens_per_second_and_chip': round(tokens / made['online'].seconds),
        'exposed_collectives_ms': round(made['online'].exposed * 1e3, 1),
        'ms': {k: round(v, 1) for k, v in sorted(by_group.items(), key=lambda x: -x[1])},
        'collectives_runs_and_wire_ms': {k: [n, round(ms, 1)] for k, (n, ms) in dearest},
        'no_estimate': dict(made['online'].unknown),
    }


def main(argv: list[str]) -> None:
    del argv
    args = flags.FLAGS
    if args.case not in proof.CASES:
        sys.exit(f'no case {args.case!r}; there are {", ".join(proof.CASES)}')
    if not args.dump:
        sys.exit('--dump DIR is missing')
    case = proof.CASES[args.case]
    if not args.read:
        proof.prove(case, args.dump)
    found = account(case, args.dump)
    for name, ms in found['ms'].items():
        print(f'{ms:9.1f} ms  {name}')
    share = found['share_of_peak']
    print(f'{args.case}: {found["seconds"]["online"]:.3f} s, {share["online"]:.1%} of peak; with '
          f'the bound for a maximum {share["bound"]:.1%}')  # fmt: skip
    if args.out:
        cases = record.read(args.out).get('cases', {}) | {args.case: found}
        command = 'JAX_PLATFORMS=cpu python -m experiments.benchmarks.step --case CASE --dump DIR'
        record.write(args.out, command, {'cases': cases})


if __name__ == '__main__':
    flags.DEFINE_string('case', '', 'One of experiments.proofs.tpu_train_step.CASES.')
    flags.DEFINE_string('dump', None, "Directory for the compiler's files.")
    flags.DEFINE_bool('read', False, 'Take the files that are there.')
    flags.DEFINE_string('out', None, 'JSON file to write.')
    app.run(main)

"""Where the time of the 9.1 B training step goes, estimated for a pod that is not there.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.step --case 'stage2@v5p:4x4x4' \
        --dump DIR --out experiments/benchmarks/step.json [--read] [--reference SECONDS] \
        [--attempt WHAT]

Compiles a case of `experiments.proofs.tpu_train_step` (with --read what DIR already holds of it is
taken), and adds up the compiler's own estimates (`mossjax.plan.estimate`). The attention kernels
are charged their bundles times the blocks they visit (`mossjax.plan.kernels`), on the online road;
what the bound for a maximum would save stands beside it. Share of peak: 58.49 GFLOP a token at
8,192 positions, as `mossjax.models.lm.flops` counts them. Nothing here was measured on a TPU.
With --reference the seconds of an independent estimator on the same dump and with the same charge
of the kernels stand beside ours (`reference_seconds`, online road); a test holds the two together.
With --attempt the step and its exposed collectives are noted among the attempts, with these words,
and the case stays as it is; a case that is measured anew leaves its former figures there, with the
ms that each of its parts has gained since. Attempts with compiler options that were not compiled to
the end stand there too, with the ms of collectives that remain synchronous, which are exposed.
"""

import sys

from absl import app, flags

from experiments.proofs import record
from experiments.proofs import tpu_train_step as proof
from mossjax.models.lm import flops
from mossjax.models.lm.config import LMConfig
from mossjax.parallel import chips
from mossjax.plan import account, hlo


def table(case: proof.Case, dump: str) -> dict:
    """What the record holds of one case."""
    config = LMConfig.released()
    peak = chips.CHIPS[case.generation].flops
    made = account.by_road(
        hlo.read(dump), case.generation, config, case.rows, case.context, case.tensor
    )
    tokens = case.rows * case.parts * case.context / case.tensor  # of a step, on each chip
    work = flops.convention(config, case.context) * tokens
    online = made['online']
    return {
        **case._asdict(),
        'seconds': {road: round(x.seconds, 4) for road, x in made.items()},
        'share_of_peak': {
            road: round(work / x.seconds / peak, 4) for road, x in made.items()
        },
        'tokens_per_second_and_chip': round(tokens / online.seconds),
        'exposed_collectives_ms': round(online.exposed * 1e3, 1),
        'ms': account.milliseconds(online.parts),
        'collectives': account.collectives(online.collectives)[:12],
        'dearest': account.dearest(online.parts),
        'no_estimate': dict(online.unknown),
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
    found = table(case, args.dump)
    if args.reference:
        found['reference_seconds'] = args.reference
    for name, ms in found['ms'].items():
        print(f'{ms:9.1f} ms  {name}')
    share = found['share_of_peak']
    print(f'{args.case}: {found["seconds"]["online"]:.3f} s, {share["online"]:.1%} of peak; with '
          f'the bound for a maximum {share["bound"]:.1%}')  # fmt: skip
    if args.out:
        write(args.out, args.case, found, args.attempt)


def write(path: str, name: str, found: dict, attempt: str) -> None:
    """Puts the figures of a case into the record, or among its attempts if one is described."""
    old = record.read(path)
    cases, attempts = old.get('cases', {}), old.get('attempts', [])
    if attempt:
        attempts = [*attempts, brief(name, attempt, found, record.commit())]
    else:
        former = cases.get(name)
        if former and former['seconds'] != found['seconds']:
            before = brief(name, 'as it was before', former, old['commit'])
            attempts = [*attempts, before | {'gained_ms': gained(former['ms'], found['ms'])}]
        cases = cases | {name: found}
    command = 'JAX_PLATFORMS=cpu python -m experiments.benchmarks.step --case CASE --dump DIR'
    record.write(path, command, {'cases': cases, 'attempts': attempts})


def gained(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """ms that each part of a step takes less than before, the largest change first."""
    less = {part: round(before.get(part, 0) - now.get(part, 0), 1) for part in before | now}
    changed = {part: ms for part, ms in less.items() if abs(ms) >= 0.5}
    return dict(sorted(changed.items(), key=lambda x: -abs(x[1])))


def brief(name: str, what: str, found: dict, commit: str) -> dict:
    """What the table of attempts holds of one."""
    return {
        'case': name, 'what': what, 'commit': commit, 'seconds': found['seconds'],
        'share_of_peak': found['share_of_peak'],
        'exposed_collectives_ms': found['exposed_collectives_ms'],
    }  # fmt: skip


if __name__ == '__main__':
    flags.DEFINE_string('case', '', 'One of experiments.proofs.tpu_train_step.CASES.')
    flags.DEFINE_string('dump', None, "Directory for the compiler's files.")
    flags.DEFINE_bool('read', False, 'Take the files that are there.')
    flags.DEFINE_string('out', None, 'JSON file to write.')
    flags.DEFINE_float('reference', None, "An independent estimator's seconds of the same dump.")
    flags.DEFINE_string('attempt', '', 'What was tried, if it is not how the step is.')
    app.run(main)

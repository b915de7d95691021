"""How fast dialogues go: decoding beside Transformers, lanes beside one another, the first sound.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.talk \
        --out experiments/benchmarks/talk.json [--torch PYTHON] [--parts qwen,lanes,dialogue] \
        [--before TREE]

Each part runs in processes of its own with two threads. Where there are two sides they take turns,
so that what else runs on the machine slows both: a ratio is the median of the rounds' ratios.

  qwen      a Qwen3 of 50 M parameters in float32, random weights, 256 rows read and 64 spoken,
            greedy: this engine / Transformers' `generate` under torch, in PYTHON (this one by
            default); ratios are of rows a second. `_floor`: the ratio that the bare products of
            these rows with their matrices would have, in this engine's library
  lanes     one step of the shipped nano model with 16 lanes / with one; if TREE is a checkout of
            an earlier version (`git worktree add TREE COMMIT`) also / one row of that version,
            which is what the gate is about
  dialogue  the shipped nano model asked aloud, its own codec with a random vocoder behind it
            (none ships with it; the time does not depend on the weights), a voice prompt of 2 s:
            from the last samples of the question to the first of the answer, by parts, and seconds
            of work a second of sound
"""

import os
from pathlib import Path
import statistics
import subprocess
import sys

from absl import app, flags, logging

from experiments.benchmarks.sides import ROOT, in_turns, medians
from experiments.proofs import record

TORCH = ROOT / 'tests' / 'torch_qwen3.py'
BEFORE = ROOT / 'experiments' / 'benchmarks' / 'talk_before.py'
PARTS = ('qwen', 'lanes', 'dialogue')
WHOLE = ('first_sound', 'real_time_factor')  # of a dialogue
# name: (part, least or most, value)
GATES = {
    'decode': ('qwen', 'least', 2.5), 'prefill': ('qwen', 'least', 2.0),
    'lanes_before': ('lanes', 'most', 4.0), 'first_sound': ('dialogue', 'most', 0.15),
    'real_time_factor': ('dialogue', 'most', 0.2),
}  # fmt: skip


def commands(part: str, torch: str, before: str | None) -> list[list[str]]:
    """What the sides of a part run."""
    own = [sys.executable, '-m', 'experiments.benchmarks.talk_work']
    if part == 'qwen':
        return [[*own, 'qwen'], [torch, str(TORCH)]]
    if part == 'lanes':
        sides = [[*own, 'lanes', '16'], [*own, 'lanes', '1']]
        # Found before this version is: the path comes first.
        earlier = ['env', f'PYTHONPATH={before}', sys.executable, str(BEFORE), 'step']
        return [*sides, earlier] if before else sides
    return [[*own, part]]


def measure(part: str, torch: str, before: str | None, rounds: int) -> dict:
    """Medians of the rounds: {'seconds': ..., 'beside': ..., ratios and figures by name}."""
    taken = in_turns(commands(part, torch, before), rounds)
    found = {'seconds': medians([sides[0] for sides in taken])}
    if len(taken[0]) == 1:
        return found | {name: found['seconds'][name] for name in WHOLE}
    found['beside'] = medians([sides[1] for sides in taken])

    def ratio(one: int, other: int, name: str, others: str = '') -> float:
        each = [sides[one][name] / sides[other][others or name] for sides in taken]
        return round(statistics.median(each), 3)

    if part == 'qwen':
        for name in ('decode', 'prefill'):
            found[name] = ratio(1, 0, name)
            found[f'{name}_floor'] = ratio(1, 0, name, f'{name}_products')
        return found
    found['lanes'] = ratio(0, 1, 'step')
    if before:
        found['before'] = medians([sides[2] for sides in taken]) | {'commit': _commit(before)}
        found['lanes_before'] = ratio(0, 2, 'step')
    return found


def _commit(tree: str) -> str:
    command = ['git', '-C', tree, 'rev-parse', 'HEAD']
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


def missed(parts: dict) -> list[str]:
    """Gates that figures do not meet."""
    said = []
    for name, (part, side, gate) in GATES.items():
        value = parts.get(part, {}).get(name)
        if value is not None and (value < gate if side == 'least' else value > gate):
            said.append(f'{part}: {name} is {value}, the gate is at {side} {gate}')
    return said


def main(argv: list[str]) -> None:
    del argv
    options = flags.FLAGS
    if not options.out:
        sys.exit('--out FILE.json is missing')
    if options.before and not (Path(options.before) / 'mossjax').is_dir():
        sys.exit(f'--before: {options.before} is no checkout of this project')
    wanted = record.parts(options.parts, PARTS)
    found = {}
    for part in wanted:
        load = round(os.getloadavg()[0], 1)
        own = measure(part, options.torch, options.before, options.rounds)
        found[part] = own | {'load_average': load}
        logging.info('%s: %s', part, found[part])
    parts = record.read(options.out).get('parts', {}) | found
    said = missed(found)
    command = 'JAX_PLATFORMS=cpu python -m experiments.benchmarks.talk'
    record.write(
        Path(options.out), command,
        {'threads': 2, 'cores': os.cpu_count(), 'rounds': options.rounds, 'missed': missed(parts),
         'parts': parts},
    )
    for line in said:
        logging.error('%s', line)
    sys.exit(1 if said else 0)


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file; parts that are not measured again stay in it.')
    flags.DEFINE_string('torch', sys.executable, 'Interpreter that has torch and transformers.')
    flags.DEFINE_string('before', None, 'Checkout of an earlier version, beside the lanes.')
    flags.DEFINE_integer('rounds', 20, 'Times each side runs.', lower_bound=1)
    flags.DEFINE_list('parts', None, f'Out of {", ".join(PARTS)}; all by default.')
    app.run(main)

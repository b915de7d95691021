"""Times of the codec at real size, random weights, beside torch modules of equal shape.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.codec \
        --out experiments/benchmarks/codec.json [--torch PYTHON] [--rounds 5] [--parts decode,...]

Each part runs in a process of its own with two threads, the torch side in the interpreter PYTHON
(it needs torch, transformers and chatterbox-tts, whose pins do not fit beside ours). The two sides
take turns, so that what else runs on the machine slows both: the ratio is the median of the
rounds' ratios. Seconds are medians too. Float32 throughout.

  tokenizer   30 s of log-mel to codes / Whisper's encoder, 16 layers
  decode      50 codes behind a voice of 25 to a wave, offline / flow and HiFT
  stream      codes to sound in steps: the first sound, a chunk of 25 codes after 5 s and one after
              5 minutes; no torch side
  nano        the same with the shipped nano decoder and a vocoder of its size

The load average is that of the minute before a part began. Fails where a part is slower than its
gate, or a late chunk dearer than an early one. What was tried to meet the gates, and what it
brought, stays in the file under `attempts`, written by hand.
"""

import os
import statistics
import sys

from absl import app, flags, logging

from experiments.benchmarks.sides import ROOT, in_turns, medians
from experiments.proofs import record

TORCH = ROOT / 'tests' / 'torch_codec.py'
BOTH, ALONE = ('tokenizer', 'decode'), ('stream', 'nano')
GATES = {'tokenizer': 0.8, 'decode': 0.7}  # of torch's time, at most
CHUNK = 2.0  # seconds of sound
CONSTANT, NANO = 1.15, 0.2  # late chunk to early one; real-time factor of the nano chain, at most


def measure(part: str, torch: str | None, rounds: int) -> dict:
    """Medians of the rounds: {'seconds': ..., 'torch': ..., 'ratio': ...}."""
    commands = [[sys.executable, '-m', 'experiments.benchmarks.codec_work', part]]
    if torch and part in BOTH:
        commands.append([torch, str(TORCH), part])
    taken = in_turns(commands, rounds)
    found = {'seconds': medians([sides[0] for sides in taken])}
    if part in ALONE:
        found['real_time_factor'] = round(found['seconds']['late chunk'] / CHUNK, 4)
        found['late_to_early'] = round(
            statistics.median(own['late chunk'] / own['early chunk'] for own, in taken), 4
        )
    if len(commands) > 1:
        ratios = [{name: own / other[name] for name, own in ours.items()} for ours, other in taken]
        found |= {'torch': medians([sides[1] for sides in taken]), 'ratio': medians(ratios)}
    return found


def main(argv: list[str]) -> None:
    del argv
    options = flags.FLAGS
    if not options.out:
        sys.exit('--out FILE.json is missing')
    old = record.read(options.out)
    tried = {'attempts': old['attempts']} if 'attempts' in old else {}
    found = {}
    command = 'JAX_PLATFORMS=cpu python -m experiments.benchmarks.codec'
    for part in record.parts(options.parts, [*BOTH, *ALONE]):
        load = {'rounds': options.rounds, 'load_average': round(os.getloadavg()[0], 1)}
        found[part] = {**measure(part, options.torch, options.rounds), **load}
        logging.info('%s: %s', part, found[part])
        record.write(options.out, command, {
            'threads': 2, 'parts': old.get('parts', {}) | found, **tried,
        })  # fmt: skip
    missed = [
        f'{part}: {found[part]["ratio"][part]} of torch\'s time, the gate is {gate}'
        for part, gate in GATES.items()
        if found.get(part, {}).get('ratio', {}).get(part, 0) > gate
    ]
    missed += [
        f'{part}: a late chunk takes {found[part]["late_to_early"]} of an early one'
        for part in ALONE if found.get(part, {}).get('late_to_early', 0) > CONSTANT
    ]
    if found.get('nano', {}).get('real_time_factor', 0) > NANO:
        missed.append(f'nano: real-time factor {found["nano"]["real_time_factor"]}, at most {NANO}')
    for line in missed:
        logging.error('%s', line)
    sys.exit(1 if missed else 0)


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file; parts that are not measured again stay in it.')
    flags.DEFINE_string('torch', None, 'Interpreter of an environment with chatterbox-tts.')
    flags.DEFINE_integer('rounds', 5, 'Times each side runs.', lower_bound=1)
    flags.DEFINE_list('parts', None, f'Out of {", ".join([*BOTH, *ALONE])}; all by default.')
    app.run(main)

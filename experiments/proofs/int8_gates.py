"""The demo's gates with the language model in int8, and how far int8 moves it.

    python -m experiments.proofs.int8_gates --out experiments/proofs/int8_gates.json

The shipped nano checkpoint answers the demo's questions with weights quantised per channel; the
table is the one `mossjax demo --int8` prints. Two minutes of two cores.
"""

import dataclasses
import sys

from absl import app, flags

from experiments.proofs import record
from mossjax.convert.int8 import int8
from mossjax.eval import agreement, demo, demo_table
from mossjax.infer.assets import Assets, shipped


def main(argv: list[str]) -> None:
    del argv
    if not flags.FLAGS.out:
        sys.exit('--out FILE.json is missing')
    assets = Assets.open(shipped())
    tour = demo.tour(assets, put=int8('float32'))
    lines = demo_table.lines(tour.answers, tour.controls)
    moved = agreement.of_tour(assets, tour)
    print(f'{demo_table.table(lines)}\n\n{agreement.table(moved)}')
    met = demo_table.all_met(lines)
    record.write(flags.FLAGS.out, 'python -m experiments.proofs.run int8_gates', {
        'all_gates_met': met,
        'weights_sha256': assets.hashes(),
        'table': demo_table.figures(lines),
        'against_the_stored_weights': [dataclasses.asdict(x) for x in moved],
    })  # fmt: skip
    sys.exit(0 if met else 1)


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    app.run(main)

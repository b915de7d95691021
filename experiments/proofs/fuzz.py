"""Ten thousand damaged files through every reader, under limits: read rightly or refused.

    python -m experiments.proofs.fuzz --out experiments/proofs/fuzz.json

Seeds are real files of every kind that is read (tests/fuzz/seeds.py). A case may take 20 s and 2 GB
above what the process has at the start, may raise nothing but InputError with one line, and may
leave no file behind; what opens must equal what an independent reader finds.
"""

from pathlib import Path
import subprocess
import sys
import tempfile

from absl import app, flags

from experiments.proofs import record

CASES, SEED = 10_000, '0'

_OUT = flags.DEFINE_string('out', None, 'JSON file to write.', required=True)


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / 'found.json'
        command = [sys.executable, '-m', 'tests.fuzz.run', str(CASES), SEED, str(path)]
        ended = subprocess.run(command, cwd=record.ROOT, stdout=subprocess.DEVNULL)
        found = record.read(path)
    good = ended.returncode == 0 and found['read'] >= 0.3
    record.write(_OUT.value, 'python -m experiments.proofs.run fuzz', {'good': good, **found})
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    app.run(main)

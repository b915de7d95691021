"""Ten kills -9 at random moments of a conversion: does the rerun complete, is every byte right?

    JAX_PLATFORMS=cpu python -m experiments.proofs.conversion_kills \
        --out experiments/proofs/conversion_kills.json

A random model of about 1 GB goes from Hugging Face to Orbax and back. Each way is killed five
times, each time at a random moment of what the run would still take; then it is run to its end.
"""

import dataclasses
from pathlib import Path
import random
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging

from experiments.proofs import big_checkpoint, record
from mossjax.convert import certificate, transfer
from mossjax.convert.journal import Journal
from mossjax.convert.weight_files import open_tensors
from mossjax.models.lm.config import LMConfig

KILLS = 5  # each way
SMALLER = {
    'hidden_size': 1024, 'intermediate_size': 3072, 'num_attention_heads': 8,
    'num_key_value_heads': 2, 'num_shared_layers': 16, 'num_hidden_layers': 20,
}  # fmt: skip

_OUT = flags.DEFINE_string('out', None, 'JSON file to write.', required=True)


def start(source: Path, target: Path) -> subprocess.Popen:
    command = [sys.executable, '-m', 'mossjax', 'convert', str(source), str(target)]
    return subprocess.Popen(command, cwd=record.ROOT, stdout=subprocess.DEVNULL)


def in_place(target: Path) -> int:
    """Tensors the journal of an unfinished conversion lists."""
    journal = target.with_name(f'.{target.name}.converting') / Journal.NAME
    return max(0, len(journal.read_text().splitlines()) - 1) if journal.exists() else 0


def killed_way(source: Path, target: Path, tensors: int, rng: random.Random) -> list[int]:
    """Converts with KILLS kills; returns the tensors in place at each."""
    moments = []
    while len(moments) < KILLS:
        before = in_place(target)
        # At least one tensor or none later than the kill before.
        wanted = before + rng.randint(0, max(1, (tensors - before) // (KILLS - len(moments))))
        process = start(source, target)
        while process.poll() is None and in_place(target) < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            sys.exit('the conversion ended before it was killed')
        assert not target.exists()
        moments.append(in_place(target))
    assert start(source, target).wait() == 0
    return moments


def main(argv: list[str]) -> None:
    del argv
    rng = random.Random(0)
    config = dataclasses.replace(LMConfig.released(), **SMALLER)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        size = big_checkpoint.write(root / 'hf', config)
        before = open_tensors(root / 'hf')
        count = len(before.shapes)
        moments = {
            'to_orbax': killed_way(root / 'hf', root / 'orbax', count, rng),
            'to_hf': killed_way(root / 'orbax', root / 'again', count, rng),
        }
        faults = transfer.verify(root / 'orbax', root / 'hf') + transfer.verify(root / 'again')
        after = open_tensors(root / 'again')
        differing = [
            name for name in before.shapes
            if not certificate.same_bytes(before.read(name), after.read(name))
        ]  # fmt: skip
        left = sorted(p.name for p in root.iterdir())
    good = not faults and not differing and left == ['again', 'hf', 'orbax']
    logging.info('killed with %s tensors in place; %s', moments, 'all right' if good else faults)
    record.write(_OUT.value, 'python -m experiments.proofs.run conversion_kills', {
        'good': good, 'bytes': size, 'tensors': count, 'in_place_when_killed': moments,
        'certificate_faults': faults, 'differing': differing, 'left': left,
    })  # fmt: skip
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    app.run(main)

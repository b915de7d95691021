"""The long checks behind the README's claims; each leaves a JSON with what was run and found.

    python -m experiments.proofs.run [NAME...] [--out DIR]

All of them, one after another, if none is named; each in a process of its own. Exit code 1 if one
fails. `--help` lists them.
"""

import os
from pathlib import Path
import subprocess
import sys
import time
from typing import NamedTuple

from absl import app, flags


class Proof(NamedTuple):
    """A module with a flag `--out FILE.json`, and the environment it needs."""

    what: str
    environment: dict[str, str]


CPU = {'JAX_PLATFORMS': 'cpu'}
PROOFS = {
    'chat_size': Proof('the 9.1 B model answers aloud on this machine in int8: memory', CPU),
    'codec_conversion': Proof('a codec of real size to Orbax and back: bytes, memory, speech', CPU),
    'conversion_kills': Proof('ten kills -9 of a conversion: reruns complete, bytes right', CPU),
    'conversion_size': Proof('18 GB to Orbax and back: bytes, memory, throughput', CPU),
    'exact_resume': Proof('20 steps of nano model, vocoder = 10, kill -9, 10: bit for bit', CPU),
    'flow_stream': Proof('the flow decoder streams: distance, estimated cost on a v5e', CPU),
    'fuzz': Proof('10,000 damaged files: read rightly or refused, under limits', CPU),
    'int8_gates': Proof('the demo meets its gates with int8 weights', CPU),
    'mutations': Proof('the tests notice wrong programs', CPU),
    'nano_kernels': Proof('the nano model under the attention kernels: losses, demo gates', CPU),
    'nano_voice': Proof('how the nano codec sounds, and in whose voice', CPU),
    'own_voice': Proof('the nano codec learns a voice that it never heard', CPU),
    'random_kills': Proof('20 random kills of a run on four processes: the same bits', CPU),
    'tpu_attention': Proof('the attention kernels compile for v4, v5e, v5p, v6e, tpu7x', CPU),
    'tpu_decode_step': Proof('the 9.1 B speaking step fits a v5e in int8, a v6e in bf16', CPU),
    'tpu_train_step': Proof('the 9.1 B step compiles for v5p, v5e and v6e pods and fits', CPU),
}

_OUT = flags.DEFINE_string('out', 'experiments/proofs', 'Directory of the JSON files.')


def main(argv: list[str]) -> None:
    names = argv[1:] or list(PROOFS)
    if unknown := [name for name in names if name not in PROOFS]:
        sys.exit(f'no proof {", ".join(unknown)}; there are {", ".join(PROOFS)}')
    failed = []
    for name in names:
        out = Path(_OUT.value) / f'{name}.json'
        out.parent.mkdir(parents=True, exist_ok=True)
        print(f'{name}: {PROOFS[name].what}', flush=True)
        began = time.monotonic()
        code = subprocess.run(
            [sys.executable, '-m', f'experiments.proofs.{name}', '--out', str(out)],
            env={**os.environ, **PROOFS[name].environment},
        ).returncode
        state = 'FAILED' if code else f'written to {out}'
        print(f'{name}: {state}, {time.monotonic() - began:.0f} s', flush=True)
        failed += [name] if code else []
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    listing = '\n'.join(f'  {name:16}{proof.what}' for name, proof in PROOFS.items())
    __doc__ = f'{__doc__}\n{listing}\n'
    app.run(main)

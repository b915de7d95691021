"""The 9.1 B checkpoint there and back: every byte, peak memory, throughput.

    JAX_PLATFORMS=cpu python -m experiments.proofs.conversion_size \
        --out experiments/proofs/conversion_size.json

446 tensors at real shapes, 18.2 GB, random: Hugging Face -> Orbax -> Hugging Face by the command
`mossjax convert`, each a process whose anonymous memory is watched. The same without certificate,
and a plain copy of the files, stand beside it. Where the disk has no room for three copies, fewer
trunk layers are used and the record says how many.
"""

import dataclasses
from pathlib import Path
import shutil
import sys
import tempfile

from absl import app, flags, logging

from experiments.proofs import big_checkpoint, record, watch
from mossjax.convert import certificate
from mossjax.convert.weight_files import open_tensors
from mossjax.models.lm.config import LMConfig

COPIES = 3.2  # on disk at the same time
LIMIT = 4 * 2**30  # bytes of anonymous memory

_OUT = flags.DEFINE_string('out', None, 'JSON file to write.', required=True)
_SCRATCH = flags.DEFINE_string('scratch', None, 'Where to put 60 GB; a temporary directory.')


def config_that_fits(free: int) -> LMConfig:
    """The released model, with trunk layers left out until COPIES of it fit."""
    released = LMConfig.released()
    layer = 2 * 192_946_432  # bytes of one
    whole = 18_191_388_672
    fewer = max(0, -int(-(COPIES * whole - free) // (COPIES * layer)))
    shared = released.num_shared_layers - fewer
    if shared < 1:
        sys.exit(f'{free / 1e9:.0f} GB of disk are too few even for one trunk layer')
    return dataclasses.replace(
        released, num_shared_layers=shared,
        num_hidden_layers=shared + released.num_modality_layers,
    )  # fmt: skip


def convert(*args) -> tuple[float, int]:
    return watch.mossjax('convert', *args)


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory(dir=_SCRATCH.value) as scratch:
        root = Path(scratch)
        config = config_that_fits(shutil.disk_usage(root).free)
        size = big_checkpoint.write(root / 'hf', config)
        figures = {'tensors': 446 - 11 * (32 - config.num_shared_layers), 'bytes': size,
                   'trunk_layers': config.num_shared_layers}  # fmt: skip
        runs = {}
        runs['copy'] = watch.watched('cp', '-r', root / 'hf', root / 'copy')
        shutil.rmtree(root / 'copy')
        runs['to_orbax_nocertificate'] = convert('--nocertificate', root / 'hf', root / 'orbax')
        shutil.rmtree(root / 'orbax')
        runs['to_orbax'] = convert(root / 'hf', root / 'orbax')
        runs['to_hf'] = convert(root / 'orbax', root / 'again')
        before, after = open_tensors(root / 'hf'), open_tensors(root / 'again')
        differing = [
            name for name in before.shapes
            if not certificate.same_bytes(before.read(name), after.read(name))
        ]  # fmt: skip
        runs['verify'] = convert('--verify', root / 'orbax')
    figures['runs'] = {
        name: watch.figures(seconds, peak, size) for name, (seconds, peak) in runs.items()
    }
    figures['differing'] = differing
    good = not differing and set(before.shapes) == set(after.shapes) and all(
        peak <= LIMIT for _, peak in runs.values()
    )
    logging.info('%s', figures)
    record.write(
        _OUT.value, 'python -m experiments.proofs.run conversion_size', {'good': good, **figures}
    )
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    app.run(main)

"""A codec directory of the released sizes there and back: every byte, peak memory; then it speaks.

    JAX_PLATFORMS=cpu python -m experiments.proofs.codec_conversion \
        --out experiments/proofs/codec_conversion.json

Torch writes the directory (speech tokenizer, three flow decoders, HiFT, CAM++ as ONNX; random), and
compares with its own readers what has come back from Orbax. `mossjax convert` does both ways, each
a process whose anonymous memory is watched: at most 1.5 times the largest file. The directory that
came back speaks ten codes by `mossjax vocode`. 12 GB of disk.
"""

import json
from pathlib import Path
import shutil
import sys
import tempfile

from absl import app, flags, logging

from experiments.proofs import record, watch
from mossjax.infer import audio

CODES = [7 * i for i in range(10)]
SHARE = 1.5  # of the largest file

_OUT = flags.DEFINE_string('out', None, 'JSON file to write.', required=True)
_SCRATCH = flags.DEFINE_string('scratch', None, 'Where to put 12 GB; a temporary directory.')


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory(dir=_SCRATCH.value) as scratch:
        root = Path(scratch)
        watch.by_torch('write', root / 'codec')
        sizes = {p.relative_to(root / 'codec').as_posix(): p.stat().st_size
                 for p in (root / 'codec').rglob('*') if p.is_file()}  # fmt: skip
        runs = {'to_orbax': watch.mossjax('convert', root / 'codec', root / 'orbax')}
        runs['to_released'] = watch.mossjax('convert', root / 'orbax', root / 'again')
        tensors = len(json.loads((root / 'again' / 'certificate.json').read_text())['tensors'])
        watch.by_torch('compare', root / 'codec', root / 'again')
        for folder in ('codec', 'orbax'):
            shutil.rmtree(root / folder)
        (root / 'codes.jsonl').write_text(json.dumps({'codes': CODES}) + '\n')
        spoken = watch.mossjax(
            'vocode', '--codec', root / 'again', '--codes', root / 'codes.jsonl', '--out', root
        )
        samples = len(audio.load(root / 'line-1.wav', 24000))
    largest = max(sizes.values())
    good = samples == 1920 * len(CODES) and all(
        peak <= SHARE * largest for _, peak in runs.values()
    )
    total = sum(sizes.values())
    figures = {
        'tensors': tensors, 'differing': 0, 'bytes': total, 'largest_file': largest,
        'runs': {name: watch.figures(*run, total) for name, run in runs.items()},
        'peak_of_largest_file': {
            name: round(peak / largest, 2) for name, (_, peak) in runs.items()
        },
        'samples_spoken': samples, 'seconds_to_speak': round(spoken[0], 1),
    }  # fmt: skip
    logging.info('%s', figures)
    record.write(
        _OUT.value, 'python -m experiments.proofs.run codec_conversion', {'good': good, **figures}
    )
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    app.run(main)

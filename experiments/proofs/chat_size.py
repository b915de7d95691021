"""The 9.1 B model answers aloud on this machine: `mossjax chat --int8`, 18 GB of weights on disk.

    JAX_PLATFORMS=cpu python -m experiments.proofs.chat_size \
        --out experiments/proofs/chat_size.json

A language model and a codec of the released sizes, random (the codec is written by torch), and the
shipped tokenizer, whose ids are among theirs. The command is a process whose anonymous memory is
watched; its compiled programs are its own. 22 GB of disk.
"""

import json
import os
from pathlib import Path
import shutil
import sys
import tempfile

from absl import app, flags, logging
import numpy as np

from experiments.proofs import big_checkpoint, record, watch
from mossjax.cli import compiled
from mossjax.infer import audio
from mossjax.infer.assets import shipped
from mossjax.models.lm.config import LMConfig

CODES = 20
LIMIT = 16 * 2**30  # bytes of anonymous memory

_OUT = flags.DEFINE_string('out', None, 'JSON file to write.', required=True)
_SCRATCH = flags.DEFINE_string('scratch', None, 'Where to put 22 GB; a temporary directory.')


def write_model(root: Path, config: LMConfig) -> None:
    """A model directory of random weights whose spoken replies are CODES long."""
    big_checkpoint.write(root, config)
    for name in ('tokenizer.json', 'tokenizer_config.json'):
        shutil.copy(shipped() / 'lm' / name, root)
    rows = CODES + 1  # the last one ends the speech
    settings = {'max_new_tokens': rows, 'min_new_tokens': rows}
    (root / 'generation_config.json').write_text(json.dumps(settings))


def main(argv: list[str]) -> None:
    del argv
    config = LMConfig.released()
    with tempfile.TemporaryDirectory(dir=_SCRATCH.value) as scratch:
        root = Path(scratch)
        os.environ[compiled.VARIABLE] = str(root / 'compiled')
        write_model(root / 'lm', config)
        watch.by_torch('write', root / 'codec')
        sizes = {
            name: sum(p.stat().st_size for p in (root / name).rglob('*') if p.is_file())
            for name in ('lm', 'codec')
        }
        seconds, peak = watch.mossjax(
            'chat', '--int8', '--model', root / 'lm', '--codec', root / 'codec', '--text',
            'what is three plus four', '--out', root / 'answer.wav', '--grid', root / 'grid.json',
        )  # fmt: skip
        grid = np.array(json.loads((root / 'grid.json').read_text())['grid'])
        samples = len(audio.load(root / 'answer.wav', 24000))
    spoken = (grid[:, 0] == config.modality_pad_token_id) & (grid[:, 1] < config.eosp_token_id)
    codes = int(spoken.sum())
    figures = {
        'codes': codes, 'different_codes': len(set(grid[spoken, 1].tolist())),
        'samples_spoken': samples, 'disk_bytes': sizes,
        'chat': watch.figures(seconds, peak, sizes['lm']),
    }  # fmt: skip
    good = codes == CODES and samples == 1920 * CODES and peak <= LIMIT
    logging.info('%s', figures)
    command = 'python -m experiments.proofs.run chat_size'
    record.write(_OUT.value, command, {'good': good, **figures})
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    app.run(main)

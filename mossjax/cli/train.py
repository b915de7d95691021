"""trains a network: the language model in any of its stages, or a part of the codec.

Parts of the codec are speech tokenizer, decoder, vocoder and speaker encoder.

  mossjax train --config FILE.py[:ARGUMENT] --workdir DIR [--config.KEY=VALUE ...]

The config file is Python with a function get_config(), and it is executed: run only files you
trust. It is given what stands behind a colon: the slice, in experiments/moss_9b. Every key can be
changed on the command line, set in the file or not. Checkpoints, metrics.jsonl and TensorBoard
events go to the workdir; the same command goes on where it was stopped, bit for bit. On a TPU pod
run the same command on every host, with --pod.

Exit codes: 0 all steps are done; 75 saved, run the same command again (SIGTERM, preemption, a step
that stalled, a bucket out of reach); 2 bad input or a full disk; 3 the run went wrong
(config.max_skips).

config.init_from says what a run starts from: the workdir of another run of the same network, a
MOSS-Speech or Qwen3 directory (language model), or a codec directory (its parts). Once the run has
a checkpoint it is not opened again. A run does not go on with a config that makes it another run
(data, seed, model, optimiser), unless each key that differs is named in --changed.

Examples:
  mossjax train --config experiments/moss_9b/stage1.py:v5p-128 --workdir gs://bucket/stage1 --pod
  mossjax train --config my_sft.py --workdir runs/sft --config.optim.peak_lr=2e-5
  mossjax train --config my_sft.py --workdir runs/proof --prove_resume=20
  mossjax train --config my_sft.py --workdir runs/sft --config.model.remat=full \\
      --config.data.rows="{'mine': 'rows/mine'}" --config.data.weights.mine=1.0
"""

import sys

from absl import flags, logging

from mossjax import values
from mossjax.cli import config_flag
from mossjax.cli.common import WRITE_FOLDER_OR_BUCKET, number_flag, path_flag
from mossjax.errors import InputError

FLAGS = flags.FlagValues()
_CONFIG = config_flag.define(
    FLAGS, 'Python file with get_config(); --config.key=value changes a key.'
)
_WORKDIR = path_flag(
    'workdir', None, 'Directory of this run; local, or gs://.', WRITE_FOLDER_OR_BUCKET, FLAGS,
    required=True,
)
_POD = flags.DEFINE_bool(
    'pod', False, 'Join the other hosts of a TPU pod first.', flag_values=FLAGS
)
_CHANGED = flags.DEFINE_list(
    'changed', [], 'Keys of the config, such as optim.peak_lr, that were changed on purpose since '
    'the last checkpoint.', flag_values=FLAGS,
)
_PROVE = number_flag(
    'prove_resume', 0, 'Instead: train so many steps at once, and half of them, kill -9, the rest; '
    'compare rows and state bit for bit.',
    values.COUNT, FLAGS,
)  # fmt: skip


def trained(config, workdir: str) -> None:
    """Trains a checked config in a workdir, to the end."""
    from mossjax.train import loop, tasks

    run = tasks.make(config, fresh=loop.saved_step(workdir) is None)
    loop.fit(run.task, run.config, workdir, init_from=run.init_from, changed=_CHANGED.value)


def main(args: list[str], fit=trained) -> int | None:
    """
    Args:
      fit: what trains; `cli.prove` gives another.
    """
    if args:
        raise InputError(f'unexpected argument {args[0]!r}; configs are named with --config')
    if _CONFIG.value is None:
        raise InputError('no --config; name an experiment file, e.g. experiments/moss_9b/stage1.py')

    from mossjax import buckets
    from mossjax.cli import prove
    from mossjax.parallel import distributed
    from mossjax.train.config import check

    config, workdir = _CONFIG.value, _WORKDIR.value
    check(config)
    if _PROVE.value:
        return prove.prove(sys.argv[1:], _PROVE.value, workdir)
    if _POD.value:
        distributed.start()
    with buckets.reachable(workdir):
        fit(config, workdir)
    logging.info('%s: all %d steps are done', workdir, config.steps)
    return None

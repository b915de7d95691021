"""trains a network: the language model in any of its stages, the tokenizer, the decoder.

  mossjax train --config FILE.py --workdir DIR [--config.KEY=VALUE ...]

The config file is Python with a function get_config(), and it is executed: run only files you
trust. Every key can be changed on the command line. Checkpoints, metrics.jsonl and TensorBoard
events go to the workdir; the same command goes on where it was stopped, bit for bit. SIGTERM saves
and exits. On a TPU pod run the same command on every host, with --pod.

config.init_from says what a run starts from: the workdir of another run of the same network, a
MOSS-Speech or Qwen3 directory (language model), or a codec directory (tokenizer, decoder).

Examples:
  mossjax train --config experiments/moss_9b/stage1.py --workdir gs://bucket/stage1 --pod
  mossjax train --config my_sft.py --workdir runs/sft --config.optim.peak_lr=2e-5
"""

import pathlib

from absl import flags, logging
from ml_collections import config_flags

from mossjax.errors import InputError

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Python file with get_config(); --config.key=value changes a key.',
    flag_values=FLAGS,
)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory of this run; local, or gs://.', required=True, flag_values=FLAGS
)
_POD = flags.DEFINE_bool(
    'pod', False, 'Join the other hosts of a TPU pod first.', flag_values=FLAGS
)


def main(args: list[str]) -> None:
    if args:
        raise InputError(f'unexpected argument {args[0]!r}; configs are named with --config')
    if _CONFIG.value is None:
        raise InputError('no --config; name an experiment file, e.g. experiments/moss_9b/stage1.py')
    file = config_flags.get_config_filename(FLAGS['config'])
    if not pathlib.Path(file).is_file():
        raise InputError(f'--config {file} does not exist; check the path')

    from mossjax.parallel import distributed
    from mossjax.train import loop, tasks
    from mossjax.train.config import check

    config = _CONFIG.value
    check(config)
    if _POD.value:
        distributed.start()
    run = tasks.make(config)
    loop.fit(run.task, config, _WORKDIR.value, init_from=run.init_from)
    logging.info('%s: all %d steps are done', _WORKDIR.value, config.steps)

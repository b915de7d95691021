"""compiles what a session of mossjax chat will need, so that its first answer does not wait.

  mossjax warm --model DIR [--codec DIR] [--rows N] [--lanes N]

Compiled programs are kept in the user's cache (~/.cache/mossjax), or in the folder that
JAX_COMPILATION_CACHE_DIR names; every later start finds them there. The weights of the language
model are not read. Its programs are those of one chip. With --list it says what it would compile.

Examples:
  mossjax warm --model OpenMOSS-Team/MOSS-Speech --codec OpenMOSS-Team/MOSS-Speech-Codec
  mossjax warm --model MOSS-Speech --rows 8192 --int8
"""

import os

from absl import flags, logging

from mossjax import values
from mossjax.cli import compiled
from mossjax.cli.common import AUTO, READ_MODEL, auto_flag, number_flag, path_flag
from mossjax.errors import InputError

FLAGS = flags.FlagValues()
_MODEL = path_flag('model', None, 'Language model directory.', READ_MODEL, FLAGS, required=True)
_CODEC = path_flag('codec', None, 'Codec directory, to hear and to speak.', READ_MODEL, FLAGS)
_ROWS = number_flag(
    'rows', 1024, 'Of the longest dialogue, 12.5 a second of speech.', values.SIZE, FLAGS
)
_LANES = number_flag('lanes', 1, 'Dialogues side by side.', values.SIZE, FLAGS)
_INT8 = auto_flag('int8', 'For the model in int8; by default as mossjax chat decides.', FLAGS)
_LIST = flags.DEFINE_bool(
    'list', False, 'Say what there is and compile nothing.', flag_values=FLAGS
)


def main(args: list[str]) -> None:
    if args:
        raise InputError(f'stray argument {args[0]!r}; name directories with --model and --codec')
    import tqdm

    from mossjax.infer import fit, warm
    from mossjax.infer.codec import open_codec

    config = fit.read_config(_MODEL.value)
    held = fit.Held.here(config, None if _INT8.value == AUTO else _INT8.value)
    work = warm.model_work(
        _MODEL.value, lanes=_LANES.value, rows=_ROWS.value, quantised=held.quantised
    )
    if held.mesh is not None:
        logging.warning(
            'mossjax chat divides the model over %d chips, and compiles its programs for them when '
            'they are first needed: they are left out here', held.chips,
        )  # fmt: skip
        work = []
    if _CODEC.value:
        work += warm.codec_work(open_codec(_CODEC.value, config.eosp_token_id, streams=True))
    if _LIST.value:
        print('\n'.join(piece.name for piece in work))
        return
    with tqdm.tqdm(total=len(work), unit='program', disable=None) as bar:
        for piece in warm.compile_all(work):
            bar.set_postfix_str(piece.name)
            bar.update()
    folder = os.environ.get(compiled.VARIABLE) or 'nowhere, so the next start compiles again'
    print(f'{len(work)} programs compiled; kept in {folder}')


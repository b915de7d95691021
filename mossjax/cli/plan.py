"""says whether a training step fits a TPU slice, and how long it would take, without a TPU.

  mossjax plan --config FILE.py[:ARGUMENT] --slices v5p-128,v6e-256 [--config.KEY=VALUE ...]
  mossjax plan --speak [--config FILE.py] --slices v5e-1,v6e-8 [--lanes 1,8] [--held int8,bfloat16]

The real step of the config is compiled by the TPU compiler for slices that are not there, wired as
they are. Needs libtpu, which runs anywhere: pip install 'mossjax[tpu]'. A step of the 9.1 B model
takes 3 to 15 minutes of one core and 3 GB; what was compiled once is remembered.

The table has a line for each way to run the config, best first: GiB of a chip at the peak and what
a program may use, of it the state; seconds of a step and its share of the chip's peak; what binds
it; speed in positions and in seconds of speech; chip-hours of all its steps. Rows x parts: rows on
a chip at a time, and parts that a batch is taken in (config.accumulate). By default that is as the
config says; --rows, --remat and --tensor try others: arithmetic puts them in order, and those that
it says are fastest are compiled. A config that is laid out for one slice (config.mesh in numbers)
is laid out anew for others: same batch, no more rows at a time, as much kept as fits.

With --speak the step that mossjax chat speaks with is planned instead, of the config's model or the
released one: milliseconds of a row (a row is 0.08 s of speech) and how much longer that is than
its bytes alone take, seconds of speech a second of all lanes, chip-hours of an hour of speech. A
codec beside it must fit too. By default the weights are held as mossjax chat would decide.

Exit codes: 0 something fits; 1 nothing does, and the change of fewest chip-hours is named; 2 bad
input.

Examples:
  mossjax plan --config experiments/moss_9b/stage2.py:v5p-128 --slices v5p-128,v6e-256
  mossjax plan --config my_sft.py --slices v6e-8 --remat all --rows 1,2 --explain
  mossjax plan --config my_sft.py --slices v5p-128 --json plan.json --picture plan.svg
  mossjax plan --speak --slices v5e-1,v6e-1 --lanes 1,8 --context 4096
"""

import contextlib
import json
import os
from pathlib import Path
import sys

from absl import flags

from mossjax.cli import config_flag
from mossjax.cli.common import WRITE_FILE, WRITE_FOLDER, number_flag, path_flag
from mossjax.errors import InputError
from mossjax.values import SIZE, Range

FLAGS = flags.FlagValues()
_CONFIG = config_flag.define(
    FLAGS, 'Python file with get_config(); --config.key=value changes a key.'
)
_SLICES = flags.DEFINE_list(
    'slices', [], 'Slices by name: v5p-128, v5e-256, v6e-8, 2xv6e-256 (two of them), ...',
    flag_values=FLAGS,
)
_CONTEXT = number_flag(
    'context', None, 'Positions of a row; by default config.data.context, or those of its rows. '
    'With --speak rows of a dialogue, by default 8192.',
    Range(1, 10**7, whole=True), FLAGS,
)
_ROWS = flags.DEFINE_list(
    'rows', [], "Rows on a chip at a time to try, by default the config's.", flag_values=FLAGS
)
_REMAT = flags.DEFINE_list(
    'remat', [], "Policies to try, or 'all'; by default config.model.remat.", flag_values=FLAGS
)
_TENSOR = flags.DEFINE_list(
    'tensor', [], 'Sizes of the tensor axis to try; by default config.mesh.tensor.',
    flag_values=FLAGS,
)
_SPEAK = flags.DEFINE_bool(
    'speak', False, 'Plan the step that speaks, not the one that trains.', flag_values=FLAGS
)
_LANES = flags.DEFINE_list(
    'lanes', [], 'With --speak: dialogues side by side to try, by default 1.', flag_values=FLAGS
)
_HELD = flags.DEFINE_list(
    'held', [], 'With --speak: forms of the weights to try, bfloat16 and int8.', flag_values=FLAGS
)
_COMPILE = number_flag(
    'compile', 2, 'Of each slice so many that fit are looked for.', SIZE, FLAGS
)
_EXPLAIN = flags.DEFINE_bool(
    'explain', False, 'List the ten dearest parts of the best step, with file and line.',
    flag_values=FLAGS,
)
_JSON = path_flag('json', None, 'Write all figures to this file.', WRITE_FILE, FLAGS)
_PICTURE = path_flag(
    'picture', None, "Write the steps' time by part to this file, as SVG.", WRITE_FILE, FLAGS
)
_CACHE = path_flag(
    'cache', str(Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache') / 'mossjax' / 'plan'),
    'Folder in which what was compiled is remembered.', WRITE_FOLDER, FLAGS,
)


def main(args: list[str]) -> int:
    if args:
        raise InputError(f'unexpected argument {args[0]!r}; slices are named with --slices')
    if _CONFIG.value is None and not _SPEAK.value:
        raise InputError('no --config; name an experiment file, e.g. experiments/moss_9b/stage2.py')
    if not _SLICES.value:
        raise InputError('no --slices; name some, e.g. --slices v5p-128,v6e-256')
    foreign = (_ROWS, _REMAT, _TENSOR) if _SPEAK.value else (_LANES, _HELD)
    if given := [flag.name for flag in foreign if flag.value]:
        raise InputError(
            f'--{given[0]} is of a step that {"trains" if _SPEAK.value else "speaks"}; '
            f'{"leave out" if _SPEAK.value else "give"} --speak'
        )
    return _speaking() if _SPEAK.value else _training()


def _training() -> int:
    config = _CONFIG.value
    rows, tensor = _numbers(_ROWS), _numbers(_TENSOR)

    from mossjax.nn.remat import POLICIES
    from mossjax.plan import choices, search, table
    from mossjax.train.config import check

    check(config)
    remat = list(POLICIES) if _REMAT.value == ['all'] else _REMAT.value
    wanted = choices.choices(config, _SLICES.value, tensor=tensor, rows=rows, remat=remat)
    context = _context(config)
    sizes = choices.Sizes(config, context)
    compiler = search.Compiler(config, context, Path(_CACHE.value))
    sized = [sizes(choice) for choice in wanted]
    with _bar() as tell:
        made = search.plan(sized, compiler, _COMPILE.value, tell)
        fits = any(each.fits for each in made)
        other = None if fits else search.change(config, made, sizes, compiler, tell_user=tell)
    found = [each.figures(config.steps, context) for each in made]
    print(table.table(found))
    for name in dict.fromkeys(
        choice.name for choice in wanted
        if choices.laid_out_anew(config, choice.slice, choice.mesh)
    ):  # fmt: skip
        print(f"{name}: laid out anew; the config's own mesh is of another slice")
    if fits:
        print(f'\n{table.details(found[0])}')
        if _EXPLAIN.value:
            print(f'\n{table.explained(found[0])}')
        print(f'\n{table.METHOD}')
    else:
        print(f'\n{_advice(other, config.steps, context)}')
    _keep(table.METHOD, found, other and other.figures(config.steps, context))
    return 0 if fits else 1


def _speaking() -> int:
    lanes = _numbers(_LANES) or [1]

    from mossjax.infer import buckets
    from mossjax.models.lm.config import LMConfig
    from mossjax.plan import search, speaking, speech, table
    from mossjax.plan.programs import model_of

    config = _CONFIG.value
    model = LMConfig.released() if config is None else model_of(config)
    rows = _CONTEXT.value or min(buckets.LONG, model.max_position_embeddings)
    wanted = speech.choices(model, _SLICES.value, lanes=lanes, rows=rows, held=_HELD.value)
    compiler = speech.Compiler(model, speaking.ids_of(model), Path(_CACHE.value))
    with _bar() as tell:
        made = search.plan(
            [speech.sized(model, choice) for choice in wanted], compiler, _COMPILE.value, tell
        )
        fits = any(each.fits for each in made)
        other = None if fits else speech.change(model, made, compiler, tell)
    found = [speech.figures(each) for each in made]
    print(table.speech_table(found))
    if fits:
        print(f'\n{table.speech_details(found[0])}')
        if _EXPLAIN.value:
            print(f'\n{table.explained(found[0])}')
        print(f'\n{table.SPEECH_METHOD}')
    change = other and speech.figures(other)
    if not fits:
        print(f'\nNothing fits{_speech_advice(change)}.')
    _keep(table.SPEECH_METHOD, found, change)
    return 0 if fits else 1


def _speech_advice(change: dict | None) -> str:
    if change is None:
        return (
            ', and no fewer lanes, int8 or larger slice of one host and the same generation makes '
            'it fit; use another generation or fewer rows (--context)'
        )
    return (
        f'. The change of fewest chip-hours: --slices {change["slice"]} --held {change["held"]} '
        f'--lanes {change["lanes"]}: {change["bytes"]["peak"] / 2**30:.1f} GiB a chip, '
        f'{change["seconds"] * 1e3:.3g} ms a row'
    )


def _keep(method: str, plans: list[dict], change: dict | None) -> None:
    """Writes the files that are asked for."""
    from mossjax.plan import table

    _write(_JSON.value, json.dumps(
        {'method': method, 'plans': plans, 'change': change}, indent=1
    ) + '\n')  # fmt: skip
    _write(_PICTURE.value, table.picture(plans))


def _numbers(flag: flags.FlagHolder) -> list[int]:
    for text in flag.value:
        if not text.isdecimal() or not 1 <= int(text) <= 10**6:
            raise InputError(f'--{flag.name} {text}: expected whole numbers of 1 or more')
    return [int(text) for text in flag.value]


def _context(config) -> int:
    """Positions of the rows that the config trains on."""
    if context := _CONTEXT.value or config.data.context:
        return context
    from mossjax.plan.programs import row_length

    try:
        return row_length(config.data.rows or {})
    except InputError as error:
        raise InputError(f'{error}; or say how long its rows are: --context 14336') from error


def _advice(other, steps: int, context: int) -> str:
    if other is None:
        return (
            'Nothing fits, and no change of rows, remat and slice of the same generation makes it '
            'fit; use another generation, a shorter context or config.mesh.tensor.'
        )
    row = other.figures(steps, context)
    return (
        f'Nothing fits. The change of fewest chip-hours: {row["flags"]} on {row["slice"]}, '
        f'{row["rows"]} rows at a time: {row["bytes"]["peak"] / 2**30:.1f} GiB a chip, '
        f'{row["seconds"]:.3g} s a step, {row["chip_hours"]:,.0f} chip-hours.'
    )


@contextlib.contextmanager
def _bar():
    """A bar over what is being compiled, which says its name."""
    from tqdm import tqdm

    with tqdm(unit='program', disable=None, file=sys.stderr) as bar:
        def tell(words: str) -> None:
            bar.set_description(f'compiling {words}')
            bar.update()

        yield tell


def _write(path: str | None, text: str) -> None:
    if path is None:
        return
    from mossjax.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(text)

"""Compiles the choices that arithmetic lets through, remembers what was found, and ranks them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import hashlib
import importlib.metadata
import json
from pathlib import Path
import tempfile

import jax
from ml_collections import ConfigDict

from mossjax import files
from mossjax.errors import InputError
from mossjax.parallel import chips, options, slices
from mossjax.parallel.mesh import AXES, MeshConfig, make_mesh
from mossjax.plan import account, choices, hlo, programs
from mossjax.plan import compile as compiler
from mossjax.plan.arithmetic import SLACK
from mossjax.plan.choices import Choice, Sized

CODES_A_SECOND = 12.5
TRIES = 4  # changes of a kind that are compiled where nothing fits
_ROUND = 3  # of what is remembered: another figure when accounts change


@dataclasses.dataclass(frozen=True)
class Planned:
    """A choice and what the compiler says of it.

    Attributes:
      found: see `account.account`; {'refused': why, 'needed': bytes or None} if it does not fit.
    """

    sized: Sized
    found: dict

    @property
    def fits(self) -> bool:
        return 'refused' not in self.found

    def figures(self, steps: int, context: int) -> dict:
        """All that is known, ready for JSON.

        Args:
          steps: of the run.
        """
        choice = self.sized.choice
        row = {
            'slice': choice.name, 'chips': choice.chips, 'label': choice.label,
            'mesh': dict(zip(AXES, choice.shape, strict=True)),
            'rows': choice.rows, 'parts': choice.parts, 'remat': choice.remat, 'context': context,
            'flags': choice.shown(), 'fits': self.fits,
            'arithmetic': {
                'bytes': self.sized.memory, 'seconds': self.sized.seconds,
                'chip_hours': self.sized.chip_hours(steps),
            },
            **self.found,
        }  # fmt: skip
        if self.fits:
            data, fsdp, _ = choice.shape
            tokens = choice.rows * choice.parts * context * data * fsdp
            speed = tokens / self.found['seconds']
            row |= {
                'tokens_per_step': tokens,
                'tokens_per_second': speed,
                'tokens_per_second_and_chip': speed / choice.chips,
                'speech_seconds_per_second': speed / CODES_A_SECOND,
                'chip_hours': steps * self.found['seconds'] * choice.chips / 3600,
            }
        return row


def remembered(
    cache: Path, lowered, name: str, generation: str, kind: str, make: Callable[[], dict]
) -> dict:
    """What was found of a program, by its hash; made if nothing is remembered.

    Args:
      name: of the slice. kind: `options.TRAIN` or SPEAK.
    """
    digest = compiler.program_hash(lowered)
    told = options.options(generation, kind)
    versions = jax.__version__, importlib.metadata.version('libtpu'), _ROUND
    key = repr((digest, name, sorted(told.items()), versions))
    file = cache / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}.json'
    if file.exists():
        return files.read_json(file)
    found = {'program_sha256': digest, **make()}
    with files.replacing(file) as temporary:
        temporary.write_text(json.dumps(found))
    return found


class Compiler:
    """Choices -> Planned; each program is compiled once and remembered by its hash.

    Args:
      context: positions of a row. cache: folder of what was found before.
    """

    def __init__(self, config: ConfigDict, context: int, cache: Path):
        self._config, self._context, self._cache = config, context, cache

    def __call__(self, sized: Sized) -> Planned:
        choice = sized.choice
        devices = compiler.devices(choice.slice.topology, choice.mesh.slices)
        program = programs.training(
            choice.apply(self._config), make_mesh(choice.mesh, devices), choice.rows,
            self._context, choice.parts,
        )  # fmt: skip
        return Planned(sized, remembered(
            self._cache, program.lowered, choice.name, choice.slice.generation, options.TRAIN,
            lambda: self._compile(choice, program),
        ))  # fmt: skip

    def _compile(self, choice: Choice, program: programs.Program) -> dict:
        with tempfile.TemporaryDirectory() as dump:
            try:
                memory, took = compiler.compile_for(
                    program.lowered, choice.slice.topology, dump=dump
                )
            except compiler.OutOfMemory as error:
                return {'refused': str(error), 'needed': error.needed}
            module = hlo.read(dump)
        return {'compile_seconds': round(took, 1), **tell(program, module, memory, choice)}


def tell(program: programs.Program, module: hlo.Module, memory, choice: Choice) -> dict:
    """`account.account` of a step, on the online road; 'seconds_bound' on the other."""
    generation = choice.slice.generation
    made = account.by_road(
        module, generation, program.model, program.rows, program.context, program.tensor
    )
    found = account.account(
        made['online'], chips.CHIPS[generation], memory, account.Held.of(program.layout),
        program.work,
    )  # fmt: skip
    return {**found, 'seconds_bound': made['bound'].seconds}


def plan(
    all_sized: Iterable[Sized], compiled: Callable[[Sized], Planned], most: int,
    tell_user: Callable[[str], None] = lambda text: None,
) -> list[Planned]:
    """The choices that were compiled, best first: those that fit, by chip-seconds of a step.

    Of each slice those with the fewest seconds by arithmetic come first, until `most` of them fit.
    """
    made = []
    by_slice: dict[str, list[Sized]] = {}
    for sized in all_sized:
        by_slice.setdefault(sized.choice.name, []).append(sized)
    for group in by_slice.values():
        fit = 0
        for sized in sorted(group, key=lambda x: (x.seconds, x.memory)):
            if fit == most:
                break
            if sized.memory > SLACK * sized.limit:
                made.append(Planned(sized, _too_large(sized)))
                continue
            tell_user(sized.choice.label)
            made.append(compiled(sized))
            fit += made[-1].fits
    return sorted(made, key=_rank)


def _rank(planned: Planned) -> tuple:
    choice = planned.sized.choice
    seconds = planned.found['seconds'] if planned.fits else planned.sized.seconds
    return not planned.fits, seconds * choice.chips / choice.yields


def _too_large(sized: Sized) -> dict:
    return {
        'refused': f'{sized.memory / chips.GIB:.0f} of {sized.limit / chips.GIB:.1f} GiB by '
        'arithmetic, not compiled',
        'needed': sized.memory,
    }


def change(
    config: ConfigDict, refused: Sequence[Planned], sizes: choices.Sizes,
    compiled: Callable[[Sized], Planned], tell_user: Callable[[str], None] = lambda text: None,
) -> Planned | None:
    """What to change where nothing fits: of rows, remat and slice the change, or if no one is
    enough the changes, with the fewest chip-hours that compiles. None if none does."""
    before = {each.sized.choice for each in refused}
    tried = set(before)
    for wanted in (1, 3):
        others = {
            other for choice in before for other in _others(config, choice)
            if _differ(choice, other) <= wanted
        }  # fmt: skip
        found = [each for each in map(sizes, others - tried) if each.memory <= each.limit]
        for sized in sorted(found, key=cost)[:TRIES]:
            tell_user(sized.choice.label)
            made = compiled(sized)
            if made.fits:
                return made
            tried.add(sized.choice)
    return None


def cost(sized: Sized) -> tuple:
    """Chip-seconds of what a step yields, to a thousandth: by arithmetic every slice of a
    generation takes the same to train."""
    choice = sized.choice
    taken = sized.seconds * choice.chips / choice.yields
    return float(f'{taken:.3g}'), choice.chips, sized.memory


def _differ(a: Choice, b: Choice) -> int:
    return (a.parts != b.parts) + (a.remat != b.remat) + (a.slice != b.slice)


def _others(config: ConfigDict, choice: Choice) -> Iterator[Choice]:
    """All with other rows, remat or a slice of the same generation and so many tensor parts."""
    data, _, tensor = choice.shape
    for slice_ in slices.SLICES.values():
        if slice_.generation != choice.slice.generation:
            continue
        try:
            mesh = choices.in_numbers(MeshConfig(data, -1, tensor, choice.mesh.slices), slice_)
            each = choices.rows_of_a_part(config, slice_, mesh)
        except InputError:
            continue
        for rows in choices.divisors(each):
            for remat in ('projections', 'heads', 'attention', 'full'):
                yield Choice(slice_, mesh, rows, each // rows, remat)

"""How a model may be made to speak, on which slices, and what compiling that says."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from pathlib import Path
import tempfile

from mossjax.errors import InputError
from mossjax.infer import fit, many_chips
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.grid import GridIds
from mossjax.parallel import chips, options, slices
from mossjax.parallel.slices import Slice
from mossjax.plan import account, cycles, hlo, search, speaking
from mossjax.plan import compile as compiler
from mossjax.plan.choices import Sized
from mossjax.plan.estimate import Collective
from mossjax.plan.search import CODES_A_SECOND, Planned
from mossjax.plan.speaking import Speech

# Bytes of a codec of the released sizes beside the model on its first chip; a test adds them up.
CODEC = 2_772_356_368


@dataclasses.dataclass(frozen=True)
class Choice:
    """
    Attributes:
      shared: chips of the slice that share the model.
    """

    slice: Slice
    shared: int
    speech: Speech

    @property
    def chips(self) -> int:
        return self.slice.chips

    @property
    def yields(self) -> float:
        """Seconds of speech that a step makes."""
        return self.speech.lanes / CODES_A_SECOND

    @property
    def name(self) -> str:
        return self.slice.name

    @property
    def label(self) -> str:
        return f'{self.name}, {self.speech.held}, {self.speech.lanes} x {self.speech.rows}'


def choices(
    config: LMConfig, names: Sequence[str], *, lanes: Sequence[int], rows: int,
    held: Sequence[str] = (),
) -> list[Choice]:
    """Every combination; held as the engine would decide where nothing is given.

    Raises:
      InputError: no such slice or form, one of several hosts, or more rows than positions.
    """
    if unknown := sorted(set(held) - set(speaking.HELD)):
        raise InputError(f'--held {unknown[0]}: choose from {", ".join(speaking.HELD)}')
    if rows > config.max_position_embeddings:
        raise InputError(
            f'--context {rows}: the model has {config.max_position_embeddings} positions'
        )
    found = []
    for name in names:
        slice_ = slices.find(name, '--slices')
        if slice_.hosts > 1:
            raise InputError(
                f'--slices {name}: it has {slice_.hosts} hosts, and the engine speaks on the '
                'chips of one; name a slice of up to 8 chips'
            )
        found += [
            Choice(slice_, shared(config, slice_), Speech(form, count, rows))
            for form in held or [usual(config, slice_)] for count in lanes
        ]
    return found


def shared(config: LMConfig, slice_: Slice) -> int:
    """Chips of a slice that the engine divides a model over."""
    return max(n for n in many_chips.counts(config) if n <= slice_.chips)


def usual(config: LMConfig, slice_: Slice) -> str:
    """How the engine would hold the weights."""
    there = int(chips.CHIPS[slice_.generation].memory)
    small = fit.wants_int8(config, shared(config, slice_), there)
    return 'int8' if small else 'bfloat16'


def sized(config: LMConfig, choice: Choice) -> Sized:
    """What the bytes of weights, cache and codec say."""
    speech = choice.speech
    weights = fit.weights(config, speech.held == 'int8')
    cache = speech.lanes * fit.cache(config, speech.rows)
    seconds = speaking.roofline(config, speech, choice.slice.generation, choice.shared)
    return Sized(choice, (weights + cache) // choice.shared + CODEC, seconds)


class Compiler:
    """Sized choices -> Planned, each program compiled once, see `search.remembered`."""

    def __init__(self, config: LMConfig, ids: GridIds, cache: Path):
        self._config, self._ids, self._cache = config, ids, cache

    def __call__(self, each: Sized) -> Planned:
        choice = each.choice
        devices = compiler.devices(choice.slice.topology)
        mesh = speaking.mesh_of(self._config, devices)
        program = speaking.lowered(self._config, self._ids, choice.speech, mesh)

        def make() -> dict:
            return self._compile(choice, program, mesh)

        return Planned(each, search.remembered(
            self._cache, program, choice.name, choice.slice.generation, options.SPEAK, make
        ))  # fmt: skip

    def _compile(self, choice: Choice, program, mesh) -> dict:
        generation = choice.slice.generation
        with tempfile.TemporaryDirectory() as dump:
            told = {**options.options(generation, options.SPEAK), 'xla_dump_to': dump}
            try:
                memory, took = compiler.compile_for(program, choice.slice.topology, told)
            except compiler.OutOfMemory as error:
                return {'refused': str(error), 'needed': error.needed}
            made = cycles.Program(hlo.read(dump))
        found = tell(self._config, choice, made, memory, mesh)
        held = found['bytes']
        if held['peak'] + CODEC > held['limit']:
            return {
                'refused': 'the model alone fits, not with a codec beside it',
                'needed': held['peak'] + CODEC,
            }
        return {'compile_seconds': round(took, 1), **found}


def tell(config: LMConfig, choice: Choice, program: cycles.Program, memory, mesh) -> dict:
    """Figures of one compiled step, ready for JSON."""
    generation = choice.slice.generation
    step, caught_up = speaking.parts(
        program, generation, config, choice.speech, choice.shared
    )
    parts = list(speaking.averaged(step, caught_up))
    kept = account.shards(speaking.weights(config, choice.speech.held, mesh))
    cache = choice.speech.lanes * fit.cache(config, choice.speech.rows) // choice.shared
    bound = {
        kind: sum(x.seconds for x in parts if x.kind == kind)
        for kind in ('compute', 'HBM', 'links')
    }  # fmt: skip
    seconds = sum(bound.values())
    return {
        'bytes': {
            'peak': memory.total, 'parameters': kept, 'cache': cache,
            'activations': max(memory.total - kept - cache, 0), 'codec': CODEC,
            'limit': int(chips.CHIPS[generation].memory),
        },
        'seconds': seconds,
        'over_roofline': seconds / speaking.roofline(
            config, choice.speech, generation, choice.shared
        ),
        'binds': max(bound, key=bound.get),
        'seconds_of': bound,
        'ms': account.milliseconds(parts, group_of, 3),
        'collectives': account.collectives(_collectives(parts), digits=4),
        'dearest': account.dearest(parts),
    }  # fmt: skip


def group_of(part) -> str:
    """The row of the table that an operation belongs to."""
    if part.kind == 'links':
        return 'collectives'
    if not part.where or part.where == 'the text branch catching up':
        return part.where or 'the rest'
    names = {
        'cached_attention': 'attention over the cache', 'flash_decode': 'attention over the cache',
        'flash_prefill': 'attention over the cache', 'cache.py': 'attention over the cache',
        'draws': 'drawing', 'sampling': 'drawing', 'machine': 'drawing', 'transformer': 'layers',
        'lookup': 'embedding', 'norms': 'layers', 'rope': 'layers', 'model.py': 'heads',
    }  # fmt: skip
    return next((group for name, group in names.items() if name in part.where), 'the rest')


def _collectives(parts) -> list[Collective]:
    """Each is waited for, see `cycles.Program.parts`."""
    return [
        Collective(
            x.origin.rpartition('/')[2], max((size for size, _ in hlo.arrays(x.shape)), default=0),
            x.runs, x.seconds, beside=False, exposed=x.seconds,
        )
        for x in parts if x.kind == 'links'
    ]  # fmt: skip


def figures(planned: Planned) -> dict:
    """All that is known of a choice, ready for JSON."""
    choice, found = planned.sized.choice, planned.found
    row = {
        'slice': choice.name, 'chips': choice.chips, 'shared': choice.shared,
        'label': choice.label, 'held': choice.speech.held, 'lanes': choice.speech.lanes,
        'rows': choice.speech.rows, 'fits': planned.fits,
        'arithmetic': {'bytes': planned.sized.memory, 'seconds': planned.sized.seconds},
        **found,
    }  # fmt: skip
    if planned.fits:
        speed = choice.yields / found['seconds']
        row |= {
            'tokens_per_second': choice.speech.lanes / found['seconds'],
            'speech_seconds_per_second': speed,
            'chip_hours_of_an_hour': choice.chips / speed,
        }
    return row


def change(
    config: LMConfig, refused: Sequence[Planned], compiled: Callable[[Sized], Planned],
    tell_user: Callable[[str], None] = lambda text: None,
) -> Planned | None:
    """What to change where nothing fits: of lanes, form and slice what makes speech at the fewest
    chip-seconds and compiles. None if nothing does."""
    before = {each.sized.choice for each in refused}
    others = {other for choice in before for other in _others(config, choice)} - before
    found = [each for each in (sized(config, x) for x in others) if each.memory <= each.limit]
    for each in sorted(found, key=search.cost)[: search.TRIES]:
        tell_user(each.choice.label)
        made = compiled(each)
        if made.fits:
            return made
    return None


def _others(config: LMConfig, choice: Choice) -> Iterator[Choice]:
    """All with as many lanes or fewer, another form or slice of the same generation, one host."""
    for slice_ in slices.SLICES.values():
        if slice_.generation != choice.slice.generation or slice_.hosts > 1:
            continue
        for held in speaking.HELD:
            lanes = choice.speech.lanes
            while lanes:
                speech = dataclasses.replace(choice.speech, held=held, lanes=lanes)
                yield Choice(slice_, shared(config, slice_), speech)
                lanes //= 2

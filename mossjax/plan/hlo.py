"""Reading the program that the TPU compiler has scheduled, from the text it leaves in its dump.

The instructions of a computation stand in the order in which they run. Most carry the compiler's
own estimate of the cycles they take; a loop carries that of nothing, and what a Pallas kernel costs
is not known to the compiler.
"""

from collections.abc import Iterator
import dataclasses
import functools
import itertools
from pathlib import Path
import re

from mossjax.errors import InputError

# Only this file of a dump has the cycles.
_SCHEDULED = '*after_codegen.txt'
_SIZES = {
    'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2,
    's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8,
}  # fmt: skip
_ARRAY = re.compile(r'\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*->.*\{\s*$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_CYCLES = re.compile(r'estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      shape: of the result, as written. operation: such as 'fusion' or 'all-gather-start'.
      text: all of the line, attributes included.
    """

    name: str
    shape: str
    operation: str
    text: str

    @functools.cached_property
    def cycles(self) -> int | None:
        """By the compiler's estimate, None where it has none."""
        found = _CYCLES.search(self.text)
        return int(found[1]) if found else None

    @functools.cached_property
    def operands(self) -> list[str]:
        inside = self.text[self.text.index(f' {self.operation}(') :] if self.operation else ''
        return re.findall(r'%([\w.\-]+)', inside.partition('(')[2].partition('), ')[0])

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute such as 'body' names."""
        found = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.text)
        return found[1] if found else None

    def all_called(self, attribute: str) -> list[str]:
        """The computations that an attribute such as 'branch_computations' lists, or names."""
        found = re.search(rf'\b{attribute}=(\{{[^}}]*\}}|[^,\s]+)', self.text)
        return re.findall(r'[\w.\-]+', found[1]) if found else []

    @functools.cached_property
    def bytes(self) -> float:
        """Of the result."""
        return array_bytes(self.shape)


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, and which of them is run."""

    computations: dict[str, list[Instruction]]
    entry: str
    partitions: int
    frames: dict[int, str]

    def where(self, instruction: Instruction) -> str:
        """'file:line' in the project, the innermost call and who asked for it, '' if it is none of
        ours."""
        found = re.search(r'stack_frame_id=(\d+)', instruction.text)
        return self.frames.get(int(found[1]), '') if found else ''

    def trips(self, loop: Instruction) -> int:
        """How often a loop's body runs."""
        if found := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(found[1])
        for instruction in self.computations.get(loop.called('condition') or '', []):
            if found := re.search(r's32\[\]\S* constant\((\d+)\)', instruction.text):
                return int(found[1])
        return 1


def arrays(shape: str) -> list[tuple[float, str]]:
    """(bytes, text) of each array in a shape."""
    found = []
    for match in _ARRAY.finditer(shape):
        size = _SIZES.get(match[1], 1 if match[1].startswith('f8') else 0)
        for length in filter(None, match[2].split(',')):
            size *= int(length)
        found.append((size, match[0]))
    return found


def array_bytes(shape: str) -> float:
    return sum(size for size, _ in arrays(shape))


def read(dump: str | Path) -> Module:
    """The module of a dump folder.

    Raises:
      InputError: the folder has none.
    """
    found = sorted(Path(dump).glob(_SCHEDULED))
    if not found:
        raise InputError(f'{dump}: no file {_SCHEDULED}; compile with xla_dump_to set to it')
    return parse(found[-1].read_text())


def parse(text: str) -> Module:
    """A module from its text."""
    computations: dict[str, list[Instruction]] = {}
    entry = ''
    for name, is_entry, lines in _blocks(text):
        computations[name] = [_instruction(line) for line in lines]
        entry = name if is_entry else entry
    partitions = re.search(r'num_partitions=(\d+)', text)
    return Module(
        computations, entry, int(partitions[1]) if partitions else 1, _frames(text.splitlines())
    )


def _blocks(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """(name, is it the entry, lines of instructions); attributes that go over several lines are
    joined."""
    name, is_entry, lines = None, False, []
    for line in text.splitlines():
        if not line.startswith(' ') and (head := _HEAD.match(line)):
            name, is_entry, lines = head[2], bool(head[1]), []
        elif name is None:
            continue
        elif line.startswith('}') and not line.startswith('}}'):
            yield name, is_entry, lines
            name = None
        elif _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:
            lines[-1] += line


def _instruction(line: str) -> Instruction:
    name, rest = _INSTRUCTION.match(line).groups()
    if rest.startswith('('):
        depth = 0
        for end, letter in enumerate(rest, start=1):
            depth += (letter == '(') - (letter == ')')
            if depth == 0:
                shape, rest = rest[:end], rest[end:]
                break
    else:
        shape, _, rest = rest.partition(' ')
    operation = re.match(r'\s*([\w\-]+)\(', rest)
    return Instruction(name, shape, operation[1] if operation else '', line)


def _frames(lines: list[str]) -> dict[int, str]:
    """Tables of source places: frame -> `_place` of it."""
    tables: dict[str, dict[int, str]] = {}
    table = None
    for line in lines:
        if line in ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames'):
            table = tables.setdefault(line, {})
        elif table is not None and (row := re.match(r'^(\d+) (.*)$', line)):
            table[int(row[1])] = row[2]
        elif line.startswith(('%', 'ENTRY')):
            break

    def numbers(text: str) -> list[int]:
        return [int(n) for n in re.findall(r'(?:_id|line)=(\d+)', text)]

    names = {key: text.strip('"') for key, text in tables.get('FileNames', {}).items()}
    places = {}
    for key, text in tables.get('FileLocations', {}).items():
        file = re.search(r'file_name_id=(\d+)', text)
        line = re.search(r'\bline=(\d+)', text)
        if file and line:
            places[key] = f'{names.get(int(file[1]), "?")}:{line[1]}'
    stack = {key: numbers(text) for key, text in tables.get('StackFrames', {}).items()}
    return {key: _place(_calls(key, stack, places)) for key in stack}


def _calls(key: int, stack: dict[int, list[int]], places: dict[int, str]) -> Iterator[list[str]]:
    """[file, line] of each call inside the package, the innermost first."""
    seen = set()
    while key in stack and key not in seen:
        seen.add(key)
        place = places.get(stack[key][0], '')
        if 'mossjax/' in place:
            yield ('mossjax/' + place.rpartition('mossjax/')[2]).rsplit(':', 1)
        # The parent is written one too high, none as 0.
        key = stack[key][1] - 1 if len(stack[key]) > 1 else 0


def _place(calls: Iterator[list[str]]) -> str:
    """The innermost call, and who in another file asked for it: up to three calls there, since
    what names a matrix stands above the helpers that multiply it."""
    files = [(name, [line for _, line in own])
             for name, own in itertools.islice(itertools.groupby(calls, lambda x: x[0]), 2)]
    shown = [f'{name}:{", ".join(lines[: 3 if i else 1])}' for i, (name, lines) in enumerate(files)]
    return ' < '.join(shown)

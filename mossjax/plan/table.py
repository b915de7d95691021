"""What is planned, for people: a table, the dearest parts, a picture."""

from collections.abc import Iterator, Sequence
import html

from mossjax.parallel.chips import GIB

METHOD = (
    "Estimated by the TPU compiler's own cycles of every instruction, our attention kernels by "
    'their bundles, collectives by their bytes over the links; stalls, latency and the host are '
    'not in it. Nothing was measured on a TPU. Absolute times to some 15 %, ratios better; memory '
    "is the compiler's own peak."
)
SPEECH_METHOD = (
    "Estimated by the TPU compiler's own cycles of every operation, or its bytes over the "
    "bandwidth where those take longer, a collective by its bytes over the links; latency, which "
    'is most of a small collective, and the host are not in it. The text branch catches up now and '
    'then: its share of a row is in the mean. Nothing was measured on a TPU.'
)
_HEAD = ('slice', 'mesh', 'rows', 'remat', 'GiB', 'of', 'state', 'step s', 'peak', 'binds',
         'tokens/s', 'speech s/s', 'chip-hours')  # fmt: skip
_SPEECH_HEAD = ('slice', 'held', 'lanes', 'rows', 'GiB', 'of', 'weights', 'cache', 'ms a row',
                'x bytes', 'binds', 'rows/s', 'speech s/s', 'chip-h an hour')  # fmt: skip
_COLOURS = ('#3f6fb5', '#6ca6d9', '#d9822b', '#b5513f', '#7a9c59', '#8c6bb1', '#c9b458', '#777777')


def table(rows: Sequence[dict]) -> str:
    """One line for each planned choice (`search.Planned.figures`), best first."""
    return _aligned([_HEAD, *(_fitting(row) if row['fits'] else _refused(row) for row in rows)])


def speech_table(rows: Sequence[dict]) -> str:
    """The like of choices to speak (`speech.figures`)."""
    return _aligned([_SPEECH_HEAD, *map(_speaking, rows)])


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _common(row: dict) -> tuple[str, ...]:
    mesh = 'x'.join(str(n) for n in row['mesh'].values())
    rows = str(row['rows']) if row['parts'] == 1 else f'{row["rows"]} x {row["parts"]}'
    return row['slice'], mesh, rows, row['remat']


def _fitting(row: dict) -> tuple[str, ...]:
    held = row['bytes']
    state = held['parameters'] + held['optimiser']
    return (
        *_common(row), f'{held["peak"] / GIB:.1f}', f'{held["limit"] / GIB:.1f}',
        f'{state / GIB:.1f}', f'{row["seconds"]:.3g}', f'{row["share_of_peak"]:.1%}', row['binds'],
        f'{row["tokens_per_second"]:,.0f}', f'{row["speech_seconds_per_second"]:,.0f}',
        f'{row["chip_hours"]:,.0f}',
    )  # fmt: skip


def _refused(row: dict) -> tuple[str, ...]:
    needed = row.get('needed')
    return (
        *_common(row), f'{needed / GIB:.1f}' if needed else '?', '', '', '', '', 'does not fit',
        '', '', '',
    )  # fmt: skip


def _speaking(row: dict) -> tuple[str, ...]:
    common = row['slice'], row['held'], str(row['lanes']), str(row['rows'])
    if not row['fits']:
        needed = row.get('needed')
        said = f'{needed / GIB:.1f}' if needed else '?'
        return *common, said, '', '', '', '', '', 'does not fit', '', '', ''
    held = row['bytes']
    return (
        *common, *(f'{held[name] / GIB:.1f}' for name in ('peak', 'limit', 'parameters', 'cache')),
        f'{row["seconds"] * 1e3:.2f}', f'{row["over_roofline"]:.2f}', row['binds'],
        f'{row["tokens_per_second"]:,.0f}', f'{row["speech_seconds_per_second"]:,.1f}',
        f'{row["chip_hours_of_an_hour"]:.2g}',
    )  # fmt: skip


def speech_details(row: dict) -> str:
    """Of one choice to speak: memory, and where the time of a row goes."""
    held = row['bytes']
    shared = f', on {row["shared"]} chips' * (row['shared'] > 1)
    return '\n'.join([
        f'{row["label"]}{shared}',
        '  memory of a chip: ' + ', '.join(
            f'{name} {held[name] / GIB:.2f} GiB' for name in ('parameters', 'cache', 'activations')
        ) + f'; beside it a codec of {held["codec"] / GIB:.2f} GiB',
        *_spent(row),
    ])  # fmt: skip


def details(row: dict) -> str:
    """Of one choice: memory, collectives, and where the time goes."""
    held = row['bytes']
    return '\n'.join([
        f'{row["slice"]}: {row["flags"]}',
        '  memory of a chip: ' + ', '.join(
            f'{name} {held[name] / GIB:.2f} GiB'
            for name in ('parameters', 'optimiser', 'activations')
        ),
        f'  with the bound for a maximum in attention {row["seconds_bound"]:.3g} s instead of '
        f'{row["seconds"]:.3g} s',
        *_spent(row),
    ])  # fmt: skip


def _spent(row: dict) -> Iterator[str]:
    """Time by part, and the collectives."""
    total = sum(row['ms'].values())
    digits = 1 if total > 100 else 3
    yield '  time by part:'
    for name, each in row['ms'].items():
        yield f'    {each:9.{digits}f} ms {each / total:6.1%}  {name}'
    if not row['collectives']:
        return
    yield '  collectives, by time on the links:'
    for x in row['collectives'][:8]:
        beside = ', beside others' * x['beside_others']
        yield (
            f'    {x["wire_ms"]:9.{digits}f} ms, {x["exposed_ms"]:.{digits}f} exposed  {x["kind"]} '
            f'of {x["mib"]} MiB, {x["runs"]} times{beside}'
        )


def explained(row: dict) -> str:
    """The dearest parts of the step, with their places."""
    lines = [f'{row["label"]}: the dearest parts of a step']
    lines += [
        f'  {x["ms"]:9.2f} ms  {x["kind"]:10}  {x["where"]}  {x["shape"]}  ({x["runs"]} times)'
        for x in row['dearest']
    ]
    return '\n'.join(lines)


def picture(rows: Sequence[dict]) -> str:
    """SVG: for each choice that fits a bar, as long as its step, cut into parts."""
    rows = [row for row in rows if row['fits']]
    names = list(dict.fromkeys(name for row in rows for name in row['ms']))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    longest = max((sum(row['ms'].values()) for row in rows), default=1.0) or 1.0
    left, wide, high = 230, 640, 26
    marks = []
    for i, row in enumerate(rows):
        y, x = 16 + i * high, left
        marks.append(_text(left - 8, y + 13, row['label'], 'end'))
        for name, ms in row['ms'].items():
            width = ms / longest * wide
            marks.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" '
                f'fill="{colours[name]}"><title>{html.escape(name)}: {ms} ms</title></rect>'
            )
            x += width
        marks.append(_text(x + 6, y + 13, _duration(row['seconds'])))
    top = 28 + len(rows) * high
    for i, name in enumerate(names):
        x, y = left + i % 3 * 220, top + i // 3 * 20
        marks.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colours[name]}"/>')
        marks.append(_text(x + 18, y + 10, name))
    height = top + (len(names) + 2) // 3 * 20 + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 90}" height="{height}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        + ''.join(marks) + '</svg>\n'
    )  # fmt: skip


def _text(x: float, y: float, words: str, anchor: str = 'start') -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _duration(seconds: float) -> str:
    return f'{seconds:.3g} s' if seconds >= 1 else f'{seconds * 1e3:.3g} ms'

"""Seeded damage to files: values, keys and structure where the format is known, bytes where not.

`mutate` also says whether what it did keeps the meaning: other spelling, order or spacing.
"""

from collections.abc import Callable
import contextlib
import io
import json
import random
import struct
from typing import Any
import zipfile

# What a value may become; text in quotes stands for itself in JSON (NaN has no other spelling).
NUMBERS = (
    0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e308, 3.0, 127, 2**31 - 1, 2**31, 2**63, -(2**63), 10**13,
    10**24, '@NaN', '@Infinity', '@-Infinity', '@1e999', '@-1e400', '@' + '9' * 5000,
)  # fmt: skip
OTHERS = (
    None, True, False, '', 'no', 'x' * 50_000, '\ud800', '\x00', '../../etc/passwd', '1e3', [], {},
    [[]], {'a': {'b': []}}, [1, 2, 3], ['full_attention'], '@' + '[' * 3000 + ']' * 3000,
)  # fmt: skip


def mutate(data: bytes, kind: str, rng: random.Random) -> tuple[bytes, bool]:
    """(other bytes, whether they mean the same) of a file.

    Args:
      kind: 'json', 'jsonl', 'yaml', 'safetensors', 'zip', or 'binary'.
    """
    same = True
    for _ in range(rng.choice((1, 1, 1, 1, 2, 4))):
        data, kept = _once(data, kind, rng)
        same = same and kept
    return data, same


def _once(data: bytes, kind: str, rng: random.Random) -> tuple[bytes, bool]:
    if kind in STRUCTURES and rng.random() < 0.85:
        with contextlib.suppress(Exception):  # what an earlier change has made of it
            return STRUCTURES[kind](data, rng)
    return BYTES[rng.randrange(len(BYTES))](data, rng), False


# --------------------------------------------------------------------------------------- bytes


def _flip(data: bytes, rng: random.Random) -> bytes:
    """A few bits, more often near the start, where headers are."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if out:
            reach = len(out) if rng.random() < 0.5 else min(len(out), 200)
            out[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(out)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    more = rng.choice((b'\0', b'\xff\xfe', b'{', b'\n', bytes(1000), rng.randbytes(16)))
    return data[:at] + more + data[at:]


def _remove(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 4, 64)) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    part = data[at : at + rng.choice((1, 16, 512))]
    return data[:at] + part * rng.choice((2, 50)) + data[at:]


def _integer(data: bytes, rng: random.Random) -> bytes:
    """A size or count of a header: 2, 4 or 8 bytes of an extreme number, either order."""
    value = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1))
    width = rng.choice((2, 4, 8))
    raw = (value % 2 ** (8 * width)).to_bytes(width, rng.choice(('little', 'big')))
    at = rng.randrange(max(1, min(len(data), 120) - width))
    return data[:at] + raw + data[at + width :]


BYTES: tuple[Callable, ...] = (_flip, _flip, _cut, _insert, _remove, _repeat, _integer)

# ---------------------------------------------------------------------------------------- JSON


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every entry, at any depth."""
    found, todo = [], [tree]
    while todo:
        node = todo.pop()
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], dict | list) and node[key]:
                todo.append(node[key])
    return found


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.75:
        near = (value + 1, value * 2, -value, value / 2, float(value))
        return rng.choice(near) if rng.random() < 0.4 else rng.choice(NUMBERS)
    if isinstance(value, str) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(('x', ' ', '.', '/', 'é', '')) + value[at + 1 :]
    return rng.choice(NUMBERS + OTHERS)


def _dump(tree: Any, **style) -> str:
    """JSON in which text that begins with @ stands without its quotes."""
    text = json.dumps(tree, **style)
    while (at := text.find('"@')) >= 0:
        end = text.index('"', at + 1)
        text = text[:at] + text[at + 2 : end] + text[end + 1 :]
    return text


def change_tree(tree: Any, rng: random.Random) -> Any:
    """One change somewhere in nested dicts and lists, made in place."""
    places = _places(tree)
    if not places:
        return rng.choice(NUMBERS + OTHERS)
    node, key = rng.choice(places)
    what = rng.random()
    if what < 0.7:
        node[key] = _other(node[key], rng)
    elif what < 0.8:
        del node[key]
    elif isinstance(node, list):
        node.insert(rng.randrange(len(node) + 1), rng.choice(NUMBERS + OTHERS))
    elif what < 0.9:
        node[f'{key}{rng.choice("_xz")}'] = node.pop(key)
    else:
        node[rng.choice(('surprise', 'rope_scaling', 'dtype', 'use_dora'))] = rng.choice(OTHERS)
    return tree


def _json(data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    tree = json.loads(data)
    if rng.random() < 0.25:
        if isinstance(tree, dict):
            keys = list(tree)
            rng.shuffle(keys)
            tree = {key: tree[key] for key in keys}
        style = {'indent': rng.choice((None, 1, 7)), 'ensure_ascii': rng.random() < 0.5}
        return json.dumps(tree, **style).encode(), True
    if rng.random() < 0.05:  # a mark that editors put there; not every reader has to take it
        return b'\xef\xbb\xbf' + data, False
    if isinstance(tree, dict) and tree and rng.random() < 0.05:  # a key twice
        text, key = json.dumps(tree), rng.choice(list(tree))
        return f'{text[:-1]}, {json.dumps(key)}: 1}}'.encode(), False
    return _dump(change_tree(tree, rng)).encode('utf-8', 'surrogatepass'), False


def _jsonl(data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    what, same = rng.random(), False
    if what < 0.15:
        line, same = json.dumps(json.loads(lines[at]), separators=(' ,  ', ' : ')), True
        lines[at] = line
    elif what < 0.85:
        lines[at] = _dump(change_tree(json.loads(lines[at]), rng))
    elif what < 0.95:
        del lines[at]
    else:
        lines.insert(at, lines[at])
    return ('\n'.join(lines) + '\n').encode('utf-8', 'surrogatepass'), same


# ---------------------------------------------------------------------------------------- YAML


YAML_VALUES = (
    *(str(number).lstrip('@') for number in NUMBERS), '.nan', '.inf', 'null', 'yes', '[1, 2]',
    '{a: 1}', '*x', '&x [1, *x]', '!ref <flow>', '!ref <a> * <b>', '!!python/name:os.system',
    '!new:os.system [1]', '12:30:45', '2024-01-01', "'text'", '"', '<<', '|', '0x1F', '1_000',
)  # fmt: skip


def _yaml(data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    what = rng.random()
    if what < 0.2:
        lines.insert(at, rng.choice(('', '# a remark', '  # another')))
        return '\n'.join(lines).encode(), True
    if what < 0.75 and ':' in lines[at]:
        key = lines[at].partition(':')[0]
        value = rng.choice(YAML_VALUES)
        lines[at] = f'{key}: {value}'
    elif what < 0.85:
        del lines[at]
    elif what < 0.95:
        lines.insert(at, lines[rng.randrange(len(lines))])
    else:
        lines[at] = '  ' * rng.randrange(4) + lines[at]
    return '\n'.join(lines).encode(), False


# ------------------------------------------------------------------------------------- weights


def _safetensors(data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    length = struct.unpack('<Q', data[:8])[0]
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    if rng.random() < 0.25:
        names = list(header)
        rng.shuffle(names)
        text, same = json.dumps({name: header[name] for name in names}) + ' ' * 3, True
    else:
        text, same = _dump(change_tree(header, rng)), False
    raw = text.encode('utf-8', 'surrogatepass')
    return struct.pack('<Q', len(raw)) + raw + rest, same


def _zip(data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """Entries written anew: shuffled, one of them damaged, dropped, renamed or packed."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        entries = [(info.filename, source.read(info)) for info in source.infolist()]
    out, same, how = io.BytesIO(), rng.random() < 0.25, zipfile.ZIP_STORED
    at = rng.randrange(len(entries))
    name, raw = entries[at]
    what = rng.random()
    if same:
        rng.shuffle(entries)
    elif what < 0.6:
        entries[at] = name, BYTES[rng.randrange(len(BYTES))](raw, rng)
    elif what < 0.75:
        del entries[at]
    elif what < 0.9:
        entries[at] = name + rng.choice(('x', '/', '')), raw + rng.choice((b'', bytes(9)))
    else:
        how = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(out, 'w', how) as target:
        for name, raw in entries:
            target.writestr(name, raw)
    return out.getvalue(), same


STRUCTURES: dict[str, Callable] = {
    'json': _json, 'jsonl': _jsonl, 'yaml': _yaml, 'safetensors': _safetensors, 'zip': _zip,
}  # fmt: skip

"""The shape of the tree: who may import whom, what loads late, how long a file gets.

`violations` reads the source only; the tests at the end plant one bad file of each kind and see
that it is found.
"""

import ast
from collections.abc import Iterator
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# A package may import itself and what stands on an earlier line; '' is mossjax/__init__.py.
ORDER = [
    ['', 'errors', 'exits'],
    ['buckets'],
    ['bucket_lock'],
    ['values', 'paths'],
    ['files'],
    ['steps'],
    ['ops'],
    ['nn'],
    ['models'],
    ['parallel'],
    ['checkpoint'],
    ['convert'],
    ['infer'],
    ['data'],
    ['train'],
    ['serve', 'plan', 'eval'],
    ['cli'],
    ['__main__'],
    ['experiments', 'launch'],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
TESTS_ONLY = {'torch', 'torchaudio', 'transformers'}
# Compares converted weights with torch where that is installed; nothing else ever needs it.
REFERENCE = 'mossjax/convert/reference.py'
LATE = {'av', 'gradio', 'grain', 'librosa', 'matplotlib', 'onnx', 'pocketsphinx', 'soundfile',
        'sklearn', 'tensorboardX', 'tensorflow_datasets'}
LINES = 400
# Parts that are a file, not a folder.
FILES = {'bucket_lock', 'buckets', 'errors', 'exits', 'values', 'paths', 'files', 'checkpoint',
         '__main__'}
TEXT = {'', '.cfg', '.in', '.ipynb', '.json', '.jsonl', '.md', '.py', '.sh', '.toml', '.txt',
        '.yaml', '.yml'}
FOLDERS = ['mossjax', 'experiments', 'launch', 'tests', '.ci']
HOME = re.compile(r'(?<![\w.~-])/(home|root|Users)/\w')


def violations(root: pathlib.Path) -> list[str]:
    """Every breach of the rules under `root`, each as 'path:line: what is wrong'."""
    found = []
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a binary file without a suffix
        lines = text.splitlines()
        found += [
            f'{name}:{number}: names a path of one machine'
            for number, line in enumerate(lines, 1)
            if HOME.search(line)
        ]
        if path.suffix == '.py':
            if len(lines) > LINES:
                found.append(f'{name}:{LINES + 1}: longer than {LINES} lines, make it two files')
            if not name.startswith('tests/'):
                found += [f'{name}:{line}: {what}' for line, what in _imports(root, path, text)]
    return found


def _files(root: pathlib.Path) -> list[pathlib.Path]:
    inside = [path for folder in FOLDERS for path in (root / folder).rglob('*')]
    return sorted(
        path
        for path in [*root.glob('*'), *inside]
        if path.suffix in TEXT and path.is_file() and '__pycache__' not in path.parts
        and '.egg-info' not in str(path)
    )


def _imports(root, path, text) -> Iterator[tuple[int, str]]:
    """(line, breach) of each import statement of a file outside tests."""
    name = path.relative_to(root).with_suffix('').parts
    here = _part('.'.join(name), root)
    tree = ast.parse(text, filename=str(path))
    at_start = set(_at_import_time(tree))
    for node in ast.walk(tree):
        for module in _modules(node, name):
            top = module.split('.')[0]
            if top in TESTS_ONLY and (str(path.relative_to(root)) != REFERENCE or node in at_start):
                yield node.lineno, f'imports {top}, which only tests may'
            if top in LATE and node in at_start:
                yield node.lineno, f'imports {top} at module level; import it where it is used'
            there = _part(module, root)
            if there is None or there == here:
                continue
            if there not in RANK:
                yield node.lineno, f'imports {module}, which has no place in ORDER'
            elif here in RANK and RANK[there] >= RANK[here]:
                yield node.lineno, f'{here or "mossjax"} may not import {there}'
    if here is not None and here not in RANK:
        yield 1, f'{here} has no place in ORDER'


def _part(module: str, root: pathlib.Path) -> str | None:
    """'mossjax.ops.rope' -> 'ops', 'experiments.nano.run' -> 'experiments', others None."""
    top, *rest = module.split('.')
    if top in ('experiments', 'launch', 'tests'):
        return top
    if top != 'mossjax':
        return None
    if not rest or rest[0] == '__init__':
        return ''
    base = root / 'mossjax' / rest[0]
    return rest[0] if base.is_dir() or base.with_suffix('.py').exists() else ''


def _modules(node: ast.AST, name: tuple[str, ...]) -> list[str]:
    """The modules that an import statement names, dotted and absolute."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = '.'.join(name[: len(name) - node.level]) if node.level else ''
        base = '.'.join(filter(None, [base, node.module]))
        return [f'{base}.{alias.name}' for alias in node.names]
    return []


def _at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when the module is imported: not those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and 'TYPE_CHECKING' in ast.dump(child.test):
            continue
        yield child
        yield from _at_import_time(child)


def test_the_tree_keeps_the_rules():
    found = violations(ROOT)
    assert not found, '\n' + '\n'.join(found)


def test_the_checker_sees_the_tree():
    seen = {path.relative_to(ROOT).as_posix() for path in _files(ROOT)}
    assert {'setup.py', 'README.md', 'mossjax/ops/resample.py', 'tests/test_layering.py'} <= seen


BAD = {
    'upwards': ('mossjax/ops/a.py', 'from mossjax.nn import linear\n', 'ops may not import nn'),
    'plain import': ('mossjax/nn/a.py', 'import mossjax.models.lm\n', 'nn may not import models'),
    'inside a function': (
        'mossjax/infer/a.py', 'def f():\n    from mossjax import train\n',
        'infer may not import train',
    ),
    'relative': ('mossjax/infer/a.py', 'from ..train import x\n', 'infer may not import train'),
    'beside': ('mossjax/plan/a.py', 'import mossjax.eval.x\n', 'plan may not import eval'),
    'root': ('mossjax/__init__.py', 'from mossjax import ops\n', 'mossjax may not import ops'),
    'experiments': ('mossjax/cli/a.py', 'import experiments.x\n', 'cli may not import experiments'),
    'tests': ('mossjax/cli/a.py', 'from tests import x\n', 'imports tests.x, which has no place'),
    'new package': ('mossjax/train2/a.py', '', 'train2 has no place in ORDER'),
    'torch': ('mossjax/infer/a.py', 'def f():\n    import torch.nn\n', 'imports torch, which only'),
    'torch in the reference': (
        'mossjax/convert/reference.py', 'import torch\n', 'imports torch, which only',
    ),
    'transformers': ('experiments/a.py', 'from transformers import X\n', 'imports transformers'),
    'heavy': ('mossjax/data/a.py', 'import grain.python as grain\n', 'imports grain at module'),
    'heavy in try': (
        'mossjax/data/a.py', 'try:\n    import librosa\nexcept ImportError:\n    pass\n',
        'imports librosa at',
    ),
    'long': ('tests/a.py', '\n' * 401, 'longer than 400 lines'),
    'machine path': ('README.md', 'cd /ho' + 'me/ann/code\n', 'names a path of one machine'),
    'machine path in json': ('tests/golden/a.json', '{"x": "/ro' + 'ot/a"}', 'names a path'),
}
GOOD = {
    'mossjax/__init__.py': '',
    'mossjax/ops/a.py': 'import jax\n\ndef f():\n    import librosa\n',
    'mossjax/nn/a.py': 'from mossjax.ops import a\nfrom .b import c\n',
    'mossjax/nn/b.py': 'from mossjax import __version__\n',
    'mossjax/train/a.py': 'import mossjax.data.a\nfrom mossjax.nn.a import f\n',
    'mossjax/convert/reference.py': 'def f():\n    import torch\n',
    'mossjax/infer/__init__.py': '',
    'experiments/a.py': 'import mossjax.cli.main\n',
    'tests/a.py': 'import torch\nimport librosa\nfrom mossjax.train import x\n' + '\n' * 390,
    'README.md': 'https://x.org/ho' + 'me/page, ./ho' + 'me/out and ~/ro' + 'ot/in are fine\n',
}


def _plant(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in RANK:
        if name and name not in FILES:
            (root / ('' if name in ('experiments', 'launch') else 'mossjax') / name).mkdir(
                parents=True, exist_ok=True
            )


def test_a_good_tree_has_no_violations(tmp_path):
    _plant(tmp_path, GOOD)
    assert violations(tmp_path) == []


@pytest.mark.parametrize('name, text, message', BAD.values(), ids=BAD.keys())
def test_each_breach_is_found_once(tmp_path, name, text, message):
    _plant(tmp_path, GOOD | {name: text})
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(f'{name}:') and message in found[0]

"""Do the tests notice a wrong program? Alters the source one place at a time and runs them.

    python -m experiments.proofs.mutations --out experiments/proofs/mutations.json

Works on a copy of the tree in a temporary directory; the tree itself is never touched. First the
tests named in `alterations.py` must pass as they are. Then each alteration is made by itself, the
tests named for it run, and those that failed are recorded. Exit code 1 if an alteration survives.
`--only TEXT` runs the alterations whose names contain TEXT.
"""

from collections.abc import Iterator, Sequence
import contextlib
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple
import xml.etree.ElementTree

from absl import flags, logging

from experiments.nano.script import start
from experiments.proofs.alterations import ALTERATIONS, Alteration
from experiments.proofs.record import ROOT, commit, write
from mossjax.errors import InputError

COPIED = ('mossjax', 'experiments', 'tests', 'pyproject.toml', 'setup.py', 'README.md')
SECONDS = 1200  # for the tests of one alteration


class Outcome(NamedTuple):
    """What a run of pytest said.

    Attributes:
      passed: number of tests.
      failed: names of tests that failed, or whose fixtures did.
      broken: names of files that could not even be collected; such a run proves nothing.
    """

    passed: int
    failed: list[str]
    broken: list[str]


def check(alterations: Sequence[Alteration], root: Path = ROOT) -> None:
    """
    Raises:
      InputError: an old text does not occur exactly once, or a test file is not there.
    """
    names = [a.name for a in alterations]
    faults = [f'{name!r} is there twice' for name in set(names) if names.count(name) > 1]
    for a in alterations:
        found = (root / a.file).read_text('utf-8').count(a.old) if (root / a.file).is_file() else 0
        if found != 1:
            faults.append(f'{a.name!r}: its old text occurs {found} times in {a.file}, not once')
        faults += [
            f'{a.name!r}: {test} is not there'
            for test in a.tests
            if not _test_exists(root, test)
        ]
    if faults:
        raise InputError(
            'alterations do not fit the tree; bring experiments/proofs/alterations.py up to date:\n'
            + '\n'.join(f'  {fault}' for fault in faults)
        )


def _test_exists(root: Path, test: str) -> bool:
    file, _, function = test.partition('::')
    path = root / file
    return path.is_file() and (not function or f'def {function}(' in path.read_text('utf-8'))


@contextlib.contextmanager
def altered(root: Path, a: Alteration) -> Iterator[None]:
    """The alteration is in the tree under `root` while the block runs."""
    path = root / a.file
    text = path.read_text('utf-8')
    path.write_text(text.replace(a.old, a.new), 'utf-8')
    try:
        yield
    finally:
        path.write_text(text, 'utf-8')


def run_tests(root: Path, tests: Sequence[str]) -> Outcome:
    """Runs pytest in a tree, in a process of its own."""
    report = root / 'report.xml'
    report.unlink(missing_ok=True)
    command = [sys.executable, '-m', 'pytest', '-q', '--tb=no', '-p', 'no:cacheprovider',
               f'--junitxml={report}', *tests]  # fmt: skip
    environment = {
        **os.environ, 'PYTHONDONTWRITEBYTECODE': '1', 'PYTHONPATH': str(root),
        # What an alteration leaves as it was need not be compiled again.
        'JAX_COMPILATION_CACHE_DIR': str(root / 'compiled'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=root, env=environment, timeout=SECONDS, capture_output=True, text=True
    )
    if not report.exists():
        raise RuntimeError(f'pytest wrote no report: {done.stdout[-2000:]}{done.stderr[-2000:]}')
    return _read_report(report)


def _read_report(report: Path) -> Outcome:
    passed, failed, broken = 0, [], []
    for case in xml.etree.ElementTree.parse(report).iter('testcase'):
        module, name = case.get('classname'), case.get('name')
        if not module:  # an error while a file was imported
            broken.append(name)
        elif case.find('failure') is not None or case.find('error') is not None:
            failed.append(f'{module.replace(".", "/")}.py::{name}')
        elif case.find('skipped') is None:
            passed += 1
    return Outcome(passed, failed, broken)


def copy_tree(target: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns('__pycache__'))
        elif source.exists():
            shutil.copyfile(source, target / name)


def try_all(alterations: Sequence[Alteration]) -> dict:
    """Runs the proof and returns its figures.

    Raises:
      InputError: an alteration is stale, or a test fails without any.
    """
    check(alterations)
    with tempfile.TemporaryDirectory(prefix='mossjax-mutations-') as folder:
        root, tree = Path(folder), commit()
        copy_tree(root)
        sound = run_tests(root, sorted({test for a in alterations for test in a.tests}))
        if sound.failed or sound.broken:
            raise InputError(
                f'tests fail without any alteration: {sound.failed + sound.broken}; mend them first'
            )
        logging.info('%d tests pass without alteration', sound.passed)
        results = []
        for a in alterations:
            began = time.monotonic()
            with altered(root, a):
                outcome = run_tests(root, a.tests)
            noticed = bool(outcome.failed) and not outcome.broken
            results.append({
                **a._asdict(), 'noticed': noticed, 'failed': outcome.failed,
                'passed': outcome.passed, 'broken': outcome.broken,
                'seconds': round(time.monotonic() - began, 1),
            })  # fmt: skip
            logging.info('%s: %s (%d failed, %d passed)', a.name,
                         'noticed' if noticed else 'SURVIVED', len(outcome.failed),
                         outcome.passed)  # fmt: skip
    return {
        'commit': tree,  # when the tree was copied; it may move on while this runs
        'passed_without_alteration': sound.passed,
        'noticed': sum(r['noticed'] for r in results),
        'alterations': results,
    }


def main() -> None:
    logging.set_verbosity(logging.INFO)
    chosen = [a for a in ALTERATIONS if flags.FLAGS.only in a.name]
    if not chosen:
        raise InputError(f'no alteration has {flags.FLAGS.only!r} in its name')
    figures = try_all(chosen)
    write(flags.FLAGS.out, 'python -m experiments.proofs.mutations', figures)
    for result in figures['alterations']:
        print(f'{len(result["failed"]):4} failed  {result["name"]}')
    print(f'{figures["noticed"]} of {len(chosen)} alterations noticed')
    if figures['noticed'] < len(chosen):
        sys.exit(1)


if __name__ == '__main__':
    flags.DEFINE_string('out', 'experiments/proofs/mutations.json', 'JSON file to write')
    flags.DEFINE_string('only', '', 'only alterations with this text in their names')
    start(main)

"""Damaged files through every reader: how many are read, how many refused, what else happens.

    python -m tests.fuzz.run COUNT [SEED] [OUT.json]
"""

from collections import Counter
import json
import os
from pathlib import Path
import queue
import subprocess
import sys
import threading

ROOT = Path(__file__).parents[2]
# Of silence, after which the worker hangs where no signal of its own reaches it.
START_SECONDS, CASE_SECONDS = 900, 300
GOOD = ('read', 'refused')


def run(count: int, seed: str = '0') -> list[dict]:
    """The reports of `worker` on cases 0..count-1; one that took it down has its own outcome."""
    reports: list[dict] = []
    while len(reports) < count:
        reports += _some(seed, len(reports), count - len(reports))
    return reports


def _some(seed: str, first: int, count: int) -> list[dict]:
    """Reports of one process, up to its end or its death."""
    command = [sys.executable, '-m', 'tests.fuzz.worker', seed, str(first), str(count)]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    lines, errors = queue.Queue(), []
    reader = threading.Thread(target=lambda: [lines.put(x) for x in process.stdout], daemon=True)
    other = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    reader.start(), other.start()
    reports = []
    while len(reports) < count:
        try:
            seconds = CASE_SECONDS if reports else START_SECONDS
            while reader.is_alive() or not lines.empty():
                try:
                    reports.append(json.loads(lines.get(timeout=min(1, seconds))))
                    break
                except queue.Empty:
                    seconds -= 1
                    if seconds < 0:
                        raise TimeoutError from None
            else:
                raise EOFError
        except (EOFError, TimeoutError) as error:
            process.kill()
            process.wait()
            other.join(5)
            if not reports:
                raise RuntimeError(f'the worker did not start: {"".join(errors)[-3000:]}') from None
            what = 'HUNG' if isinstance(error, TimeoutError) else f'DIED {process.returncode}'
            return [*reports, {
                'case': first + len(reports), 'seed': '?', 'outcome': what, 'same': False,
                'said': ''.join(errors)[-1000:], 'seconds': 0,
            }]  # fmt: skip
    process.wait()
    return reports


def summary(reports: list[dict]) -> dict:
    """Counts, the share that was read, and every case that went otherwise than it may."""
    outcomes = Counter(report['outcome'] for report in reports)
    by_seed: dict = {}
    for report in reports:
        by_seed.setdefault(report['seed'], Counter())[report['outcome']] += 1
    return {
        'cases': len(reports), 'outcomes': dict(outcomes),
        'read': round(outcomes['read'] / len(reports), 3),
        'slowest_seconds': max(report['seconds'] for report in reports),
        'by_seed': {name: dict(counts) for name, counts in sorted(by_seed.items())},
        'faults': [report for report in reports if report['outcome'] not in GOOD],
    }


if __name__ == '__main__':
    found = summary(run(int(sys.argv[1]), *sys.argv[2:3]))
    text = json.dumps(found, indent=1)
    if sys.argv[3:]:
        Path(sys.argv[3]).write_text(text + '\n')
    print(text)
    sys.exit(1 if found['faults'] else 0)

"""The JSON a proof leaves behind: what was run, on what, and the figures."""

from collections.abc import Collection
import datetime
import json
from pathlib import Path
import subprocess
import sys

from mossjax.checkpoint import versions
from mossjax.files import replacing

ROOT = Path(__file__).parents[2]


def write(path: str | Path, command: str, figures: dict) -> None:
    """Writes the record of a proof, replacing the one before."""
    content = {
        'command': command,
        'date': datetime.date.today().isoformat(),
        'commit': commit(),
        'versions': versions(),
        **figures,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + '\n')


def read(path: str | Path) -> dict:
    """A record; {} if there is none."""
    path = Path(path)
    return json.loads(path.read_text()) if path.exists() else {}


def parts(wanted: Collection[str] | None, known: Collection[str]) -> list[str]:
    """Of what is known, what `--parts` wants, or all; ends the process for what is not."""
    if unknown := set(wanted or ()) - set(known):
        sys.exit(f'--parts: {", ".join(sorted(unknown))} unknown; there are {", ".join(known)}')
    return [name for name in known if not wanted or name in wanted]


def commit() -> str:
    """The commit of the tree, with '+' if files differ from it; '' outside git."""

    def git(*words):
        done = subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ''

    changed = git('status', '--porcelain', '--untracked-files=no', '--', 'mossjax', 'experiments')
    return git('rev-parse', 'HEAD') + ('+' if changed else '')

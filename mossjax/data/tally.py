"""What came of the entries of a corpus, counted while rows are written."""

from collections import Counter
from collections.abc import Iterable, Sequence
import json
import os
from typing import Any

from mossjax import paths
from mossjax.data.chunks import CODES_PER_SECOND
from mossjax.data.corpus import UNREADABLE, Made
from mossjax.data.drafts import Reject
from mossjax.data.rows import IGNORE
from mossjax.errors import InputError
from mossjax.files import replacing
from mossjax.models.lm.grid import GridIds

NAMED = 5  # entries that are named for each reason
LISTED = 10  # recordings that cannot be read, of which it is said why


class Tally:
    """Counts of examples and tokens, entries left out by reason, recordings that cannot be read.

    Attributes:
      unreadable: audio path -> why.
    """

    def __init__(self, recipe: str, rejects: Iterable[Reject] = ()):
        self.unreadable: dict[str, str] = {}
        self._recipe = recipe
        self._kinds: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._recordings, self._seconds = 0, 0.0
        # reason -> entry -> (kinds, name, detail)
        self._left: dict[str, dict[Any, tuple[set[str], str, str]]] = {}
        for i, reject in enumerate(rejects):
            self.reject(('folder', i), reject)

    def hear(self, codes: Sequence[int]) -> None:
        """A recording that is used, undisturbed, or what stands for one."""
        self._recordings += 1
        self._seconds += len(codes) / CODES_PER_SECOND

    def unread(self, audio: str, error: InputError) -> None:
        self.unreadable[audio] = str(error)

    def reject(self, entry: Any, reject: Reject) -> None:
        """Once for each entry and reason, however often it is told."""
        about = self._left.setdefault(reject.reason, {})
        about.setdefault(entry, (set(), reject.name, reject.detail))[0].add(reject.kind)

    def add(self, made: Made, ids: GridIds) -> None:
        self._kinds[made.kind] += 1
        tokens, labels = made.example.tokens, made.example.labels
        speech = tokens[:, 0] == ids.speech
        self._tokens['text'] += int((~speech).sum())
        self._tokens['speech'] += int((speech & (tokens[:, 1] != ids.eosp)).sum())
        self._tokens['text targets'] += int((labels[:, 0] != IGNORE).sum())
        self._tokens['speech targets'] += int((labels[:, 1] != IGNORE).sum())

    def facts(self) -> dict[str, Any]:
        """As JSON: recordings, hours, examples by kind, tokens, left_out, unreadable."""
        left = [
            {
                'reason': reason,
                'kinds': sorted(set().union(*(kinds for kinds, _, _ in entries.values()))),
                'entries': len(entries),
                'names': [paths.printable(name) for _, name, _ in list(entries.values())[:NAMED]],
                'detail': paths.printable(next(iter(entries.values()))[2]),
            }
            for reason, entries in sorted(self._left.items(), key=lambda x: -len(x[1]))
        ]
        why = sorted(map(paths.printable, self.unreadable.values()))
        return {
            'recordings': self._recordings,
            'hours': self._seconds / 3600,
            'examples': dict(sorted(self._kinds.items())),
            'tokens': dict(self._tokens),
            'left_out': left,
            'unreadable': {'recordings': len(why), 'why': why[:LISTED]},
        }

    def save(self, path: str | os.PathLike) -> None:
        """Every entry that was left out, one JSON line for each reason; no file if none was."""
        lines = [
            {'name': name, 'kinds': sorted(kinds), 'reason': reason, 'detail': detail}
            for reason, entries in self._left.items()
            for kinds, name, detail in entries.values()
        ]
        lines += [
            {'name': audio, 'kinds': ['audio'], 'reason': UNREADABLE, 'detail': why}
            for audio, why in self.unreadable.items()
        ]
        if not lines:
            return
        with replacing(path) as temporary:
            temporary.write_text(''.join(json.dumps(line) + '\n' for line in lines))

    def nothing(self) -> InputError:
        """What to raise where no entry becomes an example."""
        facts = self.facts()
        reasons = [describe(left) for left in facts['left_out']] + facts['unreadable']['why']
        listed = ''.join(f'\n  {reason}' for reason in reasons)
        return InputError(
            f'recipe {self._recipe} can make nothing of this:{listed}\n'
            'mossjax rows --help says what each recipe needs'
        )


def describe(left: dict[str, Any]) -> str:
    """One line of 'left_out'."""
    more = ', ...' if left['entries'] > len(left['names']) else ''
    detail = f' ({left["detail"]})' if left['detail'] else ''
    names = ', '.join(map(os.path.basename, left['names']))
    what = f'{left["reason"]}{detail} [{" ".join(left["kinds"])}]'
    return f'{left["entries"]:,}  {what}: {names}{more}'

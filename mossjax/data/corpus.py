"""From a manifest entry and its codes to training examples: the one place that does it.

What comes of an entry is a function of (entry, its codes, recipe, seed), not of the other entries
or of their order, so that any number of workers can share a corpus. Which examples an entry can
become is in `data.drafts`, the job around all this in `data.job`.
Source: arXiv 2510.00499, pre-training and SFT sections.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib

import numpy as np

from mossjax.data.chunks import corrupt_codes
from mossjax.data.codes import Version
from mossjax.data.drafts import Recipe, Reject, drafts
from mossjax.data.format import Format
from mossjax.data.manifest import Entry
from mossjax.data.rows import Example
from mossjax.errors import InputError

UNREADABLE = 'audio that cannot be read'
# Audio path -> its codes, the undisturbed first; none where it could not be read.
Versions = Callable[[str], Sequence[Version]]


@dataclasses.dataclass(frozen=True)
class Made:
    """An example and what it is."""

    kind: str
    example: Example


def entry_rng(seed: int, key: str, version: int = 0) -> np.random.Generator:
    """Draws for one version of the entry whose manifest line is `key`."""
    words = np.frombuffer(hashlib.sha256(key.encode()).digest(), '<u4')
    return np.random.default_rng([seed, version, *words.tolist()])


def examples(
    entry: Entry, versions: Versions, recipe: Recipe, form: Format, rng: np.random.Generator,
    version: int = 0,
) -> Iterator[Made | Reject]:
    """The examples of an entry.

    Args:
      versions: the codes of a recording.
      rng: decides everything that is drawn.
      version: which of the versions is heard (counted round where there are fewer).
    """
    for draft in drafts(entry, recipe):
        if isinstance(draft, Reject):
            yield draft
            continue
        audio = [speech.audio for speech in draft.speech if speech.audio is not None]
        if not all(len(versions(path)) for path in audio):
            yield Reject(draft.kind, draft.name, UNREADABLE)
            continue
        try:
            found = [
                _version(speech, versions, recipe, form, rng, version) for speech in draft.speech
            ]
            made = draft.lay(found, form, rng)
        except InputError as error:
            yield Reject(draft.kind, draft.name, 'cannot be laid out', str(error))
            continue
        long = max(map(len, made))
        if recipe.length and long > recipe.length:
            detail = f'{long} positions'
            yield Reject(draft.kind, draft.name, 'longer than a row', detail)
        else:
            yield from (Made(draft.kind, example) for example in made)


def _version(speech, versions, recipe, form, rng, number) -> Version:
    if speech.codes is not None:
        found = Version(np.asarray(speech.codes, np.int32))
    else:
        there = versions(speech.audio)
        found = there[number % len(there) if speech.heard else 0]
    if not (speech.noisy and recipe.corrupt):
        return found
    fraction = recipe.corrupt * rng.random()
    return dataclasses.replace(
        found, codes=corrupt_codes(found.codes, rng, fraction, form.ids.eosp)
    )

"""The job around `data.corpus`: recordings to codes, entries to examples, examples to rows.

    DIR/rows/            the packed rows that training reads (`data.builder`); their metadata keeps
                         the summary of what came of the entries
    DIR/codes.jsonl      the codes of the recordings (`data.codes`), unless named otherwise
    DIR/left_out.jsonl   what was not used, and why

A job that was interrupted goes on where it stopped: codes are kept, rows are written anew from
them. A finished one is left alone, and one of other settings is refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from mossjax.convert import codec_directory
from mossjax.data import builder, corpus
from mossjax.data.codes import CodesStore, Encoder, tokenize_recordings
from mossjax.data.drafts import Draft, Recipe, Reject, drafts
from mossjax.data.format import Format
from mossjax.data.manifest import Entry, Recording, to_json
from mossjax.data.rows import Example
from mossjax.data.tally import Tally

Advance = Callable[[int], object]  # told how many more are done


@dataclasses.dataclass(frozen=True)
class Source:
    """Entries, and the folder that audio paths are told from."""

    entries: Sequence[Entry]
    root: Path


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that decides the rows.

    Attributes:
      length: positions of a row.
      versions: of each recording that is heard; its entry is laid out as often.
      fingerprint: names the speech tokenizer's weights (a hash).
      rejects: what the sources could not make entries of.
    """

    sources: Sequence[Source]
    recipe: Recipe
    form: Format
    length: int
    seed: int = 0
    versions: int = 1
    fingerprint: str = ''
    rejects: Sequence[Reject] = ()

    def entries(self) -> Iterator[tuple[Entry, str]]:
        """Each with what identifies it wherever its folder lies: its manifest line."""
        for source in self.sources:
            for entry in source.entries:
                yield entry, json.dumps(to_json(entry, source.root), sort_keys=True)

    def audio(self, entry: Entry) -> dict[str, int]:
        """The recordings that an entry needs -> how many versions of each."""
        needed: dict[str, int] = {}
        for draft in drafts(entry, self.recipe):
            for speech in draft.speech if isinstance(draft, Draft) else ():
                if speech.audio is not None:
                    count = self.versions if speech.heard else 1
                    needed[speech.audio] = max(count, needed.get(speech.audio, 0))
        return needed

    def config(self) -> dict[str, Any]:
        """What the metadata of the rows keeps of all this."""
        whole = hashlib.sha256()
        for entry, key in self.entries():
            whole.update(json.dumps([key, *map(_size, self.audio(entry))]).encode())
        recipe = dataclasses.asdict(self.recipe)
        return {
            'recipe': recipe.pop('name'), **recipe, 'seed': self.seed, 'versions': self.versions,
            'recordings': whole.hexdigest(), 'codec': self.fingerprint,
            'format': self.form.facts(),
        }  # fmt: skip


def run(
    job: Job,
    directory: str | os.PathLike,
    encoder: Callable[[], Encoder],
    *,
    codes: str | os.PathLike | None = None,
    bar: Callable[[str, int], Advance] = lambda what, total: lambda count: None,
) -> Mapping[str, Any]:
    """Writes the rows of a job, or finds them written; returns their metadata.

    Its 'summary' is `Tally.facts`. Recordings that cannot be read are left out and listed there.

    Args:
      encoder: opens the speech tokenizer; called where there is something to tokenize.
      codes: file of the codes, DIR/codes.jsonl by default; jobs of several recipes may share one,
        one after the other.
      bar: (name of a step, its total) -> what is told of its progress.

    Raises:
      InputError: the directory holds rows of another job, the codes are of another tokenizer, or
        nothing can be made of the entries.
    """
    directory = Path(directory)
    config, pad = job.config(), job.form.pad
    there = builder.kept(str(directory), job.length, config=config, pad=pad)
    if there is not None:
        return there
    tally = Tally(job.recipe.name, job.rejects)
    needed = _material(job, tally)
    store = _codes(job, needed, Path(codes or directory / 'codes.jsonl'), encoder, tally, bar)
    for audio in needed:
        if audio not in tally.unreadable:
            tally.hear(store.versions(audio)[0].codes)
    made = _examples(job, store, tally, bar)
    first = next(made, None)
    if first is None:
        raise tally.nothing()

    def summary() -> dict[str, Any]:
        tally.save(directory / 'left_out.jsonl')
        return tally.facts()

    return builder.write_rows(
        str(directory), itertools.chain([first], made), job.length, config=config, pad=pad,
        summary=summary,
    )  # fmt: skip


def _material(job: Job, tally: Tally) -> dict[str, int]:
    """The recordings that are needed -> versions.

    Raises:
      InputError: whatever the codes will be, no entry becomes an example.
    """
    needed: dict[str, int] = {}
    some = False
    for number, (entry, _) in enumerate(job.entries()):
        speech = set()
        for found in drafts(entry, job.recipe):
            if isinstance(found, Reject):
                tally.reject(number, found)
            else:
                some = True
                speech |= {one.codes for one in found.speech if one.codes is not None}
        for codes in speech:
            tally.hear(codes)
        for audio, count in job.audio(entry).items():
            needed[audio] = max(count, needed.get(audio, 0))
    if not some:
        raise tally.nothing()
    return needed


def _codes(job: Job, needed: dict[str, int], path: Path, encoder, tally: Tally, bar) -> CodesStore:
    if not needed:
        return CodesStore({})
    path.parent.mkdir(parents=True, exist_ok=True)
    return tokenize_recordings(
        _Late(encoder), [Recording(audio) for audio in needed], path, versions=needed,
        seed=job.seed, fingerprint=job.fingerprint, refused=tally.unread,
        advance=bar('codes', sum(needed.values())),
    )  # fmt: skip


class _Late:
    """An encoder that is opened when it is first used."""

    def __init__(self, open_encoder: Callable[[], Encoder]):
        self._open, self._encoder = open_encoder, None

    def encode(self, wavs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        self._encoder = self._encoder or self._open()
        return self._encoder.encode(wavs)


def _examples(job: Job, store: CodesStore, tally: Tally, bar) -> Iterator[Example]:
    """Of all entries and versions, in an order that the seed decides.

    Packing puts like lengths side by side in the order they come: in the manifest's own order all
    versions of a recording would share a row.
    """
    entries = list(job.entries())
    turns = [
        (number, version)
        for number, (entry, _) in enumerate(entries)
        for version in range(max(job.audio(entry).values(), default=1))
    ]
    advance = bar('rows', len(turns))

    def versions(audio: str) -> Sequence:
        return () if audio in tally.unreadable else store.versions(audio)

    for i in np.random.default_rng(job.seed).permutation(len(turns)).tolist():
        number, version = turns[i]
        entry, key = entries[number]
        rng = corpus.entry_rng(job.seed, key, version)
        for made in corpus.examples(entry, versions, job.recipe, job.form, rng, version):
            if isinstance(made, Reject):
                tally.reject(number, made)
            else:
                tally.add(made, job.form.ids)
                yield made.example
        advance(1)


def fingerprint(codec: str | os.PathLike) -> str:
    """A hash of what decides the codes of a codec directory, in either form."""
    whole = hashlib.sha256()
    for path in codec_directory.tokenizer_files(codec):
        with path.open('rb') as file:
            whole.update(hashlib.file_digest(file, 'sha256').digest())
    return whole.hexdigest()


def _size(path: str) -> int | None:
    return os.path.getsize(path) if os.path.exists(path) else None

"""The recordings that parts of a codec are trained on: `data` of their configs."""

from collections.abc import Mapping
import dataclasses

from mossjax.data import speech
from mossjax.data.clips import Clips, clips_in_memory, clips_on_disk
from mossjax.data.manifest import Recording, read_recordings
from mossjax.errors import InputError
from mossjax.train.config import choose, path
from mossjax.values import COUNT, SHARE, Range, ranged

CLIPS = {'memory': clips_in_memory, 'disk': clips_on_disk}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selected:
    """Which recordings a run is trained on, and how they are read.

    Attributes:
      manifest: JSONL of recordings (`data.manifest`).
      only: manifest key -> allowed values, e.g. {'speaker': ['slt']}; all recordings by default.
      keep: 'memory' or 'disk'.
      skip_rows: recordings to leave out, by the names that messages give them; what else a batch
        holds stays.
    """

    manifest: str = path()
    only: Mapping[str, list] = dataclasses.field(default_factory=dict)
    keep: str = 'memory'
    skip_rows: tuple[str, ...] = ()

    def recordings(self) -> list[Recording]:
        """
        Raises:
          InputError: none passes `only`, or see `read_recordings`.
        """
        found = [
            r for r in read_recordings(self.manifest)
            if all(_value(r, key) in allowed for key, allowed in self.only.items())
        ]
        if not found:
            raise InputError(
                f'{self.manifest}: no recording passes config.data.only = {dict(self.only)}'
            )
        return found

    def clips(self, rate: int) -> Clips:
        return choose(CLIPS, self.keep, 'data.keep')(self.recordings(), rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechData(Selected):
    """`data` of a tokenizer or decoder run: of `Selected`, and

    Attributes:
      seconds: padded audio in a global batch.
      rows_multiple: rows of a global batch are a multiple of it, and at least so many, whatever
        `seconds` says. Make it one of the devices that hold rows on every mesh the run is ever to
        use: the batches are then the same on all of them.
      weights: value of the manifest key `kind` -> appearances in an epoch, 1 if not listed.
      buckets: padded lengths, so compilations.
      room: seconds kept free behind each recording, for distortions that delay it (tokenizer).
      inventory: labels of the tokenizer's targets; made from the manifest and written there if
        the file does not exist.
      tokenizer: directory with the tokenizer.json of the texts (tokenizer runs with loss.text).
      codes: codes store of the recordings (decoder).
      prompts: share of rows that begin with another recording of their speaker, as a voice's
        prompt; prompt_codes: the most codes of it (decoder).
      vectors: store of speaker vectors (`data.vectors`), measured and written there if the file
        does not exist; speaker: codec directory whose speaker encoder makes them (decoder). '' for
        a decoder that is told whose voice it is by prompts alone.
      undisturbed: share of recordings that are spoken from their undisturbed codes whatever else
        the store has (decoder).
    """

    seconds: float = ranged(Range(0, 1e6, above=True))
    rows_multiple: int = ranged(Range(1, 65536, whole=True), 8)
    weights: Mapping[str, int] = ranged(COUNT, default_factory=dict)
    buckets: int = ranged(Range(1, speech.MOST_EDGES, whole=True), 4)
    room: float = ranged(Range(0, 3600), 0.0)
    inventory: str = path(default='')
    tokenizer: str = path(default='')
    codes: str = path(default='')
    prompts: float = ranged(SHARE, 0.0)
    prompt_codes: int = ranged(Range(1, 375, whole=True), 25)
    vectors: str = path(default='')
    speaker: str = path(default='')
    undisturbed: float = ranged(SHARE, 0.0)

    def batching(self, seed: int) -> dict:
        """Keyword arguments that both kinds of batches take."""
        return {
            'seconds': self.seconds, 'seed': seed, 'buckets': self.buckets,
            'weight': speech.by_key('kind', dict(self.weights)),
            'rows_multiple': self.rows_multiple, 'skip': self.skip_rows,
        }  # fmt: skip


def _value(recording: Recording, key: str):
    return recording.speaker if key == 'speaker' else recording.extra.get(key)

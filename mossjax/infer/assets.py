"""The shipped nano checkpoint: where it is, and what lies beside its weights.

    lm/            config.json, generation_config.json, model.safetensors, tokenizer files
    codec/         config.json, preprocessor_config.json, model.safetensors, flow/
    world.json     the facts, and which of them no training audio ever said
    recordings/    questions that no training heard, and the recorded answers; one after the other
                   in a few Ogg files (a header each would double their size), as index.json lists
    report.json    what the training run noted about itself
    NOTICE         origin, licences and hashes

`lm/` and `codec/` are laid out as released checkpoints are; `experiments.nano.ship` packs them.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import os
import pathlib

import numpy as np

from mossjax import values
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.infer import audio
from mossjax.ops.resample import resample

LM_FILES = (
    'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json',
    'tokenizer_config.json',
)  # fmt: skip
CODEC_FILES = (
    'config.json', 'preprocessor_config.json', 'model.safetensors', 'flow/config.yaml',
    'flow/flow.safetensors',
)  # fmt: skip
# Of a codec that was taught to speak by itself, and in whose voice.
VOICE_FILES = ('flow/hift.safetensors', 'flow/campplus.safetensors', 'voice.safetensors')
FILES = (
    *(f'lm/{name}' for name in LM_FILES),
    *(f'codec/{name}' for name in CODEC_FILES),
    'world.json', 'recordings/index.json', 'report.json', 'NOTICE',
)  # fmt: skip
RATE = 16000  # Hz, of the recordings
HELDOUT, NEVER_SPOKEN = 'heldout', 'never_spoken'


@dataclasses.dataclass(frozen=True)
class Fact:
    """One fact of world.json; `spoken` is False where no training audio says the question."""

    id: int
    family: str
    question: str
    answer: str
    spoken: bool

    @property
    def sentence(self) -> str:
        return f'the answer is {self.answer}'


@dataclasses.dataclass(frozen=True)
class Clip:
    """One recording of index.json.

    Attributes:
      file: of `recordings/` that holds it, from sample `start` on, `frames` samples.
      kind: 'question' or 'answer'.
      split: 'heldout', 'never_spoken' or, for answers, 'train'.
      fact: id of the fact asked about, -1 for an answer.
      rate: flite's duration_stretch: above 1 is slower.
      seconds: its length, frames / 16000.
    """

    file: str
    kind: str
    split: str
    text: str
    speaker: str
    rate: float
    fact: int
    start: int
    frames: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Assets:
    """An opened directory of the layout above; `files` are the SHA-256 of the recordings."""

    root: pathlib.Path
    facts: dict[int, Fact]
    clips: tuple[Clip, ...]
    files: dict[str, str]
    _loaded: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, root: str | os.PathLike) -> 'Assets':
        """Reads world.json and index.json.

        Raises:
          InputError: a file of the layout is missing, or the two do not fit together.
        """
        root = pathlib.Path(root)
        missing = [name for name in FILES if not (root / name).is_file()]
        if missing:
            raise InputError(
                f'{root}: no {", ".join(missing)}; copy the directory again, or pack a trained '
                'model with: python -m experiments.nano.ship'
            )
        facts = _parse(root / 'world.json', 'facts', Fact)
        index = root / 'recordings' / 'index.json'
        clips, files = _parse(index, 'recordings', Clip), read_json(index).get('files', {})
        assets = cls(root, {fact.id: fact for fact in facts}, tuple(clips), files)
        for clip in clips:
            if clip.kind == 'question' and clip.fact not in assets.facts:
                raise InputError(
                    f'{root}: recording {clip.file} asks for fact {clip.fact}, which world.json '
                    'does not have; the files are of different runs, pack them again'
                )
        unheard = sorted({fact.answer for fact in facts} - set(assets.answers))
        if unheard:
            raise InputError(
                f'{root}: no recording says the answers {", ".join(unheard)}; pack it again'
            )
        return assets

    @property
    def lm(self) -> pathlib.Path:
        return self.root / 'lm'

    @property
    def codec(self) -> pathlib.Path:
        return self.root / 'codec'

    @functools.cached_property
    def answers(self) -> dict[str, Clip]:
        """Answer word -> its recording."""
        return {clip.text.split()[-1]: clip for clip in self.clips if clip.kind == 'answer'}

    @functools.cached_property
    def report(self) -> dict:
        return read_json(self.root / 'report.json')

    def questions(self, split: str) -> list[Clip]:
        """The recorded questions of 'heldout' or 'never_spoken', in the order they were drawn."""
        return [clip for clip in self.clips if clip.kind == 'question' and clip.split == split]

    def load(self, clip: Clip, rate: int) -> np.ndarray:
        """float32 (w,) at `rate` Hz.

        Raises:
          InputError: the file is missing or is not the one that was packed.
        """
        whole = self._whole(clip.file)
        return resample(whole[clip.start : clip.start + clip.frames], RATE, rate)

    def _whole(self, file: str) -> np.ndarray:
        if file in self._loaded:
            return self._loaded[file]
        path = self.root / 'recordings' / file
        if not path.is_file() or sha256(path) != self.files.get(file):
            raise InputError(f'{path} is not the file that was packed; copy the directory again')
        return self._loaded.setdefault(file, audio.load(path, RATE))

    def hashes(self) -> dict[str, str]:
        """SHA-256 of everything that decides an answer: weights, configurations, tokenizer."""
        found = {f'lm/{name}': sha256(self.lm / name) for name in LM_FILES}
        return found | {f'codec/{name}': x for name, x in codec_hashes(self.codec).items()}


def codec_hashes(root: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of all that decides how a codec directory of this layout hears and speaks."""
    paths = {name: pathlib.Path(root, name) for name in (*CODEC_FILES, *VOICE_FILES)}
    return {
        name: sha256(path) for name, path in paths.items()
        if name in CODEC_FILES or path.is_file()
    }  # fmt: skip


def shipped(name: str = 'nano') -> pathlib.Path:
    """The directory of a checkpoint that comes with the package.

    Raises:
      InputError: this installation has none.
    """
    path = pathlib.Path(str(importlib.resources.files('mossjax'))) / 'assets' / name
    if not path.is_dir():
        raise InputError(
            f'{path} does not exist: this installation came without the {name} checkpoint. Install '
            'from a complete clone (pip install -e .), or name another directory with --assets'
        )
    return path


def sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _parse(path: pathlib.Path, key: str, kind: type) -> list:
    """The objects listed under `key` of a JSON file, as `kind`."""
    entries, types = read_json(path).get(key), {f.name: f.type for f in dataclasses.fields(kind)}
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, dict) or {n: type(v) for n, v in entry.items()} != types:
            raise InputError(
                f'{path}: {key} holds {values.shown(entry)}, which is not as packed; copy the '
                'directory again'
            )
    return [kind(**entry) for entry in entries]

"""What the nano language model is trained on, one row data set for each kind.

    text        T2T: every fact, asked and answered in writing
    repeat      T2T: repeat these words (so that ASR and TTS are a known task in another modality)
    asr, tts    speech to its words, words to speech (the reply voice)
    mixed       a recording cut at word borders, pieces alternating between speech and text
    s2s, s2t    a spoken question, answered aloud or in writing; spoken facts only
    t2s         a written question of a spoken fact, answered aloud

Here are the manifest entries of each; `mossjax.data.corpus` makes the examples. Questions are heard
in several shifted and noisy versions of their codes, a few of them corrupted; what the model is to
say is always the undisturbed version.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools

import numpy as np

from experiments.nano.render import REPLY_VOICE
from experiments.nano.world import Fact, World
from mossjax.data import corpus as corpora
from mossjax.data.codes import CodesStore
from mossjax.data.drafts import Recipe, Reject
from mossjax.data.format import Format
from mossjax.data.manifest import Dialogue, Entry, Recording, Turn
from mossjax.data.rows import Example
from mossjax.errors import InputError
from mossjax.models.lm.dialogue import CLEAN, Style, SystemPrompts
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.text import TextTokenizer

# Short, because every example carries one; a released model reads upstream's long ones.
PROMPTS = SystemPrompts(
    audio='answer in speech', text='answer in text', asr='repeat in text', tts='repeat in speech'
)
PROMPT_WORDS = ('answer', 'repeat', 'in', 'text', 'speech')
CORRUPTED = 0.04  # largest fraction of the codes of a heard recording that is replaced at random
CHUNK_SECONDS = (0.4, 1.2)
WORD_STRINGS = 20_000  # for 'repeat'
T2T = Recipe('sft', modes=('t2t',))


def style() -> Style:
    return dataclasses.replace(CLEAN, prompts=PROMPTS)


def format_of(tokenizer: TextTokenizer, ids: GridIds) -> Format:
    return Format(tokenizer, ids, style())


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What examples are made from.

    Attributes:
      recordings: of the training manifest.
      codes: their codes, several versions each.
    """

    world: World
    recordings: list[Recording]
    codes: CodesStore
    form: Format
    seed: int = 0

    @functools.cached_property
    def replies(self) -> dict[str, Recording]:
        """Answer word -> the recording of its reply."""
        kinds = [r for r in self.recordings if r.extra['kind'] == 'answer']
        return {r.text.split()[-1]: r for r in kinds}

    @functools.cached_property
    def answers(self) -> dict[str, np.ndarray]:
        """Answer word -> codes of its reply, undisturbed."""
        return {word: self.codes.versions(r.audio)[0].codes for word, r in self.replies.items()}

    def questions(self) -> Iterator[Dialogue]:
        """Every training rendering of a spoken fact, and the recorded answer."""
        facts = {f.id: f for f in self.world.spoken}
        for r in self.recordings:
            if r.extra['kind'] == 'question':
                fact = facts[r.extra['fact']]
                yield asked(fact, heard=r.audio, said=self.replies[fact.answer].audio)

    def examples(
        self, entries: Iterable[Entry], recipe: Recipe, stream: int, choose: Callable
    ) -> Iterator[Example]:
        """Of the versions of what is heard that `choose` picks; `stream` numbers the draws."""
        rng = np.random.default_rng([self.seed, stream])
        for entry in entries:
            audio = entry.audio if isinstance(entry, Recording) else entry.turns[0].audio
            there = len(self.codes.versions(audio)) if audio else 1
            for version in choose(there, rng):
                yield from _made(entry, recipe, self.form, rng, self.codes.versions, version)


def every(count: int, rng: np.random.Generator) -> Iterable[int]:
    del rng
    return range(count)


def one(count: int, rng: np.random.Generator) -> Iterable[int]:
    return [int(rng.integers(count))]


def plain(count: int, rng: np.random.Generator) -> Iterable[int]:
    del count, rng
    return [0]


def _made(entry, recipe, form, rng, versions=lambda audio: (), version=0) -> Iterator[Example]:
    """What must work for every entry: all of them are ours."""
    for made in corpora.examples(entry, versions, recipe, form, rng, version):
        if isinstance(made, Reject):
            raise InputError(f'{made.name}: {made.reason} {made.detail}')
        yield made.example


def sentence(answer: str) -> str:
    return f'the answer is {answer}'


def asked(fact: Fact, heard: str | None = None, said: str | None = None) -> Dialogue:
    """A fact as question and answer: in writing and, where recordings are named, in speech."""
    reply = Turn('assistant', audio=said, text=sentence(fact.answer))
    return Dialogue((Turn('user', audio=heard, text=fact.question), reply))


def _written(entries: Iterable[Dialogue], form: Format) -> Iterator[Example]:
    for entry in entries:
        yield from _made(entry, T2T, form, np.random.default_rng(0))


def text(world: World, form: Format) -> Iterator[Example]:
    return _written(map(asked, world.facts), form)


def repeat(world: World, form: Format, seed: int = 0) -> Iterator[Example]:
    rng = np.random.default_rng([seed, 1])
    strings = (' '.join(rng.choice(world.words, rng.integers(3, 8))) for _ in range(WORD_STRINGS))
    system = Turn('system', text=PROMPTS.asr)
    turns = ((system, Turn('user', text=x), Turn('assistant', text=x)) for x in strings)
    return _written(map(Dialogue, turns), form)


def asr(corpus: Corpus) -> Iterator[Example]:
    return corpus.examples(corpus.recordings, Recipe('asr', corrupt=CORRUPTED), 2, every)


def tts(corpus: Corpus) -> Iterator[Example]:
    ours = (r for r in corpus.recordings if r.speaker == REPLY_VOICE)
    return corpus.examples(ours, Recipe('tts'), 0, plain)


def mixed(corpus: Corpus) -> Iterator[Example]:
    recipe = Recipe('interleaved', seconds=CHUNK_SECONDS)
    return corpus.examples(corpus.recordings, recipe, 3, one)


def s2s(corpus: Corpus) -> Iterator[Example]:
    recipe = Recipe('sft', modes=('s2s',), corrupt=CORRUPTED)
    return corpus.examples(corpus.questions(), recipe, 4, every)


def s2t(corpus: Corpus) -> Iterator[Example]:
    recipe = Recipe('sft', modes=('s2t',), corrupt=CORRUPTED)
    return corpus.examples(corpus.questions(), recipe, 5, every)


def t2s(corpus: Corpus) -> Iterator[Example]:
    questions = (asked(f, said=corpus.replies[f.answer].audio) for f in corpus.world.spoken)
    return corpus.examples(questions, Recipe('sft', modes=('t2s',)), 0, plain)

"""The training examples of the nano language model, one row data set for each kind.

    text        T2T: every fact, asked and answered in writing
    repeat      T2T: repeat these words (so that ASR and TTS are a known task in another modality)
    asr, tts    speech to its words, words to speech (the reply voice)
    mixed       a recording cut at word borders, pieces alternating between speech and text
    s2s, s2t    a spoken question, answered aloud or in writing; spoken facts only
    t2s         a written question of a spoken fact, answered aloud

Inputs are drawn from several shifted and noisy versions of the codes of each recording, a few of
them corrupted; what the model is to say is always the undisturbed version.
"""

from collections.abc import Iterator
import dataclasses
import functools

import numpy as np

from experiments.nano.world import World
from mossjax.data import recipes
from mossjax.data.codes import CodesStore
from mossjax.data.manifest import Recording
from mossjax.data.recipes import Format
from mossjax.data.rows import Example
from mossjax.models.lm.dialogue import CLEAN, Style, SystemPrompts, Turn
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.text import TextTokenizer

# Short, because every example carries one; a released model reads upstream's long ones.
PROMPTS = SystemPrompts(audio='answer in speech', text='answer in text')
REPEAT_IN_TEXT, REPEAT_IN_SPEECH = 'repeat in text', 'repeat in speech'
PROMPT_WORDS = ('answer', 'repeat', 'in', 'text', 'speech')
CORRUPTED = 0.04  # fraction of the codes of a heard question that are replaced at random
CHUNK_SECONDS = (0.4, 1.2)
WORD_STRINGS = 20_000  # for 'repeat'


def style() -> Style:
    return dataclasses.replace(CLEAN, prompts=PROMPTS)


def format_of(tokenizer: TextTokenizer, ids: GridIds) -> Format:
    return Format(
        tokenizer, ids, style(), asr_prompt=REPEAT_IN_TEXT, tts_prompt=REPEAT_IN_SPEECH
    )


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What examples are made from.

    Attributes:
      recordings: of the training manifest.
      codes: their codes, several versions each.
      size: number of codec codes.
    """

    world: World
    recordings: list[Recording]
    codes: CodesStore
    form: Format
    size: int
    seed: int = 0

    @functools.cached_property
    def answers(self) -> dict[str, np.ndarray]:
        """Answer word -> codes of its reply recording, undisturbed."""
        kinds = [r for r in self.recordings if r.extra['kind'] == 'answer']
        return {r.text.split()[-1]: self.said(r) for r in kinds}

    def said(self, recording: Recording) -> np.ndarray:
        return self.codes.versions(recording.audio)[0].codes

    def heard(self, recording: Recording, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Every version of a recording, slightly corrupted."""
        for version in self.codes.versions(recording.audio):
            yield recipes.corrupt_codes(version.codes, rng, CORRUPTED * rng.random(), self.size)

    def questions(self) -> Iterator[tuple[Recording, str, str]]:
        """(recording, question, answer word) of every training rendering of a spoken fact."""
        facts = {f.id: f for f in self.world.spoken}
        for r in self.recordings:
            if r.extra['kind'] == 'question':
                yield r, facts[r.extra['fact']].question, facts[r.extra['fact']].answer


def sentence(answer: str) -> str:
    return f'the answer is {answer}'


def _dialogue(user, reply, form: Format) -> Example:
    return recipes.dialogue([Turn('user', user), Turn('assistant', reply)], form)


def text(world: World, form: Format) -> Iterator[Example]:
    for fact in world.facts:
        yield _dialogue(fact.question, sentence(fact.answer), form)


def repeat(world: World, form: Format, seed: int = 0) -> Iterator[Example]:
    rng = np.random.default_rng([seed, 1])
    for _ in range(WORD_STRINGS):
        words = ' '.join(rng.choice(world.words, rng.integers(3, 8)))
        yield recipes.dialogue(
            [Turn('system', REPEAT_IN_TEXT), Turn('user', words), Turn('assistant', words)], form
        )


def asr(corpus: Corpus) -> Iterator[Example]:
    rng = np.random.default_rng([corpus.seed, 2])
    for r in corpus.recordings:
        for codes in corpus.heard(r, rng):
            yield recipes.asr(codes, r.text, corpus.form, r.audio)


def tts(corpus: Corpus) -> Iterator[Example]:
    for r in corpus.recordings:
        if r.speaker == 'slt':
            yield recipes.tts(r.text, corpus.said(r), corpus.form, r.audio)


def mixed(corpus: Corpus) -> Iterator[Example]:
    rng = np.random.default_rng([corpus.seed, 3])
    for r in corpus.recordings:
        version = corpus.codes.draw(r.audio, rng)
        chunks = recipes.chunks_at_words(
            r.words, version.codes, rng, CHUNK_SECONDS, version.offset
        )
        yield recipes.interleaved(chunks, corpus.form, rng, r.audio)


def s2s(corpus: Corpus) -> Iterator[Example]:
    rng = np.random.default_rng([corpus.seed, 4])
    for r, _, answer in corpus.questions():
        for codes in corpus.heard(r, rng):
            yield _dialogue(codes, corpus.answers[answer], corpus.form)


def s2t(corpus: Corpus) -> Iterator[Example]:
    rng = np.random.default_rng([corpus.seed, 5])
    for r, _, answer in corpus.questions():
        for codes in corpus.heard(r, rng):
            yield _dialogue(codes, sentence(answer), corpus.form)


def t2s(corpus: Corpus) -> Iterator[Example]:
    for fact in corpus.world.spoken:
        yield _dialogue(fact.question, corpus.answers[fact.answer], corpus.form)

"""Rows that might let knowledge cross from text to speech, beside those of `examples`.

None of them has a fact in speech that `world` withholds. Which of them help: `crossing`.

    silent          text targets on rows of speech: the words that were heard, those being said
    mixed_question  a spoken fact asked in words of which each is written or spoken
    mixed_words     the same of any recording, to be written down
    mixed_reply     a spoken fact whose reply changes between writing and speech at a word
    brief           a fact asked in writing, answered by one word

A word of speech is the codes between its borders; what stands between two written words opens and
closes as any speech does. The targets of `silent` train the text head where its output is never
used: what a model writes and says is as before.
"""

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

from experiments.nano.examples import CORRUPTED, Corpus, sentence
from mossjax.data import recipes
from mossjax.data.chunks import corrupt_codes, word_borders
from mossjax.data.codes import Version
from mossjax.data.format import Format
from mossjax.data.manifest import Recording
from mossjax.data.rows import Example
from mossjax.models.lm.dialogue import Turn, turn_segments
from mossjax.models.lm.grid import concatenate, speech_rows, text_rows

SPOKEN = 0.2, 0.9  # bounds of the share of words that are spoken, drawn for each question
ONE_WORD = 'answer'  # the system prompt of brief answers
LATE = 1  # codes behind its border at which a word that was heard is a target


# ------------------------------------------------------------------------------ silent targets


def silent(
    item: Example, form: Format, heard: tuple[Recording, float] | None = None,
    said: Recording | None = None,
) -> Example:
    """The same example with words as text targets on its rows of speech.

    Args:
      heard: what the first speech in it is, and its seconds of silence before: each word is a
        target one row after its last code.
      said: what the last speech in it is: each row has the word of the code that comes next.
    """
    labels = item.labels.copy()
    spans = _speech(item, form)
    if heard is not None:
        (first, count), (recording, offset) = spans[0], heard
        for border, token in zip(
            word_borders(recording.words, count, offset), _ids(recording.text, form), strict=True
        ):
            labels[first + border + LATE, 0] = token
    if said is not None:
        (first, count), tokens = spans[-1], _ids(said.text, form)
        word = np.searchsorted(word_borders(said.words, count), np.arange(count), side='right')
        labels[first : first + count, 0] = np.asarray(tokens)[word]
    return dataclasses.replace(item, labels=labels)


def _speech(item: Example, form: Format) -> list[tuple[int, int]]:
    """(row that opens it, codes) of each stretch of speech."""
    opened = np.flatnonzero(item.tokens[:, 0] == form.ids.sosp)
    speech = item.tokens[:, 0] == form.ids.speech
    closed = np.flatnonzero(speech & (item.tokens[:, 1] == form.ids.eosp))
    return [(int(a), int(b - a - 1)) for a, b in zip(opened, closed, strict=True)]


# --------------------------------------------------------------------- words written or spoken


def mixed_question(corpus: Corpus, spoken: bool, stream: int) -> Iterator[Example]:
    """Every training rendering of a spoken fact once; `spoken`: the reply."""
    rng, facts = _rng(corpus, stream), {f.id: f for f in corpus.world.spoken}
    for recording in _questions(corpus):
        answer = facts[recording.extra['fact']].answer
        reply = corpus.answers[answer] if spoken else sentence(answer)
        prompts = corpus.form.style.prompts
        yield _laid(
            prompts.audio if spoken else prompts.text, _drawn(corpus, recording, rng),
            _content(reply, corpus.form), corpus.form,
        )  # fmt: skip


def mixed_words(corpus: Corpus, stream: int) -> Iterator[Example]:
    """Every training recording once, written down."""
    rng, form = _rng(corpus, stream), corpus.form
    for recording in corpus.recordings:
        question = _drawn(corpus, recording, rng)
        yield _laid(form.style.prompts.asr, question, _content(recording.text, form), form)


def mixed_reply(corpus: Corpus, stream: int) -> Iterator[Example]:
    """Questions in writing, in speech or mixed; the reply begins in one and ends in the other."""
    rng, form = _rng(corpus, stream), corpus.form
    facts, prompts = {f.id: f for f in corpus.world.spoken}, form.style.prompts
    for recording in _questions(corpus):
        way = rng.integers(3)
        if way == 0:
            question = _content(recording.text, form)
        elif way == 1:
            there = corpus.codes.versions(recording.audio)
            question = _content(there[int(rng.integers(len(there)))].codes, form)
        else:
            question = _drawn(corpus, recording, rng)
        answer = facts[recording.extra['fact']].answer
        said, codes = corpus.replies[answer], corpus.answers[answer]
        at, speaks = int(rng.integers(1, len(said.words))), bool(rng.integers(2))
        spoken = [speaks if i < at else not speaks for i in range(len(said.words))]
        reply = words(said, Version(codes), spoken, form)
        yield _laid(prompts.audio if speaks else prompts.text, question, reply, form)


def words(
    recording: Recording, version: Version, spoken: Sequence[bool], form: Format
) -> np.ndarray:
    """Rows (t, 2) of a recording whose words are spoken or written; neighbours stay together."""
    tokens = _ids(recording.text, form)
    borders = word_borders(recording.words, len(version.codes), version.offset)
    pieces = [version.codes[a:b] for a, b in zip([0, *borders], borders, strict=False)]
    spoken = [bool(s) and len(piece) > 0 for s, piece in zip(spoken, pieces, strict=True)]
    starts = [i for i in range(len(spoken)) if i == 0 or spoken[i] != spoken[i - 1]]
    return concatenate([
        speech_rows(np.concatenate(pieces[a:b]), form.ids) if spoken[a]
        else text_rows(tokens[a:b], form.ids)
        for a, b in zip(starts, [*starts[1:], len(spoken)], strict=True)
    ])  # fmt: skip


def _drawn(corpus: Corpus, recording: Recording, rng: np.random.Generator) -> np.ndarray:
    """A question with some of its words spoken."""
    version = _version(corpus, recording, rng)
    spoken = rng.random(len(recording.words)) < rng.uniform(*SPOKEN)
    return words(recording, version, spoken.tolist(), corpus.form)


def _version(corpus: Corpus, recording: Recording, rng: np.random.Generator) -> Version:
    """One of the versions of what is heard, some codes corrupted."""
    there = corpus.codes.versions(recording.audio)
    version = there[int(rng.integers(len(there)))]
    codes = corrupt_codes(version.codes, rng, CORRUPTED * rng.random(), corpus.form.ids.eosp)
    return dataclasses.replace(version, codes=codes)


# ------------------------------------------------------------------------------- short answers


def brief(corpus: Corpus) -> Iterator[Example]:
    """Every fact in writing, answered by its one word."""
    for fact in corpus.world.facts:
        yield _laid(
            ONE_WORD, _content(fact.question, corpus.form), _content(fact.answer, corpus.form),
            corpus.form,
        )  # fmt: skip


# -------------------------------------------------------------------------------- what they share


def _laid(prompt: str, question: np.ndarray, reply: np.ndarray, form: Format) -> Example:
    """A dialogue of one question, its contents given as rows; the reply is supervised."""
    parts = []
    for role, content in (('system', None), ('user', question), ('assistant', reply)):
        text = prompt if content is None else ''
        opening, rows, closing = turn_segments(
            Turn(role, text), form.tokenizer, form.ids, form.style
        )
        rows = rows if content is None else content
        parts += [
            recipes.Part(opening, role, 'opening'), recipes.Part(rows, role, 'content'),
            recipes.Part(closing, role, 'closing'),
        ]  # fmt: skip
    grid = concatenate([part.rows for part in parts])
    targets = np.concatenate([recipes.replies(part) for part in parts])
    return recipes.example(grid, targets & (grid[:, 0] != form.ids.sosp), form.ids)


def _content(content, form: Format) -> np.ndarray:
    _, rows, _ = turn_segments(Turn('user', content), form.tokenizer, form.ids, form.style)
    return rows


def _ids(text: str, form: Format) -> list[int]:
    """One id a word: `text.train` made each a token."""
    return form.tokenizer.encode_plain(text)


def _questions(corpus: Corpus) -> Iterator[Recording]:
    return (r for r in corpus.recordings if r.extra['kind'] == 'question')


def _rng(corpus: Corpus, stream: int) -> np.random.Generator:
    return np.random.default_rng([corpus.seed, stream])

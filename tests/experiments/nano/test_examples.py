"""The nano examples: what is asked, what is answered, and what is never spoken."""

import numpy as np
import pytest

from experiments.nano import examples, text, world
from mossjax.data.codes import CodesStore, Version
from mossjax.data.manifest import Recording
from mossjax.data.rows import IGNORE
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.text import TextTokenizer

CODES = 32


@pytest.fixture(scope='module')
def form(tmp_path_factory):
    folder = tmp_path_factory.mktemp('text')
    text.save(text.train([*world.build().words, *examples.PROMPT_WORDS]), folder)
    tokenizer = TextTokenizer.open(folder)
    ids = GridIds(
        vocab=tokenizer.size, audio_vocab=CODES + 8, sosp=tokenizer.id(text.SOSP),
        speech=tokenizer.id(text.MODALITY_PAD), filler=0, eosp=CODES, pad=tokenizer.pad,
        eos=tokenizer.im_end, stops=(tokenizer.endoftext, tokenizer.im_end),
    )  # fmt: skip
    return examples.format_of(tokenizer, ids)


@pytest.fixture(scope='module')
def corpus(form):
    """A question in two versions and the answers; codes are numbers that say whose they are."""
    facts = world.build()
    fact = facts.spoken[0]
    words = tuple((w, 0.4 * (i + 1)) for i, w in enumerate(fact.question.split()))
    asked = Recording('q.flac', fact.question, 'rms', words=words,
                      extra={'kind': 'question', 'fact': fact.id})  # fmt: skip
    said = [
        Recording(f'{a}.flac', examples.sentence(a), 'slt',
                  words=tuple((w, 0.4 * (i + 1)) for i, w in enumerate(['the', 'answer', 'is', a])),
                  extra={'kind': 'answer', 'fact': -1})  # fmt: skip
        for a in facts.answers
    ]
    number = {a: 10 + i % 20 for i, a in enumerate(facts.answers)}
    store = {r.audio: [Version(np.full(20, number[r.text.split()[-1]]))] for r in said}
    store['q.flac'] = [Version(np.full(25, 1)), Version(np.full(26, 2), 0.05)]
    return examples.Corpus(facts, [asked, *said], CodesStore(store), form), fact, number


def words(example, form) -> str:
    """The text channel, speech rows left out."""
    rows = example.tokens[example.tokens[:, 0] != form.ids.speech, 0]
    return form.tokenizer.decode(rows)


def targets(example, channel):
    found = example.labels[:, channel]
    return found[found != IGNORE].tolist()


def test_spoken_question_spoken_answer(corpus, form):
    made, fact, number = corpus
    found = list(examples.s2s(made))
    assert len(found) == 2  # one recording, two versions
    for example in found:
        assert fact.question not in words(example, form)
        assert fact.answer not in words(example, form).split()
        assert targets(example, 1) == [number[fact.answer]] * 20 + [CODES]
        assert targets(example, 0) == [form.tokenizer.im_end]
        assert 'answer in speech' in words(example, form)


def test_spoken_question_written_answer(corpus, form):
    made, fact, _ = corpus
    for example in examples.s2t(made):
        right = form.tokenizer.encode_plain(examples.sentence(fact.answer))
        assert targets(example, 0) == [*right, form.tokenizer.im_end]
        assert targets(example, 1) == []
        assert 'answer in text' in words(example, form)


def test_inputs_are_corrupted_a_little_and_targets_never(corpus):
    made, _, number = corpus
    heard = np.concatenate([e.tokens[e.tokens[:, 1] != 0, 1] for e in examples.asr(made)])
    plain = set(number.values()) | {1, 2, CODES}
    assert 0 < np.mean([code not in plain for code in heard]) < examples.CORRUPTED
    for example in examples.tts(made):
        assert len(set(targets(example, 1)[:-1])) == 1


def test_facts_never_spoken_are_asked_in_writing_only(corpus, form):
    made, _, _ = corpus
    secret = {f'user\n{f.question}\n' for f in made.world.never_spoken}
    asked = [words(e, form) for e in examples.t2s(made)]
    assert len(asked) == len(made.world.spoken)
    assert not any(question in asked_in for asked_in in asked for question in secret)
    written = '\n'.join(words(e, form) for e in examples.text(made.world, form))
    assert all(question in written for question in secret)  # so the marks are where we look


def test_mixed_passages_hold_every_word_once(corpus, form):
    """Each chunk is words or codes: the words that are left and the codes make up the whole."""
    made, fact, _ = corpus
    example = next(e for e in examples.mixed(made) if e.name == 'q.flac')
    speech = example.tokens[:, 0] == form.ids.speech
    codes = example.tokens[speech & (example.tokens[:, 1] != CODES), 1]
    kept = [w for w in words(example, form).split('<|endoftext|>')[0].split() if w.isalpha()]
    assert 0 < len(kept) < len(fact.question.split())
    assert 0 < len(codes) < 26 and set(codes.tolist()) <= {1, 2}

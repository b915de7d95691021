"""The bytes of the nano rows: what the shipped checkpoint was trained on is what is made today.

The hashes were recorded of the code that laid the rows out by itself, before `data.corpus`.
"""

import hashlib

import numpy as np
import pytest

from experiments.nano import examples, stages, world
from mossjax.data.builder import open_rows
from mossjax.data.codes import CodesStore, Version
from mossjax.data.manifest import Recording
from mossjax.files import read_json
from mossjax.infer.assets import shipped
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.text import TextTokenizer

CODES = 512
# (how many, beginning of the SHA-256 of tokens and labels in order)
EXAMPLES = {
    'text': (353, '6c9058bd454f4220'),
    'repeat': (60, 'dd8a38a3b195dcf9'),
    'asr': (405, 'bca33a042b7d8965'),
    'tts': (110, '539fcae649b8e71a'),
    'mixed': (135, 'b0d6b8e6b74a4518'),
    's2s': (42, '750cadf81d4a0d8b'),
    's2t': (42, 'ae41243adc209c43'),
    't2s': (264, '3f5182b0ed5cdd54'),
}
# SHA-256 of the rows that `stages.write` packs of them.
ROWS = {
    'mixed': '3fb2eee8ec157e87a8b075cc1969cc596a13bad813a602a65e610a681fe5957d',
    's2s': 'b74de594f261c6f7808a152ab5937f78436ea34c2471721e717f3b0be2599730',
}
# What their data sets say of the format, so that rows of an earlier run stay usable.
FORMAT = 'f7b4f85a6785ef3d'


@pytest.fixture(scope='module')
def form():
    lm = shipped() / 'lm'
    tokenizer = TextTokenizer.open(lm)
    config = LMConfig.from_hf(read_json(lm / 'config.json'))
    return examples.format_of(tokenizer, GridIds.of(config, tokenizer))


@pytest.fixture(scope='module')
def corpus(form):
    """Twelve questions in two voices, every answer in one or two, strings of words."""
    rng = np.random.default_rng(7)
    facts = world.build()
    recordings, store = [], {}

    def add(audio, text, speaker, kind, fact):
        ends = np.cumsum(rng.uniform(0.1, 0.6, len(text.split()))).round(4).tolist()
        words = tuple(zip(text.split(), ends, strict=True))
        extra = {'kind': kind, 'fact': fact, 'seconds': ends[-1] + 0.1}
        recordings.append(Recording(audio, text, speaker, (), words, extra))
        store[audio] = []
        for offset in (0.0, *rng.uniform(0, 0.07, 2).tolist()):
            size = int(np.ceil((ends[-1] + 0.1 + offset) * 12.5))
            store[audio].append(Version(rng.integers(0, CODES, size).astype(np.int32), offset))

    for i, fact in enumerate(facts.spoken[::20]):
        add(f'q/{i}.flac', fact.question, ('rms', 'slt')[i % 2], 'question', fact.id)
    for answer in facts.answers:
        add(f'a/{answer}.flac', examples.sentence(answer), 'slt', 'answer', -1)
    for answer in facts.answers[:9]:
        add(f'o/{answer}.flac', examples.sentence(answer), 'awb', 'answer_other', -1)
    for i in range(9):
        add(f'w/{i}.flac', ' '.join(rng.choice(facts.words, 5)), 'kal16', 'words', -1)
    return examples.Corpus(facts, recordings, CodesStore(store), form, seed=3)


def made(name, corpus, form):
    if name == 'text':
        return examples.text(corpus.world, form)
    if name == 'repeat':
        return examples.repeat(corpus.world, form, 3)
    return getattr(examples, name)(corpus)


def digest(found):
    whole = hashlib.sha256()
    for example in found:
        whole.update(example.tokens.tobytes())
        whole.update(example.labels.tobytes())
    return whole.hexdigest()[:16]


@pytest.mark.parametrize('name', ['text', 'repeat', 'asr', 'tts', 'mixed', 's2s', 's2t', 't2s'])
def test_examples_are_byte_for_byte_what_they_were(name, corpus, form, monkeypatch):
    monkeypatch.setattr(examples, 'WORD_STRINGS', 60)
    found = list(made(name, corpus, form))
    assert (len(found), digest(found)) == EXAMPLES[name]


@pytest.mark.parametrize('name', ['mixed', 's2s'])
def test_packed_rows_are_byte_for_byte_what_they_were(name, corpus, form, tmp_path):
    stages.write(tmp_path, name, lambda: made(name, corpus, form), form, 'test')
    metadata = open_rows(str(tmp_path / 'rows' / name)).metadata
    assert metadata['sha256'] == ROWS[name]
    said = repr(sorted(metadata['config']['format'].items()))
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == FORMAT

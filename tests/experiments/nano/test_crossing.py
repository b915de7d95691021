"""The crossing study: what its rows say and teach, and the table of its record."""

import numpy as np
import pytest

from experiments.nano import crossing, crossing_rows, examples
from mossjax.data.codes import CodesStore, Version
from mossjax.data.manifest import Recording
from mossjax.data.rows import IGNORE
from mossjax.files import read_json
from tests.experiments.nano.test_examples import CODES, corpus, form, targets  # noqa: F401


def test_words_are_spoken_or_written_in_their_places(corpus, form):  # noqa: F811
    made, fact, _ = corpus
    recording = made.recordings[0]
    count = len(recording.words)
    version = Version(np.arange(5 * count) % CODES)  # 0.4 s, five codes, a word
    spoken = [i % 2 == 0 for i in range(count)]
    rows = crossing_rows.words(recording, version, spoken, form)
    want = []
    for i, token in enumerate(form.tokenizer.encode_plain(fact.question)):
        want += (
            [(form.ids.sosp, 0), *((form.ids.speech, c) for c in version.codes[5 * i : 5 * i + 5]),
             (form.ids.speech, CODES)] if spoken[i] else [(token, 0)]
        )  # fmt: skip
    assert rows.tolist() == [list(map(int, row)) for row in want]
    whole = crossing_rows.words(recording, version, [True] * count, form)
    assert whole[1:-1, 1].tolist() == version.codes.tolist()  # one start, one end


def test_a_mixed_question_is_answered_as_any(corpus, form):  # noqa: F811
    made, fact, number = corpus
    (spoken,) = crossing_rows.mixed_question(made, True, 0)
    assert targets(spoken, 1) == [number[fact.answer]] * 20 + [CODES]
    (written,) = crossing_rows.mixed_question(made, False, 0)
    right = form.tokenizer.encode_plain(examples.sentence(fact.answer))
    assert targets(written, 0) == [*right, form.tokenizer.im_end] and not targets(written, 1)
    for stream in range(20):
        (reply,) = crossing_rows.mixed_reply(made, stream)
        said = targets(reply, 0)[:-1] + targets(reply, 1)
        assert set(said) <= {*right, number[fact.answer], CODES}
        assert form.ids.sosp not in said and 0 < len(targets(reply, 0)) < 5
    short = list(crossing_rows.brief(made))[fact.id]
    assert targets(short, 0) == [*form.tokenizer.encode_plain(fact.answer), form.tokenizer.im_end]


def test_silent_targets_are_the_words_in_time_and_change_nothing_else(corpus, form):  # noqa: F811
    made, fact, _ = corpus
    asked, said = made.recordings[0], made.replies[fact.answer]
    for item, version in zip(examples.s2s(made), made.codes.versions('q.flac'), strict=True):
        silent = crossing_rows.silent(item, form, (asked, version.offset), said)
        assert (silent.tokens == item.tokens).all()
        assert (silent.labels[:, 1] == item.labels[:, 1]).all()
        kept = item.labels[:, 0] != IGNORE
        assert (silent.labels[kept] == item.labels[kept]).all()
        new = silent.labels[:, 0][~kept & (silent.labels[:, 0] != IGNORE)].tolist()
        question = form.tokenizer.encode_plain(fact.question)
        reply = form.tokenizer.encode_plain(said.text)
        assert new[: len(question)] == question
        assert new[len(question) :] == [t for t in reply for _ in range(5)]  # 0.4 s each
        first = np.flatnonzero(silent.labels[:, 0] == question[0])[0]
        opened = np.flatnonzero(item.tokens[:, 0] == form.ids.sosp)[0]
        assert first - opened == round((0.4 + version.offset) * 12.5) + 1


def test_no_fact_that_is_never_spoken_is_heard(corpus, form):  # noqa: F811
    made, _, _ = corpus
    hidden = made.world.never_spoken[0]
    strange = Recording('x.flac', hidden.question, 'rms', words=(),
                        extra={'kind': 'question', 'fact': hidden.id})  # fmt: skip
    store = CodesStore({'x.flac': [Version(np.ones(9))]})
    bad = examples.Corpus(made.world, [strange], store, form)
    with pytest.raises(KeyError):  # it is no spoken fact: the study would end here
        list(crossing_rows.mixed_question(bad, True, 0))


def test_the_table_is_computed_from_the_counts():
    record = {'variants': [
        {'name': 'a', 'change': 'this', 'right': {
            f'{split}/{mode}': [[1, 4], [3, 4]]
            for split in ('heldout', 'never_spoken') for mode in crossing.MODES}},
        {'name': 'b', 'change': 'that', 'right': {
            f'{split}/{mode}': [[4, 4]]
            for split in ('heldout', 'never_spoken') for mode in crossing.MODES}},
    ]}  # fmt: skip
    best, other = crossing.lines(record)
    assert (best.change, best.share) == ('that', 1)
    assert other.share == 0.5 and other.low == pytest.approx(0.215, abs=1e-3)  # Wilson, 4 of 8
    assert '| this | 25 / 75 |' in crossing.table([best, other])


def test_the_record_is_whole():
    record = read_json(crossing.RECORD)
    found = crossing.lines(record)
    assert len(found) == len(record['variants'])
    assert {len(line.shares['never_spoken/s2s']) for line in found} <= {1, 2, 3}
    for variant in record['variants']:
        for split, count in (('heldout', 1056), ('never_spoken', 712)):
            assert {n for _, n in variant['right'][f'{split}/s2s']} == {count}

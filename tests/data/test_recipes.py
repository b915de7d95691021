"""Labels by hand: which rows are targets, of which head, shifted by one."""

import dataclasses
import json

import numpy as np
import pytest

from mossjax.data import chunks, recipes
from mossjax.data.format import check_rows
from mossjax.data.rows import IGNORE
from mossjax.errors import InputError
from mossjax.models.lm.dialogue import Turn, build_prompt
from tests.tiny_lm import tiny_config

X = IGNORE
# Ids of tests/data/conftest.py.
START, END, SOSP, SP, FILL, EOSP = 2, 3, 4, 5, 30, 32
NL, SYSTEM, USER, ASSISTANT, SPEAK, WRITE, WHAT, IS, TWO, FOUR, DOG = range(6, 17)


def rows(*pairs):
    return np.array(pairs, np.int32)


def text(*ids):
    return [(i, FILL) for i in ids]


def test_speech_to_speech_reply(form):
    turns = [Turn('system', 'speak'), Turn('user', [7, 8]), Turn('assistant', [9, 10])]
    got = recipes.dialogue(turns, form)
    np.testing.assert_array_equal(
        got.tokens,
        rows(
            *text(START, SYSTEM, NL, SPEAK, END, NL),
            *text(START, USER, NL, SOSP), (SP, 7), (SP, 8), (SP, EOSP), *text(END, NL),
            *text(START, ASSISTANT, NL, SOSP), (SP, 9), (SP, 10), (SP, EOSP), *text(END, NL),
        ),
    )  # fmt: skip
    none = [(X, X)]
    np.testing.assert_array_equal(
        got.labels,
        rows(
            *none * 6,
            *none * 9,
            # <|im_start|> assistant newline; sosp is given, and predicts the first code; end of
            # speech predicts <|im_end|> with the text head; the newline is not learnt.
            *none * 3, (X, 9), (X, 10), (X, EOSP), (END, X), *none * 2,
        ),
    )  # fmt: skip


def test_text_reply(form):
    turns = [Turn('system', 'write'), Turn('user', [7]), Turn('assistant', 'four dog')]
    got = recipes.dialogue(turns, form)
    reply = len(got) - 7  # im_start assistant newline four dog im_end newline
    assert got.tokens[reply:, 0].tolist() == [START, ASSISTANT, NL, FOUR, DOG, END, NL]
    assert got.labels[reply:, 0].tolist() == [X, X, FOUR, DOG, END, X, X]
    assert (got.labels[:reply] == X).all() and (got.labels[:, 1] == X).all()


def test_what_is_supervised_starts_right_after_the_prompt_of_generation(form):
    """Training sees the very prompt that generation builds, for text and speech both ways."""
    for question in ('what is two', [1, 2, 3]):
        for reply, kind in (('four', 'text'), ([4, 5], 'audio')):
            asked = [Turn('user', question)]
            prompt = build_prompt(asked, kind, form.tokenizer, form.ids, form.style)
            got = recipes.dialogue([Turn('user', question), Turn('assistant', reply)], form)
            np.testing.assert_array_equal(got.tokens[: len(prompt)], prompt)
            supervised = np.flatnonzero((got.labels != X).any(1))
            assert supervised[0] == len(prompt) - 1
            assert supervised[-1] == len(got) - 3 and len(supervised) == len(got) - len(prompt) - 1


def test_every_row_is_supervised_but_starts_of_speech(form):
    turns = [Turn('system', 'speak'), Turn('user', [7, 8]), Turn('assistant', [9])]
    got = recipes.dialogue(turns, form, 'all')
    for t in range(len(got) - 1):
        a, b = got.tokens[t + 1]
        want = (X, b) if a == SP else ((X, X) if a == SOSP else (a, X))
        assert tuple(got.labels[t]) == want


def test_earlier_replies_are_supervised_too(form):
    turns = [
        Turn('system', 'write'), Turn('user', 'what'), Turn('assistant', 'two'),
        Turn('user', 'what'), Turn('assistant', 'four'),
    ]  # fmt: skip
    got = recipes.dialogue(turns, form)
    assert got.labels[:, 0][got.labels[:, 0] != X].tolist() == [TWO, END, FOUR, END]


def test_asr_and_tts_are_mirrors(form):
    heard = recipes.asr([7, 8], 'two dog', form)
    assert heard.labels[heard.labels != X].tolist() == [TWO, DOG, END]
    assert heard.tokens[3:5].tolist() == [[WRITE, FILL], [WHAT, FILL]]
    said = recipes.tts('two dog', [7, 8], form)
    assert said.labels[said.labels != X].tolist() == [7, 8, EOSP, END]
    assert said.tokens[3:5].tolist() == [[SPEAK, FILL], [WHAT, FILL]]


def test_text_only(form):
    got = recipes.text_only('what is two', form)
    assert got.tokens.tolist() == [[WHAT, FILL], [IS, FILL], [TWO, FILL], [1, FILL]]
    assert got.labels.tolist() == [[IS, X], [TWO, X], [1, X], [X, X]]


def interleaved(form, speak_first):
    spoken = [('what', np.array([1])), ('is two', np.array([2, 3])), ('four', np.array([4]))]

    class Draw:
        def integers(self, n):
            assert n == 2
            return speak_first

    return recipes.interleaved(spoken, form, Draw())


def test_interleaved_text_first(form):
    got = interleaved(form, 0)
    assert got.tokens.tolist() == [
        [WHAT, FILL], [SOSP, FILL], [SP, 2], [SP, 3], [SP, EOSP], [FOUR, FILL], [1, FILL]
    ]  # fmt: skip
    assert got.labels.tolist() == [
        [SOSP, X], [X, 2], [X, 3], [X, EOSP], [FOUR, X], [1, X], [X, X]
    ]  # fmt: skip


def test_interleaved_speech_first_and_masks(form):
    got = interleaved(form, 1)
    assert got.tokens[:, 0].tolist() == [SOSP, SP, SP, IS, TWO, SOSP, SP, SP, 1]
    assert got.labels[:, 0].tolist() == [X, X, IS, TWO, SOSP, X, X, 1, X]
    assert got.labels[:, 1].tolist() == [1, EOSP, X, X, X, 4, EOSP, X, X]
    speech = recipes.without_text_loss(got)
    assert (speech.labels[:, 0] == X).all()
    np.testing.assert_array_equal(speech.labels[:, 1], got.labels[:, 1])
    written = recipes.without_audio_loss(got)
    assert (written.labels[:, 1] == X).all()
    np.testing.assert_array_equal(written.labels[:, 0], got.labels[:, 0])
    quiet = recipes.without_sosp_loss(got, form.ids)
    assert quiet.labels[:, 0].tolist() == [X, X, IS, TWO, X, X, X, 1, X]


def test_both_sides_go_first_and_the_seed_decides(form):
    spoken = [('what', np.array([1])), ('is', np.array([2]))]
    first = [
        recipes.interleaved(spoken, form, np.random.default_rng(s)).tokens[0, 0] for s in range(20)
    ]
    again = [
        recipes.interleaved(spoken, form, np.random.default_rng(s)).tokens[0, 0] for s in range(20)
    ]
    assert set(first) == {SOSP, WHAT} and first == again


def test_chunks_end_at_word_borders(rng):
    words = (('a', 0.4), ('b', 0.8), ('c', 1.0), ('d', 1.7))
    codes = np.arange(24)  # 1.92 s: the last chunk takes the silence at the end
    got = chunks.chunks_at_words(words, codes, rng, seconds=(0.5, 0.5))
    assert [text for text, _ in got] == ['a b', 'c d']
    assert got[0][1].tolist() == list(range(10)) and got[1][1].tolist() == list(range(10, 24))
    shifted = chunks.chunks_at_words(words, codes, rng, seconds=(0.1, 0.1), offset=0.08)
    assert [len(c) for _, c in shifted] == [6, 5, 3, 10]  # borders .48 .88 1.08 s x 12.5


def test_chunks_lose_nothing(rng):
    for _ in range(50):
        ends = np.cumsum(rng.uniform(0.02, 0.6, rng.integers(1, 12)))
        words = tuple((f'w{i}', float(end)) for i, end in enumerate(ends))
        codes = np.arange(int(np.ceil(ends[-1] * 12.5)))
        found = chunks.chunks_at_words(words, codes, rng, seconds=(0.1, 1.0))
        assert ' '.join(text for text, _ in found).split() == [w for w, _ in words]
        assert np.concatenate([c for _, c in found]).tolist() == codes.tolist()
        assert all(len(c) and text for text, c in found)


def test_corruption_changes_the_share_asked_for(rng):
    codes = np.zeros(20_000, np.int32)
    wrong = chunks.corrupt_codes(codes, rng, 0.05, 32)
    # 31 of 32 draws differ from the code they replace; four standard deviations of a binomial.
    assert abs((wrong != 0).mean() - 0.05 * 31 / 32) < 4 * np.sqrt(0.05 * 0.95 / 20_000)
    assert wrong.max() == 31 and (codes == 0).all()


def test_rows_of_another_model_are_refused(form):
    facts = {'config': {'format': json.loads(json.dumps(form.facts()))}}
    config = tiny_config(
        vocab_size=form.ids.vocab, audio_vocab_size=form.ids.audio_vocab,
        sosp_token_id=form.ids.sosp, modality_pad_token_id=form.ids.speech,
        audio_pad_token_id=form.ids.filler, eosp_token_id=form.ids.eosp, eos_token_id=form.ids.eos,
    )  # fmt: skip
    check_rows(facts, 'a', config, form.tokenizer)
    check_rows({'config': {}}, 'a', config, form.tokenizer)
    other = dataclasses.replace(config, eosp_token_id=form.ids.eosp - 1)
    with pytest.raises(InputError, match=f'rows a .*eosp is {form.ids.eosp}, here'):
        check_rows(facts, 'a', other, None)
    facts['config']['format']['probe'][0] += 1
    check_rows(facts, 'a', config, None)
    with pytest.raises(InputError, match='their text tokenizer is another'):
        check_rows(facts, 'a', config, form.tokenizer)


def test_bad_dialogues(form):
    with pytest.raises(InputError, match="'d7'.*assistant"):
        recipes.dialogue([Turn('user', 'two')], form, name='d7')
    with pytest.raises(InputError, match='reply, all'):
        recipes.dialogue([Turn('assistant', 'two')], form, 'none')
    with pytest.raises(InputError, match='code 32'):
        recipes.asr([7, 32], 'two', form)

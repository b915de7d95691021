"""Every recipe against grids laid out by hand, from manifest lines; what is long, what is lacking.

A row of a grid is (text id, audio id, text target, audio target); X is no target. Turns are
<|im_start|> role newline, content, <|im_end|> newline; speech is a start-of-speech row in the text
channel, one row a code, an end-of-speech row; a row's target stands one row before it, in the text
channel for text and starts of speech, in the audio channel for codes and ends of speech.
"""

import json
import pathlib

import numpy as np
import pytest

from mossjax.data import corpus
from mossjax.data.codes import Version
from mossjax.data.corpus import Made
from mossjax.data.drafts import Recipe, Reject
from mossjax.data.manifest import parse_line
from mossjax.data.rows import IGNORE
from mossjax.errors import InputError

X = IGNORE
# Ids of tests/data/conftest.py, whose system prompts are 'speak', 'write', and for asr and tts
# 'write what', 'speak what'.
EOT, START, END, SOSP, SP, FILL, EOSP = 1, 2, 3, 4, 5, 30, 32
NL, SYSTEM, USER, ASSISTANT, SPEAK, WRITE, WHAT, IS, TWO, FOUR, DOG = range(6, 17)
CODES = {
    '/q.wav': [Version(np.array([7, 8], np.int32)), Version(np.array([17, 18, 19], np.int32))],
    '/a.wav': [Version(np.array([9, 10], np.int32)), Version(np.array([20], np.int32))],
    '/w.wav': [Version(np.arange(1, 7, dtype=np.int32))],
}


class Fixed:
    """Draws that say what they are: the lower bound, or the number given."""

    def __init__(self, integer=0):
        self.integer = integer

    def uniform(self, low, high):
        return low

    def integers(self, high):
        return self.integer


def entry(**line):
    return parse_line(json.dumps(line), 'test', pathlib.Path('/'))


def made(line, form, recipe, rng=None, version=0):
    """(examples by kind in order, rejects) of one manifest line."""
    found = list(corpus.examples(entry(**line), lambda audio: CODES.get(audio, ()), recipe, form,
                                 rng or Fixed(), version))  # fmt: skip
    good = [(x.kind, x.example) for x in found if isinstance(x, Made)]
    return good, [(x.kind, x.reason) for x in found if isinstance(x, Reject)]


def grid(example):
    return np.concatenate([example.tokens, example.labels], axis=1).tolist()


def plain(*ids):
    """Rows of text that nobody learns."""
    return [[i, FILL, X, X] for i in ids]


QUESTION = {'role': 'user', 'audio': 'q.wav', 'text': 'what is two'}
ANSWER = {'role': 'assistant', 'audio': 'a.wav', 'text': 'four dog'}
HEARD = [*plain(START, USER, NL, SOSP), [SP, 7, X, X], [SP, 8, X, X], [SP, EOSP, X, X],
         *plain(END, NL)]  # fmt: skip
READ = plain(START, USER, NL, WHAT, IS, TWO, END, NL)
SAID = [*plain(START, ASSISTANT, NL), [SOSP, FILL, X, 9], [SP, 9, X, 10], [SP, 10, X, EOSP],
        [SP, EOSP, END, X], *plain(END, NL)]  # fmt: skip
WRITTEN = [*plain(START, ASSISTANT), [NL, FILL, FOUR, X], [FOUR, FILL, DOG, X],
           [DOG, FILL, END, X], *plain(END, NL)]  # fmt: skip
IN_SPEECH, IN_TEXT = (plain(START, SYSTEM, NL, word, END, NL) for word in (SPEAK, WRITE))


def test_sft_in_four_modes(form):
    good, rejects = made({'turns': [QUESTION, ANSWER]}, form, Recipe('sft'))
    assert [kind for kind, _ in good] == ['s2s', 's2t', 't2s', 't2t'] and not rejects
    want = (
        IN_SPEECH + HEARD + SAID, IN_TEXT + HEARD + WRITTEN,
        IN_SPEECH + READ + SAID, IN_TEXT + READ + WRITTEN,
    )  # fmt: skip
    for (_, example), rows in zip(good, want, strict=True):
        assert grid(example) == rows


def test_asr_and_tts(form):
    line = {'audio': 'q.wav', 'text': 'four dog'}
    ((kind, example),), _ = made(line, form, Recipe('asr'))
    prompt = plain(START, SYSTEM, NL, WRITE, WHAT, END, NL)
    assert kind == 'asr' and grid(example) == prompt + HEARD + WRITTEN
    line = {'audio': 'a.wav', 'text': 'what is two'}
    ((kind, example),), _ = made(line, form, Recipe('tts'))
    prompt = plain(START, SYSTEM, NL, SPEAK, WHAT, END, NL)
    assert kind == 'tts' and grid(example) == prompt + READ + SAID


WORDS = {'audio': 'w.wav', 'text': 'what is two', 'words': [['what', 0.16], ['is', 0.32],
                                                           ['two', 0.48]]}  # fmt: skip


def test_interleaved(form):
    """Chunks of 0.16 s are two codes and a word each; what is drawn says which goes first."""
    recipe = Recipe('interleaved', seconds=(0.16, 0.16))
    ((_, example),), _ = made(WORDS, form, recipe, Fixed(0))
    assert grid(example) == [
        [WHAT, FILL, SOSP, X], [SOSP, FILL, X, 3], [SP, 3, X, 4], [SP, 4, X, EOSP],
        [SP, EOSP, TWO, X], [TWO, FILL, EOT, X], [EOT, FILL, X, X],
    ]  # fmt: skip
    ((_, example),), _ = made(WORDS, form, recipe, Fixed(1))
    assert grid(example) == [
        [SOSP, FILL, X, 1], [SP, 1, X, 2], [SP, 2, X, EOSP], [SP, EOSP, IS, X], [IS, FILL, SOSP, X],
        [SOSP, FILL, X, 5], [SP, 5, X, 6], [SP, 6, X, EOSP], [SP, EOSP, EOT, X], [EOT, FILL, X, X],
    ]  # fmt: skip


def test_speech(form):
    ((_, example),), _ = made({'audio': 'q.wav'}, form, Recipe('speech', length=5))
    assert grid(example) == [
        [SOSP, FILL, X, 7], [SP, 7, X, 8], [SP, 8, X, EOSP], [SP, EOSP, EOT, X], [EOT, FILL, X, X]
    ]  # fmt: skip


def test_text(form):
    want = [[WHAT, FILL, IS, X], [IS, FILL, TWO, X], [TWO, FILL, EOT, X], [EOT, FILL, X, X]]
    for line in ({'text': 'what is two'}, {'audio': 'q.wav', 'text': 'what is two'}):
        ((_, example),), _ = made(line, form, Recipe('text'))
        assert grid(example) == want


# ------------------------------------------------------------------- longer than a row


def test_speech_goes_on_in_another_row_opened_and_closed(form):
    """No target but the end of speech that only the row set."""
    good, _ = made({'audio': 'w.wav'}, form, Recipe('speech', length=6))
    assert [grid(example) for _, example in good] == [
        [[SOSP, FILL, X, 1], [SP, 1, X, 2], [SP, 2, X, 3], [SP, 3, X, X], [SP, EOSP, X, X]],
        [[SOSP, FILL, X, 4], [SP, 4, X, 5], [SP, 5, X, 6], [SP, 6, X, EOSP], [SP, EOSP, EOT, X],
         [EOT, FILL, X, X]],
    ]  # fmt: skip
    good, _ = made(WORDS, form, Recipe('speech', length=6))  # words end after 2, 4 and 6 codes
    assert [(e.tokens[1, 1], len(e)) for _, e in good] == [(1, 4), (3, 4), (5, 5)]


def test_text_goes_on_at_any_token(form):
    good, _ = made({'text': 'what is two four dog'}, form, Recipe('text', length=3))
    assert [grid(example) for _, example in good] == [
        [[WHAT, FILL, IS, X], [IS, FILL, TWO, X], [TWO, FILL, X, X]],
        [[TWO, FILL, FOUR, X], [FOUR, FILL, DOG, X], [DOG, FILL, X, X]],
        [[DOG, FILL, EOT, X], [EOT, FILL, X, X]],
    ]


def test_a_passage_goes_on_where_text_is_written(form):
    recipe = Recipe('interleaved', seconds=(0.16, 0.16), length=6)
    good, _ = made(WORDS, form, recipe, Fixed(1))
    assert [grid(example) for _, example in good] == [
        [[SOSP, FILL, X, 1], [SP, 1, X, 2], [SP, 2, X, EOSP], [SP, EOSP, IS, X], [IS, FILL, X, X]],
        [[IS, FILL, SOSP, X], [SOSP, FILL, X, 5], [SP, 5, X, 6], [SP, 6, X, EOSP],
         [SP, EOSP, EOT, X], [EOT, FILL, X, X]],
    ]  # fmt: skip
    good, rejects = made(WORDS, form, Recipe('interleaved', seconds=(0.16, 0.16), length=5),
                         Fixed(1))  # fmt: skip
    assert not good and rejects == [('interleaved', 'cannot be laid out')]


def targets(examples, channel):
    found = [example.labels[:, channel] for example in examples]
    return [t for labels in found for t in labels[labels != X].tolist()]


def test_long_passages_lose_nothing(form, rng):
    """However it falls: every target once and in order, every piece whole, none too long."""
    words = [['what', 'is', 'two', 'four', 'dog'][i % 5] for i in range(60)]
    for _ in range(40):
        ends = np.cumsum(rng.uniform(0.05, 0.4, len(words))).round(3)
        codes = rng.integers(0, 29, int(np.ceil(ends[-1] * 12.5))).astype(np.int32)
        line = entry(audio='x.wav', text=' '.join(words),
                     words=[[w, e] for w, e in zip(words, ends.tolist(), strict=True)])  # fmt: skip
        length, seed = int(rng.integers(24, 60)), int(rng.integers(100))

        def lay_out(line, codes, seed, name, length):
            recipe = Recipe(name, length=length, seconds=(0.3, 1.0))
            draws = np.random.default_rng(seed)
            got = corpus.examples(line, lambda audio: [Version(codes)], recipe, form, draws)
            return [x.example for x in got]

        for name in ('interleaved', 'text', 'speech'):
            (whole,) = lay_out(line, codes, seed, name, None)
            pieces = lay_out(line, codes, seed, name, length)
            assert len(pieces) > 1 and max(map(len, pieces)) <= length
            for channel in (0, 1):
                want = targets([whole], channel)
                assert targets(pieces, channel) == want
            for piece in pieces:
                text, audio = piece.tokens.T
                opened = np.flatnonzero(text == SOSP)
                closed = np.flatnonzero((text == SP) & (audio == EOSP))
                assert len(opened) == len(closed) and (opened < closed).all()
                assert (text == SP).sum() == (closed - opened).sum()


def test_what_cannot_go_on_is_left_out(form):
    whole = len(IN_SPEECH + HEARD + SAID)
    assert made({'turns': [QUESTION, ANSWER]}, form, Recipe('sft', length=whole))[1] == []
    good, rejects = made({'turns': [QUESTION, ANSWER]}, form, Recipe('sft', length=whole - 1))
    assert [kind for kind, _ in good] == ['s2t', 't2s', 't2t']
    assert rejects == [('s2s', 'longer than a row')]


# --------------------------------------------------------------------- what is said, what is heard


def test_what_is_heard_comes_in_versions_and_what_is_said_does_not(form):
    ((_, example), *_), _ = made({'turns': [QUESTION, ANSWER]}, form, Recipe('sft'), version=1)
    assert targets([example], 1) == [9, 10, EOSP]
    speech = example.tokens[example.tokens[:, 0] == SP, 1].tolist()
    assert speech == [17, 18, 19, EOSP, 9, 10, EOSP]
    ((_, example),), _ = made({'audio': 'a.wav', 'text': 'two'}, form, Recipe('tts'), version=1)
    assert targets([example], 1) == [9, 10, EOSP]
    ((_, example),), _ = made({'audio': 'a.wav', 'text': 'two'}, form, Recipe('asr'), version=3)
    assert example.tokens[example.tokens[:, 0] == SP, 1].tolist() == [20, EOSP]  # 3 is 1 again


def test_a_dialogue_of_many_turns_and_a_system_turn_of_its_own(form):
    turns = [{'role': 'system', 'text': 'dog'}, QUESTION, ANSWER, QUESTION, ANSWER]
    good, _ = made({'turns': turns}, form, Recipe('sft', modes=('t2s',)))
    assert grid(good[0][1]) == plain(START, SYSTEM, NL, DOG, END, NL) + (READ + SAID) * 2


def test_codes_stand_for_speech(form):
    turns = [{'role': 'user', 'codes': [7, 8]}, {'role': 'assistant', 'codes': [9, 10]}]
    good, rejects = made({'turns': turns}, form, Recipe('sft'))
    assert [(k, grid(e)) for k, e in good] == [('s2s', IN_SPEECH + HEARD + SAID)]
    assert rejects == [
        ('s2t', 'no text of a turn of the assistant'), ('t2s', 'no text of a turn of the user'),
        ('t2t', 'no text of a turn of the user'),
    ]  # fmt: skip
    turns[1]['codes'] = [EOSP]
    assert made({'turns': turns}, form, Recipe('sft', modes=('s2s',))) == (
        [], [('s2s', 'cannot be laid out')]
    )  # fmt: skip


def test_speech_and_text_by_turns_stay_as_they_stand(form):
    spoken, written = ({'role': 'user', 'audio': 'q.wav'}, {'role': 'user', 'text': 'what is two'})
    turns = [spoken, ANSWER, written, ANSWER]
    good, rejects = made({'turns': turns}, form, Recipe('sft'))
    assert [(k, grid(e)) for k, e in good] == [('mixed', IN_SPEECH + HEARD + SAID + READ + SAID)]
    assert rejects == []
    good, rejects = made({'turns': turns}, form, Recipe('sft', modes=('t2s',)))
    assert not good and rejects == [('t2s', 'no text of a turn of the user')]


def test_of_dialogues_every_turn_is_transcribed_and_the_assistant_is_imitated(form):
    line = {'turns': [QUESTION, ANSWER]}
    good, _ = made(line, form, Recipe('asr'))
    assert [targets([e], 0) for _, e in good] == [[WHAT, IS, TWO, END], [FOUR, DOG, END]]
    good, _ = made(line, form, Recipe('tts'))
    assert [targets([e], 1) for _, e in good] == [[9, 10, EOSP]]
    good, _ = made(line, form, Recipe('speech'))
    assert [targets([e], 1) for _, e in good] == [[7, 8, EOSP], [9, 10, EOSP]]


def test_words_in_another_unit_are_noticed(form):
    line = {**WORDS, 'words': [['what', 160], ['is', 320], ['two', 480]]}
    found = list(corpus.examples(entry(**line), CODES.get, Recipe('interleaved'), form, Fixed()))
    assert found[0].reason == 'cannot be laid out'
    assert found[0].detail.startswith('its last word ends after 480 s, the recording after 0.48 s')


SILENT = {'role': 'user', 'text': ' '}


@pytest.mark.parametrize('name, line, reason', [
    ('asr', {'audio': 'q.wav'}, 'no text'),
    ('asr', {'audio': 'q.wav', 'text': '  '}, 'no text'),
    ('asr', {'text': 'two'}, 'no speech'),
    ('asr', {'audio': 'gone.wav', 'text': 'two'}, 'audio that cannot be read'),
    ('tts', {'turns': [{'role': 'user', 'audio': 'q.wav', 'text': 'two'}]}, 'no speech'),
    ('sft', {'audio': 'q.wav', 'text': 'two'}, 'no dialogue: '),
    ('sft', {'turns': [ANSWER, QUESTION]}, "the last turn is not the assistant's"),
    ('sft', {'turns': [SILENT, ANSWER]}, 'a turn is empty'),
    ('interleaved', {'audio': 'q.wav', 'text': 'two'}, 'no "words"'),
    ('interleaved', {'turns': [QUESTION, ANSWER]}, 'no recording with "words"'),
    ('speech', {'text': 'two'}, 'no speech'),
    ('text', {'turns': [QUESTION, ANSWER]}, 'a dialogue; '),
    ('text', {'audio': 'q.wav'}, 'no text'),
    ('text', {'text': ''}, 'no text'),
])  # fmt: skip
def test_what_lacks_material_is_left_out_with_its_reason(form, name, line, reason):
    good, rejects = made(line, form, Recipe(name))
    assert not good and len(rejects) == 1 and rejects[0][1].startswith(reason)


def test_unknown_recipes_and_modes():
    with pytest.raises(InputError, match="recipe 'song'; choose one of sft, asr"):
        Recipe('song')
    with pytest.raises(InputError, match=r"modes \['s2x'\]; choose from s2s"):
        Recipe('sft', modes=('s2s', 's2x'))
    with pytest.raises(InputError, match='modes are none'):
        Recipe('sft', modes=())


def test_draws_belong_to_the_entry_and_its_version():
    first = corpus.entry_rng(1, 'line', 2).random(4).tolist()
    assert corpus.entry_rng(1, 'line', 2).random(4).tolist() == first
    others = [corpus.entry_rng(*x).random(4).tolist() for x in
              ((2, 'line', 2), (1, 'other', 2), (1, 'line', 1))]  # fmt: skip
    assert first not in others and len({tuple(x) for x in others}) == 3

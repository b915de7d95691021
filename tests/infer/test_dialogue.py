"""A dialogue beyond the context of its model; tiny random model, stand-in codec.

Where it can be, prompts and replies have at most 64 rows each, so that one program makes them all.
"""

import dataclasses

import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer.buckets import room
from mossjax.infer.chat import Chat
from mossjax.infer.dialogue import Dialogue
from mossjax.models.lm import dialogue
from mossjax.models.lm.dialogue import Turn
from tests.tiny_chat import CONFIG, decode, encode, write_model

# Rows of a turn: <|im_start|> role, content, <|im_end|>; the newlines are no tokens here. The
# reply opens with two rows, and start-of-speech where it is to be spoken.
SYSTEM, OPENING = 5, 2  # 'be brief'


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp('dialogue') / 'model'
    prompts = {'audio': 'be brief', 'text': 'be brief'}
    config = dataclasses.replace(CONFIG, max_position_embeddings=128)
    write_model(folder, config=config, system_prompts=prompts)
    return folder


@pytest.fixture(scope='module')
def opened(model):
    return dataclasses.replace(Chat.open(model), encode=encode, decode=decode)


def limited(chat: Chat, most: int, least: int = 0, longest: int | None = None) -> Chat:
    settings = dataclasses.replace(chat.settings, max_new_tokens=most, min_new_tokens=least)
    return dataclasses.replace(chat, settings=settings, longest=longest)


def question(words: int) -> str:
    return ' '.join(['hello'] * words)


def rows_of(turns) -> int:
    return sum(3 + len(turn.content.split()) for turn in turns)


def test_the_oldest_turns_leave_and_the_system_turn_stays(opened):
    chat, said, asked = limited(opened, 12), [], []
    talk = Dialogue(chat, 'text', say=said.append)
    for count in (25, 30, 20, 28, 31, 5):
        asked = [*asked, Turn('user', question(count))]
        while SYSTEM + rows_of(asked) + OPENING + 12 > 128:
            asked = asked[2:]
        reply = talk.ask(question(count))
        # as if the dialogue had begun there
        alone = chat.reply(asked, 'text')
        np.testing.assert_array_equal(reply.prompt, alone.prompt)
        np.testing.assert_array_equal(reply.grid, alone.grid)
        assert reply.prompt[:SYSTEM, 0].tolist() == [10, 8, 1, 2, 11]
        assert len(reply.prompt) == SYSTEM + rows_of(asked) + OPENING
        asked = [*asked, reply.turn]
        assert [(t.role, t.content) for t in talk.turns] == [(t.role, t.content) for t in asked]
        assert [t.role for t in asked] == ['user', 'assistant'] * (len(asked) // 2)
    assert 2 * 2 <= len(asked) < 2 * 5
    (told,) = said
    assert 'outgrown the 128 positions' in told and 'oldest turns are left out' in told


def test_a_turn_that_fits_nowhere_is_refused_and_the_dialogue_goes_on(opened):
    said = []
    talk = Dialogue(limited(opened, 12), 'text', say=said.append)
    talk.ask(question(3))
    before = talk.turns
    for words in (118, 119, 1000):
        rows = SYSTEM + 3 + words + OPENING
        with pytest.raises(InputError, match=f'prompt of {rows} rows .* in the 128 positions'):
            talk.ask(question(words))
    assert talk.turns == before and not said
    assert len(talk.ask(question(117)).grid) == 1  # what is left
    assert len(talk.turns) == 2  # the first exchange had to leave
    assert 'outgrown' in said[0]
    assert 'could have 1 rows, not 12: the model has 128 positions' in said[1]
    assert 'takes 127' in said[1]
    assert len(talk.ask(question(3)).prompt) == SYSTEM + 6 + OPENING and len(said) == 2


@pytest.mark.parametrize(
    'prompt, wanted, positions, rows',
    [
        (20, 12, 128, 12),
        (116, 12, 128, 12),
        (117, 12, 128, 11),  # the bucket would leave nothing
        (127, 12, 128, 1),
        (30, 500, 256, 192),
        (64, 500, 256, 192),
        (65, 500, 256, 128),
        (200, 500, 256, 56),
        (39000, 4000, 40960, 40960 - 39040),
    ],
)
def test_room_for_a_reply(prompt, wanted, positions, rows):
    assert room(prompt, wanted, positions) == rows


@pytest.mark.parametrize('wanted', [500, 109])
def test_the_usual_limit_shrinks_to_what_the_model_has(opened, wanted):
    """As with a small Qwen3: 500 rows by default against 256 positions."""
    chat, said = limited(opened, wanted, wanted), []
    talk = Dialogue(chat, 'text', say=said.append)
    reply = talk.ask(question(10))
    assert len(reply.prompt) == 20
    assert (len(reply.grid), reply.reason) == (64, 'length')
    assert talk.ask(question(11)).reason == 'length'
    assert f'could have 64 rows, not {wanted}: the model has 128 positions' in said[0]
    assert ['outgrown' in told for told in said] == [False, True]  # each once
    by_itself = chat.reply([Turn('user', question(10))], 'text')
    np.testing.assert_array_equal(by_itself.grid, reply.grid)


def test_half_of_the_positions_is_room_enough_for_the_usual_limit(opened):
    """Or the second turn would find nothing of the first, however short both are."""
    talk = Dialogue(limited(opened, 500), 'text')
    talk.turns = [Turn('user', question(10)), Turn('assistant', question(7))]
    assert len(talk.ask(question(10)).prompt) == SYSTEM + 13 + 10 + 13 + OPENING


def test_a_limit_that_was_asked_for_is_kept_or_refused(opened, model):
    chat = limited(opened, 64, 64, longest=64)
    talk = Dialogue(chat, 'text')
    for count in (3, 5, 54):  # each turn with its reply of 64 rows pushes the one before out
        reply = talk.ask(question(count))
        assert (len(reply.grid), reply.reason) == (64, 'length')
        assert len(reply.prompt) == SYSTEM + 3 + count + OPENING
    refusal = 'prompt of 65 rows and max_new_tokens = 64 exceed the 128 positions'
    with pytest.raises(InputError, match=refusal):
        talk.ask(question(55))
    with pytest.raises(InputError, match=refusal):
        chat.reply([Turn('user', question(55))], 'text')
    for longest in (128, 129, 10**6):
        with pytest.raises(InputError, match=f'max_new_tokens = {longest} .* the 128 positions'):
            Chat.open(model, longest=longest)
    with pytest.raises(InputError, match='max_new_tokens'):
        Chat.open(model, longest=0)
    asked = Chat.open(model, longest=3)
    assert (asked.settings.max_new_tokens, asked.settings.min_new_tokens) == (3, 3)
    assert asked.settings_for(127) == asked.settings  # so that the generator refuses it


def test_what_was_heard_is_encoded_once(opened):
    heard = []

    def listen(waves):
        heard.extend(len(wav) for wav in waves)
        return encode(waves)

    talk = Dialogue(dataclasses.replace(limited(opened, 10, 4), encode=listen), 'audio')
    wav = np.repeat(np.float32([0.3, 0.7, 0.1]), 1280)
    first = talk.ask(wav)
    second = talk.ask('be brief')
    third = talk.ask(wav[:1280])
    assert heard == [3 * 1280, 1280]
    # Each prompt goes on where the speech before ended, so that nothing is read twice; what this
    # model of random weights writes behind its speech is not of the dialogue.
    for before, after in ((first, second), (second, third)):
        past = np.concatenate([before.prompt, before.grid[: len(before.codes) + 1]])
        np.testing.assert_array_equal(after.prompt[: len(past)], past)
    kept = [turn.content for turn in talk.turns]
    assert [k if isinstance(k, str) else np.asarray(k).tolist() for k in kept] == [
        [3, 7, 1], first.codes.tolist(), 'be brief', second.codes.tolist(), [3],
        third.codes.tolist(),
    ]  # fmt: skip
    for reply in (second, third):
        rows = reply.prompt[reply.prompt[:, 0] == 13, 1].tolist()
        assert rows[:4] == [3, 7, 1, 10]


@pytest.mark.parametrize('style', [dialogue.CLEAN, dialogue.UPSTREAM], ids=['clean', 'upstream'])
def test_a_system_turn_of_ones_own(style, opened):
    chat = dataclasses.replace(limited(opened, 10), style=style)
    talk = Dialogue(chat, 'text', system='speak hello you')
    for _ in range(2):
        reply = talk.ask('hello')
        assert reply.prompt[:6, 0].tolist() == [10, 8, 3, 4, 5, 11]  # first, and its own words
        text = reply.prompt[:, 0].tolist()
        assert list(zip(text, text[1:], strict=False)).count((10, 8)) == 1  # and no other
    assert [turn.role for turn in talk.turns] == ['user', 'assistant'] * 2


def test_a_reply_without_a_sound_is_no_turn(opened):
    """With one row the reply ends where it begins."""
    talk = Dialogue(limited(opened, 1), 'audio')
    reply = talk.ask('hello')
    assert len(reply.codes) == 0 and reply.wav is None and reply.grid.tolist() == [[13, 10]]
    assert talk.turns == []
    assert len(talk.ask('hello').prompt) == len(reply.prompt)

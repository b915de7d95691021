"""Prompts against upstream's own grids, and the order of turns in both styles."""

import json
import pathlib

import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.models.lm import dialogue
from mossjax.models.lm.dialogue import CLEAN, UPSTREAM, SystemPrompts, Turn, build_prompt
from mossjax.models.lm.grid import GridIds

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden' / 'dialogue'

REAL_IDS = GridIds(
    vocab=151680, audio_vocab=16512, sosp=151646, speech=151667, filler=512, eosp=16384,
    pad=151643, eos=151645, stops=(151643, 151645),
)  # fmt: skip


class KnownStrings:
    """Looks whole segments up; an unknown string is an error of the test."""

    def __init__(self, extra: dict[str, list[int]] | None = None):
        spec = json.loads((GOLDEN / 'prompts.json').read_text(encoding='utf-8'))['tokenizer']
        self.segments = {**spec['segments'], **(extra or {})}
        self.im_start = spec['tokens']['<|im_start|>']
        self.im_end = spec['tokens']['<|im_end|>']
        self.endoftext = self.pad = spec['tokens']['<|endoftext|>']

    def encode_plain(self, text):
        return self.segments[text]

    encode = encode_plain

PROMPTS = json.loads((GOLDEN / 'prompts.json').read_text(encoding='utf-8'))['text_channel']
CODES = json.loads((GOLDEN / 'prompt_cn_codes.json').read_text())['codes']
TEXT_SYSTEM = "You are a helpful assistant. Answer the user's questions with text."
AUDIO_SYSTEM = (
    "You are a helpful voice assistant. Answer the user's questions with spoken responses."
)
INTRODUCE = Turn('user', 'Introduce yourself in one sentence.')
SHANGHAI = Turn('user', '用中文介绍一下上海的三到四个著名景点。')

styles = pytest.mark.parametrize('style', [CLEAN, UPSTREAM], ids=['clean', 'upstream'])


def prompt(turns, reply, style, extra=None):
    return build_prompt(turns, reply, KnownStrings(extra), REAL_IDS, style)


@styles
@pytest.mark.parametrize(
    'name, system, user, reply',
    [('a', TEXT_SYSTEM, INTRODUCE, 'text'), ('b', AUDIO_SYSTEM, SHANGHAI, 'audio')],
)
def test_golden_text_prompts(style, name, system, user, reply):
    rows = prompt([Turn('system', system), user], reply, style)
    np.testing.assert_array_equal(rows[:, 0], PROMPTS[name])
    np.testing.assert_array_equal(rows[:, 1], 512)


@styles
def test_golden_mixed_prompt(style):
    turns = [
        Turn('system', TEXT_SYSTEM),
        Turn('user', 'My name is Alice and I like hiking.'),
        Turn('assistant', 'Nice to meet you, Alice! Hiking is a great way to enjoy nature.'),
        Turn('user', np.array(CODES)),
    ]
    rows = prompt(turns, 'text', style)
    assert len(rows) == 19 + 14 + 22 + 350 + 3
    assert len(CODES) == 343 and sum(CODES) == 2976750
    start = 19 + 14 + 22
    speech = rows[start + 3 : start + 3 + 345]
    np.testing.assert_array_equal(rows[start : start + 3, 0], [151644, 872, 198])
    np.testing.assert_array_equal(speech[:, 0], [151646] + 344 * [151667])
    np.testing.assert_array_equal(speech[:, 1], [512, *CODES, 16384])
    np.testing.assert_array_equal(rows[-5:, 0], [151645, 198, 151644, 77091, 198])
    text = np.r_[rows[:start, 1], rows[start + 348 :, 1]]
    np.testing.assert_array_equal(text, 512)
    np.testing.assert_array_equal(rows[19:22, 0], [151644, 872, 198])
    np.testing.assert_array_equal(
        rows[33:55, 0],
        [151644, 77091, 198, 44978, 311, 3367, 498, 11, 29405, 0, 472, 19233, 374, 264, 2244, 1616,
         311, 4669, 6993, 13, 151645, 198],
    )  # fmt: skip


def test_speech_to_speech_prompt_has_375_rows():
    assert len(prompt([Turn('user', CODES)], 'audio', CLEAN)) == 21 + 350 + 4


def test_clean_puts_the_missing_system_turn_first():
    rows = prompt([INTRODUCE], 'text', CLEAN)
    np.testing.assert_array_equal(rows[:, 0], PROMPTS['a'])
    rows = prompt([SHANGHAI], 'audio', CLEAN)
    np.testing.assert_array_equal(rows[:, 0], PROMPTS['b'])


def test_upstream_appends_its_own_system_turn_last():
    spoken = {'You are a helpful assistant. Respond with spoken outputs.': [7, 8]}
    rows = prompt([INTRODUCE], 'audio', UPSTREAM, spoken)
    user = PROMPTS['a'][19:31]
    system = [151644, 8948, 198, 7, 8, 151645, 198]
    np.testing.assert_array_equal(rows[:, 0], [*user, *system, 151644, 77091, 198, 151646])
    written = {'You are a helpful assistant. Respond with text outputs.': [9]}
    rows = prompt([INTRODUCE], 'text', UPSTREAM, written)
    system = [151644, 8948, 198, 9, 151645, 198]
    np.testing.assert_array_equal(rows[:, 0], [*user, *system, 151644, 77091, 198])


def test_a_later_system_turn_does_not_count_as_leading():
    turns = [INTRODUCE, Turn('system', TEXT_SYSTEM)]
    assert len(prompt(turns, 'text', CLEAN)) == 19 + 12 + 19 + 3


def test_checkpoint_brings_its_own_system_prompts():
    own = SystemPrompts.of({'system_prompts': {'audio': 'speak', 'text': 'write'}})
    assert own == SystemPrompts('speak', 'write')
    assert SystemPrompts.of({}) == dialogue.INTERFACE_PROMPTS
    four = {'audio': 'speak', 'text': 'write', 'asr': 'note', 'tts': 'read'}
    assert SystemPrompts.of({'system_prompts': four}) == SystemPrompts('speak', 'write', 'note',
                                                                       'read')  # fmt: skip
    for bad in ({'audio': 'speak'}, {**four, 'asr': 3}, 'speak', [four]):
        with pytest.raises(InputError, match='system_prompts'):
            SystemPrompts.of({'system_prompts': bad})


@pytest.mark.parametrize(
    'turns, reply, word',
    [
        ([], 'text', 'no turns'),
        ([Turn('robot', 'x')], 'text', 'robot'),
        ([INTRODUCE], 'video', 'video'),
        ([Turn('user', [])], 'text', 'the user turn has no codes'),
        ([Turn('user', [16384])], 'audio', 'the user turn holds code 16384'),
    ],
)
def test_bad_dialogues_are_refused(turns, reply, word):
    with pytest.raises(InputError, match=word):
        prompt(turns, reply, CLEAN)

"""Rows are laid out in the words that a chat with the same model uses."""

import dataclasses
import json

import numpy as np
import pytest

from mossjax.data import recipes
from mossjax.data.format import Format
from mossjax.errors import InputError
from mossjax.infer.assets import shipped
from mossjax.infer.chat import Chat
from mossjax.models.lm.dialogue import INTERFACE_PROMPTS, SystemPrompts, Turn, build_prompt
from tests.tiny_chat import CONFIG, tokenizer_json, write_model


@pytest.mark.parametrize('own, prompts', [
    (None, INTERFACE_PROMPTS),
    ({'audio': 'speak', 'text': 'be brief', 'asr': 'hello you'},
     SystemPrompts('speak', 'be brief', 'hello you')),
])  # fmt: skip
def test_prompts_are_those_of_a_chat(tmp_path, own, prompts):
    """What generation is given is what a trained example begins with."""
    write_model(tmp_path, **({'system_prompts': own} if own else {}))
    chat, form = Chat.open(tmp_path), Format.open(tmp_path)
    assert form.style.prompts == prompts
    assert form.ids == chat.generator.ids
    for question in ('hello you', np.array([3, 7, 1])):
        for kind, answer in (('audio', np.array([2, 4])), ('text', 'be brief')):
            asked = [Turn('user', question)]
            prompt = build_prompt(asked, kind, chat.text, chat.generator.ids, chat.style)
            example = recipes.dialogue([*asked, Turn('assistant', answer)], form)
            np.testing.assert_array_equal(example.tokens[: len(prompt)], prompt)


def test_the_shipped_model_names_all_four(monkeypatch):
    own = json.loads((shipped() / 'lm' / 'generation_config.json').read_text())['system_prompts']
    assert dataclasses.asdict(Format.open(shipped() / 'lm').style.prompts) == own
    assert own == {
        'audio': 'answer in speech', 'text': 'answer in text', 'asr': 'repeat in text',
        'tts': 'repeat in speech',
    }  # fmt: skip


def test_a_model_without_weights_will_do_but_not_with_another_tokenizer(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(CONFIG.to_hf()))
    with pytest.raises(InputError, match='tokenizer.json'):
        Format.open(tmp_path)
    (tmp_path / 'tokenizer.json').write_bytes(tokenizer_json())
    assert Format.open(tmp_path).style.prompts == INTERFACE_PROMPTS
    words = ['<unk>', *(f'w{i}' for i in range(20))]
    (tmp_path / 'tokenizer.json').write_bytes(tokenizer_json(words))
    with pytest.raises(InputError, match='has 26 tokens, the model only 16 rows'):
        Format.open(tmp_path)

"""A word-level tokenizer and small grid ids for data tests."""

import dataclasses
import json

import pytest
import tokenizers

from mossjax.data.format import Format
from mossjax.models.lm.dialogue import CLEAN, SystemPrompts
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.text import TextTokenizer

WORDS = ['\n', 'system', 'user', 'assistant', 'speak', 'write', 'what', 'is', 'two', 'four', 'dog']
CONTROL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|sosp|>', '<|speech|>']


@pytest.fixture(scope='session')
def form() -> Format:
    """Ids: <unk> 0, endoftext 1, im_start 2, im_end 3, sosp 4, speech 5, then WORDS from 6."""
    vocab = {name: i for i, name in enumerate(['<unk>', *CONTROL, *WORDS])}
    model = tokenizers.models.WordLevel(vocab, unk_token='<unk>')
    tokenizer = tokenizers.Tokenizer(model)
    # Words and newlines are tokens, spaces are not.
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split('\n', 'isolated'),
            tokenizers.pre_tokenizers.Split(' ', 'removed'),
        ]
    )
    tokenizer.add_special_tokens(['<unk>', *CONTROL])
    text = TextTokenizer(json.loads(tokenizer.to_str()))
    ids = GridIds(
        vocab=len(vocab), audio_vocab=34, sosp=4, speech=5, filler=30, eosp=32, pad=1, eos=3,
        stops=(1, 3),
    )  # fmt: skip
    prompts = SystemPrompts('speak', 'write', asr='write what', tts='speak what')
    return Format(text, ids, dataclasses.replace(CLEAN, prompts=prompts))

"""Which settings of a checkpoint are said to have no effect."""

import itertools
import json
import logging

import pytest
import transformers

from mossjax.errors import InputError
from mossjax.infer import generation_config
from mossjax.infer.generation_config import INERT, NEUTRAL, READ

STOPS = (9, 11)

# What Qwen3 (0.6B to 32B) come with, but for the ids.
QWEN = {
    'bos_token_id': 9, 'do_sample': True, 'eos_token_id': [11, 9], 'pad_token_id': 9,
    'temperature': 0.6, 'top_k': 20, 'top_p': 0.95, 'transformers_version': '4.51.0',
}  # fmt: skip


@pytest.mark.parametrize(
    'content, names',
    [
        ({}, []),
        (QWEN, []),
        ({'num_beams': 4, 'length_penalty': 2.0, 'early_stopping': True}, ['num_beams']),
        ({'num_beams': 1, 'typical_p': 1.0, 'min_p': None, 'no_repeat_ngram_size': 0}, []),
        ({'typical_p': 0.9, 'min_p': 0.05, 'top_h': 0.4}, ['min_p', 'top_h', 'typical_p']),
        ({'do_sample': False, 'typical_p': 0.9, 'min_p': 0.05, 'eta_cutoff': 0.01}, []),
        ({'do_sample': False, 'no_repeat_ngram_size': 3}, ['no_repeat_ngram_size']),
        ({'bad_words_ids': [[3]], 'suppress_tokens': [1, 2]}, ['bad_words_ids', 'suppress_tokens']),
        ({'bad_words_ids': [], 'suppress_tokens': None, 'sequence_bias': {}}, []),
        ({'penalty_alpha': 0.6, 'dola_layers': 'high'}, ['dola_layers', 'penalty_alpha']),
        ({'guidance_scale': 1.5, 'stop_strings': ['x']}, ['guidance_scale', 'stop_strings']),
        ({'max_length': 20, 'min_length': 0, 'max_time': None}, []),
        ({'max_length': 512, 'min_length': 5}, ['max_length', 'min_length']),
        ({'max_length': 512, 'max_new_tokens': 100}, []),
        ({'frequency_penalty': 0.0, 'presence_penalty': 1.5}, ['presence_penalty']),
        ({'mirostat_tau': 5}, ['mirostat_tau']),  # nobody's, as far as we know
        ({'token_healing': True, 'renormalize_logits': False}, ['token_healing']),
        ({'eos_token_id': 11}, []),
        ({'eos_token_id': None}, []),
        ({'eos_token_id': 7}, ['eos_token_id 7']),
        ({'eos_token_id': [9, 7, 11, 8]}, ['eos_token_id 7, 8']),
        ({'layers': [{'top_k': 5}, {'top_k': 3, 'min_p': 0.1}]}, ['layers[1].min_p']),
        ({'layers': [{'no_repeat_ngram_size': 2}, {'typical_p': 1}]},
         ['layers[0].no_repeat_ngram_size']),
        ({'layers': 5}, []),  # refused where it is read
    ],
)  # fmt: skip
def test_settings_without_effect(content, names):
    assert list(generation_config.ignored(content, STOPS)) == names


def test_the_settings_of_transformers_as_it_writes_them(tmp_path):
    """Its defaults ask for nothing; what it lets one ask for is read, inert or warned about."""
    transformers.GenerationConfig().save_pretrained(tmp_path)
    content = generation_config.read(tmp_path, STOPS)
    assert 'transformers_version' in content
    assert list(generation_config.ignored(content, STOPS)) == []
    settable = set(transformers.GenerationConfig().to_dict()) - READ - INERT - {'eos_token_id'}
    assert settable >= {'num_beams', 'bad_words_ids', 'forced_eos_token_id', 'watermarking_config'}
    asked = dict.fromkeys(settable, 7)
    assert list(generation_config.ignored(asked, STOPS)) == sorted(settable)


def test_no_key_is_of_two_classes():
    for one, other in itertools.combinations((READ, INERT, set(NEUTRAL)), 2):
        assert not one & other


def test_the_warning_comes_once_and_names_the_file(tmp_path, caplog):
    path = tmp_path / 'generation_config.json'
    logging.getLogger('absl').propagate = True
    with caplog.at_level(logging.WARNING, logger='absl'):
        assert generation_config.read(tmp_path, STOPS) == {}
        path.write_text(json.dumps(QWEN))
        assert generation_config.read(tmp_path, STOPS) == QWEN
        assert not caplog.records
        path.write_text(json.dumps({**QWEN, 'min_p': 0.1, 'num_beams': 2}))
        assert generation_config.read(tmp_path, STOPS)['min_p'] == 0.1
    (record,) = caplog.records
    said = 'min_p, num_beams have no effect here, so replies may differ from what the file asks for'
    assert record.getMessage() == f'{path}: {said}'
    path.write_text('[1]')
    with pytest.raises(InputError, match='not a JSON object'):
        generation_config.read(tmp_path, STOPS)

"""Where a file may say the base of the rotation; what is read is what Transformers reads."""

import pytest
import transformers

from mossjax.errors import InputError
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.rope_settings import theta, with_theta
from tests.tiny_lm import tiny_config

PLAIN = {'rope_theta': 5e5, 'rope_type': 'default'}
READ = {
    'beside the others': {'rope_theta': 500000},
    'with an empty change': {'rope_theta': 5e5, 'rope_scaling': None},
    'with a plain change': {'rope_theta': 5e5, 'rope_scaling': {'type': 'default'}},
    'inside the change': {'rope_scaling': PLAIN},
    'as Transformers 5 writes': {'rope_parameters': PLAIN},
    'twice and equal': {'rope_theta': 5e5, 'rope_parameters': PLAIN},
    'all of it rotated': {'rope_parameters': {**PLAIN, 'partial_rotary_factor': 1.0}},
}


@pytest.mark.parametrize('content', READ.values(), ids=READ.keys())
def test_every_spelling_of_the_base_is_read_as_transformers_reads_it(content):
    assert theta(content) == 5e5
    assert transformers.Qwen3Config(**content).rope_parameters['rope_theta'] == 5e5
    assert theta(with_theta(content, 7e5)) == 7e5


def test_the_base_of_each_type_of_layer():
    assert theta({'rope_parameters': {'full_attention': PLAIN}}) == 5e5
    with pytest.raises(InputError, match='full_attention.rope_theta is 500000'):
        theta({'rope_theta': 1e6, 'rope_parameters': {'full_attention': PLAIN}})
    with pytest.raises(InputError, match='sliding_attention is for layers we do not have'):
        theta({'rope_parameters': {'full_attention': PLAIN, 'sliding_attention': PLAIN}})
    with pytest.raises(InputError, match=r"holds \['rope_theta'\] beside objects"):
        theta({'rope_parameters': {'full_attention': PLAIN, 'rope_theta': 5e5}})


def test_a_file_keeps_its_spelling():
    content = tiny_config().to_hf()
    del content['rope_theta'], content['rope_scaling']
    content['rope_parameters'] = {'rope_theta': 12345, 'rope_type': 'default'}
    config = LMConfig.from_hf(content)
    assert config == tiny_config() and config.to_hf() == content
    assert theta({}) is None


YARN = {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32768}
REFUSED = {
    'conflict': ({'rope_theta': 1e6, 'rope_parameters': PLAIN},
                 'rope_theta is 1000000, but rope_parameters.rope_theta is 500000'),
    'conflict inside': ({'rope_scaling': {'rope_theta': 1e4}, 'rope_parameters': PLAIN},
                        'rope_parameters.rope_theta is 500000, but rope_scaling.rope_theta is 1'),
    'yarn': ({'rope_theta': 1e6, 'rope_scaling': YARN}, "rope_scaling asks for 'yarn' rotation.*up "
             'to 32768 positions: set rope_scaling to null and set max_pos'),
    'yarn in Transformers 5': ({'rope_parameters': {**PLAIN, **YARN}}, "rope_parameters asks for "
                               "'yarn' .*: leave only rope_theta in rope_parameters and set max"),
    'linear': ({'rope_theta': 1e6, 'rope_scaling': {'type': 'linear', 'factor': 2.0}},
               "'linear' rotation.*up to its original context"),
    'dynamic': ({'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}}, "'dynamic'"),
    'llama3': ({'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 1e6}}, "'llama3'"),
    'a type that is none': ({'rope_scaling': {'rope_type': 5}}, 'asks for 5 rotation'),
    'half rotated': ({'rope_parameters': {**PLAIN, 'partial_rotary_factor': 0.5}},
                     'rope_parameters.partial_rotary_factor is 0.5'),
    'sections': ({'rope_scaling': {'type': 'default', 'mrope_section': [1, 2]}}, 'mrope_section'),
    'no object': ({'rope_scaling': 'yarn'}, "rope_scaling is 'yarn', expected an object"),
    'a list': ({'rope_parameters': [PLAIN]}, 'rope_parameters is'),
    'text': ({'rope_theta': '1e6'}, "rope_theta is '1e6', expected a number"),
    'endless': ({'rope_parameters': {'rope_theta': float('inf')}}, 'rope_theta is inf'),
}  # fmt: skip


@pytest.mark.parametrize('content, said', REFUSED.values(), ids=REFUSED.keys())
def test_another_rotation_or_two_bases_are_refused(content, said):
    with pytest.raises(InputError, match=said):
        theta(content)

"""The vocoder's half of a codec directory: configuration, names, what is refused."""

import math
import shutil

import jax
import numpy as np
import pytest

from mossjax.convert import hift_config, rules
from mossjax.convert.codec_flow import flow_network, open_flow, save_flow
from mossjax.convert.codec_vocoder import open_hift, open_stored, save_hift, stored_network
from mossjax.convert.hift_rules import NEW, OLD, hift_rules
from mossjax.errors import InputError
from mossjax.models.flow.config import FlowConfig
from mossjax.models.vocoder.hift.config import HiftConfig
from tests.tiny_codec import FLOW, HIFT, hift_params

# As published for this family: a program in YAML, with a reference and two values to work out.
PUBLISHED = """
sample_rate: 24000
flow: !new:somewhere.Flow
    input_size: 512
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: 80
    base_channels: 32
    nb_harmonics: 8
    sampling_rate: !ref <sample_rate>
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 5, 3]
    upsample_kernel_sizes: [16, 11, 7]
    istft_params:
        n_fft: 16
        hop_len: 4
    resblock_kernel_sizes: [3, 7, 11]
    resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    source_resblock_kernel_sizes: [7, 7, 11]
    source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    lrelu_slope: 0.1
    audio_limit: 0.99
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        num_class: 1
        in_channels: 80
        cond_channels: 32
"""


@pytest.fixture(scope='module')
def params(golden):
    return hift_params(golden('decoder/hift.npz'))


@pytest.fixture
def codec(params, tmp_path):
    save_hift(tmp_path, HIFT, params)
    return tmp_path


def test_the_released_vocoder_has_upstream_s_tensors():
    config = HiftConfig()
    expected = rules.expected_tensors(hift_rules(config), stored_network(config).shapes)
    assert len(expected) == 328
    assert sum(math.prod(shape) for shape in expected.values()) == 20_821_295
    weight = 'parametrizations.weight.original'
    assert expected[f'ups.0.{weight}0'] == (512, 1, 1)  # the input's axis
    assert expected[f'ups.2.{weight}1'] == (128, 64, 7)
    assert expected[f'resblocks.5.convs1.2.{weight}1'] == (128, 128, 11)
    assert expected[f'f0_predictor.condnet.0.{weight}0'] == (512, 1, 1)
    assert expected['source_downs.0.weight'] == (256, 18, 30)
    assert expected['resblocks.8.activations2.0.alpha'] == (64,)


def test_the_published_configuration_is_read(codec):
    (codec / 'flow' / 'config.yaml').write_text(PUBLISHED)
    assert open_stored(codec)[0] == HIFT


def test_without_an_entry_widths_are_those_of_the_weights(codec):
    for text in (None, 'flow: {}\n'):
        path = codec / 'flow' / 'config.yaml'
        path.unlink() if text is None else path.write_text(text)
        assert open_stored(codec)[0] == HIFT


@pytest.mark.parametrize(
    'change, message',
    [
        (('sample_rate: 24000', 'sample_rate: 22050'), 'sampling_rate is 22050; .* only 24000'),
        (('[8, 5, 3]', '[8, 5, 4]'), 'make 640 samples of a mel frame, which has 480'),
        (('[8, 5, 3]', '{a: [8, 5, 3]}'), 'upsample_rates has keys below it'),
        (('[8, 5, 3]', '[8, 5, x]'), "upsample_rates is 'x', expected a whole number"),
        (('[16, 11, 7]', '[16, 11, 8]'), 'kernel 8 cannot upsample by 3'),
        (('[16, 11, 7]', '16'), 'upsample_kernel_sizes is 16, expected a list'),
        (('num_class: 1', 'num_class: 2'), 'num_class is 2'),
        (('[[1, 3, 5], [1, 3, 5], [1, 3, 5]]', '[[1, 3, 5], [1, 3, 5], [1, 3, 7]]'),
         'resblock_dilation_sizes is .* only'),
        (('nsf_alpha: 0.1', 'nsf_alpha: .nan'), 'nsf_alpha is nan, expected a number'),
        (('base_channels: 32', 'base_channels: 64'), r'(?s)wrong shape: conv_pre.* is \(32,'),
        (('base_channels: 32', 'base_channels: 1e3'), 'base_channels is'),
        (('n_fft: 16', 'n_fft: 18'), 'n_fft 18 must be even and a multiple of hop 4'),
    ],
)  # fmt: skip
def test_configurations_of_another_vocoder_are_refused(change, message, codec):
    assert change[0] in PUBLISHED
    (codec / 'flow' / 'config.yaml').write_text(PUBLISHED.replace(*change))
    with pytest.raises(InputError, match=message):
        open_stored(codec)


def test_unknown_keys_are_said_and_passed_over(codec, caplog):
    (codec / 'flow' / 'config.yaml').write_text(
        PUBLISHED.replace('    lrelu_slope', '    later_invention: 3\n    lrelu_slope')
    )
    assert open_stored(codec)[0] == HIFT
    assert 'hift keys without effect: later_invention' in caplog.text


def test_both_halves_share_one_configuration_file(params, tmp_path):
    flow = FlowConfig(**{**vars(FLOW), 'vocab_size': 5})
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), flow_network(flow).shapes)
    config = HiftConfig(channels=32, f0_width=32, sine=0.2, limit=0.5)
    save_hift(tmp_path, config, params)
    save_flow(tmp_path, flow, zeros)
    save_hift(tmp_path, config, params)
    assert open_flow(tmp_path)[0] == flow and open_hift(tmp_path)[0] == config
    # Upstream's own file holds more than its values: it is left as it is.
    path = tmp_path / 'flow' / 'config.yaml'
    path.write_text(PUBLISHED)
    with pytest.raises(InputError, match='was not written here'):
        hift_config.write(path, config)
    with pytest.raises(InputError, match='was not written here'):
        save_flow(tmp_path, flow, zeros)
    assert path.read_text() == PUBLISHED and (tmp_path / 'flow' / 'flow.safetensors').is_file()


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
@pytest.mark.parametrize('normed', [NEW, OLD], ids=['new', 'old'])
def test_files_there_and_back(suffix, normed, params, tmp_path):
    save_hift(tmp_path, HIFT, params, suffix=suffix, normed=normed)
    config, again = open_stored(tmp_path)
    assert config == HIFT
    for path, value in rules.flatten(params).items():
        np.testing.assert_array_equal(rules.flatten(again)[path], value)


def test_faults_of_the_weights_are_named(codec, golden):
    path = codec / 'flow' / 'hift.pt'
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r'hift\.pt: no zip archive'):
        open_hift(codec)
    shutil.copy(golden('decoder/tensors.pt'), path)
    with pytest.raises(InputError, match=r'missing: m_source\.l_linear\.weight'):
        open_hift(codec)
    path.unlink()
    with pytest.raises(InputError, match=r'neither hift\.safetensors nor hift\.pt'):
        open_hift(codec)

"""The flow decoder's configuration file: upstream's tagged form, ours, and what is refused."""

import dataclasses

import pytest

from mossjax.convert.flow_config import read_config, write_config
from mossjax.errors import InputError
from mossjax.models.flow.config import FlowConfig, released

TAGGED = """
__set_seed1: !apply:random.seed [1986]
oops: !apply:os.system ['touch {marker}']
spk_embed_dim: 192
token_frame_rate: 12.5
token_mel_ratio: 4
chunk_size: 5
left: -1
flow: !new:some.package.Flow
    input_size: 512
    output_size: 80
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: 'mel'
    vocab_size: 20480
    input_frame_rate: !ref <token_frame_rate>
    only_mask_loss: True
    token_mel_ratio: !ref <token_mel_ratio>
    pre_lookahead_len: 3
    encoder: !new:some.package.Encoder
        output_size: 512
        attention_heads: 8
        linear_units: 2048
        num_blocks: 6
        dropout_rate: 0.1
        positional_dropout_rate: 0.1
        attention_dropout_rate: 0.1
        normalize_before: True
        input_layer: 'linear'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'rel_selfattn'
        input_size: 512
        use_cnn_module: False
        macaron_style: False
        upsample_stride: 4
        static_chunk_size: !ref <chunk_size>
    decoder: !new:some.package.Matching
        in_channels: 240
        n_spks: 1
        spk_emb_dim: 80
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                solver: 'euler'
                t_scheduler: 'cosine'
                training_cfg_rate: 0.2
                inference_cfg_rate: 0.7
                reg_loss_type: 'l1'
        estimator: !new:some.package.Estimator
            in_channels: 320
            out_channels: 80
            channels: [256]
            dropout: 0.0
            attention_head_dim: 64
            n_blocks: 4
            num_mid_blocks: 12
            num_heads: 8
            act_fn: 'gelu'
            static_chunk_size: !ref <chunk_size> * <token_mel_ratio>
            num_decoding_left_chunks: !ref <left>
hift: !new:some.package.Vocoder
    base: 512
"""


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / 'config.yaml'
        path.write_text(text)
        return path

    return write


def test_the_tagged_file_is_the_released_configuration_and_runs_nothing(file, tmp_path):
    marker = tmp_path / 'executed'
    assert read_config(file(TAGGED.format(marker=marker))) == released()
    assert not marker.exists()


def test_values_come_from_the_file(file):
    text = TAGGED.replace('chunk_size: 5', 'chunk_size: 25').replace('1e-06', '1e-4')
    config = read_config(file(text.replace('num_mid_blocks: 12', 'num_mid_blocks: 7')))
    assert config == dataclasses.replace(released(), chunk=25, sigma_min=1e-4, mid_blocks=7)


def test_round_trip(tmp_path):
    config = FlowConfig(vocab_size=97, mels=40, heads=4, blocks=2, sigma_min=1e-4, guidance=0.25)
    write_config(tmp_path / 'config.yaml', config)
    assert read_config(tmp_path / 'config.yaml') == config
    assert '!' not in (tmp_path / 'config.yaml').read_text()


INERT = [
    ('left: -1', 'left: 2', 'num_decoding_left_chunks is 2; -1 is used'),  # in published files
    ('<chunk_size> * <', '2 * <', 'static_chunk_size is 8; 20 is used'),
    ('            dropout: 0.0', '            dropout: 0.1', 'estimator.dropout is 0.1; 0.0 is'),
    ("reg_loss_type: 'l1'", "later: 3", 'keys without effect: decoder.cfm_params.later'),
]


@pytest.mark.parametrize('old, new, said', INERT, ids=[said[:20] for *_, said in INERT])
def test_what_an_offline_decode_does_not_ask_is_said_and_passed_over(old, new, said, file, caplog):
    assert old in TAGGED
    assert read_config(file(TAGGED.replace(old, new))) == released()
    assert said in caplog.text


def test_settings_of_training_may_be_missing(file):
    text = TAGGED.replace("                training_cfg_rate: 0.2\n", '')
    text = text.replace('                sigma_min: 1e-06\n', '')
    assert len(text) < len(TAGGED) and read_config(file(text)) == released()


@pytest.mark.parametrize(
    'old, new, message',
    [
        ('num_blocks: 6', 'num_blocks: six', r"flow\.encoder\.num_blocks is 'six'"),
        ('num_blocks: 6', 'num_blocks: 0', 'blocks is 0, expected a whole number from 1'),
        ('        num_blocks: 6\n', '', r'flow\.encoder\.num_blocks is missing'),
        ('channels: [256]', 'channels: [256, 256]', 'one resolution level'),
        ("solver: 'euler'", "solver: 'heun'", r"solver is 'heun'.*only 'euler'"),
        ("act_fn: 'gelu'", "act_fn: 'snake'", "only 'gelu' works"),
        ('!ref <chunk_size>\n', '!ref <chonk>\n', 'refers to <chonk>'),
        ('!ref <left>', '!ref <left>.__class__', 'cannot work out'),
        ('left: -1', 'left: !ref <left>', 'circle'),
        ('num_blocks: 6', 'num_blocks: {a: 6}', r'encoder\.num_blocks has keys below it'),
        ('sigma_min: 1e-06', 'sigma_min: {}', 'sigma_min has keys below it where a value'),
        ("act_fn: 'gelu'", "act_fn: {gelu: 1}", 'act_fn has keys below it'),
        ('linear_units: 2048', 'linear_units: [', 'not readable as YAML'),
        ('flow: !new', 'flaw: !new', "no mapping 'flow'"),
        ('output_size: 512', 'output_size: 511', 'width 511'),
        ('rate: 0.2', 'rate: 1.2', 'condition_dropout is 1.2'),
        ('num_blocks: 6', 'num_blocks: 10000000000000', 'blocks is 10000000000000, expected'),
        ('num_mid_blocks: 12', 'num_mid_blocks: 2147483647', 'mid_blocks is 2147483647, expected'),
        ('linear_units: 2048', 'linear_units: 2048.0', r'ff_width is 2048\.0, expected a whole'),
        ('linear_units: 2048', 'linear_units: 2048\n        linear_units: 8', 'units.* twice'),
        ('sigma_min: 1e-06', 'sigma_min: .nan', 'sigma_min is nan'),
        ('sigma_min: 1e-06', 'sigma_min: nan', 'sigma_min is nan'),
        ('inference_cfg_rate: 0.7', 'inference_cfg_rate: .inf', 'inference_cfg_rate is inf'),
        ('inference_cfg_rate: 0.7', 'inference_cfg_rate: true', 'inference_cfg_rate is True'),
        ('<chunk_size> * <', '10 ** 9 ** 9 + <', 'cannot work out 10'),
        ('<chunk_size> * <', '99999999999 * 99999999999 * <', 'cannot work out 9999'),
        ('<chunk_size> * <', '-' * 300 + '<', 'a reference of 3.. letters'),
        ('<chunk_size> * <', '1 / 0 * <', 'cannot work out 1'),
        ('left: -1', 'left: !!python/name:os.system', 'names Python code .python/name:os.system.'),
    ],
)
def test_refusals_name_the_key(old, new, message, file):
    assert old in TAGGED
    with pytest.raises(InputError, match=message):
        read_config(file(TAGGED.replace(old, new)))



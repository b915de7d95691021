"""Adapters as PEFT saves them: read as PEFT itself reloads them, or refused by the key at fault."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft as lib
import pytest
import torch
from transformers.models.qwen3 import modeling_qwen3

from mossjax.convert import peft, rules
from mossjax.convert.lm_rules import LM_RULES
from mossjax.convert.reference import speech_model
from mossjax.errors import InputError
from mossjax.models.lm.matrices import matrix
from mossjax.models.lm.model import network
from mossjax.nn.lora import merge
from mossjax.ops.attention import Mask
from tests.tiny_lm import tiny_config, tiny_grid, tiny_params

CONFIG, PARAMS = tiny_config(), tiny_params(tiny_config())
NET, GRID = network(CONFIG), tiny_grid(CONFIG, 2, 12)
FORWARD = jax.jit(lambda params: NET.bind(params)(
    GRID, jnp.broadcast_to(jnp.arange(12), (2, 12)), Mask(causal=True)
))  # fmt: skip


def base():
    """The torch model with our weights."""
    model = speech_model(torch, modeling_qwen3, CONFIG)
    tensors = rules.to_tensors(LM_RULES, PARAMS)
    model.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()})
    return model.eval()


def randomise(model) -> None:
    """Adapters as training leaves them: both factors away from where they started."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if 'lora_' in name:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)


def saved(folder, start=None, **settings):
    """A directory that PEFT wrote."""
    settings = {'target_modules': ['q_proj', 'down_proj'], 'r': 3, 'lora_alpha': 6, **settings}
    model = lib.get_peft_model(base(), lib.LoraConfig(**settings))
    if start:
        model.peft_config['default'].init_lora_weights = True
        model.save_pretrained(start)
        model.peft_config['default'].init_lora_weights = settings['init_lora_weights']
    randomise(model)
    more = {'path_initial_model_for_weight_conversion': str(start)} if start else {}
    model.save_pretrained(folder, **more)
    return folder


def logits_of_peft(folder):
    model = lib.PeftModel.from_pretrained(base(), folder).eval()
    return [x.numpy() for x in model(torch.from_numpy(GRID).long())]


def ours(folder):
    found = peft.load(folder, NET.shapes)
    return FORWARD(merge(PARAMS, found.tree(), found.lora, matrix)), found


def assert_equal_to_peft(folder):
    (got, found), want, before = ours(folder), logits_of_peft(folder), FORWARD(PARAMS)
    for a, b, c in zip(got, want, before, strict=True):
        scale = np.abs(b).max()
        assert np.abs(np.asarray(a) - b).max() <= 1e-4 * scale
        assert np.abs(np.asarray(c) - b).max() > 1e-3 * scale  # the adapter does something
    return found


LAST = r'text_block.*\.1\.mlp\.down_proj'
COMPUTED = {
    'plain': {},
    'scaled by the root of the rank': {'use_rslora': True},
    'ranks of their own': {'rank_pattern': {'down_proj': 5, 'o_proj': 2}},
    'scales of their own': {'alpha_pattern': {'down_proj': 1}},
    'both, by patterns': {'rank_pattern': {LAST: 1, r'layers\.0\..*q_proj': 4},
                          'alpha_pattern': {r'^model\.text_block.*': 20}, 'use_rslora': True},
    'the first pattern counts': {'rank_pattern': {r'.*\.0\.self_attn\.q_proj': 7, 'q_proj': 2}},
    'some layers': {'layers_to_transform': [0, 2]},
    'one layer of named stacks': {'layers_to_transform': 1,
                                  'layers_pattern': ['text_block.layers', 'audio_block.layers']},
    'without some': {'exclude_modules': ['text_block.layers.0.self_attn.q_proj']},
    'without a pattern': {'exclude_modules': r'.*audio_block.*'},
    'a pattern': {'target_modules': r'.*\.[a-z]+_block\..*\.(gate|up)_proj'},
    'heads': {'target_modules': ['text_lm_head', 'model.audio_block.layers.1.self_attn.o_proj']},
    'every linear map': {'target_modules': 'all-linear'},
    'a normal start': {'init_lora_weights': 'gaussian'},
    'an orthogonal start': {'init_lora_weights': 'orthogonal', 'r': 4},
    'minor components': {'init_lora_weights': 'mica'},
    'explained variance': {'init_lora_weights': 'eva', 'eva_config': lib.EvaConfig()},
    'no start': {'init_lora_weights': False},
}  # fmt: skip


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('settings', COMPUTED.values(), ids=COMPUTED.keys())
def test_what_is_computed_is_what_peft_computes(settings, tmp_path):
    assert_equal_to_peft(saved(tmp_path / 'a', **settings))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('how', ['pissa', 'olora'])
def test_a_start_that_changed_the_base_is_refused_unless_it_was_converted_back(how, tmp_path):
    folder = saved(tmp_path / 'a', init_lora_weights=how)
    said = f"init_lora_weights is '{how}'.*path_initial_model_for_weight_conversion.*merge"
    with pytest.raises(InputError, match=said):
        peft.load(folder, NET.shapes)
    back = saved(tmp_path / 'b', tmp_path / 'start', init_lora_weights=how)
    found = assert_equal_to_peft(back)
    assert found.lora.rank == 6


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    'settings, key',
    [
        ({'use_dora': True}, 'use_dora is True.*merge_and_unload'),
        ({'modules_to_save': ['text_norm']}, 'modules_to_save is'),
        ({'trainable_token_indices': {'embed_tokens': [1, 2]}}, 'trainable_token_indices is'),
        ({'lora_bias': True}, 'lora_bias is True'),
        ({'alora_invocation_tokens': [5, 6]}, 'alora_invocation_tokens is .*run it with PEFT'),
        ({'target_parameters': ['embed_tokens.weight']}, 'target_parameters is'),
        ({'target_modules': ['embed_tokens']}, 'do not belong to adapters of this model'),
    ],
)
def test_other_kinds_as_peft_saves_them_are_refused(settings, key, tmp_path):
    folder = saved(tmp_path / 'a', **settings)
    with pytest.raises(InputError, match=key):
        peft.load(folder, NET.shapes)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    return saved(tmp_path_factory.mktemp('plain') / 'a')


@pytest.fixture
def edited(plain, tmp_path):
    """What PEFT wrote, with keys of its configuration changed."""

    def write(changes):
        folder = tmp_path / 'edited'
        folder.mkdir(exist_ok=True)
        for file in plain.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        content = json.loads((plain / peft.CONFIG).read_text())
        (folder / peft.CONFIG).write_text(json.dumps({**content, **changes}))
        return folder

    return write


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'init_lora_weights': 'pissa_niter_4'}, "init_lora_weights is 'pissa_niter_4'"),
        ({'init_lora_weights': 'corda'}, "init_lora_weights is 'corda'"),
        ({'init_lora_weights': 'loftq'}, "init_lora_weights is 'loftq'"),
        ({'init_lora_weights': 'lora_ga'}, "init_lora_weights is 'lora_ga'"),
        ({'init_lora_weights': 'of next year'}, "init_lora_weights is 'of next year'"),
        ({'init_lora_weights': 1}, 'init_lora_weights is 1'),
        ({'peft_type': 'IA3'}, "peft_type is 'IA3', only 'LORA'"),
        ({'bias': 'lora_only'}, "bias is 'lora_only', only 'none'"),
        ({'fan_in_fan_out': True}, 'fan_in_fan_out is True'),
        ({'layer_replication': [[0, 2], [1, 3]]}, 'layer_replication is .*more layers'),
        ({'use_qalora': True}, 'use_qalora is True'),
        ({'use_bdlora': {'nblocks': 2}}, 'use_bdlora is'),
        ({'kasa_config': {'beta': 1e-4}}, 'kasa_config is'),
        ({'monteclora_config': {'num_samples': 8}}, 'monteclora_config is'),
        ({'arrow_config': {'top_k': 2}}, 'arrow_config is .*run it with PEFT'),
        ({'megatron_config': {'a': 1}}, 'megatron_config is'),
        ({'ensure_weight_tying': True}, 'ensure_weight_tying is True'),
        ({'a_key_of_next_year': 0.5}, 'a_key_of_next_year is 0.5'),
        ({'use_rslora': 'yes'}, "use_rslora is 'yes', expected true or false"),
        ({'r': 10**13}, 'r is 10000000000000, expected'),
        ({'r': 2**31 - 1, 'layers_to_transform': [0]}, 'leaves out'),
        ({'rank_pattern': {'q_proj': 2**31 - 1}}, 'this model wants .2147483647, 32'),
        ({'r': 3.0}, r'r is 3\.0, expected a whole'),
        ({'lora_alpha': None}, "no 'lora_alpha'"),
        ({'lora_alpha': 0}, 'lora_alpha is 0'),
        ({'rank_pattern': {'q_proj': '4'}}, "rank_pattern: q_proj is '4'"),
        ({'alpha_pattern': [1]}, r'alpha_pattern is \[1\], expected an object'),
        ({'alpha_pattern': {'(': 1}}, "alpha_pattern: '\\(' is no pattern"),
        ({'target_modules': None}, 'target_modules is missing'),
        ({'target_modules': 5}, 'target_modules is 5'),
        ({'target_modules': '('}, 'is no pattern'),
        ({'target_modules': ['q_proj']}, 'adapters of .*down_proj.* leaves out'),
        ({'target_modules': ['q_proj', 'down_proj', 'o_proj']}, 'o_proj.lora_A.weight.* missing'),
        ({'layers_to_transform': [0]}, 'leaves out'),
        ({'layers_to_transform': 'all'}, "layers_to_transform is 'all'"),
        ({'exclude_modules': ['down_proj']}, 'leaves out'),
    ],
)
def test_an_edited_configuration_is_refused_by_key(changes, said, edited):
    with pytest.raises(InputError, match=said) as refused:
        peft.load(edited(changes), NET.shapes)
    assert '\n' not in str(refused.value)


def test_keys_that_change_nothing(plain, edited):
    changes = {
        'lora_dropout': 0.3, 'revision': 'main', 'base_model_name_or_path': 'x/y', 'r': 3,
        'inference_mode': False, 'task_type': 'CAUSAL_LM', 'use_dora': None, 'new_key': [],
    }  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, ours(edited(changes))[0], ours(plain)[0])


def test_every_setting_of_this_peft_is_known():
    """A key that a release adds is refused once it is used; here it is noticed."""
    known = set(peft.peft_config.COMPUTED) | set(peft.peft_config.INERT) | set(
        peft.peft_config.ONLY
    )
    content = lib.LoraConfig().to_dict()
    off = {key for key, value in content.items() if not value}
    assert set(content) - known - off == set()


def test_an_adapter_saved_by_torch_is_read(plain, edited):
    folder = edited({})
    tensors = peft.open_tensors(plain, peft.STEM)
    torch.save({name: torch.from_numpy(np.array(tensors.read(name))) for name in tensors.shapes},
               folder / 'adapter_model.bin')  # fmt: skip
    (folder / peft.WEIGHTS).unlink()
    got, want = ours(folder)[0], ours(plain)[0]
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_names_that_peft_would_not_find_are_refused(plain, edited):
    folder = edited({})
    tensors = peft.open_tensors(plain, peft.STEM)
    whole = {name: np.array(tensors.read(name)) for name in tensors.shapes}
    for change in (
        lambda name: name.replace('.lora_A.', '.lora_A.default.'),
        lambda name: name.replace('base_model.model.', ''),
        lambda name: name.replace('model.shared_block.layers', 'model.layers'),
    ):
        peft.safetensors_io.write(
            folder / peft.WEIGHTS, {change(name): x for name, x in whole.items()}
        )
        with pytest.raises(InputError, match='do not belong to adapters of this model, e.g. '):
            peft.load(folder, NET.shapes)

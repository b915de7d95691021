"""Tensor names of the language model's checkpoint (446 in the released one)."""

from collections.abc import Mapping
import re

from mossjax.convert.rules import IDENTITY, MERGE_HEADS, SPLIT_HEADS, TRANSPOSE, Rule
from mossjax.models.lm.config import LMConfig

LAYER = (
    ('input_layernorm', 'attn_norm/scale', IDENTITY),
    ('self_attn.q_proj', 'attn/q', SPLIT_HEADS),
    ('self_attn.k_proj', 'attn/k', SPLIT_HEADS),
    ('self_attn.v_proj', 'attn/v', SPLIT_HEADS),
    ('self_attn.o_proj', 'attn/o', MERGE_HEADS),
    ('self_attn.q_norm', 'attn/q_norm/scale', IDENTITY),
    ('self_attn.k_norm', 'attn/k_norm/scale', IDENTITY),
    ('post_attention_layernorm', 'mlp_norm/scale', IDENTITY),
    ('mlp.gate_proj', 'mlp/gate', TRANSPOSE),
    ('mlp.up_proj', 'mlp/up', TRANSPOSE),
    ('mlp.down_proj', 'mlp/down', TRANSPOSE),
)


def _stack(module: str, parameters: str) -> list[Rule]:
    return [
        Rule(f'model.{module}.layers.{{}}.{name}.weight', f'{parameters}/{path}', op)
        for name, path, op in LAYER
    ]


# What a text-only model has: trunk, text branch, and the text side's embedding, norm and head.
TEXT_RULES = [
    Rule('model.embed_tokens.weight', 'text_embed/table'),
    *_stack('shared_block', 'trunk'),
    *_stack('text_block', 'text_branch'),
    Rule('model.text_norm.weight', 'text_norm/scale'),
    Rule('text_lm_head.weight', 'text_head/kernel', TRANSPOSE),
]
SPEECH_RULES = [
    Rule('model.audio_embed.weight', 'audio_embed/table'),
    *_stack('audio_block', 'audio_branch'),
    Rule('model.audio_norm.weight', 'audio_norm/scale'),
    Rule('audio_lm_head.weight', 'audio_head/kernel', TRANSPOSE),
]
LM_RULES = [*TEXT_RULES, *SPEECH_RULES]

_MODULES = (
    'model.embed_tokens', 'model.audio_embed', 'model.shared_block', 'model.text_block',
    'model.audio_block', 'model.text_norm', 'model.audio_norm', 'text_lm_head', 'audio_lm_head',
)  # fmt: skip
_PARTS = (
    'self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.o_proj',
    'self_attn.q_norm', 'self_attn.k_norm', 'mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj',
    'input_layernorm', 'post_attention_layernorm',
)  # fmt: skip


def module_order(name: str) -> tuple:
    """Sort key: the order of upstream's modules, which decides how a checkpoint is sharded."""
    module = next(i for i, m in enumerate(_MODULES) if name.startswith(m))
    layer = re.search(r'\.layers\.(\d+)\.(.*)\.weight', name)
    return (module, int(layer[1]), _PARTS.index(layer[2])) if layer else (module, 0, 0)


# Key of config.json: a tensor one of whose axes has that size, and the axis.
_SIZES = {
    'vocab_size': ('model.embed_tokens.weight', 0),
    'hidden_size': ('model.embed_tokens.weight', 1),
    'audio_vocab_size': ('model.audio_embed.weight', 0),
    'intermediate_size': ('model.shared_block.layers.0.mlp.gate_proj.weight', 0),
    'head_dim': ('model.shared_block.layers.0.self_attn.q_norm.weight', 0),
}
_STACKS = {'num_shared_layers': 'shared_block', 'num_modality_layers': 'text_block'}


def size_doubts(config: LMConfig, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Which keys of a configuration its weights contradict, '' if none does."""
    found = {
        key: shapes[name][axis] for key, (name, axis) in _SIZES.items()
        if len(shapes.get(name, ())) > axis
    }
    for key, module in _STACKS.items():
        layers = {re.match(rf'model\.{module}\.layers\.(\d+)\.', name) for name in shapes}
        found[key] = len({match[1] for match in layers if match})
    return ', '.join(
        f'{key} is {getattr(config, key)} in config.json, {size} in the weights'
        for key, size in found.items() if size and getattr(config, key) != size
    )

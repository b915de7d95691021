"""Tensor names of the Whisper-VQ tokenizer <-> our parameters."""

import dataclasses

from mossjax.convert.rules import IDENTITY, MERGE_HEADS, SPLIT_BIAS, SPLIT_HEADS, TRANSPOSE, Rule

# Where tokenizer tensors live in a file: MOSS-Speech's release, Whisper- and GLM-style files, or
# an encoder saved by itself.
PREFIXES = ('encoder.', 'model.encoder.', '')


def attention_rules(name: str, path: str) -> list[Rule]:
    """Whisper attention: biases on query, value and output, none on the key."""
    return [
        Rule(f'{name}.q_proj.weight', f'{path}/q', SPLIT_HEADS),
        Rule(f'{name}.k_proj.weight', f'{path}/k', SPLIT_HEADS),
        Rule(f'{name}.v_proj.weight', f'{path}/v', SPLIT_HEADS),
        Rule(f'{name}.out_proj.weight', f'{path}/o', MERGE_HEADS),
        Rule(f'{name}.q_proj.bias', f'{path}/q_bias', SPLIT_BIAS),
        Rule(f'{name}.v_proj.bias', f'{path}/v_bias', SPLIT_BIAS),
        Rule(f'{name}.out_proj.bias', f'{path}/o_bias', IDENTITY),
    ]


def norm_rules(name: str, path: str) -> list[Rule]:
    return [Rule(f'{name}.weight', f'{path}/scale'), Rule(f'{name}.bias', f'{path}/bias')]


def linear_rules(name: str, path: str) -> list[Rule]:
    return [
        Rule(f'{name}.weight', f'{path}/kernel', TRANSPOSE),
        Rule(f'{name}.bias', f'{path}/bias'),
    ]


def layer_rules(name: str, path: str, first: int = 0) -> list[Rule]:
    """Stacked pre-norm layers; `name` holds {} for the index, which starts at `first`."""
    table = [
        *norm_rules(f'{name}.self_attn_layer_norm', f'{path}/attn_norm'),
        *attention_rules(f'{name}.self_attn', f'{path}/attn'),
        *norm_rules(f'{name}.final_layer_norm', f'{path}/mlp_norm'),
        *linear_rules(f'{name}.fc1', f'{path}/up'),
        *linear_rules(f'{name}.fc2', f'{path}/down'),
    ]
    return [dataclasses.replace(rule, first=first) for rule in table]


def encoder_rules(prefix: str, path: str) -> list[Rule]:
    """The encoder before the codebook: convolutions, positions, layers."""
    return [
        Rule(f'{prefix}conv1.weight', f'{path}/conv1/kernel', TRANSPOSE),
        Rule(f'{prefix}conv1.bias', f'{path}/conv1/bias'),
        Rule(f'{prefix}conv2.weight', f'{path}/conv2/kernel', TRANSPOSE),
        Rule(f'{prefix}conv2.bias', f'{path}/conv2/bias'),
        Rule(f'{prefix}embed_positions.weight', f'{path}/positions/table'),
        *layer_rules(prefix + 'layers.{}', f'{path}/layers'),
    ]


def tokenizer_rules(prefix: str) -> list[Rule]:
    """All that ids need."""
    return [*encoder_rules(prefix, 'encoder'), Rule(f'{prefix}codebook.weight', 'codebook')]


def trained_rules(prefix: str) -> tuple[list[Rule], tuple[str, ...]]:
    """(rules of what a training run leaves for a codec, names of tensors that ids do not need).

    The position table behind the codebook is one of them: upstream's module expects it in a file.
    """
    name = f'{prefix}embed_positions2.weight'
    return [*tokenizer_rules(prefix), Rule(name, 'upper/positions/table')], (name,)


def recogniser_rules(prefix: str, decoder: str, layers: int) -> list[Rule]:
    """The training network of `models.tokenizer.asr`: encoder, upper half, text decoder.

    Args:
      decoder: prefix of the decoder's tensors, e.g. 'model.decoder.'.
      layers: index of the first layer behind the codebook.
    """
    below, above = decoder + 'layers.{}', 'heads/text/layers'
    return [
        *encoder_rules(prefix, 'encoder'),
        Rule(f'{prefix}embed_positions2.weight', 'upper/positions/table'),
        *layer_rules(prefix + 'layers.{}', 'upper/layers', layers),
        *norm_rules(f'{prefix}layer_norm', 'upper/norm'),
        Rule(f'{decoder}embed_tokens.weight', 'heads/text/embed/table'),
        Rule(f'{decoder}embed_positions.weight', 'heads/text/positions'),
        *layer_rules(below, above),
        *norm_rules(f'{below}.encoder_attn_layer_norm', f'{above}/cross_norm'),
        *attention_rules(f'{below}.encoder_attn', f'{above}/cross'),
        *norm_rules(f'{decoder}layer_norm', 'heads/text/norm'),
    ]


def unused(prefix: str, layers: int, encoder_layers: int) -> list[str]:
    """Regular expressions of tensors that may be present and that ids do not need.

    Args:
      layers: layers before the codebook; those from here to `encoder_layers` are not needed.
    """
    p = prefix.replace('.', r'\.')
    upper = '|'.join(str(i) for i in range(layers, encoder_layers))
    return [
        *([rf'{p}layers\.({upper})\..*'] if upper else []),
        rf'{p}layer_norm\.(weight|bias)',
        rf'{p}embed_positions2\.weight',
        rf'{p}ema_(count|weight)',
        r'(model\.)?decoder\..*',
        r'proj_out\.weight',
    ]

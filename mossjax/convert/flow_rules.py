"""The flow decoder's table of rules: tensor names of `flow.pt` <-> parameters."""

from mossjax.convert.rules import (
    IDENTITY,
    MERGE_HEADS,
    POINTWISE,
    SPLIT_BIAS,
    SPLIT_HEADS,
    TRANSPOSE,
    Op,
    Rule,
)


def _linear(name: str, path: str, op: Op = TRANSPOSE) -> list[Rule]:
    return [Rule(f'{name}.weight', f'{path}/kernel', op), Rule(f'{name}.bias', f'{path}/bias')]


def _norm(name: str, path: str) -> list[Rule]:
    return [Rule(f'{name}.weight', f'{path}/scale'), Rule(f'{name}.bias', f'{path}/bias')]


def _input_layer(name: str, path: str) -> list[Rule]:
    return _linear(f'{name}.out.0', f'{path}/linear') + _norm(f'{name}.out.1', f'{path}/norm')


def _conformer(name: str, path: str) -> list[Rule]:
    attention = [
        Rule(f'{name}.self_attn.linear_out.weight', f'{path}/attention/o', MERGE_HEADS),
        Rule(f'{name}.self_attn.linear_out.bias', f'{path}/attention/o_bias'),
        Rule(f'{name}.self_attn.linear_pos.weight', f'{path}/attention/position', SPLIT_HEADS),
        Rule(f'{name}.self_attn.pos_bias_u', f'{path}/attention/content_bias', IDENTITY),
        Rule(f'{name}.self_attn.pos_bias_v', f'{path}/attention/position_bias', IDENTITY),
    ]
    for x in 'qkv':
        linear = f'{name}.self_attn.linear_{x}'
        attention += [
            Rule(f'{linear}.weight', f'{path}/attention/{x}', SPLIT_HEADS),
            Rule(f'{linear}.bias', f'{path}/attention/{x}_bias', SPLIT_BIAS),
        ]
    return (
        attention
        + _norm(f'{name}.norm_mha', f'{path}/attention_norm')
        + _norm(f'{name}.norm_ff', f'{path}/ff_norm')
        + _linear(f'{name}.feed_forward.w_1', f'{path}/ff_in')
        + _linear(f'{name}.feed_forward.w_2', f'{path}/ff_out')
    )


def _causal_block(name: str, path: str) -> list[Rule]:
    return _linear(f'{name}.block.0', f'{path}/conv') + _norm(f'{name}.block.2', f'{path}/norm')


def _stage(name: str, path: str) -> list[Rule]:
    resnet, block = f'{path}/resnet', f'{path}/transformers'
    return (
        _linear(f'{name}.0.mlp.1', f'{resnet}/time')
        + _causal_block(f'{name}.0.block1', f'{resnet}/block1')
        + _causal_block(f'{name}.0.block2', f'{resnet}/block2')
        + _linear(f'{name}.0.res_conv', f'{resnet}/shortcut', POINTWISE)
        + [
            Rule(f'{name}.1.{{}}.attn1.to_{x}.weight', f'{block}/attention/{x}', SPLIT_HEADS)
            for x in 'qkv'
        ]
        + [
            Rule(f'{name}.1.{{}}.attn1.to_out.0.weight', f'{block}/attention/o', MERGE_HEADS),
            Rule(f'{name}.1.{{}}.attn1.to_out.0.bias', f'{block}/attention/o_bias'),
        ]
        + _norm(f'{name}.1.{{}}.norm1', f'{block}/attention_norm')
        + _norm(f'{name}.1.{{}}.norm3', f'{block}/ff_norm')
        + _linear(f'{name}.1.{{}}.ff.net.0.proj', f'{block}/ff_in')
        + _linear(f'{name}.1.{{}}.ff.net.2', f'{block}/ff_out')
    )


def _estimator(name: str, path: str) -> list[Rule]:
    return (
        _linear(f'{name}.time_mlp.linear_1', f'{path}/time_in')
        + _linear(f'{name}.time_mlp.linear_2', f'{path}/time_out')
        + _stage(f'{name}.down_blocks.0', f'{path}/down')
        + _linear(f'{name}.down_blocks.0.2', f'{path}/down_conv')
        + _stage(f'{name}.mid_blocks.{{}}', f'{path}/mid')
        + _stage(f'{name}.up_blocks.0', f'{path}/up')
        + _linear(f'{name}.up_blocks.0.2', f'{path}/up_conv')
        + _causal_block(f'{name}.final_block', f'{path}/final_block')
        + _linear(f'{name}.final_proj', f'{path}/final', POINTWISE)
    )


def flow_rules() -> list[Rule]:
    """All 1121 tensors of the released decoder, by 148 rules."""
    return (
        [Rule('input_embedding.weight', 'embed/table')]
        + _linear('spk_embed_affine_layer', 'speaker_proj')
        + _input_layer('encoder.embed', 'encoder/embed')
        + _linear('encoder.pre_lookahead_layer.conv1', 'encoder/lookahead/conv1')
        + _linear('encoder.pre_lookahead_layer.conv2', 'encoder/lookahead/conv2')
        + _conformer('encoder.encoders.{}', 'encoder/blocks')
        + _linear('encoder.up_layer.conv', 'encoder/upsample')
        + _input_layer('encoder.up_embed', 'encoder/up_embed')
        + _conformer('encoder.up_encoders.{}', 'encoder/up_blocks')
        + _norm('encoder.after_norm', 'encoder/norm')
        + _linear('encoder_proj', 'mu_proj')
        + _estimator('decoder.estimator', 'estimator')
    )

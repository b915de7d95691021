"""The vocoder's table of rules: tensor names of `hift.pt` <-> parameters.

Weight-normed convolutions come in three spellings: g and v as `X.weight_g`, `X.weight_v` (torch
before 2.0) or as `X.parametrizations.weight.original0`, `original1`, or folded into `X.weight`.
A file may mix them, as upstream's own `remove_weight_norm` leaves the f0 predictor as it is.
"""

from collections.abc import Collection, Mapping
import dataclasses
import types

from mossjax.convert.rules import TRANSPOSE, Op, Rule, flatten
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.models.vocoder.hift.f0 import LAYERS
from mossjax.nn.weight_norm import DIRECTION, LENGTH

# torch ConvTranspose1d (in, out, k) <-> kernel (k, in, out).
TRANSPOSED = Op(
    'transposed_conv',
    lambda x, s: x.transpose(2, 0, 1),
    lambda x, s: x.transpose(1, 2, 0),
    lambda s: (s[1], s[2], s[0]),
)
FOLDED, OLD, NEW = (
    ('weight',),
    ('weight_g', 'weight_v'),
    ('parametrizations.weight.original0', 'parametrizations.weight.original1'),
)
SPELLINGS = (NEW, OLD, FOLDED)
NONE: Mapping = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution: its name in the checkpoint, its path, how its kernel is laid out."""

    name: str
    path: str
    op: Op = TRANSPOSE
    normed: bool = True  # may have weight norm

    @property
    def length_axis(self) -> int:
        """The axis of our kernel that is torch's axis 0, along which g varies."""
        return 1 if self.op is TRANSPOSED else 2

    def rules(self, spelling: tuple[str, ...]) -> list[Rule]:
        ends = (f'/{LENGTH}', f'/{DIRECTION}') if len(spelling) == 2 else ('',)
        return [Rule(f'{self.name}.bias', f'{self.path}/bias')] + [
            Rule(f'{self.name}.{name}', f'{self.path}/kernel{end}', self.op)
            for name, end in zip(spelling, ends, strict=True)
        ]


def _block(config: HiftConfig, name: str, path: str) -> list[Convolution]:
    return [
        Convolution(f'{name}.convs{j}.{i}', f'{path}/unit{i}/conv{j}')
        for i in range(len(config.dilations))
        for j in (1, 2)
    ]


def _stage_blocks(config: HiftConfig, i: int) -> list[tuple[str, str]]:
    """(name, path) of the residual blocks of a stage."""
    count = len(config.block_kernels)
    return [(f'source_resblocks.{i}', f'stage{i}/source_block')] + [
        (f'resblocks.{count * i + j}', f'stage{i}/block{j}') for j in range(count)
    ]


def convolutions(config: HiftConfig) -> list[Convolution]:
    """All of them, in the order of the modules."""
    found = [
        Convolution(f'f0_predictor.condnet.{2 * i}', f'f0/conv{i}') for i in range(LAYERS)
    ]
    found.append(Convolution('conv_pre', 'pre'))
    for i in range(len(config.rates)):
        found.append(Convolution(f'ups.{i}', f'stage{i}/up', TRANSPOSED))
        found.append(Convolution(f'source_downs.{i}', f'stage{i}/source_down', normed=False))
        for name, path in _stage_blocks(config, i):
            found += _block(config, name, path)
    return [*found, Convolution('conv_post', 'post')]


def spellings(config: HiftConfig, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """{convolution: how it is spelled in a checkpoint with these tensor names}."""
    found = {}
    for conv in convolutions(config):
        for spelling in SPELLINGS:
            if conv.normed and f'{conv.name}.{spelling[-1]}' in names:
                found[conv.name] = spelling
    return found


def spellings_of(
    config: HiftConfig, params: Mapping, normed: tuple[str, ...] = NEW
) -> dict[str, tuple[str, ...]]:
    """{convolution: FOLDED where these parameters have a plain kernel, else `normed`}."""
    flat = flatten(params)
    return {
        conv.name: FOLDED if f'{conv.path}/kernel' in flat else normed
        for conv in convolutions(config)
    }


def hift_rules(config: HiftConfig, spelled: Mapping[str, tuple[str, ...]] = NONE) -> list[Rule]:
    """The table, 328 tensors in the NEW spelling, which convolutions not in `spelled` have."""
    table = [
        Rule('m_source.l_linear.weight', 'merge/kernel', TRANSPOSE),
        Rule('m_source.l_linear.bias', 'merge/bias'),
        Rule('f0_predictor.classifier.weight', 'f0/out/kernel', TRANSPOSE),
        Rule('f0_predictor.classifier.bias', 'f0/out/bias'),
    ]
    for conv in convolutions(config):
        table += conv.rules(_of(conv, spelled))
    for stage in range(len(config.rates)):
        for name, path in _stage_blocks(config, stage):
            table += [
                Rule(f'{name}.activations{j}.{i}.alpha', f'{path}/unit{i}/snake{j}/alpha')
                for i in range(len(config.dilations))
                for j in (1, 2)
            ]
    return table


def normed_kernels(
    config: HiftConfig, spelled: Mapping[str, tuple[str, ...]] = NONE
) -> dict[str, int]:
    """{path of a kernel stored as g and v: axis of g}, see `nn.weight_norm.normed`."""
    return {
        f'{conv.path}/kernel': conv.length_axis
        for conv in convolutions(config)
        if len(_of(conv, spelled)) == 2
    }


def _of(conv: Convolution, spelled: Mapping) -> tuple[str, ...]:
    return spelled.get(conv.name, NEW) if conv.normed else FOLDED

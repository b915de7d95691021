"""The speaker encoder's table of rules: torch names of CAM++ <-> parameters.

In ONNX files most norms are folded into the convolution before them. Such a convolution has a bias,
here named after it (`head.conv1.bias`), and the four tensors of the norm do not exist.
"""

from collections.abc import Collection, Iterable, Mapping
import dataclasses
import re

from mossjax.convert.rules import POINTWISE, TRANSPOSE, Op, Rule
from mossjax.errors import InputError
from mossjax.models.speaker.config import CamppConfig

# torch Conv2d (out, in, kh, kw) <-> kernel (kh, kw, in, out).
IMAGE = Op(
    'conv2d',
    lambda x, s: x.transpose(2, 3, 1, 0),
    lambda x, s: x.transpose(3, 2, 0, 1),
    lambda s: (s[3], s[2], s[0], s[1]),
)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution by its torch name; `bias`: it has one of its own."""

    name: str
    path: str
    op: Op
    bias: bool = False

    def rules(self, config: CamppConfig) -> list[Rule]:
        weight = Rule(f'{self.name}.weight', f'{self.path}/kernel', self.op)
        return [weight, Rule(f'{self.name}.bias', f'{self.path}/bias')] if self.bias else [weight]


@dataclasses.dataclass(frozen=True)
class Norm:
    """A norm by its torch name; `behind`: the convolution that it can be folded into."""

    name: str
    path: str
    behind: str = ''
    affine: bool = True

    def rules(self, config: CamppConfig) -> list[Rule]:
        if self.path in config.folded:
            return [Rule(f'{self.behind}.bias', f'{self.path}/bias')]
        parts = {'running_mean': 'mean', 'running_var': 'var'}
        parts |= {'weight': 'scale', 'bias': 'bias'} if self.affine else {}
        return [Rule(f'{self.name}.{name}', f'{self.path}/{ours}') for name, ours in parts.items()]


Part = Convolution | Norm


def _pair(conv: Convolution, name: str, path: str, affine: bool = True) -> list[Part]:
    return [conv, Norm(name, path, conv.name, affine)]


def _head() -> list[Part]:
    def image(name, path, norm, norm_path):
        return _pair(
            Convolution(f'head.{name}', f'head/{path}', IMAGE), f'head.{norm}', f'head/{norm_path}'
        )

    parts = image('conv1', 'conv1', 'bn1', 'norm1')
    for i in (1, 2):
        for j in (0, 1):
            name, path = f'layer{i}.{j}', f'layer{i}_{j}'
            for k in (1, 2):
                parts += image(
                    f'{name}.conv{k}', f'{path}/conv{k}', f'{name}.bn{k}', f'{path}/norm{k}'
                )
            if j == 0:
                parts += image(
                    f'{name}.shortcut.0', f'{path}/shortcut', f'{name}.shortcut.1',
                    f'{path}/shortcut_norm',
                )  # fmt: skip
    return parts + image('conv2', 'conv2', 'bn2', 'norm2')


def _dense(name: str, path: str) -> list[Part]:
    narrow = Convolution(f'{name}.linear1', f'{path}/narrow', POINTWISE)
    cam = f'{name}.cam_layer'
    return [
        Norm(f'{name}.nonlinear1.batchnorm', f'{path}/norm1'),
        *_pair(narrow, f'{name}.nonlinear2.batchnorm', f'{path}/norm2'),
        Convolution(f'{cam}.linear_local', f'{path}/local', TRANSPOSE),
        Convolution(f'{cam}.linear1', f'{path}/context_in', POINTWISE, bias=True),
        Convolution(f'{cam}.linear2', f'{path}/context_out', POINTWISE, bias=True),
    ]


def parts(layers: Collection[int]) -> list[Part]:
    """Everything with weights, in the order in which the network runs it."""
    tdnn = Convolution('xvector.tdnn.linear', 'tdnn', TRANSPOSE)
    found = _head() + _pair(tdnn, 'xvector.tdnn.nonlinear.batchnorm', 'tdnn_norm')
    for i, count in enumerate(layers):
        for j in range(count):
            found += _dense(f'xvector.block{i + 1}.tdnnd{j + 1}', f'block{i}_{j}')
        name = f'xvector.transit{i + 1}'
        found.append(Norm(f'{name}.nonlinear.batchnorm', f'transit_norm{i}'))
        found.append(Convolution(f'{name}.linear', f'transit{i}', POINTWISE))
    found.append(Norm('xvector.out_nonlinear.batchnorm', 'out_norm', f'{name}.linear'))
    embed = Convolution('xvector.dense.linear', 'embed', POINTWISE)
    return found + _pair(embed, 'xvector.dense.nonlinear.batchnorm', 'embed_norm', affine=False)


def campp_rules(config: CamppConfig) -> list[Rule]:
    """The table; 815 tensors where no norm is folded."""
    return [rule for part in parts(config.layers) for rule in part.rules(config)]


def layers_of(names: Iterable[str]) -> tuple[int, ...]:
    """Dense layers of each block by these tensor names; the released ones where none tells."""
    released = CamppConfig().layers
    found = [0] * len(released)
    for name in names:
        match = re.match(r'xvector\.block([1-9])\.tdnnd(\d{1,3})\.', name)
        if match and int(match[1]) <= len(found):
            found[int(match[1]) - 1] = max(found[int(match[1]) - 1], int(match[2]))
    return tuple(found) if all(found) else released


def config_of(shapes: Mapping[str, tuple[int, ...]], where: str) -> CamppConfig:
    """The configuration that tensors of these names and shapes belong to.

    Raises:
      InputError: a tensor that tells a size is missing; `where` is named.
    """
    released = CamppConfig()

    def size(name: str, axis: int) -> int:
        if len(shapes.get(name, ())) <= axis:
            raise InputError(
                f'{where}: no tensor {name} of {axis + 1} axes, so this is no CAM++ speaker '
                'encoder; take campplus.onnx from the released codec'
            )
        return shapes[name][axis]

    first = 'xvector.block1.tdnnd1.cam_layer.linear_local.weight'
    head, layers = size('head.conv1.weight', 0), layers_of(shapes)
    folded = {
        part.path
        for part in parts(layers)
        if isinstance(part, Norm) and part.behind and f'{part.behind}.bias' in shapes
    }
    return dataclasses.replace(
        released, head=head, layers=layers, mels=8 * size('xvector.tdnn.linear.weight', 1) // head,
        width=size('xvector.tdnn.linear.weight', 0), growth=size(first, 0),
        bottleneck=size(first, 1), embedding=size('xvector.dense.linear.weight', 0),
        folded=frozenset(folded),
    )  # fmt: skip

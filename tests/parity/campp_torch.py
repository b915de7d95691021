"""CAM++ in torch, written from its description: what our network is compared with.

Attributes are named so that the state dict has the names of the published checkpoints.
"""

import torch
from torch import nn
import torch.nn.functional as F


def normed(norm: str, c: int, **options) -> nn.Module:
    """A norm under the name that the checkpoints give it, and a ReLU."""
    box = nn.Module()
    box.add_module(norm, nn.BatchNorm1d(c, **options))
    return box


class Residual(nn.Module):
    def __init__(self, c, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, (stride, 1), 1, bias=False)
        self.conv2 = nn.Conv2d(c, c, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c, c, 1, (stride, 1), bias=False), nn.BatchNorm2d(c)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Head(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1 = nn.Conv2d(1, c, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(c, c, 3, (2, 1), 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c)
        self.layer1 = nn.Sequential(Residual(c, 2), Residual(c, 1))
        self.layer2 = nn.Sequential(Residual(c, 2), Residual(c, 1))

    def forward(self, x):  # (b, f, t)
        y = F.relu(self.bn1(self.conv1(x[:, None])))
        y = F.relu(self.bn2(self.conv2(self.layer2(self.layer1(y)))))
        return y.flatten(1, 2)


def own_frames(x):
    """Means of segments of 100 frames, the last one over the frames that it has."""
    return F.avg_pool1d(x, 100, 100, ceil_mode=True)


def all_frames(x):
    """The same, but every sum is divided by 100."""
    return F.avg_pool1d(F.pad(x, (0, -x.shape[-1] % 100)), 100, 100)


class Context(nn.Module):
    pool = staticmethod(own_frames)

    def __init__(self, c, grown, dilation):
        super().__init__()
        self.linear_local = nn.Conv1d(c, grown, 3, 1, dilation, dilation, bias=False)
        self.linear1, self.linear2 = nn.Conv1d(c, c // 2, 1), nn.Conv1d(c // 2, grown, 1)

    def forward(self, x):
        local = self.linear_local(x)
        held = self.pool(x).unsqueeze(-1).expand(-1, -1, -1, 100).flatten(2)[..., : x.shape[-1]]
        context = x.mean(-1, keepdim=True) + held
        mask = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))
        return local * mask


class Dense(nn.Module):
    def __init__(self, c_in, c, grown, dilation):
        super().__init__()
        self.nonlinear1 = normed('batchnorm', c_in)
        self.linear1 = nn.Conv1d(c_in, c, 1, bias=False)
        self.nonlinear2 = normed('batchnorm', c)
        self.cam_layer = Context(c, grown, dilation)

    def forward(self, x):
        y = self.linear1(F.relu(self.nonlinear1.batchnorm(x)))
        y = self.cam_layer(F.relu(self.nonlinear2.batchnorm(y)))
        return torch.cat([x, y], 1)


class Layer(nn.Module):
    """A convolution `linear` and a norm `nonlinear.batchnorm`."""

    def __init__(self, conv, c, **options):
        super().__init__()
        self.linear, self.nonlinear = conv, normed('batchnorm', c, **options)


class Campp(nn.Module):
    """(b, t, 80) -> (b, 192); sizes of `models.speaker.config.CamppConfig`."""

    def __init__(self, config):
        super().__init__()
        self.head = Head(config.head)
        x = self.xvector = nn.Module()
        c = config.width
        first = nn.Conv1d(config.head * config.mels // 8, c, 5, 2, 2, bias=False)
        x.tdnn = Layer(first, c)
        self.order = []
        for i, (layers, dilation) in enumerate(zip(config.layers, config.dilations, strict=True)):
            block = nn.Sequential()
            for j in range(layers):
                dense = Dense(c + j * config.growth, config.bottleneck, config.growth, dilation)
                block.add_module(f'tdnnd{j + 1}', dense)
            c += layers * config.growth
            transit = Layer(nn.Conv1d(c, c // 2, 1, bias=False), c)
            c //= 2
            setattr(x, f'block{i + 1}', block)
            setattr(x, f'transit{i + 1}', transit)
            self.order.append((f'block{i + 1}', f'transit{i + 1}'))
        x.out_nonlinear = normed('batchnorm', c)
        x.dense = Layer(
            nn.Conv1d(2 * c, config.embedding, 1, bias=False), config.embedding, affine=False
        )

    def forward(self, features):
        x = self.xvector
        y = self.head(features.transpose(1, 2))
        y = F.relu(x.tdnn.nonlinear.batchnorm(x.tdnn.linear(y)))
        for block, transit in self.order:
            y, layer = getattr(x, block)(y), getattr(x, transit)
            y = layer.linear(F.relu(layer.nonlinear.batchnorm(y)))
        y = F.relu(x.out_nonlinear.batchnorm(y))
        y = torch.cat([y.mean(-1), y.std(-1)], 1)
        y = x.dense.linear(y.unsqueeze(-1)).squeeze(-1)
        return x.dense.nonlinear.batchnorm(y)


def random(config, seed: int = 0) -> Campp:
    """A network in evaluation mode whose norms have statistics worth normalising by."""
    torch.manual_seed(seed)
    network = Campp(config).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith('running_var'):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith('running_mean'):
            tensor.normal_(0, 0.3)
        elif 'cam_layer.linear' in name:
            tensor.mul_(3)  # contexts that matter
        elif 'batchnorm' in name or '.bn' in name or 'shortcut.1' in name:
            tensor.add_(torch.randn_like(tensor, dtype=torch.float32).mul(0.2).to(tensor.dtype))
    return network

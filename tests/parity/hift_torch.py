"""HiFT in torch, written from its description: what our vocoder is compared with.

Attributes are named so that the state dict has the names of `hift.pt`. Noise is passed in.
"""

import torch
from torch import nn
import torch.nn.functional as F
from torch.nn.utils.parametrizations import weight_norm


class Snake(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(c))

    def forward(self, x):
        alpha = self.alpha[None, :, None]
        return x + torch.sin(alpha * x) ** 2 / (alpha + 1e-9)


class ResBlock(nn.Module):
    def __init__(self, c, k, dilations):
        super().__init__()

        def convs(dilations):
            return nn.ModuleList(
                weight_norm(nn.Conv1d(c, c, k, dilation=d, padding=d * (k - 1) // 2))
                for d in dilations
            )

        self.convs1, self.convs2 = convs(dilations), convs([1] * len(dilations))
        self.activations1 = nn.ModuleList(Snake(c) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(c) for _ in dilations)

    def forward(self, x):
        for i, conv in enumerate(self.convs1):
            y = conv(self.activations1[i](x))
            x = x + self.convs2[i](self.activations2[i](y))
        return x


class Hift(nn.Module):
    """Sizes of `models.vocoder.hift.config.HiftConfig`."""

    def __init__(self, config):
        super().__init__()
        self.config = c = config
        widths = [c.channels >> (i + 1) for i in range(len(c.rates))]
        self.m_source = nn.Module()
        self.m_source.l_linear = nn.Linear(c.harmonics + 1, 1)
        self.f0_predictor = nn.Module()
        layers = []
        for i in range(5):
            inputs = c.f0_width if i else c.mels
            layers += [weight_norm(nn.Conv1d(inputs, c.f0_width, 3, padding=1)), nn.ELU()]
        self.f0_predictor.condnet = nn.Sequential(*layers)
        self.f0_predictor.classifier = nn.Linear(c.f0_width, 1)
        self.conv_pre = weight_norm(nn.Conv1d(c.mels, c.channels, 7, padding=3))
        self.ups, self.source_downs = nn.ModuleList(), nn.ModuleList()
        self.source_resblocks, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for i, (rate, k) in enumerate(zip(c.rates, c.kernels, strict=True)):
            up = nn.ConvTranspose1d(2 * widths[i], widths[i], k, rate, (k - rate) // 2)
            self.ups.append(weight_norm(up))
            step = int(torch.tensor(c.rates[i + 1 :]).prod())
            down = (2 * step, step, step // 2) if step > 1 else (1, 1, 0)
            self.source_downs.append(nn.Conv1d(c.n_fft + 2, widths[i], *down))
            self.source_resblocks.append(ResBlock(widths[i], c.source_kernels[i], c.dilations))
            for k_block in c.block_kernels:
                self.resblocks.append(ResBlock(widths[i], k_block, c.dilations))
        self.conv_post = weight_norm(nn.Conv1d(widths[-1], c.n_fft + 2, 7, padding=3))

    def f0(self, mel):
        x = self.f0_predictor.condnet(mel)
        return self.f0_predictor.classifier(x.transpose(1, 2)).squeeze(-1).abs()

    def source(self, f0, noise):
        """f0 (1, t), noise (1, 480 t, h) -> (1, 480 t); phases in float64."""
        c, t = self.config, f0.shape[1]
        rate = f0.double()[..., None] * torch.arange(1, c.harmonics + 2) / 24000 % 1
        phase = 480 * rate.cumsum(1)
        at = ((torch.arange(480 * t) + 0.5) / 480 - 0.5).clamp(0, t - 1)
        low = at.long().clamp(max=max(t - 2, 0))
        part = (at - low)[:, None]
        phase = phase[:, low] * (1 - part) + phase[:, (low + 1).clamp(max=t - 1)] * part
        sines = c.sine * torch.sin(2 * torch.pi * phase).float()
        voiced = (f0 > c.voiced).float().repeat_interleave(480, 1)[..., None]
        amplitude = c.noise * voiced + c.sine / 3 * (1 - voiced)
        mixed = sines * voiced + amplitude * noise
        return torch.tanh(self.m_source.l_linear(mixed)).squeeze(-1)

    def forward(self, mel, source):
        """mel (1, 80, t), source (1, 480 t) -> (1, 480 t)."""
        c = self.config
        window = torch.hann_window(c.n_fft)
        options = {'n_fft': c.n_fft, 'hop_length': c.hop, 'window': window}
        spectrum = torch.stft(source, **options, return_complex=True)
        spectrum = torch.cat([spectrum.real, spectrum.imag], 1)
        x, count = self.conv_pre(mel), len(c.block_kernels)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, c.slope))
            if i + 1 == len(self.ups):
                x = F.pad(x, (1, 0), mode='reflect')
            x = x + self.source_resblocks[i](self.source_downs[i](spectrum))
            x = sum(block(x) for block in self.resblocks[count * i : count * (i + 1)]) / count
        x = self.conv_post(F.leaky_relu(x))
        bins = c.n_fft // 2 + 1
        size, phase = x[:, :bins].exp().clamp(max=100), x[:, bins:].sin()
        wave = torch.istft(torch.polar(size, phase), **options)
        return wave.clamp(-c.limit, c.limit)


def random(config, seed: int = 0) -> Hift:
    """A network whose weight norms, Snakes and pitches are not trivial."""
    torch.manual_seed(seed)
    network = Hift(config).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith('original0'):
            tensor.mul_(torch.empty_like(tensor).uniform_(0.7, 1.3))
        elif name.endswith('alpha'):
            tensor.uniform_(0.5, 2.0)
    # Pitches around 100 Hz, some below the border of voiced and unvoiced.
    predictor = network.f0_predictor
    with torch.no_grad():
        raw = predictor.classifier(predictor.condnet(3 * torch.randn(1, 80, 200) - 3).mT)
        predictor.classifier.weight.mul_(150 / raw.std())
        predictor.classifier.bias.copy_(100 - raw.mean() * 150 / raw.std())
    return network

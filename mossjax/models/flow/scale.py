"""A start for training that knows the scale of the mel, written into the weights themselves.

Log-mels lie around -6 with a spread of 2 to 3; fresh weights expect numbers around 0 with spread 1.
Large networks get over it, small ones lose hundreds of steps. The checkpoint keeps upstream's
layout because only values change, not the network.
"""

import jax
import numpy as np

# Share of the random law that is kept in layers that start as a straight line.
RANDOM = 0.2
# Where Mish is a straight line for normalised inputs.
LINEAR = 5.0
# Of channels that carry no bin: with them the last norm divides by nearly the same at all frames.
CONSTANT = 6.0


def scale_to(params: dict, mean: np.ndarray, std: np.ndarray) -> dict:
    """Fresh parameters rescaled for mels of this mean and spread per bin, both (m,).

    mu starts around the mean with that spread; the estimator's first layers see mel, mu and known
    frames scaled by the spread, with the mean of noised mel and mu subtracted; its output starts
    at the mean.
    """
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    params = jax.tree.map(lambda x: x, params)  # new dicts, same arrays
    for layer in (params['mu_proj'], params['estimator']['final']):
        layer['kernel'] = layer['kernel'] * std
        layer['bias'] = layer['bias'] * std + mean
    # Input channels: path | mu | speaker | known frames. The path runs from noise to mel; its mean
    # depends on t, and half the mean is what a random t sees.
    zeros, ones = np.zeros_like(mean), np.ones_like(std)
    spread = np.concatenate([np.maximum(std, 1), std, ones, std])
    centre = np.concatenate([mean / 2, mean, zeros, zeros])
    resnet = params['estimator']['down']['resnet']
    for layer in (resnet['block1']['conv'], resnet['shortcut']):
        kernel = layer['kernel'] / spread[:, None]
        taps = kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0)
        layer['kernel'], layer['bias'] = kernel, layer['bias'] - centre @ taps
    if params['estimator']['final']['kernel'].shape[0] >= len(mean) + 8:
        params['estimator'] = _straight(params['estimator'], mean, std)
    return params


def _straight(estimator: dict, mean: np.ndarray, std: np.ndarray) -> dict:
    """The estimator with mu - path running through its shortcuts to the output.

    Velocity is mel - noise, near mu - path while t is small. A narrow network that starts at random
    cannot pass that many independent numbers through its last norm and Mish, and learns to ignore
    the noise: after a thousand steps it still lay in the mel. So the last block starts where Mish
    is linear, with the channels beyond the bins at +-CONSTANT: they keep the norm's divisor nearly
    the same and tell the output the mean that the norm took away.
    """
    bins, eye = np.arange(len(mean)), np.eye(len(mean), dtype=np.float32)
    channels = estimator['final']['kernel'].shape[0]
    spare = (channels - len(mean)) // 2 * 2
    rest = len(mean) + np.arange(spare)
    # What the norm divides by where mu - path has unit variance in every bin.
    divisor = np.sqrt((spare * CONSTANT**2 + len(mean)) / channels)

    def faint(layer, name='kernel'):
        layer[name] = layer[name] * RANDOM
        return layer

    for stage in ('down', 'up'):
        resnet, transformers = estimator[stage]['resnet'], estimator[stage]['transformers']
        faint(resnet['block2']['norm'], 'scale')
        faint(transformers['ff_out'])
        faint(transformers['attention'], 'o')
    first = faint(estimator['down']['resnet']['shortcut'])
    first['bias'] = first['bias'] * RANDOM  # it cancels what the kernel makes of the mean
    first['kernel'] = first['kernel'].at[bins, bins].add(-1 / std)
    first['kernel'] = first['kernel'].at[len(mean) + bins, bins].add(1 / std)
    # Minus path, mean t * mean, plus mu: centred for t around a half.
    first['bias'] = first['bias'].at[bins].add(-mean / std / 2)
    second = faint(estimator['up']['resnet']['shortcut'])
    second['kernel'] = second['kernel'].at[channels + bins, bins].add(1)  # of the skip
    for conv in (estimator['up_conv'], estimator['final_block']['conv']):
        kernel = faint(conv)['kernel']
        conv['kernel'] = kernel.at[-1, bins, bins].add(1)  # the frame itself
    conv = estimator['final_block']['conv']
    conv['bias'] = conv['bias'].at[rest].add(np.where(rest % 2, CONSTANT, -CONSTANT))
    norm, final = estimator['final_block']['norm'], faint(estimator['final'])
    norm['bias'] = norm['bias'] + LINEAR
    kernel = final['kernel'].at[: len(mean)].add(eye * std * divisor)
    final['kernel'] = kernel.at[rest].add(-std * divisor / spare)
    final['bias'] = final['bias'] - LINEAR * final['kernel'].sum(axis=0)
    return estimator

"""A start for training that knows the scale of the mel, written into the weights themselves.

Log-mels lie around -6 with a spread of 2 to 3; fresh weights expect numbers around 0 with spread 1.
Large networks get over it, small ones lose hundreds of steps. The checkpoint keeps upstream's
layout because only values change, not the network.
"""

import jax
import numpy as np


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
    return params

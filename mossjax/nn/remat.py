"""What a scanned layer keeps for the backward pass, by name; the rest is computed again."""

import functools

import jax

from mossjax.errors import InputError
from mossjax.ops.splash import RESIDUALS


def _checkpoint(policy=None):
    # Inside a scan the compiler cannot merge the two forward passes anyway.
    return functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)


POLICIES = {
    'none': lambda f: f,  # keep everything
    'attention': _checkpoint(jax.checkpoint_policies.save_only_these_names(RESIDUALS)),
    'full': _checkpoint(),  # keep the input of each layer
}


def remat(name: str):
    """The wrapper of a layer's body that `nn.param.scan_layers` takes."""
    if name not in POLICIES:
        raise InputError(f'remat {name!r} is not known; choose one of {", ".join(POLICIES)}')
    return POLICIES[name]

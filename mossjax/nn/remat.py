"""What a scanned layer keeps for the backward pass, by name; the rest is computed again."""

import functools

import jax

from mossjax.errors import InputError
from mossjax.nn.transformer import HEADS
from mossjax.ops.flash import RESIDUALS


def _checkpoint(policy=None):
    # Inside a scan the compiler cannot merge the two forward passes anyway.
    return functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)


_keep = jax.checkpoint_policies
_ATTENTION = _keep.save_only_these_names(RESIDUALS)
# From what is fastest to what needs least memory. All but 'none' keep the input of each layer.
POLICIES = {
    'none': lambda f: f,  # keep everything
    # What matrices have made: only norms, rotations and activations are computed again. In the
    # language model 2 * (2 d + 2 k h + 2 f + 3 d) bytes more than 'full' a layer and position.
    'projections': _checkpoint(
        _keep.save_from_both_policies(_keep.dots_with_no_batch_dims_saveable, _ATTENTION)
    ),
    # The same without the two wide ones of the gated MLP, which are two thirds of it.
    'heads': _checkpoint(_keep.save_only_these_names(RESIDUALS, HEADS)),
    'attention': _checkpoint(_ATTENTION),  # what the attention kernel's gradient needs
    'full': _checkpoint(),
}


def remat(name: str):
    """The wrapper of a layer's body that `nn.param.scan_layers` takes."""
    if name not in POLICIES:
        raise InputError(f'remat {name!r} is not known; choose one of {", ".join(POLICIES)}')
    return POLICIES[name]

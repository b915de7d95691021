"""How a device holds the weights of a codec's networks."""

from flax import traverse_util
import jax
import jax.numpy as jnp

from mossjax.infer import fit
from mossjax.nn.param import Network, apart


def placed(params: dict, network: Network) -> dict:
    """The parameters of a network where the first device's programs want them.

    A CPU gets the layers of a large one separately, see `nn.param.Apart`. Of stacks in stacks only
    the outer ones are taken apart: programs grow with the number of layers.
    """
    flat = traverse_util.flatten_dict(jax.tree.map(jnp.asarray, params))
    axes = traverse_util.flatten_dict(network.axes)
    stacks = {path: axes[path].count('layers') for path in flat}
    if jax.devices()[0].platform == 'cpu' and fit.apart_pays(flat, stacks):
        for path in flat:  # one by one: nothing is held twice
            flat[path] = apart(flat[path]) if stacks[path] else flat[path]
    return traverse_util.unflatten_dict(flat)

"""What a program costs: operations counted against those worked out by hand."""

import jax
import jax.numpy as jnp

from experiments.proofs import cost
from mossjax.ops.conv import conv1d


def test_operations_of_products_and_convolutions_in_loops():
    def run(x, kernels, taps):
        x, _ = jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, kernels)
        return jax.lax.conv_general_dilated(
            x[None], taps, (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC')
        )

    shapes = jnp.zeros((9, 4)), jnp.zeros((6, 4, 4)), jnp.zeros((3, 4, 5))
    found = cost.operations(jax.make_jaxpr(run)(*shapes).jaxpr)
    assert found == 6 * (2 * 9 * 4 * 4) + 2 * (7 * 5) * (3 * 4)


def test_what_platforms_do_each_in_its_way_counts_once():
    made = jax.make_jaxpr(conv1d)(jnp.zeros((1, 9, 4)), jnp.zeros((3, 4, 5)))
    assert cost.operations(made.jaxpr) == 2 * (7 * 5) * (3 * 4)

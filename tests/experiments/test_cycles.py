"""Adding up a compiler's cycles, and counting operations, on cases worked out by hand."""

import jax
import jax.numpy as jnp

from experiments.proofs import cycles

DUMP = '''HloModule step

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %fusion.1 = f32[8] fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"100"}
  %inner = f32[8] while(%fusion.1), condition=%short, body=%small
}

%small (q: f32[8]) -> f32[8] {
  ROOT %multiply.2 = f32[8] multiply(%q, %q), frontend_attributes={
    a="b"}, backend_config={"estimated_cycles":"7"}
}

%short (r: f32[8]) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(3)
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %constant.9 = s32[] constant(10)
}

%helper (t: f32[8]) -> f32[8] {
  ROOT %copy.1 = f32[8] copy(%t), backend_config={"estimated_cycles":"20"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%a), condition=%condition, body=%body
  %call.1 = f32[8] call(%a), to_apply=%helper
  ROOT %add.5 = f32[8] add(%a, %a), backend_config={"estimated_cycles":"5"}
}
'''


def test_loops_count_as_often_as_they_run():
    assert cycles.cycles(DUMP) == 10 * (100 + 3 * 7) + 20 + 5


def test_operations_of_products_and_convolutions_in_loops():
    def run(x, kernels, taps):
        x, _ = jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, kernels)
        return jax.lax.conv_general_dilated(
            x[None], taps, (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC')
        )

    shapes = jnp.zeros((9, 4)), jnp.zeros((6, 4, 4)), jnp.zeros((3, 4, 5))
    found = cycles.operations(jax.make_jaxpr(run)(*shapes).jaxpr)
    assert found == 6 * (2 * 9 * 4 * 4) + 2 * (7 * 5) * (3 * 4)

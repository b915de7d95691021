"""The estimate of a small scheduled program against its sum by hand."""

import pytest

from mossjax.errors import InputError
from mossjax.parallel.chips import Chip
from mossjax.plan import hlo
from mossjax.plan.estimate import estimate

PROGRAM = """HloModule jit_f, is_scheduled=true, num_partitions=8

FileNames
1 "/somewhere/mossjax/ops/losses.py"
2 "/usr/lib/jax/lax.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7}
2 {file_name_id=2 function_name_id=1 line=9 end_line=9}

StackFrames
1 {file_location_id=1 parent_frame_id=0}
2 {file_location_id=2 parent_frame_id=2}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  ROOT %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%c, backend_config={"estimated_cycles":"1000"}
}

%cond.1 (p: (s32[], f32[8])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(3)
}

ENTRY %main.1 (a: f32[1024]) -> f32[8] {
  %a = f32[1024]{0:T(1024)} parameter(0)
  %all-gather.1 = f32[4096]{0} all-gather(%a), replica_groups=[2,4]<=[8], dimensions={0}
  %ags = (f32[1024]{0}, f32[4096]{0}) all-gather-start(%a), replica_groups=[2,4]<=[8]
  %fusion.2 = f32[8]{0} fusion(%a), kind=kOutput, calls=%c, frontend_attributes={a={
}}, metadata={op_name="jit(f)/dot" stack_frame_id=2}, backend_config={"estimated_cycles":"400"}
  %agd = f32[4096]{0} all-gather-done(%ags)
  %w = (s32[], f32[8]{0}) while(%t), condition=%cond.1, body=%body.1
  %jvp_flash_forward.3 = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call"
  %other = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call"
  ROOT %sort.1 = f32[8]{0} sort(%a), dimensions={0}
}
"""  # noqa: E501
# 1,000 cycles are a millisecond; a gather's 12,288 bytes take one on four links.
CHIP = Chip(flops=1.0, clock=1e6, bandwidth=1.0, link=3.072e6, axes=2, memory=200.0)


def test_loops_kernels_and_collectives_add_up():
    made = estimate(hlo.parse(PROGRAM), CHIP, {'flash_forward': 5000})
    # A gather alone 1 ms; one of which 0.4 ms lie beside a product; three trips of 1 ms; 5 ms.
    assert made.seconds == pytest.approx(1e-3 + 1e-3 + 3e-3 + 5e-3)
    assert made.exposed == pytest.approx(1e-3 + 0.6e-3)
    assert [(x.kind, x.bytes, x.beside) for x in made.collectives] == [
        ('all-gather', 16384, False), ('all-gather', 20480, True)
    ]  # fmt: skip
    assert [x.exposed for x in made.collectives] == pytest.approx([1e-3, 0.6e-3])
    assert dict(made.unknown) == {'kernel other': 1, 'sort': 1}
    parts = {x.kind: x for x in made.parts}
    assert (parts['fusion'].runs, parts['fusion'].seconds) == (3, pytest.approx(3e-3))
    assert parts['matmul'].where == 'mossjax/ops/losses.py:7'
    assert parts['matmul'].origin == 'jit(f)/dot'


def test_a_folder_without_a_scheduled_program_is_named(tmp_path):
    with pytest.raises(InputError, match='after_codegen'):
        hlo.read(tmp_path)

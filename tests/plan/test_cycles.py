"""The compiler's account of a program, on one written by hand: 1.5e9 cycles a second (v5e)."""

import json
import pathlib

import pytest

from experiments.benchmarks import decode
from mossjax.errors import InputError
from mossjax.ops import flash_decode
from mossjax.parallel.chips import CHIPS
from mossjax.plan import hlo, kernels
from mossjax.plan.cycles import Program

CYCLE, BYTE = 1 / 1.5e9, 1 / 0.819e12


def noted(cycles):
    return f'backend_config={{"estimated_cycles":"{cycles}"}}'


TEXT = f'''HloModule jit_f, is_scheduled=true

%one_of_many (w: s8[32,64,128], i: s32[]) -> s8[64,128] {{
  %w = s8[32,64,128]{{2,1,0}} parameter(0)
  %i = s32[] parameter(1)
  %b = s8[32,64,128]{{2,1,0}} bitcast(%w)
  ROOT %cut = s8[1,64,128]{{2,1,0}} dynamic-slice(%b, %i), dynamic_slice_sizes={{1,64,128}}
}}

%put (c: f32[1000,128], n: f32[1,128]) -> f32[1000,128] {{
  %c = f32[1000,128]{{1,0}} parameter(0)
  %n = f32[1,128]{{1,0}} parameter(1)
  ROOT %d = f32[1000,128]{{1,0}} dynamic-update-slice(%c, %n)
}}

%whole_layer (w: s8[32,64,128], i: s32[]) -> s8[64,128] {{
  %w = s8[32,64,128]{{2,1,0}} parameter(0)
  %i = s32[] parameter(1)
  ROOT %g = s8[64,128]{{1,0}} fusion(%w, %i), kind=kLoop, calls=%one_of_many
}}

%counted (s: s32[]) -> pred[] {{
  %s = s32[] parameter(0)
  %n = s32[]{{:T(128)}} constant(32)
  ROOT %less = pred[] compare(%s, %n), direction=LT
}}

%idle (p: f32[8]) -> f32[8] {{
  ROOT %p = f32[8]{{0}} parameter(0)
}}

%busy (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0:S(1)}} parameter(0)
  ROOT %e = f32[8]{{0:S(1)}} exponential(%p), {noted(7000)}
}}

%layer (s: (f32[8], s8[32,64,128])) -> (f32[8], s8[32,64,128]) {{
  %s = (f32[8]{{0}}, s8[32,64,128]{{2,1,0}}) parameter(0)
  %w = s8[32,64,128]{{2,1,0}} get-tuple-element(%s), index=1
  %i = s32[]{{:S(1)}} constant(3)
  ROOT %f = s8[64,128]{{1,0:S(1)}} fusion(%w, %i), kind=kLoop, calls=%whole_layer, {noted(2)}
}}

%step (s: (f32[8], s8[32,64,128])) -> (f32[8], s8[32,64,128]) {{
  %s = (f32[8]{{0}}, s8[32,64,128]{{2,1,0}}) parameter(0)
  %x = f32[8]{{0:S(1)}} get-tuple-element(%s), index=0
  %c = f32[1000,128]{{1,0}} constant(0)
  %n = f32[1,128]{{1,0:S(1)}} constant(0)
  %l = (f32[8]{{0}}, s8[32,64,128]{{2,1,0}}) while(%s), condition=%go, body=%layer, frontend_attributes={{a={{b
}}}}, backend_config={{"known_trip_count":{{"n":"32"}}}}
  %o = f32[8]{{0}} conditional(%i, %x, %x), branch_computations={{%idle, %busy}}
  %k = f32[1000,128]{{1,0}} fusion(%c, %n), kind=kLoop, calls=%put
  %m = f32[8]{{0:S(1)}} multiply(%x, %x), {noted(500)}
  ROOT %t = (f32[8]{{0}}, s8[32,64,128]{{2,1,0}}) tuple(%o, %w)
}}

ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = (f32[8]{{0}}, s8[32,64,128]{{2,1,0}}) parameter(0)
  ROOT %z = (f32[8]{{0}}, s8[32,64,128]{{2,1,0}}) while(%a), condition=%go, body=%step
}}
'''  # noqa: E501


def program_of(text):
    return Program(hlo.parse(text))


def test_a_step_is_added_up():
    program = program_of(TEXT)
    assert program.entry == 'main' and program.longest_loop() == 'step'
    # One layer's slice of the weights, from HBM into VMEM, 32 times; one row put into the cache;
    # a product that is all in VMEM.
    layers, row, product = 32 * 64 * 128 * BYTE, 4 * 128 * BYTE, 500 * CYCLE
    for taken, extra in ((0, 0.0), (1, 7000 * CYCLE)):
        ways = []
        found = program.seconds('step', 'v5e', lambda way, n=taken: ways.append(way) or n)  # noqa: B023
        assert ways == [['idle', 'busy']]
        assert found == pytest.approx(layers + row + product + extra, rel=1e-9)


def test_an_operation_is_at_least_its_bytes_or_its_note():
    program = program_of(TEXT)
    (slice_,) = [o for o in program.computations['layer'] if o.operation == 'fusion']
    assert program.bytes('layer', slice_) == 64 * 128  # not the 32 layers
    loud = program_of(TEXT.replace(noted(2), noted(10**6)))
    found = loud.seconds('layer', 'v5e', lambda ways: 0)
    assert found == pytest.approx(10**6 * CYCLE)
    assert (CHIPS['v5e'].clock, CHIPS['v5e'].bandwidth) == (1.5e9, 0.819e12)


def test_a_loop_that_counts_to_a_constant():
    quiet = 'backend_config={"known_trip_count":{"n":"32"}}'
    program = program_of(TEXT.replace(quiet, '').replace('condition=%go, body=%layer', 'condition=%counted, body=%layer'))  # noqa: E501
    (loop,) = [o for o in program.computations['step'] if o.operation == 'while']
    assert program.module.trips(loop) == 32


def test_what_stands_below_a_loop():
    kinds = [o.operation for o in program_of(TEXT).below('step')]
    assert kinds.count('fusion') == 2 and 'exponential' in kinds and 'dynamic-slice' not in kinds
    with pytest.raises(InputError, match='no loop'):
        program_of(TEXT.replace('while(%a)', 'call(%a)')).longest_loop()


def test_a_kernel_costs_what_is_said_of_it():
    call = 'custom-call(%x), custom_call_target="tpu_custom_call", metadata={}'
    text = TEXT.replace('%m =', '%flash_decode.3 =')
    text = text.replace(f'multiply(%x, %x), {noted(500)}', call)
    program, before = program_of(text), program_of(TEXT)
    first = lambda ways: 0  # noqa: E731
    own = program.seconds('step', 'v5e', first, {'flash_decode': 900.0})
    assert own - before.seconds('step', 'v5e', first) == pytest.approx(400 * CYCLE)
    with pytest.raises(InputError, match='flash_decode.3'):
        program.seconds('step', 'v5e', first, {'flash_forward': 900.0})


def test_the_table_is_what_the_record_found():
    found = json.loads(pathlib.Path(decode.__file__).with_suffix('.json').read_text())
    assert found['block']['slots'] == flash_decode.SLOTS == 512
    for generation, own in kernels.DECODE.items():
        assert own.items() <= found['bundles'][generation]['bfloat16'].items()
        # A block in int8 comes in half the time, and is dealt with before the next has come.
        whole, small = (found['bundles'][generation][held] for held in ('bfloat16', 'int8'))
        assert small['whole'] < small['memory'] < 0.52 * whole['memory']


def test_decoding_costs_its_bundles_or_its_bytes():
    # A v6e's memory gives 936 bytes a cycle: 17.9 thousand cycles for 4096 slots of a lane.
    (cycles,) = kernels.decoding('v6e', kernels.Heads(16, 8, 4, 128), 4096, 2).values()
    assert cycles == pytest.approx(16 * 4096 * 8 * 128 * 2 * 2 / 1.638e12 * 1.75e9)
    # Of one slot there is little to read: a cut block, and all else at two steps.
    own = kernels.DECODE['v5e']
    (cycles,) = kernels.decoding('v5e', kernels.Heads(2, 8, 4, 128), 1, 2).values()
    assert cycles == 2 * (own['cut'] + 2 * own['rest'])


def test_reading_a_piece_costs_the_blocks_it_visits():
    bundles, bring = kernels.BUNDLES['v5e'], kernels.DECODE['v5e']['bring']
    found = kernels.reading('v5e', kernels.Heads(1, 8, 4, 128), 8192, 256, 2)
    # 256 positions of four heads are one tile of 1024 columns. It sees 16 blocks of 512 slots, and
    # its own 256 keys cut.
    past = 16 * (bundles['online_whole'] / 2 + bring) + bundles['flash_forward_tile']
    own = bundles['online'] / 4 + bundles['flash_forward_tile']
    assert found == {
        'flash_prefill_past': pytest.approx(8 * past), 'flash_prefill_own': pytest.approx(8 * own)
    }  # fmt: skip

"""The attention kernels, interpreted with race detection, against a float64 computation."""

import functools

import jax
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.nn import flash as nn_flash
from mossjax.nn.shard import sharding_scope
from mossjax.ops import flash, flash_forward, flash_mask
from mossjax.ops.attention import Mask
from mossjax.ops.flash_blocks import BACKWARD, Blocks
from mossjax.parallel import rules
from mossjax.parallel.mesh import MeshConfig, make_mesh

SMALL = Blocks(columns=256, strip=512, keys=128, rows=128)
IN_PARTS = Blocks(columns=256, strip=512, keys=128, rows=128, resident=128, outer=False)
IN_PIECES = Blocks(
    columns=256, strip=512, keys=256, rows=128, outer=False, order=BACKWARD['v5p'].order,
    cut_order=BACKWARD['v5p'].cut_order,
)  # fmt: skip
LARGEST = {'float32': 1e-5, 'bfloat16': 5e-3}  # of ||difference|| / ||reference||


def exact(q, k, v, weights, seen, scale=None):
    """Attention and the gradients of sum(weights * out), float64, from the formulas."""
    q, k, v, weights = (np.asarray(x, np.float64) for x in (q, k, v, weights))
    b, t, n, h = q.shape
    group = n // k.shape[2]
    scale = h**-0.5 if scale is None else scale
    keys, values = (np.repeat(x, group, 2) for x in (k, v))
    scores = np.einsum('btnh,bsnh->bnts', q, keys) * scale
    scores = np.where(seen[:, None], scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    p = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = p.sum(-1, keepdims=True)
    p = np.divide(p, total, out=np.zeros_like(p), where=total > 0)
    d_p = np.einsum('btnh,bsnh->bnts', weights, values)
    d_scores = p * (d_p - (d_p * p).sum(-1, keepdims=True)) * scale
    out = np.einsum('bnts,bsnh->btnh', p, values)
    d_q = np.einsum('bnts,bsnh->btnh', d_scores, keys)
    d_k = np.einsum('bnts,btnh->bsnh', d_scores, q).reshape(b, -1, n // group, group, h).sum(3)
    d_v = np.einsum('bnts,btnh->bsnh', p, weights).reshape(d_k.shape[:3] + (group, h)).sum(3)
    return out, d_q, d_k, d_v


def inputs(rng, dtype='float32', b=2, t=200, s=200, n=4, k=2, h=64):
    shapes = (b, t, n, h), (b, s, k, h), (b, s, k, h), (b, t, n, h)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def off(got, want) -> list[float]:
    got = [np.asarray(x, np.float64) for x in got]
    return [np.linalg.norm(g - w) / np.linalg.norm(w) for g, w in zip(got, want, strict=True)]


def runner(forward=SMALL, backward=None, races=True, **options):
    """(q, k, v, weights, Sight) -> (out, dq, dk, dv), tiles on the bound. One program for all
    masks of a shape; compiled without optimisation, which costs more than it saves here."""
    options = pltpu.InterpretParams(detect_races=races, **options)

    @functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
    def run(q, k, v, weights, seen):
        attend = functools.partial(
            flash.attend, seen=seen, blocks=(forward, backward or forward), interpret=options
        )
        out, back, known = jax.vjp(attend, q, k, v, has_aux=True)
        return (out, *back(weights)), known

    return run


def seen_by_row(mask: Mask, b: int, t: int, s: int) -> flash_mask.Sight:
    seen = flash_mask.sight(mask, t, s)
    return flash_mask.Sight(*(jnp.broadcast_to(x, (b, x.shape[1])) for x in seen))


@pytest.fixture(autouse=True)
def _no_races():
    interpreter.reset_tpu_interpret_mode_state()
    yield
    assert interpreter.races is None or not interpreter.races.races_found


def masks(t: int) -> dict[str, Mask]:
    """Of two rows that differ. Examples end inside blocks; queries of example 9 see no key."""
    at = np.arange(t) + 9 * np.arange(2)[:, None]
    q_segments = np.where(at < 70, 1, np.where(at < 140, 2, np.where(at < 180, 9, 0)))
    kv_segments = jnp.asarray(np.where(q_segments == 9, 4, q_segments), jnp.int32)
    q_segments = jnp.asarray(q_segments, jnp.int32)
    valid = jnp.asarray(at[:1] < np.array([[37], [160]]))
    return {
        'plain': Mask(),
        'causal': Mask(causal=True),
        'segments': Mask(causal=True, q_segments=q_segments, kv_segments=kv_segments),
        'chunks': Mask(chunk=50),
        'lengths': Mask(kv_valid=valid),
        'offset and chunks': Mask(chunk=30, q_offset=75, kv_valid=valid),
    }


VARIANTS = {
    'one head a group, 128 wide': (('float32', 2, 2, 128), (IN_PIECES,)),
    'groups of 4, 64 wide, keys in parts': (('float32', 4, 1, 64), (IN_PARTS,)),
    'groups of 8, 64 wide': (('float32', 8, 1, 64), (SMALL,)),
    'groups of 4, 128 wide': (('bfloat16', 4, 1, 128), (SMALL,)),
    'one head a group, 64 wide, other layout': (('bfloat16', 2, 2, 64), (SMALL, IN_PARTS)),
}


@pytest.mark.parametrize('variant', VARIANTS)
def test_values_and_gradients_under_every_mask(rng, variant):
    (dtype, n, k, h), blocks = VARIANTS[variant]
    run = runner(*blocks)
    given = inputs(rng, dtype, n=n, k=k, h=h)
    t = given[0].shape[1]
    for name, mask in masks(t).items():
        got, known = run(*given, seen_by_row(mask, 2, t, t))
        want = exact(*given, np.broadcast_to(mask.visible(t, t), (2, t, t)))
        assert max(off(got, want)) <= LARGEST[dtype], (name, off(got, want))
        assert np.all(known)  # standard normal rows are within the bound
        if name == 'segments':
            blind = np.asarray(mask.q_segments) == 9
            assert blind.any() and not any(np.asarray(x)[blind].any() for x in got[:2])


@pytest.mark.parametrize('dtype', LARGEST)
def test_both_roads_agree_where_the_bound_is_stretched(rng, dtype, monkeypatch):
    """Norms that just let the bound be used; keys at 0.99 of the score that their norms allow,
    either sign; half of the queries look along the keys, the others anywhere."""
    q, k, v, weights = inputs(rng, b=1, t=256, s=256, n=2, k=2, h=128)
    unit = q / jnp.linalg.norm(q, axis=-1, keepdims=True)
    one = unit[:, :1]
    aside = k - (k * one).sum(-1, keepdims=True) * one
    aside /= jnp.linalg.norm(aside, axis=-1, keepdims=True)
    sign = jnp.where(rng.random((256, 1, 1)) < 0.5, 1, -1)
    keys = 0.99 * sign * one + (1 - 0.99**2) ** 0.5 * aside
    queries = jnp.where((jnp.arange(256) % 2 == 0)[:, None, None], one, unit)
    size = (0.98 * flash_forward.BOUND / (128**-0.5 * np.log2(np.e))) ** 0.5
    given = [jnp.asarray(x, dtype) for x in (queries * size, keys * size, v, weights)]
    seen = flash_mask.sight(Mask(causal=True), 256, 256)

    bound, took_bound = runner(races=False)(*given, seen)
    monkeypatch.setattr(flash_forward, 'BOUND', -1.0)
    online, took_none = runner(races=False)(*given, seen)
    assert np.all(took_bound) and not np.any(took_none)
    want = exact(*given, np.asarray(Mask(causal=True).visible(256, 256)))
    # dq is a difference of keys that are parallel but for 0.14 of their length: what bfloat16
    # rounds off is seven times as large beside it.
    worst = np.multiply(LARGEST[dtype], (1, 1 if dtype == 'float32' else 7, 1, 1))
    assert np.all(off(bound, online) <= worst), off(bound, online)
    assert np.all(off(bound, want) <= worst), off(bound, want)


def test_rows_too_long_for_the_bound_take_the_other_road(rng):
    """Tile by tile: the first 128 queries are short, the others are not."""
    q, k, v, weights = inputs(rng, b=1, t=256, s=256, n=2, k=1)
    q = q.at[:, 128:].multiply(20)
    got, took_bound = runner(races=False)(q, k, v, weights, flash_mask.sight(Mask(), 256, 256))
    np.testing.assert_array_equal(took_bound, [[[True, False]]])
    assert max(off(got, exact(q, k, v, weights, np.ones((1, 256, 256), bool)))) <= 1e-5


def test_blocks_that_the_mask_empties_are_not_read(rng):
    """They hold NaN, which a product with zero would not hide."""
    q, k, v, weights = inputs(rng, b=1, t=256, s=512)
    empty = np.arange(512) >= 256
    ruined = [jnp.where(empty[None, :, None, None], jnp.nan, x) for x in (k, v)]
    seen = flash_mask.sight(Mask(causal=True), 256, 512)
    got, _ = runner(races=False)(q, *ruined, weights, seen)
    want = exact(q, k, v, weights, np.asarray(Mask(causal=True).visible(256, 512)))
    assert max(off(got, want)) <= LARGEST['float32']
    assert not np.asarray(got[2])[:, empty].any()


def test_pieces_of_a_prefill_equal_the_whole(rng):
    """Keys come in full, queries 50 at a time, at an offset that is data."""
    q, k, v, _ = inputs(rng, b=1)
    whole = exact(q, k, v, q, np.asarray(Mask(causal=True).visible(200, 200)))[0]

    @jax.jit
    def piece(q, offset):
        mask = Mask(causal=True, q_offset=offset)
        return flash.flash(q, k, v, mask, blocks=(SMALL, SMALL), interpret=True)

    pieces = [piece(q[:, at : at + 50], jnp.int32(at)) for at in range(0, 200, 50)]
    assert max(off([jnp.concatenate(pieces, 1)], [whole])) <= LARGEST['float32']


def test_both_cores_work_on_one_row(rng):
    """A chip of two cores divides the heads: equal parts of both kernels on each."""
    cores = []

    def record(token, at, core):
        cores.append(int(core))
        return token

    run = runner(num_cores_or_threads=2, grid_point_recorder=record)
    given = inputs(rng, 'bfloat16', b=1, t=256, s=256, n=4, k=2)
    got, _ = run(*given, flash_mask.sight(Mask(causal=True), 256, 256))
    want = exact(*given, np.asarray(Mask(causal=True).visible(256, 256)))
    assert max(off(got, want)) <= LARGEST['bfloat16']
    assert cores.count(0) == cores.count(1) == len(cores) // 2 > 0


def test_what_the_backward_kernel_needs_of_the_forward_one_is_named(rng, capsys):
    """Output and log-sum-exp, all that has to be saved for the forward kernel not to run again."""
    q, k, v, _ = inputs(rng)
    policy = jax.checkpoint_policies.save_only_these_names(flash.RESIDUALS)

    @functools.partial(jax.checkpoint, policy=policy)
    def attend(q):
        return flash.flash(q, k, v, Mask(causal=True), blocks=(SMALL, SMALL), interpret=True)

    jax.ad_checkpoint.print_saved_residuals(attend, q)
    named = [line for line in capsys.readouterr().out.splitlines() if flash.RESIDUALS in line]
    assert [line.split()[0] for line in named] == ['f32[2,200,512]', 'f32[2,2,2,200]']


def test_on_a_mesh_equals_one_device(rng):
    q, k, v, _ = inputs(rng, b=4, t=128, s=128)
    valid = jnp.asarray(np.arange(128) < np.array([[128], [50], [90], [10]]))
    mask = Mask(causal=True, kv_valid=valid)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def run(q, k, v):
        with sharding_scope(mesh, rules.resolver(rules.preset('fsdp_tensor'))):
            return nn_flash.interpreted(q, k, v, mask)

    out = jax.jit(run)(q, k, v)
    assert not out.sharding.is_fully_replicated
    want = exact(q, k, v, q, np.asarray(mask.visible(128, 128)))[0]
    assert max(off([out], [want])) <= LARGEST['float32']


def test_heads_that_the_mesh_does_not_divide_are_refused_with_both_numbers(rng):
    q, k, v, _ = inputs(rng, b=2, t=128, s=128)  # two key-value heads
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    with (
        sharding_scope(mesh, rules.resolver(rules.preset('fsdp_tensor'))),
        pytest.raises(InputError, match='2 key-value heads, which 4 devices .* a divisor of 2'),
    ):
        nn_flash.interpreted(q, k, v, Mask(causal=True))


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'bias': jnp.zeros((1, 1, 200, 200))}, 'a bias'),
        ({'h': 160}, 'a head size of 160'),
        ({'dtype': 'float16'}, 'operands of float16'),
        ({'n': 3}, '3 query heads on 2 key-value heads'),
    ],
)
def test_refuses_what_it_cannot_do(rng, changes, named):
    bias = changes.pop('bias', None)
    q, k, v, _ = inputs(rng, **changes)
    with pytest.raises(InputError, match=f'{named}.*use ops.attention.attention'):
        flash.flash(q, k, v, Mask(), bias=bias)

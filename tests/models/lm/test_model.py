"""Wiring of the language model, each claim against an independent computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.models.lm.cache import Cache, int8_rows
from mossjax.models.lm.model import network
from mossjax.nn.shard import sharding_scope
from mossjax.ops.attention import Mask, attention
from tests.tiny_lm import SPEECH, close, tiny_config, tiny_grid, tiny_params

CONFIG = tiny_config()
PARAMS = tiny_params(CONFIG)
NET = network(CONFIG)
CAUSAL = Mask(causal=True)
forward = jax.jit(lambda params, grid, positions: NET.bind(params)(grid, positions, CAUSAL))


def positions(b, t):
    return np.broadcast_to(np.arange(t), (b, t))


def replaced(path, value):
    """PARAMS with one leaf replaced."""
    keys = path.split('/')

    def put(tree, keys):
        return {**tree, keys[0]: put(tree[keys[0]], keys[1:]) if keys[1:] else value}

    return put(PARAMS, keys)


def test_embedding_is_chosen_by_the_text_id_alone():
    model = NET.bind(PARAMS)
    rows = [(7, 9), (SPEECH, 9), (61, 5), (SPEECH, 32), (7, 30)]
    got = model.embed(jnp.asarray([rows]))[0]
    text, audio = PARAMS['text_embed']['table'], PARAMS['audio_embed']['table']
    np.testing.assert_array_equal(got, [text[7], audio[9], text[61], audio[32], text[7]])


def test_the_channel_not_in_use_never_matters():
    grid = tiny_grid(CONFIG, 1, 10)
    other = grid.copy()
    other[..., 1] = np.where(grid[..., 0] == SPEECH, grid[..., 1], 39 - grid[..., 1])
    before, after = (forward(PARAMS, g, positions(1, 10)) for g in (grid, other))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ('parameter', 'moves_text', 'moves_audio'),
    [
        ('trunk/mlp/down', True, True),
        ('text_branch/attn/v', True, False),
        ('text_norm/scale', True, False),
        ('text_head/kernel', True, False),
        ('audio_branch/attn/v', False, True),
        ('audio_norm/scale', False, True),
        ('audio_head/kernel', False, True),
    ],
)
def test_each_parameter_feeds_its_own_channels(parameter, moves_text, moves_audio):
    value = PARAMS
    for key in parameter.split('/'):
        value = value[key]
    grid = tiny_grid(CONFIG, 1, 10)
    before = forward(PARAMS, grid, positions(1, 10))
    after = forward(replaced(parameter, value * 1.5), grid, positions(1, 10))
    assert (np.abs(before.text - after.text).max() > 1e-3) == moves_text
    assert (np.abs(before.audio - after.audio).max() > 1e-3) == moves_audio


def test_scan_equals_the_unrolled_loop():
    grid = tiny_grid(CONFIG, 1, 10)

    def unrolled(params):
        model = NET.bind(params)
        rotation = model.rotation(positions(1, 10), jnp.float32)

        def run(stack, x, layers):
            for i in range(layers):
                layer = jax.tree.map(lambda w, i=i: w[i], stack)
                x, _ = layer(x, rotation, lambda q, k, v: attention(q, k, v, CAUSAL))
            return x

        h = run(model.trunk, model.embed(jnp.asarray(grid)), CONFIG.num_shared_layers)
        text = run(model.text_branch, h, CONFIG.num_modality_layers)
        audio = run(model.audio_branch, h, CONFIG.num_modality_layers)
        text, audio = model.text_norm(text), model.audio_norm(audio)
        return text @ params['text_head']['kernel'], audio @ params['audio_head']['kernel']

    scanned = forward(PARAMS, grid, positions(1, 10))
    for ours, loop in zip(scanned, jax.jit(unrolled)(PARAMS), strict=True):
        close(ours, loop)


def test_attention_reads_nothing_ahead():
    grid = tiny_grid(CONFIG, 1, 10)
    other = grid.copy()
    other[:, 6:] = tiny_grid(CONFIG, 1, 4, seed=5)
    before = forward(PARAMS, grid, positions(1, 10))
    after = forward(PARAMS, other, positions(1, 10))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a[:, :6], b[:, :6])
        assert np.abs(a[:, 6:] - b[:, 6:]).max() > 1e-3


def test_positions_are_relative():
    """A constant offset of all positions is rounding only (rotary embedding)."""
    grid = tiny_grid(CONFIG, 1, 10)
    near, far = (forward(PARAMS, grid, positions(1, 10) + n) for n in (0, 23))
    close(far.audio, near.audio, 1e-4)
    stretched = forward(PARAMS, grid, positions(1, 10) * 2)
    assert np.abs(stretched.audio - near.audio).max() > 1e-2


@pytest.mark.parametrize('store', [jnp.zeros, int8_rows], ids=['float32', 'int8'])
def test_padding_rows_and_other_lanes_leave_no_trace(store):
    """A lane that reads in pieces with padding, beside one that reads nothing, goes on the same.

    Rows of int8 keys and values are quantised one by one, so this holds for them as well.
    """
    extend = jax.jit(lambda *args: NET.bind(PARAMS).extend(*args))
    grid = tiny_grid(CONFIG, 2, 6)

    def empty(lanes):
        return Cache.empty(CONFIG, lanes, 8, 'float32', spare=5, store=store)

    _, alone = extend(grid[:1, :3], np.array([3]), empty(1))
    hidden, alone = extend(grid[:1, 3:], np.array([3]), alone)
    padded = np.concatenate([grid[:, :3], np.full((2, 2, 2), 7, np.int32)], axis=1)
    _, beside = extend(padded, np.array([3, 0]), empty(2))
    np.testing.assert_array_equal(beside.trunk.length, [3, 0])
    # Lane 1 reads on its own in between, its padding reaches into nobody's rows.
    _, beside = extend(padded[1:], np.array([2]), beside, 1)
    found, beside = extend(grid[:, 3:], np.array([3, 3]), beside)
    close(found.text[:1], hidden.text)
    close(found.audio[:1], hidden.audio)
    np.testing.assert_array_equal(beside.audio.length, [6, 5])


def test_cache_refuses_what_does_not_fit():
    with pytest.raises(InputError, match='max_position_embeddings 96'):
        Cache.empty(CONFIG, 1, 97, 'float32')


def test_cache_takes_160_kib_a_row_at_full_size():
    from mossjax.models.lm.config import LMConfig

    cache = jax.eval_shape(lambda: Cache.empty(LMConfig.released(), 1, 4096, jnp.bfloat16))
    buffers = jax.tree.leaves([stack.pair for stack in (cache.trunk, cache.text, cache.audio)])
    assert sum(x.size * x.dtype.itemsize for x in buffers) == 4096 * 163_840


def test_fresh_weights_follow_the_initialiser_range():
    params = jax.jit(network(tiny_config(initializer_range=0.05)).init)(jax.random.key(1))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == 'scale':
            np.testing.assert_array_equal(leaf, 1.0)
        else:
            assert 0.045 < float(jnp.std(leaf)) < 0.055, path
    text, audio = params['text_branch']['attn']['q'], params['audio_branch']['attn']['q']
    assert np.abs(text - audio).max() > 0.05


def test_the_attention_function_is_the_one_given():
    """With an attention that returns zeros, the model is the one whose output kernels are 0."""

    def nothing(q, k, v, mask):
        assert mask is CAUSAL and q.shape[2] == 6 and k.shape[2] == v.shape[2] == 2
        return jnp.zeros_like(q)

    net, grid, without = network(CONFIG, attend=nothing), tiny_grid(CONFIG, 1, 10), PARAMS
    for stack in ('trunk', 'text_branch', 'audio_branch'):
        attn = PARAMS[stack]['attn']
        without = {**without, stack: {**PARAMS[stack], 'attn': {**attn, 'o': 0 * attn['o']}}}
    silent = jax.jit(lambda p: net.bind(p)(grid, positions(1, 10), CAUSAL))(PARAMS)
    close(silent.text, forward(without, grid, positions(1, 10)).text)


def test_remat_changes_the_program_and_not_gradients():
    grid = tiny_grid(CONFIG, 1, 6)

    def gradient(net):
        def total(params):
            hidden = net.bind(params).hidden(grid, positions(1, 6), CAUSAL)
            return jnp.sum(jnp.sin(hidden.audio))

        return jax.jit(jax.grad(total)).lower(PARAMS)

    plain, remat = gradient(NET), gradient(network(CONFIG, remat=jax.checkpoint))
    dots = [lowered.as_text().count('stablehlo.dot_general') for lowered in (plain, remat)]
    assert dots[1] > dots[0]  # the layers' forward is there a second time
    got, want = remat.compile()(PARAMS), plain.compile()(PARAMS)
    for stack in ('trunk', 'audio_branch'):
        jax.tree.map(close, got[stack], want[stack])


def test_activation_constraints_name_their_axes():
    seen = set()

    def resolve(axes):
        seen.add(axes)
        return jax.sharding.PartitionSpec()

    mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    with sharding_scope(mesh, resolve):
        grid = tiny_grid(CONFIG, 1, 4)
        jax.eval_shape(lambda p: NET.bind(p)(grid, positions(1, 4), CAUSAL), PARAMS)
    looked_up = {(name,) for name in ('batch', 'time', 'vocab', 'embed')}  # ids and the tables
    assert seen == {('batch', 'time', None), ('batch', 'time', 'vocab')} | looked_up

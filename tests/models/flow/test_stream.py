"""The flow decoder on a stream: upstream's chunk-masked mel, the contract, and a bounded past."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.models.flow import solver
from mossjax.models.flow.config import FlowConfig, Window
from mossjax.models.flow.encoder import Encoder
from mossjax.models.flow.model import FlowDecoder
from mossjax.models.flow.stream import FlowStream, Prompt, noise
from mossjax.models.stream import Piece
from mossjax.nn.param import describe
from mossjax.ops.attention import attention
from tests.contract import verify_contract

SMALL = FlowConfig(
    vocab_size=50, input_size=12, mels=8, xvector_size=6, width=16, heads=2, ff_width=24, blocks=2,
    up_blocks=1, channels=8, head_dim=4, estimator_heads=2, transformers=1, mid_blocks=2,
)  # fmt: skip
STEPS = 2


def streamed(step, state, codes, sizes):
    """All frames of one session that sends pieces of these sizes and ends with the last."""
    ends, frames = np.cumsum(sizes), []
    for size, end in zip(sizes, ends, strict=True):
        piece = Piece(codes[None, end - size : end], np.array([size]), end == ends[-1:])
        state, out = step(state, piece)
        frames.append(np.asarray(out.values[0, : out.count[0]]))
    return np.concatenate(frames)


def test_frames_are_those_of_upstream_under_the_chunk_mask(flow_model, flow_io):
    """With a prompt that is no whole number of chunks, as long as nothing is forgotten."""
    prompt = flow_io['prompt_codes'][0], flow_io['prompt_mel'][0]
    codes = np.concatenate([prompt[0], np.full(2, -5, np.int32)])  # padded with rubbish
    mel = np.pad(prompt[1], ((0, 8), (0, 0)), constant_values=np.nan)
    given = Prompt(codes, mel, np.int32(7), flow_io['xvector'][0])
    window = Window(5, 30, 9)
    state = jax.jit(lambda model: FlowStream(model, window).start(1, given))(flow_model)
    step = jax.jit(lambda model, *args: FlowStream(model, window).step(*args))
    found = streamed(functools.partial(step, flow_model), state, flow_io['codes'][0], [8, 8, 8])
    expected = flow_io['chunk/mel_full'][0].T[28:]
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4)


def bounded(params, window, n):
    """Up to n codes -> all frames: the ordinary network, its attentions seeing a window's past."""

    def attend(q, k, v, mask, bias=0.0):
        t = q.shape[1]  # n, or as many as there are frames
        code = np.arange(t) * n // t
        block = code // window.chunk * window.chunk
        seen = (code < block[:, None] + window.chunk) & (code >= block[:, None] - window.past)
        return attention(q, k, v, mask, bias=bias + np.where(seen, 0, -1e30))

    def make(rngs):
        net = FlowDecoder(SMALL, attend=attend, rngs=rngs)
        net.encoder = Encoder(SMALL, attend=attend, rngs=rngs)
        return net

    net = describe(make)

    @jax.jit
    def run(codes, count):
        return net.bind(params)(
            codes[None], count[None], jnp.zeros((1, SMALL.xvector_size)),
            jnp.zeros((1, 0, SMALL.mels)), noise(SMALL.mels, 0, SMALL.ratio * n), steps=STEPS,
        )[0]  # fmt: skip

    def whole(codes):
        padded = np.pad(codes, (0, n - len(codes)))
        return run(padded, np.int32(len(codes)))[: SMALL.ratio * len(codes)]

    return whole


@pytest.fixture(scope='module')
def params():
    """Every bias and every norm's scale counts."""
    rng = np.random.default_rng(1)

    def draw(path, shape):
        one = path[-1].key == 'scale'
        return jnp.asarray(one + 0.25 * rng.normal(size=shape.shape), shape.dtype)

    net = describe(lambda rngs: FlowDecoder(SMALL, rngs=rngs))
    return jax.tree_util.tree_map_with_path(draw, net.shapes)


def small(params, window):
    net = describe(lambda rngs: FlowDecoder(SMALL, rngs=rngs))
    return FlowStream(net.bind(params), window, steps=STEPS)


def test_the_contract_with_a_bounded_past(params, rng):
    window = Window(chunk=2, past=4)
    rows = [rng.integers(0, 50, n).astype(np.int32) for n in (13, 6, 1)]
    verify_contract(small(params, window), rows, bounded(params, window, 13), atol=1e-4)


def test_a_voice_is_never_forgotten(params, rng):
    """Pieces of one block and a piece of all give the same; another voice gives other frames."""
    window = Window(chunk=2, past=4, voice=7)
    stream, codes = small(params, window), rng.integers(0, 50, 24).astype(np.int32)
    step, start = jax.jit(stream.step), jax.jit(functools.partial(stream.start, 1))

    def prompt(seed):
        own = np.random.default_rng(seed)
        return Prompt(
            own.integers(0, 50, 7).astype(np.int32), own.normal(size=(28, 8)).astype('f'),
            np.int32(5), own.normal(size=6).astype('f'),
        )  # fmt: skip

    first, other = (start(prompt(i)) for i in range(2))
    found = streamed(step, first, codes, [2] * 12)
    np.testing.assert_allclose(found, streamed(step, first, codes, [24]), rtol=0, atol=1e-4)
    other = other._replace(speaker=first.speaker)  # only the prompt differs
    distance = np.abs(found - streamed(step, other, codes, [2] * 12)).max(axis=1)
    assert distance[-8:].min() > 1e-3


def test_the_noise_goes_on_from_its_beginning():
    table = solver.noise_table(8)
    found = noise(8, jnp.int32(14998), 4)
    np.testing.assert_array_equal(found, table[[14998, 14999, 0, 1]])
    np.testing.assert_array_equal(noise(8, jnp.int32(3 * 15000 + 7), 1)[0], table[7])

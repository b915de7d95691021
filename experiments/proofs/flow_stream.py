"""The streaming flow decoder: how near it comes to the run that forgets nothing, and what it costs.

    JAX_PLATFORMS=cpu python -m experiments.proofs.flow_stream \
        --out experiments/proofs/flow_stream.json [--parts flow@v5e:1x1,distances,...]

Distances: the shipped nano codec speaks recordings of four speakers, each strung together to 16 s,
behind a voice of 3.2 s of the same speaker, with windows of 1, 2, 4 and 8 s. Costs: the released
sizes with random weights, compiled by the TPU compiler for chips that are not there, float32,
one session in steady state; the vocoder's windows are counted with what they compute again.
Under `roads` the record keeps what was measured of the other way to stream, which was dropped: the
ordinary decoder on a window that slides.

Fails if a second of sound takes longer than GATE seconds on one v5e.
"""

import functools
import importlib.metadata
import sys

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import numpy as np

from experiments.proofs import cost, record
from mossjax.convert.codec_flow import flow_network, open_flow
from mossjax.convert.codec_vocoder import hift_network
from mossjax.infer.assets import Assets, shipped
from mossjax.infer.flow_stream import HOPS, PAST, VOICE
from mossjax.infer.speech_tokenizer import SpeechTokenizer
from mossjax.models.flow import mel as features
from mossjax.models.flow import solver
from mossjax.models.flow.config import Context, Window, released
from mossjax.models.flow.stream import FlowStream, Prompt
from mossjax.models.stream import Piece
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.models.vocoder.hift.stream import HiftStream
from mossjax.plan import compile as plan

CODES, PROMPT, CHUNK = 200, 40, 5  # 16 s of speech, 3.2 s of voice
PASTS = {'1 s': 15, '2 s': 25, '4 s': 50, '8 s': 100}  # codes, whole chunks
TOPOLOGIES = ('v5e:1x1', 'v6e:1x1')
NETWORKS = ('flow', 'vocoder')
PARTS = (*(f'{name}@{where}' for where in TOPOLOGIES for name in NETWORKS), 'distances')
GATE = 0.1  # estimated seconds per second of sound, v5e, flow and vocoder
CODE = 0.08  # seconds


def material(codec) -> tuple[np.ndarray, np.ndarray]:
    """(codes (4, PROMPT + CODES), mels (4, 4 (PROMPT + CODES), 80)): the voice first."""
    assets, tokenizer = Assets.open(shipped()), SpeechTokenizer.open(codec)
    speakers: dict = {}
    for clip in assets.questions('heldout') + assets.questions('never_spoken'):
        speakers.setdefault(clip.speaker, []).append(clip)
    codes, mels = [], []
    for clips in list(speakers.values())[:4]:
        wave = np.concatenate([assets.load(clip, 48000) for clip in clips[:16]])
        wave = wave[: round(48000 * CODE * (PROMPT + CODES))]
        codes.append(tokenizer.encode([wave[::3]])[0])
        mels.append(np.asarray(features.log_mel(wave[::2])))
    return np.stack(codes), np.stack(mels)


def whole(net, params, codes, mels, chunk: int | None) -> np.ndarray:
    """The run that forgets nothing."""
    n, known = codes.shape[1], mels[:, : 4 * PROMPT]

    @jax.jit
    def run(params):
        return net.bind(params)(
            codes, np.full(len(codes), n), np.zeros((len(codes), 192), 'f'), known,
            solver.noise(4 * n), context=Context(chunk),
        )  # fmt: skip

    return np.asarray(run(params))[:, 4 * PROMPT :]


def streamed(net, params, codes, mels, past: int, hop: int) -> np.ndarray:
    """The four as sessions of one batch, each with its own voice."""
    window = Window(CHUNK, past, PROMPT)
    start = jax.jit(lambda p, prompt: FlowStream(net.bind(p), window).start(1, prompt))
    step = jax.jit(lambda p, s, x: FlowStream(net.bind(p), window).step(s, x))
    states = [
        start(params, Prompt(c[:PROMPT], m[: 4 * PROMPT], np.int32(PROMPT), np.zeros(192, 'f')))
        for c, m in zip(codes, mels, strict=True)
    ]
    state, frames = jax.tree.map(lambda *x: jnp.concatenate(x), *states), []
    for i in range(PROMPT, PROMPT + CODES, hop):
        last = np.full(len(codes), i + hop == PROMPT + CODES)
        piece = Piece(codes[:, i : i + hop], np.full(len(codes), hop), last)
        state, out = step(params, state, piece)
        frames.append(np.asarray(out.values[:, : int(out.count[0])]))
    return np.concatenate(frames, axis=1)


def figures(found, reference, truth) -> dict:
    """Mean distances of log-mels in nepers; jumps from frame to frame at joins and elsewhere."""
    late = slice(4 * PASTS['8 s'], None)  # every window is full by then
    jumps = np.abs(np.diff(found, axis=1)).mean(axis=2)
    joins = (np.arange(jumps.shape[1]) + 1) % (4 * HOPS[-1]) == 0
    return {
        'to_unlimited': round(float(np.abs(found - reference)[:, late].mean()), 4),
        'to_recording': round(float(np.abs(found - truth).mean()), 4),
        'jumps_at_joins_p95': round(float(np.percentile(jumps[:, joins], 95)), 4),
        'jumps_elsewhere_p95': round(float(np.percentile(jumps[:, ~joins], 95)), 4),
    }


def distances() -> dict:
    jax.config.update('jax_default_matmul_precision', 'highest')
    codec = shipped() / 'codec'
    config, params = open_flow(codec)
    params, net = jax.tree.map(jnp.asarray, params), flow_network(config)
    codes, mels = material(codec)
    reference = whole(net, params, codes, mels, CHUNK)
    note = functools.partial(figures, reference=reference, truth=mels[:, 4 * PROMPT :])
    table = {'unlimited': note(reference), 'offline': note(whole(net, params, codes, mels, None))}
    for name, past in PASTS.items():
        table[name] = note(streamed(net, params, codes, mels, past, HOPS[-1]))
        logging.info('%s: %s', name, table[name])
    return table


def size(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def flow_step(hop: int, window: Window):
    """(function, its arguments' shapes) of a step in which nobody ends."""
    net = flow_network(released())

    def stream(params):
        return FlowStream(net.bind(params), window, ends=False)

    def step(params, state, piece):
        with jax.default_matmul_precision('highest'):
            return stream(params).step(state, piece)

    state = jax.eval_shape(lambda params: stream(params).start(1), net.shapes)
    return step, (net.shapes, state, piece((1, hop), jnp.int32))


def vocoder_step(hop: int):
    """The same of the vocoder, on the frames of so many codes."""
    net = hift_network(HiftConfig())

    def step(params, state, piece):
        with jax.default_matmul_precision('highest'):
            return HiftStream(net.bind(params), 4 * hop).step(state, piece)

    state = jax.eval_shape(lambda p: HiftStream(net.bind(p), 4 * hop).start(1), net.shapes)
    return step, (net.shapes, state, piece((1, 4 * hop, features.MELS), jnp.float32))


def piece(shape, dtype) -> Piece:
    return jax.eval_shape(
        lambda: Piece(jnp.zeros(shape, dtype), jnp.zeros(1, jnp.int32), jnp.zeros(1, bool))
    )


def steady(network: str):
    """(function, its arguments' shapes) of a step of one of NETWORKS, as it is costed."""
    if network == 'vocoder':
        return vocoder_step(HOPS[-1])
    return flow_step(HOPS[-1], Window(released().chunk, PAST, VOICE))


def program_hash(network: str) -> str:
    """Of that step on no device in particular."""
    step, given = steady(network)
    traced = jax.jit(step, donate_argnums=(1,)).trace(*given)
    return plan.program_hash(traced.lower(lowering_platforms=('tpu',)))


def costs(network: str, topology: str) -> dict:
    """Of a steady step: seconds per second of sound, operations, bytes."""
    hop, (step, given) = HOPS[-1], steady(network)
    one = cost.compiled(step, given, topology, donate=(1,))
    return {
        'seconds_per_second': round(one['seconds'] / (CODE * hop), 4),
        'gflop_per_second': round(one['flops'] / (CODE * hop) / 1e9, 1),
        'weight_bytes': size(given[0]), 'state_bytes': size(given[1]),
        'temporary_bytes': one['temporary_bytes'], 'program_sha256': program_hash(network),
        'jax': jax.__version__, 'libtpu': importlib.metadata.version('libtpu'),
    }  # fmt: skip


def main(argv: list[str]) -> None:
    del argv
    out = flags.FLAGS.out
    if not out:
        sys.exit('--out FILE.json is missing')
    wanted = record.parts(flags.FLAGS.parts, PARTS)
    old = record.read(out)
    found = {name: old[name] for name in ('roads', *PARTS) if name in old}
    for part in wanted:
        found[part] = costs(*part.split('@')) if '@' in part else distances()
        logging.info('%s: %s', part, found[part])
        record.write(out, 'JAX_PLATFORMS=cpu python -m experiments.proofs.run flow_stream', {
            'window': {'past_codes': PAST, 'voice_codes': VOICE, 'hop_codes': HOPS[-1]},
            'gate': GATE, 'v5e_seconds_per_second': v5e(found), **found,
        })  # fmt: skip
    if (v5e(found) or 0) > GATE:
        sys.exit(f'v5e: more than {GATE} s for a second of sound')


def v5e(found: dict) -> float | None:
    """Seconds per second of sound of both networks, once both are known."""
    parts = [found.get(f'{network}@{TOPOLOGIES[0]}') for network in NETWORKS]
    if None in parts:
        return None
    return round(sum(part['seconds_per_second'] for part in parts), 4)


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file; parts that are not made again stay in it.')
    flags.DEFINE_list('parts', None, f'Out of {", ".join(PARTS)}; all by default.')
    app.run(main)
